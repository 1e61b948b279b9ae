"""Earlier images of a patient that an image can be compared with, and the comparison on its screen."""

from datetime import UTC, datetime, timedelta
from types import SimpleNamespace

import ipywidgets as widgets
import numpy as np
import pytest

from lungkit.clinic.app.page import Page
from lungkit.clinic.app.reading import reading, spacing_of
from lungkit.clinic.app.viewer import Viewer
from lungkit.clinic.records import settings
from lungkit.clinic.records.cases import AnswerHidden
from lungkit.clinic.records.patients import NewPatient
from lungkit.clinic.records.tables import Study, User, Withdrawal
from tests.clinic.test_app_doctor import button, everything, text

FIRST_DAY = datetime(2026, 3, 11, 12, tzinfo=UTC)


@pytest.fixture
def saved(records, store, chest_image, prediction):
    """A function: saves an image, uploaded so many days after the first day; its reading's id."""
    known: dict[str, str] = {}
    digests = iter(f"{number:064x}" for number in range(99))

    def save(day: int, number: str = "T-1", modality: str = "DX", view: str = "PA") -> str:
        digest = next(digests)
        image = chest_image(seed=int(digest, 16), modality=modality, units="HU" if modality == "CT" else "intensity")
        image.tags["view"] = view
        made = records.save_case(known.get(number) or NewPatient(number, "Someone"), image, digest, prediction())
        known[number] = made.patient.id
        with store.write() as db:
            db.query(Study).filter_by(sha256=digest).one().uploaded_at = FIRST_DAY + timedelta(days=day)
        return made.reading_id

    return save


def viewers(screen: widgets.Widget) -> list[Viewer]:
    return [one for one in everything(screen) if isinstance(one, Viewer)]


def test_priors_are_earlier_images_of_the_same_patient_kind_and_view_newest_first(records, saved):
    first, fourth, second = saved(1), saved(4), saved(2)
    for other in ({"number": "T-2"}, {"modality": "CT"}, {"view": "LL"}):
        saved(2, **other)
    unknown = saved(3, view="")
    assert [row.reading_id for row in records.priors(fourth)] == [unknown, second, first]
    assert records.priors(first) == []


def test_a_withdrawn_image_is_no_prior(records, store, saved):
    before, now = saved(1), saved(2)
    assert [row.reading_id for row in records.priors(now)] == [before]
    with store.write() as db:
        study, user = records.case(before).study_id, db.query(User).first().id
        db.add(Withdrawal(study_id=study, reason="wrong person", user_id=user))
    assert records.priors(now) == []


def test_an_image_whose_answer_is_withheld_is_no_prior_and_has_none(records, store, saved):
    with store.write() as db:
        settings.put(db, settings.BLIND_SHARE, 1.0)
    hidden = saved(1)
    with store.write() as db:
        settings.put(db, settings.BLIND_SHARE, 0.0)
    now = saved(2)
    assert records.priors(now) == []
    with pytest.raises(AnswerHidden):
        records.priors(hidden)
    records.review(hidden, "Normal")
    assert [row.reading_id for row in records.priors(now)] == [hidden]


def test_a_prior_is_shown_next_to_the_image_linked_and_closed_again(records, saved):
    saved(1), saved(2)
    now = saved(3)
    screen = reading(records.case(now), records, Page(), str)
    [own] = viewers(screen)
    assert not own.linked
    button(screen, "Compare with prior (13 Mar 2026)").click()
    own_again, prior = viewers(screen)
    assert own_again is own and own.linked and prior.linked
    assert prior.label.startswith("Prior: X-ray image, uploaded 13 Mar 2026")
    [choice] = [one for one in everything(screen) if isinstance(one, widgets.Dropdown) and one.description == "Prior"]
    choice.index = 1
    _, other = viewers(screen)
    assert other.label.startswith("Prior: X-ray image, uploaded 12 Mar 2026")
    assert prior.comm is None and prior.pixels == b"", "the one before is not kept in memory"
    button(screen, "Close the comparison").click()
    assert viewers(screen) == [own] and not own.linked and other.comm is None


def test_the_image_is_linked_before_a_prior_appears_that_asks_what_it_looks_at(records, saved):
    saved(1)
    screen = reading(records.case(saved(2)), records, Page(), str)
    [own] = viewers(screen)
    [columns] = [box for box in everything(screen) if own in getattr(box, "children", ())]
    linked = []
    columns.observe(lambda _: linked.append(own.linked), "children")
    button(screen, "Compare with prior (12 Mar 2026)").click()
    assert linked == [True]


def test_an_image_without_a_prior_offers_no_comparison(records, saved):
    screen = reading(records.case(saved(1)), records, Page(), str)
    assert "Compare with prior" not in text(screen)


# --- mm


@pytest.mark.parametrize(
    ("kind", "tags", "spacing", "words"),
    [
        ("CT", {"pixel_spacing": "0.7\\0.7"}, (0.7, 0.7), ""),
        ("X-ray", {"detector_spacing": "0.14\\0.14"}, (0.14, 0.14), "at the detector"),
        ("X-ray", {"pixel_spacing": "0.14\\0.14", "detector_spacing": "0.14\\0.14"}, (0.14, 0.14), "at the detector"),
        (
            "X-ray",
            {"pixel_spacing": "0.1\\0.1", "detector_spacing": "0.14\\0.14"},
            (0.1, 0.1),
            "as calibrated in the file",
        ),
        ("CT", {"pixel_spacing": "0,7\\0,7"}, (0.7, 0.7), ""),
        ("CT", {}, None, ""),
        ("CT", {"pixel_spacing": "0.7"}, None, ""),
        ("CT", {"pixel_spacing": "<b>\\0.7"}, None, ""),
        ("CT", {"pixel_spacing": "0\\0.7"}, None, ""),
        ("CT", {"pixel_spacing": "700\\700"}, None, ""),
        ("CT", {"pixel_spacing": "nan\\inf"}, None, ""),
        ("CT", {"pixel_spacing": "0.7\\0.7", "rows": ""}, None, ""),
    ],
)
def test_the_distance_between_pixels_is_what_the_header_says_or_not_known(kind, tags, spacing, words):
    case = SimpleNamespace(kind=kind, tags={"rows": "48", "columns": "64"} | tags, pixels=np.zeros((48, 64)))
    assert spacing_of(case) == (spacing and pytest.approx(spacing), words)


def test_the_distance_is_that_of_the_pixels_that_are_kept():
    tags = {"rows": "48", "columns": "64", "pixel_spacing": "1.4\\0.7"}
    made_square = SimpleNamespace(kind="CT", tags=tags, pixels=np.zeros((96, 64)))
    assert spacing_of(made_square)[0] == pytest.approx((0.7, 0.7))

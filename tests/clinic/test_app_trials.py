"""The screen Trials, driven as a browser drives it: figures, signatures, one click for the challenger, the shadow."""

import re

import numpy as np
import pytest

from lungkit.clinic.app import trial_view
from lungkit.clinic.app.models_screen import ModelsScreen
from lungkit.clinic.app.page import Page
from lungkit.clinic.app.trials_screen import TrialsScreen
from lungkit.clinic.predictor import ModelPool
from lungkit.clinic.records import trials
from lungkit.clinic.records.administration import Administration
from lungkit.clinic.records.trials import RollbackRule
from lungkit.models import registry
from tests import trials as made

SCRIPT = "<img src=x onerror=alert(1)>"


@pytest.fixture
def store(sqlite_store):
    return sqlite_store


@pytest.fixture
def models(tmp_path, monkeypatch):
    """Three versions, v1 in use."""
    monkeypatch.setenv("LUNGKIT_ARTIFACTS", str(tmp_path / "artifacts"))
    made.versions(3)


@pytest.fixture
def opened(store, signed_in, models):
    """A function: the screen of an administrator with this name, and the page it is on."""
    people = {}

    def open_screen(name="boss", kind=TrialsScreen):
        if name not in people:
            people[name] = signed_in("admin", name)
        page = Page()
        screen = kind(Administration(people[name]), page)
        screen.refresh()
        return screen, page

    return open_screen


def trial(store, *sets, **changes) -> str:
    with store.write() as db:
        return trials.open_trial(db, made.evidence(*sets, **changes), RollbackRule.from_dict(made.ROLLBACK))


def choose(screen, place: int = 0) -> None:
    screen.table.rows.set_state({"selected_rows": [place]})


def sign(screen) -> None:
    choose(screen)
    screen.sign.click()
    screen.confirm.yes.click()


def test_two_administrators_sign_and_one_click_uses_the_version(opened, store):
    trial(store)
    first, page = opened("boss")
    choose(first)
    assert first.use.disabled and not first.sign.disabled
    first.sign.click()
    assert "Sign that you have looked at the figures of lung: v2 against v1" in first.confirm.question.value
    first.confirm.yes.click()
    assert "You have signed" in page.message.value and "1 more needed" in first.detail.value
    first.sign.click()
    first.confirm.yes.click()
    assert "signed this trial already" in page.message.value and first.use.disabled
    second, page = opened("deputy")
    sign(second)
    assert not second.use.disabled and "Test Boss" in second.detail.value and "Test Deputy" in second.detail.value
    second.use.click()
    assert registry.active("lung").version == "v1"  # a question first
    second.confirm.yes.click()
    assert registry.active("lung").version == "v2" and "lung@v2 is in use now" in page.message.value
    assert "Within its limits so far" in second.standings.value
    assert all(button.disabled for button in (second.sign, second.use, second.reject))


def test_a_page_that_was_open_before_refuses_what_is_no_longer_so(opened, store):
    trial(store)
    first, page = opened("boss")
    choose(first)
    first.sign.click()
    other, _ = opened("deputy")
    choose(other)
    other.reject.click()
    other.confirm.yes.click()
    first.confirm.yes.click()
    assert "This trial is rejected" in page.message.value


@pytest.mark.parametrize(
    ("sets", "words"),
    [([made.of_set(auc=made.LOSS)], "Keep the version in use"), ([made.of_set(auc=made.SAME)], "Cannot tell")],
)
def test_without_the_verdict_promote_the_button_stays_closed_and_a_forged_click_is_refused(opened, store, sets, words):
    trial(store, *sets)
    for name in ("boss", "deputy"):
        screen, page = opened(name)
        sign(screen)
    assert words in screen.detail.value and screen.use.disabled
    screen.use.click()  # a browser may send it all the same
    screen.confirm.yes.click()
    assert "so v2 is not used" in page.message.value and registry.active("lung").version == "v1"


def test_the_figures_show_margin_intervals_power_looks_speed_and_the_rule_for_going_back(opened, store):
    trial(
        store, made.of_set(), made.of_set("home", made.SAME), made.of_set("new", made.GAIN, answer_shown=0.75), looks=3
    )
    screen, _ = opened()
    choose(screen)
    html = screen.detail.value
    for words in (
        "margin −0.02",
        "+0.020 (+0.010 to +0.030)",
        "would show not worse by 0.02 with a chance of 80 %",
        "Look number 3 at this locked set",
        "75 % of the labels of the new cases new-v1 were given with an answer on screen",
        "1.10 times as long",
        "1.5 MB",
        "fewer than 80 % of 50 reviews in a row agree",
        "3 left out",
    ):
        assert words in html, words


def test_the_forest_plot_places_each_difference_on_one_axis():
    sets = [made.of_set(auc=(0.02, -0.01, 0.05)), made.of_set("home", (0.0, -0.03, 0.03))]
    evidence = _without_registry(sets)
    svg = trial_view.forest(evidence)
    dots = [float(x) for x in re.findall(r'<circle[^>]* cx="([\d.]+)"', svg)]
    lines = {kind: float(x) for kind, x in re.findall(r'<line class="(none|margin)" x1="([\d.]+)"', svg)}
    ends = [tuple(map(float, pair)) for pair in re.findall(r'class="range \w+" x1="([\d.]+)" x2="([\d.]+)"', svg)]
    assert dots[1] == lines["none"] and lines["margin"] < lines["none"] < dots[0]
    scale = (dots[0] - lines["none"]) / 0.02
    assert np.allclose([lines["none"] - lines["margin"]], scale * 0.02, atol=0.2)
    assert np.allclose(
        ends, [[lines["none"] + scale * x for x in pair] for pair in ((-0.01, 0.05), (-0.03, 0.03))], atol=0.3
    )
    assert all(
        trial_view.NAMES <= x <= trial_view.WIDTH - trial_view.FIGURES for x in [*sum(ends, ()), *lines.values()]
    )
    assert 'role="img" aria-label="Difference in AUC: the locked set locked-v1 +0.020' in svg


def _without_registry(sets):
    from lungkit.models.verdict import Evidence

    candidate = {"version": "v1", "fingerprint": "", "milliseconds": 1.0, "bytes": 1}
    return Evidence.from_dict(
        {
            "model": "lung", "champion": candidate, "challenger": candidate, "margin": 0.02, "sets": sets,
            "not_measured": [], "times_slower": 1.0, "timed_on": 1, "measured_at": "",
        }
    )  # fmt: skip


def test_names_from_data_sets_are_shown_as_they_were_written(opened, store):
    trial(store, made.of_set(data=SCRIPT, source=SCRIPT), made.of_set("home", made.SAME, source=SCRIPT))
    screen, _ = opened()
    choose(screen)
    assert SCRIPT not in screen.detail.value and "&lt;img" in screen.detail.value


def test_a_trial_against_a_version_that_is_no_longer_in_use_cannot_be_signed(opened, store):
    trial(store)
    registry.promote("lung", "v3")
    screen, _ = opened()
    choose(screen)
    assert screen.sign.disabled and "Lung@v3 is in use now" in screen.detail.value and not screen.reject.disabled


def test_a_crossed_limit_is_on_top_of_the_screen(opened, store, readers_of_v2):
    trial(store)
    for name in ("boss", "deputy"):
        screen, _ = opened(name)
        sign(screen)
    screen.use.click()
    screen.confirm.yes.click()
    readers_of_v2(50)
    screen.refresh()
    assert "notice problem" in screen.standings.value and "Go back to v1: of reviews 1 to 50" in screen.standings.value
    assert registry.active("lung").version == "v2"


@pytest.fixture
def readers_of_v2(signed_in, chest_image, prediction):
    """A function: so many readings of lung@v2 that are all corrected."""
    from lungkit.clinic.records.cases import Records
    from lungkit.clinic.records.patients import NewPatient

    def make(count: int) -> None:
        doctor = Records(signed_in("doctor", "anna"))
        for number in range(count):
            patient = NewPatient(f"N-{number}", f"Name {number}")
            saved = doctor.save_case(patient, chest_image(seed=number), f"{number:064x}", prediction(version="v2"))
            doctor.review(saved.reading_id, "Normal")

    return make


def test_a_version_is_named_for_the_shadow_and_taken_out_again(opened, store):
    screen, page = opened()
    screen.begin.click()
    assert "Choose a version first" in page.message.value
    assert [label for label, _ in screen.version.options] == ["Choose a version", "lung@v3", "lung@v2"]
    screen.version.set_state({"index": 2})
    screen.begin.click()
    assert "lung@v2 reads in the shadow from now on" in page.message.value
    assert "0 images of 0 patients; 0 wait" in screen.shadows.value
    screen.version.set_state({"index": 2})
    screen.end.click()
    assert "No version reads in the shadow" in screen.shadows.value


def test_the_models_screen_says_that_a_version_was_not_tried(opened, store):
    screen, _ = opened("boss", ModelsScreen)
    choose(screen, 1)
    screen.promote.click()
    assert "No trial has measured v2 next to the version in use." in screen.confirm.question.value
    trial(store, made.of_set(auc=made.LOSS))
    screen.promote.click()
    assert "The last trial of v2 says keep." in screen.confirm.question.value


def test_an_open_page_of_a_clinician_reads_with_the_version_that_a_trial_brought(
    store, signed_in, trained, tmp_path, monkeypatch
):
    import shutil

    shutil.copytree(trained, tmp_path / "artifacts")
    monkeypatch.setenv("LUNGKIT_ARTIFACTS", str(tmp_path / "artifacts"))
    made.once_more()
    pool = ModelPool()  # of the page that is open
    assert pool.get("tiny-cnn").version.version == "v1"
    with store.write() as db:
        trial_id = trials.open_trial(db, made.evidence(model="tiny-cnn"), RollbackRule.from_dict(made.ROLLBACK))
    admins = [Administration(signed_in("admin", name)) for name in ("boss", "deputy")]
    for admin in admins:
        admin.sign_trial(trial_id, admin.trials()[0].sha256)
    admins[0].use_challenger(trial_id)
    assert pool.get("tiny-cnn").version.version == "v2"
    admins[0].roll_back("tiny-cnn")
    assert pool.get("tiny-cnn").version.version == "v1"

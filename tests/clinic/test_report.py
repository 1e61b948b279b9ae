"""The report: everything of the case is on it as text, whatever people typed, on two pages at most."""

import io
import re
import subprocess
import sys
import time
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import numpy as np
import pypdf
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lungkit.clinic import predictor, report, report_pages
from lungkit.clinic.records import cases, patients
from lungkit.models import card_text
from lungkit.models.card import ModelCard
from lungkit.models.rule import DecisionRule, UncertaintyBand
from tests.graded import CAUTION, CLASSES, MIDDLE, RANGES

AT = datetime(2026, 3, 9, 14, 5, tzinfo=UTC)
PRINTED = datetime(2026, 3, 10, 8, 30, tzinfo=UTC)
RULE = DecisionRule(
    kind="threshold", positive="Infected", threshold=0.42, temperature=1.3,
    band=UncertaintyBand(margin=0.4, low=0.33, high=0.52),
)  # fmt: skip
CHECKS = (
    predictor.Check("kind", True, 1.2, 3.0, "Looks like the chest CT images the model learned from."),
    predictor.Check("size", True, 512, 64, "512 × 512 pixels are enough."),
)
CARD = {
    "model": "lung-cnn",
    "version": "v2",
    "created": "2026-03-01T09:00:00+00:00",
    "lungkit": "0.1.0",
    "classes": ["Clear", "Infected"],
    "preprocessing": {"size": [96, 96], "window": [-500.0, 1400.0], "mean": 0.4, "std": 0.3},
    "data": {"name": "open_ct", "fingerprint": "ab12cd", "counts": {"train": {"images": 3120, "patients": 940}}},
    "metrics": {
        "val": {
            "n": 200,
            "patients": 80,
            "accuracy": 0.912,
            "auc": None,
            "per_class": {"Infected": {"recall": 0.875, "specificity": 0.944}},
            "intervals": {
                "accuracy": [0.881, 0.938],
                "per_class": {"Infected": {"recall": [0.8, 0.93], "specificity": [0.9, 0.97]}},
            },
        },
        "test": {"n": 100, "patients": 40, "accuracy": 0.834, "intervals": {"accuracy": [0.76, 0.89]}},
    },
    "synthetic": False,
    "operating_point": {"kind": "threshold", "positive": "Infected", "threshold": 0.42},
}


def case(**changes) -> cases.Case:
    heat = np.zeros((2, 12, 12), np.float32)
    heat[1, 8:, 8:] = 1
    whole = cases.Case(
        reading_id="3f0f6f0e-5a5c-4f52-9c9c-0c3c6b8f2a11",
        study_id="d2a1",
        patient=patients.PatientRow("77aa", "P-0042", "Łukasz Ćwikła", 1956, "male"),
        kind="CT",
        units="HU",
        width=512,
        height=480,
        sha256="81227871" * 8,
        tags={"body_part": "CHEST", "slice_thickness": "1.25"},
        notes="Fever for five days.",
        uploaded_at=AT,
        uploaded_by="Dr. Uploader",
        model="lung-cnn",
        version="v2",
        classes=("Clear", "Infected"),
        probabilities={"Clear": 0.128, "Infected": 0.872},
        label="Infected",
        decision="Infected",
        rule=RULE,
        superseded=False,
        checks=CHECKS,
        milliseconds=183.0,
        read_at=AT + timedelta(seconds=1),
        reviews=(cases.ReviewRow("Dr. Reviewer", True, "Infected", "Lower lobe.", AT + timedelta(minutes=5)),),
        pixels=np.linspace(-1000, 200, 480 * 512, dtype=np.float32).reshape(480, 512),
        heat=heat,
    )
    return replace(whole, **changes)


def made(case, card=CARD):
    card = card and ModelCard.from_dict(card)
    return pypdf.PdfReader(io.BytesIO(report.pdf(case, card, PRINTED)))


def text(report) -> str:
    """Of all pages, lines joined: where they break does not matter."""
    return re.sub(r"\s+", " ", " ".join(page.extract_text() for page in report.pages))


# --- what is on it


def test_the_report_contains_everything_about_the_case():
    printed = text(made(case()))
    for part in (
        "P-0042", "Łukasz Ćwikła", "1956", "male",
        "512 × 480 pixels", "9 Mar 2026, 14:05 UTC, by Dr. Uploader", "body part CHEST, slice thickness in mm 1.25",
        "Fever for five days.", "The model answers: Infected", "Probability 87 %", "Clear 13 %", "Infected 87 %",
        "operating point 42 %", "uncertain, 33 % to 52 %", "Areas that support “Infected”",
        "Looks like the chest CT images the model learned from.", "512 × 512 pixels are enough.",
        "Agreed with Infected: Dr. Reviewer", "9 Mar 2026, 14:10 UTC", "Lower lobe.",
        "lung-cnn@v2", "3f0f6f0e-5a5c-4f52-9c9c-0c3c6b8f2a11", "81227871" * 8, "10 Mar 2026, 08:30 UTC",
        "in 0.18 s",
    ):  # fmt: skip
        assert part in printed, part


def test_the_report_says_what_was_out_of_the_ordinary_when_the_image_was_read():
    note = "scaled from 96 x 60 to 96 x 120, as its pixels are not square"
    assert f"Read {note}" in text(made(case(tags={"note": note})))


def test_the_model_card_is_on_it_with_intervals_for_each_split():
    printed = text(made(case()))
    assert "open_ct: 3,120 images of 940 patients" in printed
    assert "Validation: 200 images of 80 patients" in printed and "Test: 100 images of 40 patients" in printed
    assert "Accuracy 0.912 (0.881–0.938) 0.834 (0.760–0.890)" in printed
    assert "Sensitivity, Infected 0.875 (0.800–0.930) –" in printed
    assert "AUC" not in printed  # undefined on both
    assert "phantom" not in printed


def test_a_model_of_synthetic_data_says_so():
    assert "learned from computer-made images (a phantom)" in text(made(case(), CARD | {"synthetic": True}))


def test_a_case_whose_model_is_gone_is_still_printed():
    printed = made(case(), None)
    assert len(printed.pages) == 2
    assert "lung-cnn@v2" in text(printed) and "is no longer in the registry" in text(printed)


def test_each_page_says_research_use_only_and_its_number():
    for number, page in enumerate(made(case()).pages, 1):
        assert "Research use only, not a diagnosis" in page.extract_text()
        assert f"Page {number} of 2" in page.extract_text()


@pytest.mark.parametrize(
    ("changes", "about", "slices", "heading"),
    [
        ({}, None, None, "Chest image: Clear, Infected?"),
        ({"tags": {"view": "PA"}}, "Chest X-ray: normal or pneumonia?", None,
         "Chest X-ray, frontal: normal or pneumonia?"),
        ({"tags": {"view": "LL"}}, "Chest X-ray: normal or pneumonia?", None,
         "Chest X-ray, lateral: normal or pneumonia?"),
        ({"tags": {"view": "Ćwikła"}}, "Chest X-ray: normal or pneumonia?", None, "Chest X-ray: normal or pneumonia?"),
        ({}, "Chest CT slice: COVID-19 or not?", 60, "Chest CT series, 60 slices: COVID-19 or not?"),
    ],
)  # fmt: skip
def test_the_heading_and_the_title_say_what_was_read(changes, about, slices, heading):
    card = ModelCard.from_dict(CARD | ({"about": {"question": about}} if about else {}))
    printed = pypdf.PdfReader(io.BytesIO(report.pdf(case(**changes), card, PRINTED, slices)))
    for page in printed.pages:
        assert heading in " ".join(page.extract_text().split())[: len(heading) + 40]
    assert printed.metadata.title == f"{heading} Reading 3f0f6f0e-5a5c-4f52-9c9c-0c3c6b8f2a11"


def test_the_heading_names_the_kind_of_image_where_the_card_is_gone():
    assert card_text.what_was_read(None, "CT") == "CT image."
    assert card_text.what_was_read(None, "CT", slices=60) == "CT series, 60 slices."


def test_nothing_that_names_the_patient_is_in_the_metadata():
    printed = made(case())
    assert printed.metadata.title == "Chest image: Clear, Infected? Reading 3f0f6f0e-5a5c-4f52-9c9c-0c3c6b8f2a11"
    assert printed.metadata.producer.startswith("lungkit")
    assert printed.metadata.creation_date == PRINTED
    kept = " ".join(map(str, printed.metadata.values()))
    assert "P-0042" not in kept and "Ćwikła" not in kept


# --- decisions in words


def test_an_answer_within_the_band_of_uncertainty_asks_for_a_clinician():
    unsure = case(decision=predictor.REVIEW, probabilities={"Clear": 0.55, "Infected": 0.45}, reviews=())
    printed = text(made(unsure))
    assert "Uncertain: a clinician has to decide" in printed
    assert "band of uncertainty" in printed and "Nearest: Infected, 45 %" in printed
    assert "Not reviewed by a clinician yet" in printed
    assert "The model answers" not in printed


def test_a_failed_check_is_the_reason_that_is_given():
    failed = (*CHECKS, predictor.Check("intensity", False, 0.9, 0.5, "The values are not those of a chest CT."))
    printed = text(made(case(decision=predictor.REVIEW, checks=failed)))
    assert "did not pass every input check (intensity)" in printed
    assert "✗ failed The values are not those of a chest CT." in printed


def test_a_correction_stands_next_to_the_models_answer():
    reviews = (
        cases.ReviewRow("Dr. First", True, "Infected", "", AT),
        cases.ReviewRow("Dr. Second", False, "Clear", "A vessel.", AT + timedelta(days=1)),
    )
    printed = text(made(case(reviews=reviews)))
    assert "Reviewed: corrected to Clear, by Dr. Second." in printed
    assert printed.index("Corrected to Clear: Dr. Second") < printed.index("Agreed with Infected: Dr. First")


def test_a_probability_that_is_not_certain_is_not_printed_as_certain():
    printed = text(made(case(probabilities={"Clear": 0.002, "Infected": 0.998})))
    assert "> 99 %" in printed and "< 1 %" in printed and "100 %" not in printed


def test_three_classes_have_no_operating_point_to_mark():
    heat = np.zeros((3, 8, 8), np.float32)
    rule = DecisionRule(kind="argmax", band=UncertaintyBand(margin=0.5, times=1.6))
    names = ("A", "B", "C")
    probabilities = {"A": 0.7, "B": 0.2, "C": 0.1}
    three = case(classes=names, probabilities=probabilities, label="A", decision="A", rule=rule, heat=heat)
    printed = text(made(three))
    assert (
        "The likeliest class is the answer. Band of uncertainty: less than 1.6 times as likely as the next" in printed
    )
    assert "Black mark" not in printed


# --- pictures


def pictures(report) -> list[np.ndarray]:
    return [np.asarray(image.image.convert("RGB")) for image in report.pages[0].images]


def test_grades_are_printed_as_a_range_with_their_meaning_and_what_one_slice_cannot_say():
    p = dict(zip(CLASSES, (0.15, 0.55, 0.25, 0.05), strict=True))
    graded = {"classes": CLASSES, "probabilities": p, "label": "CT-1", "rule": RANGES, "heat": np.zeros((4, 9, 9))}
    metrics = {"test": {"n": 99, "patients": 99, "kappa": 0.52, "intervals": {"kappa": [0.41, 0.61]}}}
    card = CARD | {"classes": list(CLASSES), "operating_point": MIDDLE.to_dict(), "metrics": metrics}
    printed = text(made(case(**graded, decision="CT-1 to CT-2"), card))
    for part in (
        "The model answers: CT-1 to CT-2, about 0 to 50 % of the lungs", "Probability of the range 80 %", CAUTION,
        "CT-3/4: about 50 to 100 % of the lungs", "Quadratic kappa 0.520 (0.410–0.610)",
    ):  # fmt: skip
        assert part in printed, part
    every = dict.fromkeys(CLASSES, 0.25)
    undecided = text(made(case(**graded | {"probabilities": every}, decision=predictor.REVIEW), card))
    assert "cannot rule out any grade" in undecided and CAUTION in undecided


def test_a_ct_is_seen_through_the_models_window():
    printed = made(case(pixels=np.full((64, 64), -500, np.float32)))
    assert "CT seen at level -500 HU, width 1400 HU" in text(printed)
    assert abs(int(pictures(printed)[0].mean()) - 128) < 4  # the window's level is medium grey


def test_the_overlay_is_hot_where_the_labels_heat_is_and_shows_the_image_elsewhere():
    gray, overlay, _ = pictures(made(case(pixels=np.full((480, 480), -500, np.float32))))
    colour = np.ptp(overlay.astype(int), axis=-1)
    assert colour[440:, 440:].min() > 40
    assert colour[:240, :240].max() < 12
    assert np.abs(overlay[:240, :240].astype(int) - gray[:240, :240]).max() < 12


def test_a_very_large_image_is_reduced_to_what_paper_shows():
    large = case(pixels=np.random.default_rng(0).uniform(-1000, 400, (2048, 1500)).astype(np.float32))
    content = report.pdf(large, ModelCard.from_dict(CARD))
    assert len(content) < 1_000_000
    sizes = [image.image.size for image in pypdf.PdfReader(io.BytesIO(content)).pages[0].images]
    assert max(max(size) for size in sizes) <= report.PICTURE_PIXELS


def test_pictures_have_words_for_people_who_cannot_see_them():
    words = " ".join(_alternatives(made(case()).trailer["/Root"]["/StructTreeRoot"]))
    assert "Areas that support “Infected”" in words and "The image that was read" in words


def _alternatives(element) -> list[str]:
    """The alternative texts of a document's structure, from its root down."""
    element = element.get_object()
    if isinstance(element, list):
        return [words for part in element for words in _alternatives(part)]
    if not isinstance(element, dict):
        return []
    own = [str(element["/Alt"])] if "/Alt" in element else []
    return own + (_alternatives(element["/K"]) if "/K" in element else [])


# --- texts from people


def test_names_of_many_scripts_are_printed():
    for name in ("Łukasz Ćwikła", "Ἀθηνᾶ", "Юлия Ёлкина", "Nguyễn Thị Ánh"):
        assert name in text(made(case(patient=patients.PatientRow("1", "7", name, None, "unknown"))))


def test_a_character_the_font_lacks_is_replaced():
    printed = text(made(case(notes="王 has a cough", patient=patients.PatientRow("1", "7", "王小明", None, "unknown"))))
    assert "���" in printed and "� has a cough" in printed


def test_right_to_left_names_are_set_from_the_right():
    name = "שלום"
    printed = text(made(case(patient=patients.PatientRow("1", "7", name, None, "unknown"))))
    assert name in printed  # the reader turns it round again


def test_text_from_people_cannot_pass_for_the_number_of_pages():
    printed = text(made(case(notes=f"{report_pages.PAGES} and {{nb}}")))
    assert "�� and {nb}" in printed


@settings(max_examples=15, deadline=None)
@given(st.text(st.characters(), max_size=300))
def test_whatever_was_typed_is_printed_without_an_exception(typed):
    person = patients.PatientRow("1", typed, typed, None, "unknown")
    reviews = (cases.ReviewRow(typed, False, "Clear", typed, AT),)
    assert len(made(case(patient=person, notes=typed, uploaded_by=typed, reviews=reviews)).pages) == 2


def test_a_report_of_the_longest_texts_has_two_pages_and_says_what_it_left_out():
    names = tuple(f"A class with quite a long name, number {i}" for i in range(12))
    long = "word " * 800
    check = predictor.Check("kind", False, 9.0, 3.0, "Many words on what was found here. " * 10)
    largest = case(
        patient=patients.PatientRow("1", "9" * 64, "N" * 200, 1956, "female"),
        notes=long,
        uploaded_by="U" * 200,
        tags=dict.fromkeys(report._TAGS, "x" * 200),
        classes=names,
        probabilities=dict.fromkeys(names, 1 / 12),
        label=names[0],
        decision=predictor.REVIEW,
        rule=DecisionRule(kind="argmax", band=UncertaintyBand(margin=0.4, times=1.5), temperature=1.0),
        checks=(check,) * 5,
        reviews=tuple(cases.ReviewRow("R" * 200, False, names[1], long, AT) for _ in range(9)),
        heat=np.zeros((12, 8, 8), np.float32),
    )
    printed = made(largest, CARD | {"classes": list(names), "synthetic": True})
    assert len(printed.pages) == 2
    assert "(shortened here; the records hold all of it)" in text(printed)
    assert "7 earlier reviews in the records" in text(printed)
    assert "4 more classes, less likely" in text(printed)
    for page in printed.pages:
        assert _lowest(page) > 20  # points above the edge of the paper


def test_a_long_comment_continues_on_the_next_page_above_the_foot():
    reviews = (cases.ReviewRow("Dr. Reviewer", True, "Infected", "word " * 160, AT),) * 2
    printed = made(case(checks=CHECKS * 6, reviews=reviews))
    assert len(printed.pages) == 2 and text(printed).count("word") == 320
    assert min(_lowest(page, "word") for page in printed.pages) > 50


def _lowest(page, words: str = "") -> float:
    """Points from the edge of the paper to the lowest text with these words."""
    heights = []

    def note(text, _cm, tm, _font, _size):
        if text.strip() and words in text:
            heights.append(tm[5])

    page.extract_text(visitor_text=note)
    return min(heights)


# --- cost


def test_a_report_is_made_within_a_second():
    made(case())  # the fonts' tables are read once in a process
    times = []
    for _ in range(3):
        started = time.process_time()
        report.pdf(case(), ModelCard.from_dict(CARD))
        times.append(time.process_time() - started)
    assert min(times) < 1


def test_reports_import_neither_matplotlib_nor_a_training_library():
    loaded = subprocess.run(
        [sys.executable, "-c", "import sys, lungkit.clinic.report as r; r.printable('x'); print(*sys.modules)"],
        check=True, capture_output=True, text=True,
    ).stdout.split()  # fmt: skip
    assert not {"matplotlib", "tensorflow", "keras", "sklearn"} & set(loaded)

"""Whom a version may read: what its card says against a patient, and against an image."""

import pytest

from lungkit.data.image import Stated
from lungkit.errors import LungkitError
from lungkit.models import card_text, population
from lungkit.models.card import About
from lungkit.models.prediction import Check, is_outside, refusal
from lungkit.training import recipes
from tests.cards import model_card


def card(modality="X-ray", **about):
    return model_card(modality=modality, about=About(**about))


def fitting(of, **stated):
    """Whether nothing that a file states speaks against a version."""
    return not any(map(is_outside, population.checks(of, Stated(**stated))))


@pytest.mark.parametrize(
    ("by_year", "fits"), [(0, False), (1, True), (5, True), (6, True), (7, False), (76, False), (None, True)]
)
def test_a_birth_year_fits_where_the_patient_may_be_of_an_age_that_the_model_learned_from(by_year, fits):
    assert (not population.against(card(ages=(1, 5)), by_year)) == fits


@pytest.mark.parametrize(
    ("age", "fits"), [(0.03, False), (0.5, False), (0.99, False), (1, True), (5, True), (5.9, True), (6, False)]
)
def test_an_age_that_a_file_states_fits_to_the_day(age, fits):
    assert (not population.against(card(ages=(1, 5)), None, age)) == fits


@pytest.mark.parametrize(("age", "fits"), [(16, False), (17, False), (18, True), (119, True)])
def test_a_model_of_adults_has_no_oldest_patient(age, fits):
    of_adults = card(ages=(18, None))
    for known in ((age, None), (None, age)):
        assert (not population.against(of_adults, *known)) == fits
        assert population.suits(of_adults, *known) == fits


def test_the_words_name_the_patients_age_and_whom_the_model_learned_from():
    assert population.against(card(ages=(1, 5)), 76) == [
        "the patient is 76 years old; this model learned from patients of 1 to 5 years"
    ]
    of_adults = card(ages=(18, None))
    assert "the patient is 6 months old" in population.against(of_adults, None, 0.5)[0]
    assert "the patient is less than a year old" in population.against(of_adults, 0)[0]
    assert "patients of 18 years and more" in population.against(of_adults, 0)[0]
    assert "the patient is 90 years or more old" in population.against(card(ages=(1, 5)), None, 90)[0]


def test_each_age_that_is_known_has_to_fit():
    for known in ((Stated(4), 30), (Stated(30), 4)):
        (check,) = population.checks(card(ages=(1, 5)), *known)
        assert (check.name, check.passed, check.value) == ("age", False, 30)
    assert population.checks(card(ages=(1, 5)), Stated(4), 3)[0].passed
    (check,) = population.checks(card(ages=(1, 5)), Stated())
    assert (check.name, check.passed) == ("age known", False)


def test_only_a_model_that_states_ages_is_offered_and_only_to_an_age_that_is_known():
    assert not population.suits(card(), 40)
    assert not population.suits(card(ages=(18, None)), None)
    assert population.suits(card(ages=(18, None)), 40)


@pytest.mark.parametrize(
    ("view", "fits"),
    [
        *(("PA", True), ("AP", True), ("ap ", True), ("AP_SUPINE", True), ("FRONTAL", True), ("", True)),
        *(("UNKNOWN", True), ("LL", False), ("RL", False), ("LATERAL", False), ("LLD", False), ("<script>", False)),
        *(("AP LATERAL", False), ("PA OBLIQUE", False), ("AP DECUBITUS", False), ("ANTERO-POSTERIOR OBLIQUE", False)),
        *(("A.P.", True), ("P-A", True), ("ANTEROPOSTERIOR", True), ("postero-anterior", True)),
        *(("SUPINE", True), ("CHEST", True), ("PORTABLE ERECT", True), ("SWIMMER", False)),
    ],
)
def test_a_view_that_the_model_did_not_learn_is_not_for_it(view, fits):
    assert fitting(card(views=("PA", "AP")), view=view) == fits
    assert fitting(card(), view=view), "its card names no views"


@pytest.mark.parametrize(
    ("view", "said"),
    [("", "by its PatientOrientation this is a lateral view"), ("PA", "the file states the view PA, but its")],
)
def test_a_lateral_view_by_its_orientation_is_said_to_be_one(view, said):
    (check,) = population.checks(card(views=("PA", "AP")), Stated(view=view, orientation="A\\F"))
    assert not check.passed and check.words.startswith(said)


@pytest.mark.parametrize(
    ("part", "fits"),
    [
        *(("CHEST", True), ("THORAX", True), ("Lungs", True), ("", True), ("UNKNOWN", True), ("PORT CHEST", True)),
        *(("TORACE", True), ("CHEST_TO_PELVIS", True), ("HAND", False), ("HEAD", False), ("ABDOMEN", False)),
    ],
)
def test_an_image_of_another_part_of_the_body_is_not_for_the_model(part, fits):
    of_chest = card(body_part="chest")
    assert fitting(of_chest, body_part=part) == fits
    assert fitting(card(), body_part=part), "its card names no part"
    assert refusal(population.checks(of_chest, Stated(body_part=part))) == ("" if fits else "Not for this image")
    assert not fitting(card(body_part="brain"), body_part="CHEST")


@pytest.mark.parametrize(
    ("learned", "of_file", "fits"),
    [
        *(("X-ray", "CT", False), ("MRI", "CT", False), ("CT", "DX", False), ("CT", "CR", False)),
        *(("X-ray", "DX", True), ("CT", "CT", True), ("X-ray", "OT", True), ("X-ray", "", True), ("image", "CT", True)),
    ],
)
def test_a_file_of_another_modality_is_not_for_the_model(learned, of_file, fits):
    assert fitting(card(learned), modality=of_file) == fits


def test_the_heading_names_the_patient_before_the_image():
    def failed(*names):
        return [Check(name, False, 0, 1, "") for name in names]

    assert refusal(failed("view", "age")) == "Not for this patient"
    assert refusal(failed("modality", "age")) == "Not for this image", "no age would help"
    assert refusal(failed("view")) == refusal(failed("modality")) == "Not for this image"
    assert refusal(failed("kind", "age known", "orientation")) == ""
    assert refusal([Check("age", True, 3, 5, "")]) == ""


def test_the_card_says_ages_views_body_part_and_modality():
    rows = dict(card_text.sections(card(ages=(1, 5), views=("PA", "AP"), body_part="chest"))["Data and population"])
    told = {name: rows[name] for name in ("Ages", "Views", "Body part", "Modality")}
    assert told == {
        "Ages": "1 to 5 years", "Views": "frontal (PA or AP)", "Body part": "chest", "Modality": "X-ray"
    }  # fmt: skip


def test_a_card_with_an_open_range_of_ages_is_read_as_it_was_written():
    of_adults = card(ages=(18.0, None))
    assert type(of_adults).from_dict(of_adults.to_dict()).about.ages == (18.0, None)


@pytest.mark.parametrize(("text", "ages"), [("1-5", (1, 5)), ("18-", (18, None)), (" 0 - 17", (0, 17)), ("", None)])
def test_the_ages_of_a_training_are_stated_as_a_range(text, ages):
    assert recipes.ages_in(text) == ages


@pytest.mark.parametrize("text", ["adults", "5", "-5", "5-1", "1-x", "1–5"])
def test_ages_that_are_no_range_are_refused_with_what_is_accepted(text):
    with pytest.raises(LungkitError, match="--ages"):
        recipes.ages_in(text)


def test_views_are_stated_as_dicom_names_them():
    assert recipes.views_in("pa, AP") == ("PA", "AP")
    with pytest.raises(LungkitError, match="PA,AP"):
        recipes.views_in("PA;AP")

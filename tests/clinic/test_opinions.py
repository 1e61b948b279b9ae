"""Second and third readers: who is asked, what is told before the label, and which label counts."""

import dataclasses

import pytest

from lungkit.clinic.learning import doubts
from lungkit.clinic.records import accounts, opinions, settings
from lungkit.clinic.records.administration import Administration
from lungkit.clinic.records.cases import AnswerHidden, BlindCase, Records, ReviewRow
from lungkit.clinic.records.patients import NewPatient
from lungkit.clinic.records.tables import now


@pytest.fixture
def readers(signed_in) -> list[Records]:
    return [Records(signed_in("doctor", name)) for name in ("anna", "bert", "cleo", "dora")]


@pytest.fixture
def labelled(store, readers, chest_image, prediction):
    """A function: the id of a new reading with the labels of the first readers; blind: whether the answer waits."""

    def make(seed, *labels, blind=True, patient=None, **changes) -> str:
        with store.write() as db:
            settings.put(db, settings.BLIND_SHARE, float(blind))
        whose = patient or NewPatient(f"N-{seed}", f"Name {seed}")
        saved = readers[0].save_case(whose, chest_image(seed=seed), f"{seed:064x}", prediction(**changes))
        for reader, label in zip(readers, labels, strict=False):
            if label:
                reader.review(saved.reading_id, label)
        return saved.reading_id

    return make


def ids(rows) -> list[str]:
    return [row.reading_id for row in rows]


# --- which label counts


@pytest.mark.parametrize(
    ("labels", "counts"),
    [
        ([], None),
        (["A"], "A"),
        (["A", "A"], "A"),
        (["A", "B"], None),
        (["A", "B", "B"], "B"),
        (["A", "B", "C"], None),
        (["A", "A", "B", "B"], None),
        (["A", "A", "B", "C"], None),  # half is not most
    ],
)
def test_the_label_of_all_or_of_most_of_three_readers_counts(labels, counts):
    assert opinions.settled(labels) == counts


def test_a_reader_counts_once_with_the_latest_label():
    said = [("Anna", 1, "A"), ("Bert", 2, "B"), ("Anna", 1, "B")]
    standing = opinions.standing(ReviewRow(name, True, label, "", now(), reviewer_id=n) for name, n, label in said)
    assert standing == opinions.Standing({"Anna": "B", "Bert": "B"}, "B", unusable=False)


# --- lists


def test_an_image_that_one_doctor_read_blind_waits_for_every_other_doctor(readers, labelled):
    anna, bert, cleo, _ = readers
    once = labelled(1, "Normal")
    labelled(2)  # no one has labelled it
    labelled(3, "Normal", blind=False)
    labelled(4, "Normal", "Normal")
    assert ids(opinions.to_read_again(bert.access)) == ids(opinions.to_read_again(cleo.access)) == [once]
    assert opinions.to_read_again(anna.access) == []
    bert.review(once, "Normal")
    assert opinions.to_read_again(cleo.access) == []


def test_the_lists_say_nothing_of_labels_and_answers(readers, labelled):
    labelled(1, "Normal", probability=0.8137)
    labelled(2, "Normal", "Pneumonia", probability=0.8137)
    said = repr([opinions.to_read_again(readers[2].access), opinions.readers_differ(readers[2].access)])
    assert "N-1" in said and "N-2" in said
    assert not [word for word in ("Normal", "Pneumonia", "0.8", "Anna") if word in said]


def test_images_that_two_readers_label_differently_wait_for_a_third(readers, labelled):
    anna, bert, cleo, dora = readers
    differ = labelled(1, "Normal", "Pneumonia", blind=False)
    labelled(2, "Normal", "Normal", blind=False)
    assert ids(opinions.readers_differ(cleo.access)) == [differ]
    assert opinions.readers_differ(anna.access) == opinions.readers_differ(bert.access) == []
    cleo.review(differ, "Normal")
    assert opinions.readers_differ(dora.access) == []
    assert opinions.standing(dora.case(differ).reviews).label == "Normal"


def test_readers_who_come_to_agree_need_no_third(readers, labelled):
    differ = labelled(1, "Normal", "Pneumonia")
    readers[0].review(differ, "Pneumonia")
    assert opinions.readers_differ(readers[2].access) == []


def test_readers_of_different_models_are_not_compared(readers, labelled):
    first = labelled(1, "Normal")
    patient = readers[0].case(first).patient.id
    labelled(1, "", "Pneumonia", model="other", patient=patient)
    assert opinions.readers_differ(readers[2].access) == []


def test_an_excluded_patient_waits_for_no_one(store, readers, labelled, signed_in):
    once, differ = labelled(1, "Normal"), labelled(2, "Normal", "Pneumonia")
    admin = Administration(signed_in("admin"))
    for reading_id in (once, differ):
        admin.set_excluded(readers[0].case(reading_id).patient.id, True)
    assert opinions.to_read_again(readers[2].access) == opinions.readers_differ(readers[2].access) == []


def test_a_third_reader_sees_answer_and_labels_only_after_the_label(readers, labelled):
    cleo = readers[2]
    differ = labelled(1, "Normal", "Pneumonia", blind=False)
    case = cleo.open_case(differ, label_first=True)
    assert isinstance(case, BlindCase)
    assert not hasattr(case, "reviews") and not hasattr(case, "probabilities")
    cleo.review(differ, "Normal")
    assert len(cleo.open_case(differ, label_first=True).reviews) == 3


@pytest.mark.parametrize("role", ["admin", "none"])
@pytest.mark.parametrize("ask", [opinions.to_read_again, opinions.readers_differ, doubts.look_again])
def test_only_doctors_are_asked(store, signed_in, labelled, ask, role):
    labelled(1, "Normal", "Pneumonia")
    access = signed_in("admin") if role == "admin" else accounts.Access(store, "no token")
    with pytest.raises((accounts.Forbidden, accounts.SignedOut)):
        ask(access)


# --- labels to look at again


@pytest.fixture
def doubted(labelled):
    """Readings whose model is sure; the last one has the other label. Blind, so the others hide it from some."""

    def make(blind: bool) -> str:
        for seed in range(10, 16):
            label = ("Pneumonia", "Normal")[seed % 2]
            labelled(seed, label, blind=blind, label=label, probability=0.9)
        return labelled(99, "Normal", blind=blind, label="Pneumonia", probability=0.97)

    return make


def test_a_label_that_contradicts_a_sure_model_is_to_be_looked_at_again(readers, doubted):
    reading_id = doubted(blind=False)
    rows, number = doubts.look_again(readers[1].access)
    assert [(row.doubt.reading_id, row.doubt.label, row.doubt.looks_like, row.number) for row in rows] == [
        (reading_id, "Normal", "Pneumonia", "N-99")
    ]
    assert number == 1


def test_a_doubt_about_a_blind_image_is_told_to_those_who_labelled_it_alone(readers, doubted):
    reading_id = doubted(blind=True)
    assert [row.doubt.reading_id for row in doubts.look_again(readers[0].access)[0]] == [reading_id]
    assert doubts.look_again(readers[1].access) == ([], 0)
    with pytest.raises(AnswerHidden):
        readers[1].case(reading_id)


def test_models_with_other_classes_are_judged_apart(readers, doubted, chest_image, prediction):
    reading_id = doubted(blind=False)
    other = dataclasses.replace(prediction(), model="graded", classes=("Grade 1", "Grade 2"), label="Grade 1")
    saved = readers[0].save_case(NewPatient("G", "G"), chest_image(seed=7), "ef" * 32, other)
    readers[0].review(saved.reading_id, "Grade 2")
    assert [row.doubt.reading_id for row in doubts.look_again(readers[0].access)[0]] == [reading_id]

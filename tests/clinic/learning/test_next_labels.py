"""What to review next: what the model is unsure of and does not know, and not the same picture twice."""

import sys

import numpy as np
import pytest
import sqlalchemy as sa

from lungkit import cli
from lungkit.clinic.learning import next_labels, ordering
from lungkit.clinic.records import accounts
from lungkit.clinic.records.administration import Administration
from lungkit.clinic.records.tables import NOT_ASSESSABLE, BlindReading, Reading, Study
from lungkit.errors import LungkitError
from lungkit.models.prediction import Check

# --- the order


def test_entropy_is_none_where_one_class_is_certain_and_whole_where_all_are_alike():
    np.testing.assert_allclose(ordering.entropy(np.array([[1.0, 0, 0], [1 / 3] * 3])), [0, 1], atol=1e-9)
    two = ordering.entropy(np.array([[0.9, 0.1]]))
    np.testing.assert_allclose(two, -(0.9 * np.log2(0.9) + 0.1 * np.log2(0.1)))


def test_the_heaviest_comes_first_and_then_what_is_far_from_it():
    features = np.array([[0.0, 0], [0.1, 0], [5, 5], [0, 0.1]])
    assert ordering.spread(np.array([1.0, 0.9, 0.5, 0.8]), features, np.empty((0, 2)), 4)[:2].tolist() == [0, 2]


def test_what_is_near_to_a_labelled_image_comes_last():
    features = np.array([[0.0, 0], [5, 5], [0, 5]])
    assert ordering.spread(np.ones(3), features, np.array([[5.0, 5.1]]), 3).tolist()[-1] == 1


def test_each_image_is_named_once_even_if_all_are_the_same():
    order = ordering.spread(np.array([0.1, 0.3, 0.2]), np.ones((3, 2)), np.ones((1, 2)), 10)
    assert order.tolist() == [1, 2, 0]


def test_without_weights_it_is_the_greedy_choice_of_k_centres():
    features = np.random.default_rng(1).normal(size=(40, 3))
    features /= features.std(axis=0)
    labelled, chosen = features[:2], []
    for _ in range(5):  # the definition: the image whose nearest centre is farthest
        centres = np.vstack([labelled, features[chosen]])
        away = np.linalg.norm(features[:, None] - centres[None], axis=2).min(axis=1)
        chosen.append(int(away.argmax()))
    assert ordering.spread(np.ones(40), features, labelled, 5).tolist() == chosen


def test_what_a_model_is_wrongly_sure_of_is_not_put_last():
    unsure, unlike = np.array([0.001, 0.5, 0.4, 0.3]), np.array([5.0, 0.2, 0.3, 0.1])
    weights = ordering.weights(unsure, unlike)
    np.testing.assert_allclose(weights, [(1 + 7) / 16, (7 + 3) / 16, (5 + 5) / 16, (3 + 1) / 16])
    assert weights.argmin() == 3
    np.testing.assert_allclose(ordering.weights(np.ones(3), np.ones(3)), 0.5)


# --- of the records


@pytest.fixture
def database_url(sqlite_url):
    return sqlite_url


def kind(value: float) -> tuple[Check, ...]:
    return (Check("kind", value <= 1, value, 1.0, "words"),)


def test_the_unsure_and_the_unlike_come_before_the_rest(store, reviewed):
    sure = reviewed(probability=0.99, checks=kind(0.5))
    unsure = reviewed(probability=0.55, checks=kind(0.5))
    unlike = reviewed(probability=0.6, checks=kind(3.0))
    assert next_labels.order(store, "lung")[0] == unlike
    assert set(next_labels.order(store, "lung", 2)) == {unsure, unlike}
    assert next_labels.order(store, "lung")[-1] == sure


def test_reviewed_readings_and_their_pictures_are_not_on_the_list(store, reviewed):
    reviewed("Normal", seed=4)
    waiting = reviewed(seed=5)
    assert next_labels.order(store, "lung") == [waiting]


def test_an_image_that_was_read_again_is_there_once_and_not_if_it_was_reviewed_before(store, readers, reviewed):
    first = reviewed(seed=1)
    patient = readers[0].case(first).patient.id
    again = reviewed(seed=1, patient=patient)
    assert next_labels.order(store, "lung") == [again]
    readers[0].review(first, "Pneumonia")
    assert next_labels.order(store, "lung") == []


def test_an_image_that_was_called_not_assessable_is_not_on_the_list_and_is_no_label(store, reviewed):
    reviewed(NOT_ASSESSABLE, seed=4)
    waiting = reviewed(seed=5)
    assert next_labels.order(store, "lung") == [waiting]
    with store.read() as db:
        assert next_labels._reviewed(db, "lung", 5) == []


def test_chance_alone_decides_about_blind_readings(store, reviewed):
    blind, other = reviewed(), reviewed()
    with store.write() as db:
        db.add(BlindReading(reading_id=blind))
    assert next_labels.order(store, "lung") == [other]


def test_excluded_patients_and_damaged_images_are_left_out(store, readers, reviewed, signed_in):
    excluded, damaged, kept = reviewed(), reviewed(), reviewed()
    Administration(signed_in("admin")).set_excluded(readers[0].case(excluded).patient.id, True)
    with store.write() as db:
        db.execute(sa.update(Study).where(Study.id == readers[0].case(damaged).study_id).values(pixels=b"no picture"))
    assert next_labels.order(store, "lung") == [kept]


def test_an_image_that_the_model_is_not_for_teaches_it_nothing(store, reviewed):
    reviewed(probability=0.5, checks=(*kind(3.0), Check("age", False, 76, 5, "the patient is 76 years old")))
    kept = reviewed(probability=0.99, checks=kind(0.5))
    assert next_labels.order(store, "lung", 1) == next_labels.order(store, "lung") == [kept]


def test_a_doctor_is_shown_the_order_with_patients_and_an_administrator_is_not(store, readers, reviewed, signed_in):
    reviewed(probability=0.99, checks=kind(0.5))
    unlike = reviewed(probability=0.6, checks=kind(3.0))
    rows = next_labels.suggested(readers[1].access)
    assert [row.reading_id for row in rows] == next_labels.order(store, "lung")
    assert (rows[0].reading_id, rows[0].number, rows[0].name, rows[0].model) == (unlike, "NUMBER-2", "Name 2", "lung")
    assert len(next_labels.suggested(readers[1].access, 1)) == 1
    with pytest.raises(accounts.Forbidden):
        next_labels.suggested(signed_in("admin"))


def test_the_command_prints_ids_in_order(store, database_url, reviewed, monkeypatch, capsys):
    reviewed(probability=0.99, checks=kind(0.5))
    unlike = reviewed(probability=0.6, checks=kind(3.0))
    monkeypatch.setenv("LUNGKIT_DATABASE", database_url)
    monkeypatch.setattr(sys, "argv", ["lungkit", "learn", "next", "--most", "1"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert not ended.value.code
    with store.read() as db:
        at = db.get(Reading, unlike).read_at.astimezone()
    assert capsys.readouterr().out == f"{unlike}  {at:%Y-%m-%d %H:%M}\n"


def test_the_model_has_to_be_named_where_there_are_several(store, reviewed):
    with pytest.raises(LungkitError, match="no image has been read yet"):
        next_labels.only_model(store)
    reviewed(model="ct")
    assert next_labels.only_model(store) == "ct"
    reviewed(model="lung")
    with pytest.raises(LungkitError, match="readings of ct, lung; name one with --model"):
        next_labels.only_model(store)

"""`lungkit learn trial` from reviews to evidence, on a phantom's images; and the patients that a trial leaves out."""

import csv
import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import sqlalchemy as sa
import typer.testing

from lungkit import cli, files
from lungkit.clinic.learning import collect
from lungkit.clinic.learning.reviews import Asked
from lungkit.clinic.predictor import Predictor
from lungkit.clinic.records.patients import NewPatient
from lungkit.clinic.records.tables import LockedLook, Reading, Trial
from lungkit.data import images, phantom, review_sets, tensor_cache
from lungkit.errors import LungkitError
from lungkit.models import registry
from lungkit.training import release, trials
from tests.clinic.rows import events
from tests.trials import once_more


@pytest.fixture
def store(sqlite_store):
    return sqlite_store


@pytest.fixture
def lungkit(store, monkeypatch):
    """Run the command on these records; returns its standard output and, where it is refused, its error."""
    monkeypatch.setenv("LUNGKIT_DATABASE", store.url.render_as_string(hide_password=False))
    monkeypatch.setenv("COLUMNS", "250")

    def run(*arguments) -> str:
        answer = typer.testing.CliRunner().invoke(cli.app, list(map(str, arguments)))
        if answer.exception and not isinstance(answer.exception, SystemExit):
            raise answer.exception
        return answer.stdout

    return run


def locked_set(store, home: Path) -> Path:
    return collect.collect(store, home, Asked(locked=True), "Ward").folder


def test_a_trial_measures_both_on_the_locked_set_and_at_home_and_waits_for_signatures(
    lungkit, ward, store, versions, tmp_path
):
    ward(12, True, 1)
    locked = locked_set(store, tmp_path / "locked")
    home = phantom.make_dataset(tmp_path / "phantom", n_slices=90, seed=9, size=96)
    asked = ["learn", "trial", "tiny-cnn@v2", "--locked", locked, "--data", home]
    told = json.loads(lungkit(*asked, "--json"))
    kinds = [(of["kind"], of["images"]) for of in told["evidence"]["sets"]]
    assert kinds[0] == ("locked", 12) and kinds[1][0] == "home" and kinds[1][1] > 0
    assert told["evidence"]["sets"][0]["auc"][0] == 0  # the same network
    assert told["verdict"] == "cannot tell" and told["evidence"]["looks"] == 1
    assert told["rollback"]["reviews"] == 50 and 0.2 < told["evidence"]["times_slower"] < 5
    with store.read() as db:
        row = db.get(Trial, told["trial"])
        look = db.scalars(sa.select(LockedLook)).one()
    assert (row.state, row.verdict) == ("open", "cannot tell") and look.trial_id == row.id
    assert look.set_sha256 == files.sha256(locked / "manifest.json") == told["evidence"]["locked_sha256"]
    assert events(store, "trial.open")[0].detail["evidence"] == row.evidence_sha256
    assert registry.active("tiny-cnn").version == "v1"
    shown = lungkit(*asked)
    assert "Verdict: cannot tell" in shown and "Look number 2" in shown and "The version in use stays" in shown


def test_a_look_counts_also_where_the_trial_fails_afterwards(lungkit, ward, store, versions, tmp_path, monkeypatch):
    ward(8, True, 1)
    locked = locked_set(store, tmp_path / "locked")
    monkeypatch.setattr(trials, "measure", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        lungkit("learn", "trial", "tiny-cnn@v2", "--locked", locked)
    with store.read() as db:
        assert db.scalars(sa.select(LockedLook)).one().trial_id is None


def test_looks_at_the_set_before_are_counted_for_the_one_that_grew_from_it(lungkit, ward, store, versions, tmp_path):
    for number in (1, 2):
        ward(8, True, number)
        locked = locked_set(store, tmp_path / "locked")
        told = json.loads(lungkit("learn", "trial", "tiny-cnn@v2", "--locked", locked, "--json"))
        assert told["evidence"]["looks"] == number
    assert locked.name == "locked-v2"


def test_a_patient_that_the_challenger_learned_from_is_left_out_whatever_the_file(ward, store, versions, tmp_path):
    ward(16, False, 1)
    first = review_sets.read(collect.collect(store, tmp_path / "reviews", Asked(), "Ward").folder)
    ward(16, False, 2)
    newest = review_sets.read(collect.collect(store, tmp_path / "reviews", Asked(), "Ward").folder)
    learned = list(first.rows[:4])
    challenger = once_more(*(row["sha256"] for row in learned))
    plan = trials.of_reviews(versions[0], challenger, newest)
    ids = {row["patient_id"] for row in learned}
    assert plan.images == 28 and plan.left_out == {"Ward": 4} and not ids & set(plan.data.manifest["patient_id"])
    # The same pixels in another file, and another file of the same patient, as a later upload gives them.
    table = newest.folder / "labels.csv"
    rows = list(csv.DictReader(table.open()))
    changed = {row["patient_id"]: row for row in rows if row["patient_id"] in ids}
    by_pixels, by_patient = list(changed.values())[:2]
    by_pixels["patient_id"], by_patient["pixels_sha256"] = "another id", "f" * 64
    for row in (by_pixels, by_patient):
        path = newest.folder / row["file"]
        path.write_bytes(path.read_bytes() + b"\0\0")  # behind the image
    with table.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    sealed = json.loads((newest.folder / "manifest.json").read_text())
    sealed["files"] = {name: files.sha256(newest.folder / name) for name in sealed["files"]}
    (newest.folder / "manifest.json").write_text(json.dumps(sealed))
    again = review_sets.read(newest.folder)
    assert trials.of_reviews(versions[0], challenger, again).images == 28
    assert trials.of_reviews(versions[0], versions[1], again).images == 32  # who has not learned from them


def test_a_version_that_learned_from_this_clinic_needs_the_set_that_it_learned_from(
    ward, store, versions, tmp_path, monkeypatch
):
    ward(16, False, 1)
    learned = review_sets.read(collect.collect(store, tmp_path / "reviews", Asked(), "phantom").folder)
    ward(8, True, 2)
    challenger = once_more(learned.rows[0]["sha256"])
    own = challenger.card.data.sources[0]
    renamed = collect.collect(store, tmp_path / "again", Asked(locked=True), own)
    with pytest.raises(LungkitError, match="name that set with --reviews too"):
        trials.of_reviews(versions[0], challenger, review_sets.read(renamed.folder))


def test_sets_are_refused_where_they_do_not_belong(lungkit, ward, store, versions, tmp_path):
    ward(8, True, 1)
    locked = locked_set(store, tmp_path / "locked")
    for asked, words in (
        (["--reviews", locked], "is a locked set"),
        (["--locked", tmp_path], "is no data set of reviews"),
        ([], "nothing to measure on"),
    ):
        with pytest.raises(LungkitError, match=words):
            lungkit("learn", "trial", "tiny-cnn@v2", *asked)
    with pytest.raises(LungkitError, match="is in use already"):
        lungkit("learn", "trial", "tiny-cnn@v1", "--locked", locked)
    next((locked / "images").iterdir()).write_bytes(b"another picture")
    with pytest.raises(LungkitError, match="is not as it was collected"):
        lungkit("learn", "trial", "tiny-cnn@v2", "--locked", locked)
    with store.read() as db:
        assert db.scalars(sa.select(LockedLook)).all() == []  # a refused trial has looked at nothing


def test_a_set_of_reviews_is_refused_as_another_data_set_because_no_look_would_be_counted(
    lungkit, ward, store, versions, tmp_path
):
    ward(8, True, 1)
    locked = locked_set(store, tmp_path / "locked")
    ward(8, False, 2)
    reviews = collect.collect(store, tmp_path / "reviews", Asked(), "Ward").folder
    for folder, option in ((locked, "--locked"), (reviews, "--reviews")):
        with pytest.raises(LungkitError, match=f"give it with {option}"):
            lungkit("learn", "trial", "tiny-cnn@v2", "--data", folder)
    with store.read() as db:
        assert db.scalars(sa.select(Trial)).all() == []


def test_the_same_patients_collected_into_another_folder_do_not_start_at_the_first_look(
    lungkit, ward, store, versions, tmp_path
):
    ward(8, True, 1)
    looks = []
    for home in ("one", "two"):
        folder = locked_set(store, tmp_path / home)
        looks.append(json.loads(lungkit("learn", "trial", "tiny-cnn@v2", "--locked", folder, "--json")))
    ward(8, True, 2)
    folder = locked_set(store, tmp_path / "three")  # the old patients and new ones
    looks.append(json.loads(lungkit("learn", "trial", "tiny-cnn@v2", "--locked", folder, "--json")))
    assert [told["evidence"]["looks"] for told in looks] == [1, 2, 3]


def test_a_locked_set_whose_labels_were_changed_and_sealed_again_is_refused(lungkit, ward, store, versions, tmp_path):
    ward(12, True, 1)
    locked = locked_set(store, tmp_path / "locked")
    table, seal = locked / "labels.csv", locked / "manifest.json"
    rows = list(csv.DictReader(table.open()))
    rows[0]["label"] = next(row["label"] for row in rows if row["label"] != rows[0]["label"])
    with table.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, rows[0], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    sealed = json.loads(seal.read_text())
    sealed["files"]["labels.csv"] = files.sha256(table)
    seal.write_text(json.dumps(sealed))
    with pytest.raises(LungkitError, match="is not on the audit trail"):
        lungkit("learn", "trial", "tiny-cnn@v2", "--locked", locked)
    with store.read() as db:
        assert db.scalars(sa.select(LockedLook)).all() == []


def test_labels_that_were_given_with_the_answer_of_the_challenger_do_not_speak_for_it(ward, store, versions, tmp_path):
    ids = ward(16, False, 1)
    with store.write() as db:  # it was in use for a while, and was taken back
        db.execute(sa.update(Reading).where(Reading.id.in_(ids[:4])).values(version="v2"))
    newest = review_sets.read(collect.collect(store, tmp_path / "reviews", Asked(), "Ward").folder)
    plan = trials.of_reviews(*versions, newest)
    assert plan.images == 12 and plan.left_out == {"Ward": 4}


def test_a_patient_whose_picture_the_champion_learned_from_elsewhere_is_left_out(
    lungkit, ward, store, versions, readers, tmp_path, monkeypatch
):
    kept = []
    monkeypatch.setattr(tensor_cache.Writer, "_put", lambda _, sha256, *__: kept.append(sha256))
    ward(8, True, 1)
    home = phantom.make_dataset(tmp_path / "phantom", n_slices=90, seed=9, size=96)
    own = phantom.make_dataset(tmp_path / "own" / "phantom", n_slices=90, seed=3, size=96)  # what it was trained on
    rows = list(csv.DictReader((own / "labels.csv").open()))
    seen = [row for row in rows if files.sha256(own / row["file"]) in release.seen_images(versions[0])][:2]
    with (home / "labels.csv").open("a", newline="") as table:
        for number, row in enumerate(seen):
            shutil.copy(own / row["file"], home / f"seen-{number}.dcm")
            more = {"file": f"seen-{number}.dcm", "patient_id": f"seen-{number}", "mask": ""}
            csv.DictWriter(table, rows[0]).writerow(row | {name: more[name] for name in more.keys() & row.keys()})
    for number, row in enumerate(seen):  # someone tries the clinic with them
        picture = images.read(own / row["file"])
        answer = Predictor(versions[0]).read(picture)
        saved = readers[0].save_case(NewPatient(f"try-{number}", "A Try"), picture, f"{number:064x}", answer)
        readers[1].review(saved.reading_id, row["label"])
    locked = locked_set(store, tmp_path / "locked")
    told = json.loads(lungkit("learn", "trial", "tiny-cnn@v2", "--locked", locked, "--data", home, "--json"))
    of = told["evidence"]["sets"][0]
    assert (of["kind"], of["images"], of["left_out"]) == ("locked", 8, 2)
    of_patients = {row["sha256"] for row in review_sets.read(locked).rows}
    assert kept and not of_patients & set(kept), "pictures of the clinic's patients are not kept in a second place"


def test_every_set_of_reviews_that_a_version_learned_from_has_to_be_named_also_those_of_versions_before(
    ward, store, versions, tmp_path
):
    ward(16, False, 1)
    first = review_sets.read(collect.collect(store, tmp_path / "reviews", Asked(), "Ward").folder)
    ward(8, True, 2)
    locked = review_sets.read(collect.collect(store, tmp_path / "locked", Asked(locked=True), "Ward").folder)
    learned = {"name": first.folder.name, "content_sha256": first.content_sha256}
    second = retrained(versions[0], {"champion": "tiny-cnn@v1", "reviews": learned})
    unknown = {"name": "other", "content_sha256": "0" * 64}
    third = retrained(second, {"champion": str(second), "started_from": f"the weights of {second}", "reviews": unknown})
    assert trials.of_reviews(versions[0], second, locked, [first]).images == 8
    for version, sets, name in ((second, [], "reviews-v1"), (third, [first], "other")):
        with pytest.raises(LungkitError, match=f"learned from the reviews {name}, .* --reviews"):
            trials.of_reviews(versions[0], version, locked, sets)
    fourth = retrained(second, {"champion": str(second), "started_from": f"the weights of {second}"})
    with pytest.raises(LungkitError, match="learned from the reviews reviews-v1"):
        trials.of_reviews(versions[0], fourth, locked)
    fifth = retrained(second, {"champion": str(second), "started_from": "the start that its recipe has"})
    assert trials.of_reviews(versions[0], fifth, locked).images == 8


def retrained(old: registry.Version, training: dict) -> registry.Version:
    """A version once more, with a card that says how it was trained."""

    def write(folder: Path) -> None:
        for name in old.card.files:
            shutil.copy(old.folder / name, folder / name)

    return registry.add(old.model, replace(old.card, training=training), write, promote=False)

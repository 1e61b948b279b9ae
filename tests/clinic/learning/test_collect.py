"""Reviews become a data set: the pixels as they are, each patient's consent, labels that readers agree on."""

import json
from datetime import date, timedelta
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import sqlalchemy as sa

from lungkit import files
from lungkit.clinic.learning import collect as module
from lungkit.clinic.learning import reviews
from lungkit.clinic.learning.collect import collect
from lungkit.clinic.learning.reviews import DIFFER, TWO_PATIENTS, Asked
from lungkit.clinic.records import pixels
from lungkit.clinic.records.administration import Administration
from lungkit.clinic.records.patients import NewPatient
from lungkit.clinic.records.tables import NOT_ASSESSABLE, OTHER_FINDING, WRONG_IMAGE, Patient, Study, now
from lungkit.data import dataset, images, phantom
from lungkit.errors import LungkitError
from tests.clinic.rows import events


def table(made) -> pd.DataFrame:
    return pd.read_csv(made.folder / "labels.csv", dtype=str, keep_default_na=False)


def aside(made) -> dict[str, str]:
    rows = pd.read_csv(made.folder / "aside.csv", dtype=str, keep_default_na=False)
    return dict(zip(rows["reading_id"], rows["reason"], strict=True))


def study_of(readers, reading_id) -> str:
    return readers[0].case(reading_id).study_id


@pytest.fixture
def home(tmp_path):
    return tmp_path / "sets" / "reviews"


def test_a_collection_loads_as_a_data_set_with_the_pixels_of_the_records(store, home, reviewed, readers):
    readings = {
        reviewed("Normal"): "Normal",
        reviewed("Pneumonia", units="HU"): "Pneumonia",
        reviewed("Pneumonia", units="HU", seed=40): "Pneumonia",
    }
    reviewed()  # without a review
    made = collect(store, home, Asked(), "St. Example")
    loaded = dataset.load(made.folder)
    assert loaded.classes == ("Normal", "Pneumonia")
    assert set(loaded.manifest["source"]) == {"St. Example"}
    assert set(loaded.manifest["modality"]) == {"", "CT"}
    for reading_id, label in readings.items():
        case = readers[0].case(reading_id)
        (row,) = [row for row in loaded.manifest.itertuples() if case.study_id in row.file]
        assert (row.label, row.patient_id) == (label, case.patient.id)
        read = images.read(loaded.root / row.file)
        assert read.units == case.units
        np.testing.assert_array_equal(read.pixels, case.pixels)
    content = b"".join(path.read_bytes() for path in made.folder.rglob("*") if path.is_file())
    assert b"NUMBER-" not in content
    assert b"Name " not in content


def test_air_and_the_densest_metal_are_read_back_exactly(store, home, reviewed, readers):
    reading_id = reviewed("Normal", units="HU")
    with store.write() as db:
        study = db.get(Study, study_of(readers, reading_id))
        hu = np.full((24, 24), -1024, np.float32)
        hu[0, :4] = 64511, 0, 3071, -1
        study.pixels = pixels.encode(images.Image(hu, "HU", "CT", "x", {}))
    made = collect(store, home, Asked(), "clinic")
    (file,) = (made.folder / "images").iterdir()
    np.testing.assert_array_equal(images.read(file).pixels, hu)


def test_a_slice_as_a_scanner_writes_it_is_collected_with_the_same_hu(store, home, readers, prediction, tmp_path):
    made = phantom.make_dataset(tmp_path / "phantom", n_slices=4, seed=3, size=64)
    read = images.read(sorted(made.rglob("*.dcm"))[0])
    case = readers[0].save_case(NewPatient("N", "N"), read, "a" * 64, prediction())
    readers[0].review(case.reading_id, "Pneumonia")
    collected = collect(store, home, Asked(), "clinic")
    (file,) = (collected.folder / "images").iterdir()
    np.testing.assert_array_equal(images.read(file).pixels, read.pixels)


def test_the_table_says_who_labelled_what_when_and_after_which_answer(store, home, reviewed):
    reviewed("Normal", "Normal", model="ct", version="v3")
    (row,) = table(collect(store, home, Asked(), "clinic")).to_dict("records")
    assert (row["label"], row["model_label"], row["model"], row["version"]) == ("Normal", "Pneumonia", "ct", "v3")
    assert (row["readers"], row["answer_shown"], row["kind"]) == ("2", "yes", "X-ray")
    assert row["reader"].isdigit()
    assert pd.Timestamp(row["reviewed_at"]) <= pd.Timestamp(now())


def test_the_same_records_give_the_same_hash_and_nothing_is_written_again(store, home, reviewed, tmp_path):
    reviewed("Normal")
    reviewed("Pneumonia", "Normal")
    first = collect(store, home, Asked(), "clinic")
    before = {path: path.stat().st_mtime_ns for path in home.rglob("*")}
    again = collect(store, home, Asked(), "clinic")
    assert (again.new, again.folder) == (False, first.folder)
    assert {path: path.stat().st_mtime_ns for path in home.rglob("*") if path.name != ".lock"} == {
        path: at for path, at in before.items() if path.name != ".lock"
    }
    elsewhere = collect(store, tmp_path / "other", Asked(), "clinic")
    assert elsewhere.manifest["content_sha256"] == first.manifest["content_sha256"]


def test_a_new_review_makes_the_next_version_which_names_the_hash_of_the_one_before(store, home, reviewed):
    reviewed("Normal")
    first = collect(store, home, Asked(), "clinic")
    kept = {path: path.read_bytes() for path in first.folder.rglob("*") if path.is_file()}
    reviewed("Pneumonia")
    second = collect(store, home, Asked(), "clinic")
    assert [first.folder.name, second.folder.name] == ["reviews-v1", "reviews-v2"]
    assert first.manifest["follows"] is None
    assert second.manifest["follows"] == files.sha256(first.folder / "manifest.json")
    assert second.manifest["content_sha256"] != first.manifest["content_sha256"]
    assert {path: path.read_bytes() for path in kept} == kept
    for name, digest in second.manifest["files"].items():
        assert files.sha256(second.folder / name) == digest
    assert json.loads((second.folder / "manifest.json").read_text()) == second.manifest


def test_a_version_without_its_manifest_is_not_written_over(store, home, reviewed):
    reviewed("Normal")
    made = collect(store, home, Asked(), "clinic")
    (made.folder / "manifest.json").write_text("{")
    with pytest.raises(LungkitError, match=r"reviews-v1 has no manifest.json that can be read"):
        collect(store, home, Asked(), "clinic")


def test_excluded_patients_are_left_out_and_counted(store, home, reviewed, readers, signed_in):
    reviewed("Normal")
    out = readers[0].case(reviewed("Normal")).patient
    admin = Administration(signed_in("admin"))
    admin.set_excluded(out.id, True)
    assert [patient.excluded for patient in admin.patients(out.number)] == [True]
    made = collect(store, home, Asked(), "clinic")
    assert made.manifest["counts"] == {"reviewed": 2, "uploaded again": 0, "of excluded patients": 1, "collected": 1}
    assert out.id not in (made.folder / "labels.csv").read_text()
    assert [event.detail for event in events(store, "patient.exclude")] == [{"excluded": True}]
    admin.set_excluded(out.id, False)
    assert collect(store, home, Asked(), "clinic").manifest["counts"]["collected"] == 2


def test_an_image_that_was_uploaded_again_counts_once_with_the_latest_label(store, home, reviewed, readers):
    patient = readers[0].case(reviewed("Normal", seed=5)).patient.id
    reviewed("Pneumonia", seed=5, patient=patient)  # the same file
    reviewed("Normal", seed=5, patient=patient, sha256="f" * 64)  # the same pixels from another file
    made = collect(store, home, Asked(), "clinic")
    assert list(table(made)["label"]) == ["Normal"]
    assert made.manifest["counts"]["uploaded again"] == 2


@pytest.mark.parametrize("sha256", [None, "e" * 64], ids=["the same file", "another file"])
def test_a_picture_under_two_patients_is_set_aside_and_named(store, home, reviewed, sha256):
    twins = {reviewed("Normal", seed=5), reviewed("Normal", seed=5, sha256=sha256)}
    kept = reviewed("Normal")
    made = collect(store, home, Asked(), "clinic")
    assert aside(made) == dict.fromkeys(twins, TWO_PATIENTS)
    assert len(table(made)) == 1
    assert kept not in aside(made)


def test_readers_who_differ_are_left_to_a_third_whose_label_then_decides(store, home, reviewed, readers):
    differ = reviewed("Normal", "Pneumonia")
    reviewed("Normal", "Normal")
    made = collect(store, home, Asked(), "clinic")
    assert aside(made) == {differ: DIFFER}
    assert made.manifest["counts"]["collected"] == 1
    readers[2].review(differ, "Pneumonia")
    made = collect(store, home, Asked(), "clinic")
    assert aside(made) == {}
    assert sorted(table(made)["label"]) == ["Normal", "Pneumonia"]


def test_a_reader_who_changes_the_label_does_not_differ(store, home, reviewed, readers):
    reading_id = reviewed("Normal", "Pneumonia")
    readers[0].review(reading_id, "Pneumonia")
    made = collect(store, home, Asked(), "clinic")
    assert list(table(made)["label"]) == ["Pneumonia"]


@pytest.mark.parametrize("asked", [Asked(locked=True), Asked(locked=True, model="newer")])
def test_a_reader_who_saw_an_answer_labels_that_image_for_no_locked_set(store, home, reviewed, asked):
    reviewed("Pneumonia", seed=1, patient=NewPatient("N-1", "Name"))
    with store.read() as db:
        patient = db.scalar(sa.select(Patient.id))
    reviewed("Pneumonia", seed=1, patient=patient, shown=False, model="newer")
    with pytest.raises(LungkitError, match="no image to collect"):
        collect(store, home, asked, "clinic")


def test_a_locked_set_has_labels_given_without_the_answer_and_its_patients_are_in_no_other(
    store, home, reviewed, readers
):
    shown = reviewed("Normal")
    blind = reviewed("Pneumonia", shown=False)
    readers[0].review(blind, "Normal")  # after the answer was seen
    readers[1].review(shown, "Normal")  # the worklist shows the answer to everyone
    plain = reviewed("Normal")
    locked = collect(store, home, Asked(locked=True), "clinic")
    of_study = table(locked).set_index("file")
    assert set(of_study["answer_shown"]) == {"no"}
    assert of_study.loc[f"images/{study_of(readers, blind)}.png", "label"] == "Pneumonia"
    assert list(of_study["readers"]) == ["1"]
    rest = collect(store, home.with_name("rest"), Asked(), "clinic")
    assert set(table(rest)["file"]) == {f"images/{study_of(readers, one)}.png" for one in (shown, plain)}
    assert rest.manifest["counts"]["kept for the locked set"] == 1
    assert locked.manifest["counts"]["labelled with the answer on screen"] == 2


def test_only_the_model_and_the_days_that_are_asked_for_are_collected(store, home, reviewed):
    reviewed("Normal", model="ct")
    reviewed("Normal", model="other")
    assert len(table(collect(store, home, Asked(model="ct"), "clinic"))) == 1
    today = now().date()
    assert len(table(collect(store, home, Asked(since=today), "clinic"))) == 2
    with pytest.raises(LungkitError, match="no image to collect: 0 of 0 reviewed images"):
        collect(store, home, Asked(since=today + timedelta(days=1)), "clinic")
    with pytest.raises(LungkitError, match="no image to collect"):
        collect(store, home, Asked(model="ct", since=date(2999, 1, 1)), "clinic")


def test_models_with_other_classes_are_not_mixed(store, home, reviewed):
    reviewed("Normal", model="xray")
    other = {"classes": ("COVID", "Normal"), "label": "Normal"}
    reviewed("Normal", model="ct", **{k: v for k, v in other.items() if k != "label"})
    with pytest.raises(LungkitError, match=r"other classes \(ct: COVID, Normal; xray: Normal, Pneumonia\)"):
        collect(store, home, Asked(), "clinic")


def test_damaged_pixels_are_set_aside(store, home, reviewed, readers):
    reviewed("Normal")
    broken = reviewed("Normal")
    with store.write() as db:
        db.get(Study, study_of(readers, broken)).pixels = b"no picture"
    assert aside(collect(store, home, Asked(), "clinic")) == {broken: reviews.DAMAGED}


def test_the_trail_has_counts_and_no_image(store, home, reviewed):
    reviewed("Normal")
    made = collect(store, home, Asked(), "clinic")
    (event,) = events(store, "learn.collect")
    assert (event.user_id, event.object) == (None, "records:all")
    assert event.detail["counts"] == made.manifest["counts"]
    assert "NUMBER" not in json.dumps(event.detail)


def test_a_collection_that_fails_leaves_nothing(store, home, reviewed, monkeypatch):
    reviewed("Normal")
    other = images.read(Path(__file__).parents[1] / "cat.jpg")
    monkeypatch.setattr(module.images, "read", lambda *_: other)
    with pytest.raises(LungkitError, match="not read back as it is in the records"):
        collect(store, home, Asked(), "clinic")
    assert [path.name for path in home.iterdir() if path.is_dir()] == []
    assert events(store, "learn.collect") == []


def test_the_agreement_of_readers_is_in_the_manifest_and_in_words(store, home, reviewed):
    for number in range(12):
        second = "Normal" if number % 2 else "Pneumonia"
        reviewed("Normal" if number % 2 or number == 0 else "Pneumonia", second)
    made = collect(store, home, Asked(), "clinic")
    (kappa,) = made.manifest["agreement"]["cohen"].values()
    assert kappa["images"] == kappa["patients"] == 12
    assert kappa["value"] == pytest.approx(5 / 6)
    assert kappa["low"] < kappa["value"] < kappa["high"] <= 1
    assert any("Cohen's kappa): 0.83 (" in line for line in module.said(made.manifest))


# --- reviews that give no class


def test_an_image_whose_readers_give_no_class_is_counted_and_not_collected(store, home, reviewed):
    reviewed("Normal")
    for said in ((NOT_ASSESSABLE,), (WRONG_IMAGE, WRONG_IMAGE), (NOT_ASSESSABLE, OTHER_FINDING)):
        reviewed(*said)
    made = collect(store, home, Asked(), "clinic")
    assert list(table(made)["label"]) == ["Normal"] and aside(made) == {}
    counts = made.manifest["counts"]
    assert [counts[name] for name in ("reviewed", "collected", "not assessable", "wrong image or region",
                                      "another finding")] == [4, 1, 1, 1, 1]  # fmt: skip
    assert "not assessable: 1" in "".join(module.said(made.manifest))


def test_a_class_against_no_class_is_left_to_a_third_reader(store, home, reviewed, readers):
    reviewed("Normal")
    differ = reviewed("Normal", NOT_ASSESSABLE)
    made = collect(store, home, Asked(), "clinic")
    assert aside(made) == {differ: DIFFER}
    assert "not assessable" in (made.folder / "aside.csv").read_text()
    readers[2].review(differ, "", kind=WRONG_IMAGE)
    assert len(table(collect(store, home, Asked(), "clinic"))) == 1
    readers[2].review(differ, "Normal")
    assert len(table(collect(store, home, Asked(), "clinic"))) == 2


def test_kappa_is_that_of_classes_alone(store, home, reviewed):
    for said in (("Normal", "Normal"), ("Pneumonia", "Pneumonia"), ("Normal", NOT_ASSESSABLE),
                 (NOT_ASSESSABLE, NOT_ASSESSABLE), (OTHER_FINDING, OTHER_FINDING)):  # fmt: skip
        reviewed(*said)
    agreed = collect(store, home, Asked(), "clinic").manifest["agreement"]
    ((_pair, cohen),) = agreed["cohen"].items()
    assert (cohen["images"], cohen["value"], agreed["fleiss"]["images"]) == (2, 1.0, 2)


def test_a_label_next_to_another_finding_is_not_learned_from(store, home, reviewed, readers):
    reviewed("Normal")
    reading_id = reviewed()
    readers[0].review(reading_id, "Pneumonia", kind=OTHER_FINDING, finding="NUMBER-9 has a mass")
    made = collect(store, home, Asked(), "clinic")
    assert list(table(made)["label"]) == ["Normal"]
    assert "mass" not in "".join(path.read_text() for path in made.folder.glob("*.*"))

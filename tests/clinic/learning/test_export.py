"""The data set for research: nothing that leads back to a patient, k alike, pictures only after a person looked."""

import csv
import io
import json
import re

import numpy as np
import PIL.Image
import pytest
import typer.testing

from lungkit import cli, files
from lungkit.clinic.learning import collect, export
from lungkit.clinic.learning.reviews import Asked, selected
from lungkit.clinic.records import pixels
from lungkit.clinic.records.patients import NewPatient
from lungkit.clinic.records.tables import Patient, Review, Study
from lungkit.data import dataset, images
from lungkit.errors import LungkitError
from tests.clinic.rows import events


@pytest.fixture
def many(reviewed):
    """A function: reviewed images of patients who are alike, except in what a test changes."""

    def make(number=6, units="HU", start=0, **patient) -> None:
        for n in range(start, start + number):
            whose = NewPatient(f"NUMBER-{n}", f"Secret Name {n}", **({"birth_year": 1960, "sex": "female"} | patient))
            reviewed(["Normal", "Pneumonia"][n % 2], patient=whose, units=units, seed=n)

    return make


@pytest.fixture
def looked(store, tmp_path):
    """A function: contact sheets, filled by a person who holds back so many pictures, or leaves them unseen."""

    def look(back=0, unseen=0):
        folder = tmp_path / "sheets"
        export.sheets(store, folder, Asked())
        rows = list(csv.DictReader(io.StringIO((folder / export.CHECKED).read_text())))
        for place, row in enumerate(rows):
            row["may_leave"] = "no" if place < back else "" if place < back + unseen else "yes"
        table = collect.csv_table(tuple(rows[0]), [row.values() for row in rows])
        (folder / export.CHECKED).write_bytes(table)
        return folder / export.CHECKED

    return look


def table(made) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO((made.folder / "labels.csv").read_text())))


def test_an_export_loads_as_a_data_set_with_the_pixels_of_the_records(store, many, tmp_path):
    many()
    made = export.export(store, tmp_path / "set", Asked(), "Ward", 3)
    loaded = dataset.load(made.folder)
    assert loaded.classes == ("Normal", "Pneumonia")
    given = {image.pixels_sha256: image.label for image in selected(store, Asked()).labelled}
    for row in table(made):
        read = images.read(made.folder / row["file"])
        assert given[pixels.digest(read.pixels, read.units)] == row["label"]
    assert len(table(made)) == 6


def test_nothing_leads_back_to_the_records(store, many, tmp_path, looked):
    many(units="intensity")
    many(start=6)
    made = export.export(store, tmp_path / "set", Asked(), "Ward", 3, looked())
    with store.read() as db:
        secrets = [one for row in db.query(Patient) for one in (row.id, row.number, row.name)]
        secrets += [one for row in db.query(Study) for one in (row.id, row.sha256, str(row.uploaded_at.date()))]
        secrets += [one for row in db.query(Review) for one in (row.id, row.reading_id)]
    secrets += [image.pixels_sha256 for image in selected(store, Asked()).labelled]
    secrets.append(collect.generate_uid(entropy_srcs=["lungkit collect", secrets[0]]))
    content = b"".join(path.name.encode() + path.read_bytes() for path in made.folder.rglob("*") if path.is_file())
    assert not [secret for secret in secrets if secret.encode() in content]
    text = "".join((made.folder / name).read_text() for name in ("README.md", "labels.csv", "croissant.json"))
    assert not re.search(r"20\d\d-\d\d", text)


def test_two_exports_have_nothing_in_common_but_pixels(store, many, tmp_path):
    many()
    one, other = (export.export(store, tmp_path / name, Asked(), "Ward", 3) for name in ("one", "other"))
    for column in ("patient", "file"):
        assert not {row[column] for row in table(one)} & {row[column] for row in table(other)}
    uids = [
        {images.read(made.folder / row["file"]).pixels.tobytes(): (made.folder / row["file"]).read_bytes()
         for row in table(made)} for made in (one, other)
    ]  # fmt: skip
    assert uids[0].keys() == uids[1].keys()
    assert not set(uids[0].values()) & set(uids[1].values())


def test_each_patient_is_alike_with_k_others_and_what_that_took_is_said(store, many, tmp_path):
    many(10)
    many(1, start=10, birth_year=1930, sex="male")
    many(10, start=20, birth_year=1985, sex="male")
    made = export.export(store, tmp_path / "set", Asked(), "Ward", 5)
    said = [(row["age"], row["sex"], row["kind"], row["view"], row["year"]) for row in table(made)]
    assert min(said.count(one) for one in said) >= 5
    assert made.facts["left_out"] == 1
    assert len(said) == 20
    assert "Left out for that: 1 patients" in (made.folder / "README.md").read_text()
    (event,) = events(store, "learn.export")
    assert (event.detail["k"], event.detail["images"], event.detail["left_out"]) == (5, 20, 1)


def test_too_few_patients_give_no_data_set(store, many, tmp_path):
    many(3)
    with pytest.raises(LungkitError, match="no 5 patients are alike, of 3"):
        export.export(store, tmp_path / "set", Asked(), "Ward", 5)
    assert not (tmp_path / "set").exists()
    assert events(store, "learn.export") == []


def test_pictures_leave_only_after_a_person_has_looked(store, many, tmp_path, looked):
    many(8, units="intensity")
    with pytest.raises(LungkitError, match="8 pictures may have text burnt in"):
        export.export(store, tmp_path / "set", Asked(), "Ward", 3)
    made = export.export(store, tmp_path / "set", Asked(), "Ward", 3, looked(back=2, unseen=1))
    assert len(table(made)) == 5
    assert made.facts["counts"] == {"pictures that a person held back": 2, "pictures that no one looked at": 1}


def test_nothing_is_written_over_and_no_export_is_claimed(store, many, tmp_path, looked):
    many(6, units="intensity")
    export.sheets(store, tmp_path / "look", Asked())
    (tmp_path / "look" / export.CHECKED).write_text("what a person wrote")
    with pytest.raises(LungkitError, match="look is there already"):
        export.sheets(store, tmp_path / "look", Asked())
    assert (tmp_path / "look" / export.CHECKED).read_text() == "what a person wrote"
    checked = looked()
    export.export(store, tmp_path / "set", Asked(), "Ward", 3, checked)
    with pytest.raises(LungkitError, match="set is there already, and nothing is written over"):
        export.export(store, tmp_path / "set", Asked(), "Ward", 2, checked)
    assert len(events(store, "learn.export")) == 1


def test_a_table_without_answers_is_named_as_the_reason_that_nothing_is_left(store, many, tmp_path, looked):
    many(6, units="intensity")
    with pytest.raises(LungkitError, match="nothing is left to export: pictures that no one looked at: 6"):
        export.export(store, tmp_path / "set", Asked(), "Ward", 3, looked(unseen=6))


def test_a_picture_that_was_exchanged_after_the_look_stays(store, many, tmp_path, looked, chest_image):
    many(8, units="intensity")
    checked = looked()
    with store.write() as db:
        first = db.query(Study).first()
        first.pixels = export.pixels.encode(chest_image(seed=77))
    made = export.export(store, tmp_path / "set", Asked(), "Ward", 3, checked)
    assert len(table(made)) == 7
    assert made.facts["counts"]["pictures that no one looked at"] == 1


def test_contact_sheets_show_every_picture_and_are_private(store, many, tmp_path):
    many(13, units="intensity")
    assert export.sheets(store, tmp_path / "sheets", Asked()) == 13
    sheets = sorted((tmp_path / "sheets").glob("*.png"))
    assert len(sheets) == 2
    assert (tmp_path / "sheets").stat().st_mode & 0o077 == 0
    first = np.asarray(PIL.Image.open(sheets[0]))
    for place in range(12):
        top, left = place // export.ACROSS * export.TILE, place % export.ACROSS * export.TILE
        assert first[top + 30 : top + 70, left + 4 : left + 60].std() > 20


@pytest.mark.parametrize("text", ["", "study,place\n1,2\n", "study,pixels_sha256,may_leave\na,b,maybe\n"])
def test_a_table_that_is_none_is_refused(store, many, tmp_path, text):
    many(3, units="intensity")
    (tmp_path / "t.csv").write_text(text)
    with pytest.raises(LungkitError, match=r"may_leave is 'maybe'|not the table|may_leave|nothing is left"):
        export.export(store, tmp_path / "set", Asked(), "Ward", 3, tmp_path / "t.csv")


def test_a_header_with_a_name_in_it_does_not_leave(store, many, tmp_path):
    many(8)
    with store.write() as db:
        db.query(Study).first().tags = {"view": "Jane Doe"}
    made = export.export(store, tmp_path / "set", Asked(), "Ward", 3)
    assert "Jane" not in (made.folder / "labels.csv").read_text()


def test_the_locked_set_is_not_exported(store, many, tmp_path):
    with pytest.raises(LungkitError, match="locked set"):
        export.export(store, tmp_path / "set", Asked(locked=True), "Ward", 3)


def test_the_card_for_programs_names_every_column_and_the_hash_of_the_table(store, many, tmp_path):
    many()
    made = export.export(store, tmp_path / "set", Asked(), "Ward", 3, licence="CC-BY-4.0", url="https://x.example/d")
    card = json.loads((made.folder / "croissant.json").read_text())
    assert card["conformsTo"] == "http://mlcommons.org/croissant/1.0"
    assert (card["license"], card["url"]) == ("CC-BY-4.0", "https://x.example/d")
    assert card["distribution"][0]["sha256"] == files.sha256(made.folder / "labels.csv")
    (records,) = card["recordSet"]
    columns = [field["source"]["extract"]["column"] for field in records["field"]]
    assert columns == list(table(made)[0])


def test_the_command_writes_sheets_and_then_the_data_set(store, many, tmp_path, monkeypatch, looked):
    monkeypatch.setenv("LUNGKIT_DATABASE", store.url.render_as_string(hide_password=False))
    many(6, units="intensity")

    def run(*arguments) -> str:
        answer = typer.testing.CliRunner().invoke(cli.app, ["learn", "export", *map(str, arguments)])
        assert answer.exit_code == 0, answer.output
        return answer.stdout

    assert "6 pictures to look at" in run(tmp_path / "look", "--sheets")
    shown = run(tmp_path / "set", "--k", 3, "--checked", looked())
    assert "6 images of 6 patients: Normal 3, Pneumonia 3" in shown
    assert "k = 3: 1 group, the smallest of 6 patients" in shown


@pytest.mark.parametrize("view", ["=HYPERLINK(1)", "Dr Smith, St. Mary"])
def test_only_views_that_the_standard_names_leave_the_clinic(store, many, looked, tmp_path, view):
    many(units="intensity")
    with store.write() as db:
        for number, study in enumerate(db.query(Study)):
            study.tags = dict(study.tags) | {"view": view if number % 2 else "pa"}
    made = export.export(store, tmp_path / "set", Asked(), "Ward", 3, looked())
    assert sorted(row["view"] for row in table(made)) == ["PA"] * 3 + ["other"] * 3

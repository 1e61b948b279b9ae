"""Several data sets become one: classes are matched by name or as stated, and each image keeps its source."""

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from lungkit import cli
from lungkit.data import dataset, joined, quality, splits
from lungkit.data.notes import DatasetError
from lungkit.data.relabel import Labels


def hospital(folder, labels, source="", severity=(), seed=0):
    """A folder of pictures, one of each patient, with labels.csv; labels: of each picture."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(seed)
    lines = ["file,label,patient_id,split,source,severity"]
    for i, label in enumerate(labels):
        Image.fromarray(rng.integers(0, 255, (24, 24), dtype=np.uint8)).save(folder / f"{i}.png")
        lines.append(f"{i}.png,{label},p{i},,{source},{severity[i] if len(severity) else ''}")
    (folder / "labels.csv").write_text("\n".join(lines) + "\n")
    return folder


@pytest.fixture
def moscow(tmp_path):
    """Ten normal, ten sick of two grades, with the collection's name in the table."""
    grades = ["CT-0"] * 10 + ["CT-1"] * 4 + ["CT-2"] * 6
    return hospital(tmp_path / "moscow", ["Normal"] * 10 + ["COVID-19"] * 10, "Moscow Set", grades, seed=1)


@pytest.fixture
def paper(tmp_path):
    """Eight of each class, without a name of the source; patients have the same ids as Moscow's."""
    return hospital(tmp_path / "paper", ["NonCOVID"] * 8 + ["COVID"] * 8, seed=2)


LABELS = Labels.parse(["NonCOVID=Normal", "COVID=COVID-19"])


def test_the_source_is_that_of_the_table_or_the_folders_name(moscow, paper):
    assert dataset.load(moscow).source_names == ["Moscow Set"]
    assert dataset.load(paper).source_names == ["paper"]


def test_two_sets_become_one_with_the_classes_as_stated(moscow, paper, tmp_path):
    notes = joined.join(tmp_path / "both", [moscow, paper], LABELS)
    data = dataset.load_split(tmp_path / "both")
    assert data.classes == ("NonCOVID", "COVID")
    table = data.by_source()["NonCOVID", "images"]
    assert table.to_dict() == {"Moscow Set": 10, "paper": 8, "all": 18}
    assert data.manifest["patient_id"].nunique() == 36  # p3 of the one is not p3 of the other
    assert set(data.sources("test")) == set(data.sources("val")) == {"Moscow Set", "paper"}
    assert not notes and all(file.is_file() for file in data.files())


def test_a_set_takes_the_label_column_that_it_has_and_leaves_labels_out(moscow, paper, tmp_path):
    labels = Labels.parse(["NonCOVID=CT-0", "COVID=CT-2"], ["CT-1"])
    notes = joined.join(tmp_path / "both", [moscow, paper], labels, ["severity"])
    data = dataset.load(tmp_path / "both")
    assert data.by_source().loc["Moscow Set", ("COVID", "images")] == 6
    assert [str(note) for note in notes] == ["images left out: 4. By their labels: moscow: CT-1 4."]


def test_a_label_can_mean_something_in_one_set_only(moscow, tmp_path):
    other = hospital(tmp_path / "other", ["Normal"] * 4 + ["Healthy"] * 4 + ["Sick"] * 4, seed=3)
    labels = Labels.parse(["NonCOVID=moscow:Normal,Healthy", "COVID=COVID-19,Sick"], ["other:Normal"])
    joined.join(tmp_path / "both", [moscow, other], labels)
    assert dataset.load(tmp_path / "both").by_source()["NonCOVID", "images"].tolist() == [10, 4, 14]


def test_classes_that_cannot_be_matched_are_refused_by_name(moscow, paper, tmp_path):
    with pytest.raises(DatasetError, match=r"moscow has 'COVID-19', 'Normal', .* --label 'CLASS=LABEL"):
        joined.join(tmp_path / "both", [moscow, paper])
    with pytest.raises(
        DatasetError, match=r"no image has the label 'CT-2'\. The labels are, moscow: COVID-19, Normal;"
    ):
        joined.join(tmp_path / "both", [moscow, paper], Labels.parse(["NonCOVID=Normal", "COVID=COVID-19,CT-2"]))
    assert not (tmp_path / "both").exists()


@pytest.mark.parametrize("stated", [["COVID"], ["=COVID"], ["COVID="], ["COVID=a", "Normal=A"]])
def test_a_meaning_that_cannot_be_read_is_refused(stated):
    with pytest.raises(DatasetError, match=r"give CLASS=LABEL|named twice"):
        Labels.parse(stated)


def test_a_folder_that_is_there_and_two_sets_of_one_name_are_refused(moscow, paper, tmp_path):
    with pytest.raises(DatasetError, match="already there"):
        joined.join(paper, [moscow, paper], LABELS)
    twin = hospital(tmp_path / "elsewhere" / "moscow", ["Normal", "COVID-19"])
    with pytest.raises(DatasetError, match="two of the sets are called moscow"):
        joined.join(tmp_path / "both", [moscow, twin], LABELS)


def test_rows_without_a_label_in_another_column_are_left_out_and_named(tmp_path):
    folder = hospital(tmp_path / "some", ["a", "b"] * 3, severity=["x", "", "y", "x", "y", ""])
    data = dataset.load(folder, label_column="severity")
    assert data.manifest["label"].tolist() == ["x", "y", "x", "y"]
    assert any("rows without severity: 2 (line 3, line 7)" in str(note) for note in data.notes)
    assert not any("does not name" in str(note) for note in data.notes)


def test_the_fingerprint_counts_the_source_where_there_are_several(moscow, paper, tmp_path):
    joined.join(tmp_path / "both", [moscow, paper], LABELS)
    data, one = dataset.load(tmp_path / "both"), dataset.load(moscow)
    assert dataset._fingerprint(data.classes, data.manifest.assign(source="x")) != data.fingerprint
    assert dataset._fingerprint(one.classes, one.manifest.assign(source="x")) == one.fingerprint


def test_a_source_can_be_left_out_of_a_split(moscow, paper, tmp_path):
    joined.join(tmp_path / "both", [moscow, paper], LABELS)
    data = dataset.load_split(tmp_path / "both", leave_out="moscow set")
    assert (data.name, data.source_names) == ("both-without-Moscow Set", ["paper"])
    splits.refuse_leaks(data.manifest)
    assert dataset.load_split(tmp_path / "both").source_names == ["Moscow Set", "paper"]
    with pytest.raises(DatasetError, match="'Madrid' is no source of these images; there are: Moscow Set; paper"):
        dataset.load_split(tmp_path / "both", leave_out="Madrid")


def test_a_source_that_alone_has_a_class_cannot_be_left_out(moscow, paper, tmp_path):
    joined.join(tmp_path / "both", [moscow, paper], Labels.parse(["NonCOVID=Normal", "COVID=COVID", "Old=COVID-19"]))
    with pytest.raises(DatasetError, match="without Moscow Set there is no image of Old"):
        dataset.load_split(tmp_path / "both", leave_out="Moscow Set")


def test_a_saved_set_from_before_its_source_was_known_is_prepared_again(moscow):
    data = dataset.load_split(moscow)
    folder = next(iter((dataset.config.data_dir() / "manifests").iterdir()))
    dataset.replace(data, manifest=data.manifest.assign(source="")).save(folder)
    assert dataset.load_split(moscow).source_names == ["Moscow Set"]


def test_a_set_joined_for_a_recipe_is_made_once_and_follows_its_sources(moscow, paper):
    first, _ = joined.kept("both", [moscow, paper], LABELS)
    assert joined.kept("both", [moscow, paper], LABELS)[0] == first and first.name == "both"
    (paper / "labels.csv").write_text((paper / "labels.csv").read_text().replace("0.png,NonCOVID", "0.png,COVID"))
    assert joined.kept("both", [moscow, paper], LABELS)[0] != first


def test_an_audit_names_the_source_that_gives_a_class_away(moscow, paper, tmp_path):
    lopsided = hospital(tmp_path / "lopsided", ["COVID"] * 19 + ["NonCOVID"], seed=4)
    joined.join(tmp_path / "both", [moscow, paper, lopsided], LABELS)
    findings = quality.audit(dataset.load(tmp_path / "both")).findings.set_index("finding")
    row = findings.loc["sources with other shares of classes"]
    assert (row["severity"], row["count"]) == ("warning", 1)
    assert "lopsided: 95% COVID, of all 66%" in row["examples"]
    alone = quality.audit(dataset.load(moscow)).findings
    assert "sources with other shares of classes" not in alone["finding"].tolist()


def test_the_command_joins_sets_and_shows_their_classes_by_source(moscow, paper, tmp_path):
    stated = ["--label", "NonCOVID=Normal", "--label", "COVID=COVID-19"]
    shown = CliRunner().invoke(cli.app, ["data", "join", str(tmp_path / "both"), str(moscow), str(paper), *stated])
    assert shown.exit_code == 0 and dataset.load(tmp_path / "both").source_names == ["Moscow Set", "paper"]
    (row,) = (line.split("│") for line in shown.output.splitlines() if "Moscow Set" in line)
    assert [cell.strip() for cell in row[1:-1]] == ["Moscow Set", "10", "10", "10", "10", "20", "20"]

"""What a person decided about single images reaches the next run, and nothing of it happens in silence."""

import csv
import dataclasses

import numpy as np
import pandas as pd
import PIL.Image
import pytest

from lungkit import config
from lungkit.data import dataset, decisions
from lungkit.data.decisions import Decision
from lungkit.data.notes import DatasetError

SHA = "0" * 64


@pytest.fixture
def chest(tmp_path):
    """Twelve patients of each class, an image each."""
    rng = np.random.default_rng(3)
    for label in ("Normal", "Sick"):
        for number in range(12):
            path = tmp_path / "chests" / label / f"{number:02}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            PIL.Image.fromarray(rng.integers(0, 256, (24, 24), np.uint8)).save(path)
    return dataset.load_split(tmp_path / "chests", quiet=True)


def some(chest, part, label="Normal"):
    rows = chest.part(part)
    return rows[rows["label"] == label].iloc[0]


def about(row, decision="exclude", **more):
    part = {"part": row["split"]} | more
    return Decision(file=row["file"], sha256=row["sha256"], decision=decision, **part)


def again(chest, path, *rows, **how):
    decisions.write(path, rows)
    return dataset.load_split(chest.root, decisions=path, quiet=True, **how)


# --- what they do


def test_an_excluded_image_is_in_no_part_and_a_note_counts_it_with_its_reason(chest, tmp_path):
    out = some(chest, "train")
    after = again(chest, tmp_path / "d.csv", about(out, reason="no lung"))
    assert out["file"] not in set(after.part()["file"])
    assert len(after.files("train")) == len(chest.files("train")) - 1
    assert after.summary().loc["excluded", ("all", "images")] == 1
    (note,) = after.notes
    assert str(note) == f"images excluded by decision: 1 ({out['file']}). Reasons: no lung 1. Left out."
    assert after.part("excluded")["note"].tolist() == ["excluded: no lung"]


def test_a_relabelled_image_has_the_new_label_and_says_which_it_had(chest, tmp_path):
    wrong = some(chest, "train")
    after = again(chest, tmp_path / "d.csv", about(wrong, "relabel", label="sick", reason="opacity"))
    row = after.manifest.set_index("file").loc[wrong["file"]]
    assert (row["label"], row["split"], row["note"]) == ("Sick", "train", "was labelled Normal: opacity")
    (note,) = after.notes
    assert f"relabelled by decision: 1 ({wrong['file']}: Normal to Sick)" in str(note)


def test_no_other_image_changes_its_part(chest, tmp_path):
    rows = [about(some(chest, "train", label)) for label in chest.classes]
    after = again(chest, tmp_path / "d.csv", *rows, about(some(chest, "val"), "relabel", label="Sick"))
    both = chest.manifest.merge(after.manifest, on="file")
    assert set(both.loc[both["split_x"] != both["split_y"], "file"]) == {row.file for row in rows}
    assert set(chest.part("test")["file"]) == set(after.part("test")["file"])


def test_a_decision_to_keep_changes_nothing_but_is_noted(chest, tmp_path):
    after = again(chest, tmp_path / "d.csv", about(some(chest, "test"), "keep"))
    pd.testing.assert_frame_equal(after.manifest, chest.manifest)
    assert [note.finding for note in after.notes] == ["images kept by decision"]
    assert after.fingerprint == chest.fingerprint


def test_the_notes_are_said_before_training(chest, tmp_path, capsys):
    decisions.write(tmp_path / "d.csv", [about(some(chest, "train"), reason="twice")])
    dataset.load_split(chest.root, decisions=tmp_path / "d.csv")
    assert "images excluded by decision: 1" in capsys.readouterr().err


# --- what is refused


def test_a_test_image_changes_only_where_its_row_says_test_and_then_with_a_warning(chest, tmp_path):
    seen = some(chest, "test")
    for part in ("", "train"):
        with pytest.raises(DatasetError, match=rf"change {seen['file']} of the test part.*write test into"):
            again(chest, tmp_path / "d.csv", about(seen, part=part))
    after = again(chest, tmp_path / "d.csv", about(seen))
    assert "figures of the test part flatter" in " ".join(map(str, after.notes))
    assert len(after.files("test")) == len(chest.files("test")) - 1


def test_an_image_whose_content_changed_since_is_refused_by_name(chest, tmp_path):
    row = some(chest, "train")
    with pytest.raises(DatasetError, match=rf"content of {row['file']} is not what was decided about"):
        again(chest, tmp_path / "d.csv", Decision(row["file"], SHA, "exclude"))


def test_a_label_that_is_no_class_is_refused_with_the_classes_there_are(chest, tmp_path):
    row = some(chest, "train")
    with pytest.raises(DatasetError, match=rf"relabel {row['file']} as 'Flu'; the classes are Normal, Sick"):
        again(chest, tmp_path / "d.csv", about(row, "relabel", label="Flu"))


def test_a_part_must_not_lose_a_class(chest, tmp_path):
    rows = chest.part("val")
    everything = [about(row) for _, row in rows[rows["label"] == "Sick"].iterrows()]
    with pytest.raises(DatasetError, match="leave no image of Sick in the part val"):
        again(chest, tmp_path / "d.csv", *everything)


def test_a_file_that_is_not_in_the_set_is_named_in_a_note(chest, tmp_path):
    after = again(chest, tmp_path / "d.csv", Decision("Normal/99.png", SHA, "exclude"))
    assert "decisions about other images: 1 (Normal/99.png)" in str(after.notes[0])


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("file,decision\n", "no column sha256"),
        ("", "no column file, sha256, decision"),
        (f"file,sha256,decision\na.png,{SHA},remove\n", "line 2: a.png: decision is 'remove'; accepted: keep, exclude"),
        (f"file,sha256,decision\na.png,{SHA},relabel\n", "line 2: a.png: a label goes with relabel"),
        (f"file,sha256,decision,label\na.png,{SHA},keep,Sick\n", "a label goes with relabel, and with it alone"),
        (f"file,sha256,decision,part\na.png,{SHA},keep,all\n", "part is 'all'; accepted: train, val, test"),
        ("file,sha256,decision\na.png,12,keep\n", "sha256 is '12'; accepted: 64"),
        (f"file,sha256,decision\n,{SHA},keep\n", "`file` must be the path of an image"),
        (f"file,sha256,decision\na.png,{SHA},keep,x\n", "line 2: more values than columns"),
        (f"file,sha256,decision\na.png,{SHA},keep\na.png,{SHA},exclude\n", "more than one decision about a.png"),
        (f"file;sha256;decision\na.png;{SHA};keep\n", "separated by semicolons; the separator must be a comma"),
        (f"file\tsha256\tdecision\na.png\t{SHA}\tkeep\n", "separated by tabs; the separator must be a comma"),
        (f"sep=,\nfile,sha256,decision\na.png,{SHA},keep\n", "take out its first line, 'sep=,'"),
        (f"file,sha256,decision,file\na.png,{SHA},keep,b.png\n", "more than one column file"),
        ("file,sha256,decision\n\x00", "`file` must be the path of an image"),
    ],
)
def test_a_malformed_file_is_refused_with_the_line_and_what_is_accepted(content, says, tmp_path):
    (tmp_path / "d.csv").write_text(content)
    with pytest.raises(DatasetError, match=says):
        decisions.read(tmp_path / "d.csv")


def test_a_missing_file_is_refused_before_an_image_is_read(tmp_path):
    with pytest.raises(DatasetError, match=r"no decisions in .*x\.csv: there is no such file"):
        dataset.load_split(tmp_path / "nowhere", decisions=tmp_path / "x.csv")


@pytest.mark.parametrize("path", ["x" * 5000, "a\0b", "~no-such-user-4711/x.csv", "."])
def test_a_path_that_cannot_be_one_is_refused_in_a_short_line(path):
    with pytest.raises(DatasetError, match="decisions") as refused:
        decisions.find(path)
    assert len(str(refused.value)) < 500
    assert str(refused.value).isprintable()


def test_spaces_and_the_case_of_what_is_no_persons_word_do_not_count(tmp_path):
    sha256 = "ab" * 32
    (tmp_path / "d.csv").write_text(f"File, SHA256, Decision, part\na.png, {sha256.upper()}, Exclude, Train\n")
    assert decisions.read(tmp_path / "d.csv") == (Decision("a.png", sha256, "exclude", part="train"),)


def test_reasons_are_cleaned_when_they_are_read_and_have_one_hash_from_then_on(tmp_path):
    for reason in ("a\nb\x1b[31m\0\u202e", "=1+1", "x" * 100_000, "x" * 299 + " y", " ", "- -@ x"):
        table = [["file", "sha256", "decision", "reason", "by", "at"], ["a.png", SHA, "keep", reason, reason, reason]]
        with (tmp_path / "d.csv").open("w", newline="") as file:
            csv.writer(file).writerows(table)
        found = decisions.find(tmp_path / "d.csv")
        (row,) = found.rows
        assert row.reason == row.by == row.at == decisions.plain_words(reason)
        assert row.reason.isprintable()
        assert len(row.reason) <= decisions.MOST_WORDS
        assert decisions.find(found.sha256) == found


def test_a_kept_copy_that_was_changed_is_mended_by_the_same_decisions(tmp_path):
    decisions.write(tmp_path / "d.csv", [Decision("a.png", SHA, "exclude")])
    found = decisions.find(tmp_path / "d.csv")
    copy = config.data_dir() / "decisions" / f"{found.sha256}.csv"
    copy.write_text(copy.read_text().replace("exclude", "keep"))
    assert decisions.find(tmp_path / "d.csv") == found == decisions.find(found.sha256)


# --- what a recipe remembers


def test_the_recipe_names_the_content_so_that_a_changed_or_lost_file_gives_the_same_split(chest, tmp_path):
    after = again(chest, tmp_path / "d.csv", about(some(chest, "train"), reason="first"))
    (tmp_path / "d.csv").unlink()
    once_more = dataset.load_split(chest.root, decisions=after.recipe["decisions"], quiet=True)
    assert once_more.fingerprint == after.fingerprint != chest.fingerprint
    assert after.recipe == chest.recipe | {"decisions": decisions.kept(after.recipe["decisions"])}


def test_the_saved_set_stays_that_without_decisions(chest, tmp_path):
    saved = config.data_dir() / "manifests" / "chests"
    before = {file.name: file.read_bytes() for file in saved.iterdir()}
    again(chest, tmp_path / "d.csv", about(some(chest, "train")))
    assert {file.name: file.read_bytes() for file in saved.iterdir()} == before
    assert "decisions" not in chest.recipe


def test_kept_decisions_that_are_missing_or_were_changed_are_an_error_of_their_own(chest, tmp_path):
    sha256 = again(chest, tmp_path / "d.csv", about(some(chest, "train"))).recipe["decisions"]
    copy = config.data_dir() / "decisions" / f"{sha256}.csv"
    copy.write_text(copy.read_text().replace("exclude", "keep"))
    with pytest.raises(decisions.DecisionsGone, match="was changed"):
        decisions.find(sha256)
    copy.unlink()
    with pytest.raises(decisions.DecisionsGone, match=r"is missing: copy the decisions\.csv"):
        decisions.find(sha256)


def test_what_is_written_is_read_again_also_with_commas_quotes_and_other_alphabets(tmp_path):
    rows = [
        Decision("b.png", SHA, "relabel", "Sick", "val", 'a "shadow", left', "Åsa", decisions.now()),
        Decision("a,b.png", SHA, "keep"),
    ]
    decisions.write(tmp_path / "d.csv", rows)
    assert set(decisions.read(tmp_path / "d.csv")) == set(rows)


def test_a_persons_words_become_one_short_line_that_is_no_formula():
    assert decisions.plain_words("  blurred\n\tpicture\x1b[31m ") == decisions.plain_words("blurred picture\x1b[31m")
    assert "\n" not in decisions.plain_words("a\nb")
    assert decisions.plain_words('=HYPERLINK("x")') == 'HYPERLINK("x")'
    assert len(decisions.plain_words("x" * 5000)) == decisions.MOST_WORDS


def test_a_decision_is_checked_when_it_is_made():
    with pytest.raises(DatasetError, match="accepted: keep, exclude, relabel"):
        dataclasses.replace(Decision("a.png", SHA, "keep"), decision="delete")

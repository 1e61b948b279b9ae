"""Data sets of reviews as other programs find them: sealed, in a line, with patients and pixels."""

import json

import pytest

from lungkit import files
from lungkit.data import review_sets
from lungkit.errors import LungkitError


def write(folder, rows: list[tuple[str, str, str]], locked=False):
    """A set with (patient, pixels, answer shown) of each image; files have the pixels as their content."""
    (folder / "images").mkdir(parents=True)
    lines = ["file,label,patient_id,pixels_sha256,answer_shown"]
    for number, (patient, pixels, shown) in enumerate(rows):
        (folder / "images" / f"{number}.png").write_text(pixels)
        lines.append(f"images/{number}.png,Normal,{patient},{pixels},{shown}")
    (folder / "labels.csv").write_text("\n".join(lines) + "\n")
    sealed = {path.relative_to(folder).as_posix(): files.sha256(path) for path in folder.rglob("*") if path.is_file()}
    (folder / "manifest.json").write_text(json.dumps({"asked": {"locked": locked}, "files": sealed}))
    return folder


def test_a_set_knows_its_kind_its_hash_and_how_many_saw_an_answer(tmp_path):
    of = review_sets.read(write(tmp_path / "a-v1", [("p1", "x", "yes"), ("p2", "y", "no")], locked=True))
    assert of.locked and of.answer_shown == 0.5
    assert of.sha256 == files.sha256(tmp_path / "a-v1" / "manifest.json")


@pytest.mark.parametrize("change", ["other", "gone", "more"])
def test_a_set_with_a_file_changed_removed_or_added_is_refused(tmp_path, change):
    folder = write(tmp_path / "a-v1", [("p1", "x", "no")])
    image = folder / "images" / "0.png"
    if change == "gone":
        image.unlink()
    else:
        (image if change == "other" else image.with_name("1.png")).write_text("z")
    with pytest.raises(LungkitError, match=r"not as it was collected: images/[01]\.png was changed, added or removed"):
        review_sets.read(folder)


@pytest.mark.parametrize("manifest", ["", "[]", "{}", '{"asked": {"locked": "no"}, "files": {}}', '{"asked": 1}'])
def test_other_folders_are_refused_in_words(tmp_path, manifest):
    folder = write(tmp_path / "a-v1", [("p1", "x", "no")])
    (folder / "manifest.json").write_text(manifest)
    with pytest.raises(LungkitError, match="no data set of reviews"):
        review_sets.read(folder)


def test_who_names_the_collection_is_told_to_name_one_of_its_sets(tmp_path):
    made = write(tmp_path / "a" / "a-v1", [("p1", "x", "no")])
    with pytest.raises(LungkitError, match=f"name a data set .* such as {made}$"):
        review_sets.read(tmp_path / "a")


def test_sets_are_in_line_by_their_number(tmp_path):
    made = [write(tmp_path / f"a-v{number}", [("p", "x", "no")]) for number in (10, 2, 1)]
    write(tmp_path / "b-v3", [("p", "x", "no")])
    second = review_sets.read(made[1])
    assert [of.folder.name for of in review_sets.line(second)] == ["a-v1", "a-v2", "a-v10"]
    assert [of.folder.name for of in review_sets.before(second)] == ["a-v1", "a-v2"]
    alone = review_sets.read(write(tmp_path / "elsewhere", [("p", "x", "no")]))
    assert review_sets.before(alone) == [alone]


def test_patients_and_pixels_of_what_was_learned_are_found_in_all_sets(tmp_path):
    first = review_sets.read(write(tmp_path / "a-v1", [("p1", "x", "no"), ("p2", "y", "no")]))
    other = review_sets.read(write(tmp_path / "b-v1", [("p3", "z", "no")]))
    seen = {first.rows[0]["sha256"], other.rows[0]["sha256"]}
    assert review_sets.learned(seen, [first, other]) == ({"p1", "p3"}, {"x", "z"})
    assert review_sets.learned(set(), [first, other]) == (set(), set())

"""An interrupted command continues from its checkpoint: no file is read twice, and no answer is lost."""

import json
from itertools import islice
from pathlib import Path

import pytest

from lungkit.clinic import checkpoint
from lungkit.clinic.checkpoint import CheckpointRefused

ASKED = {"command": "lungkit predict", "model": "m@v1", "sha256": "ab", "files": ["in"], "heatmaps": None}
FILES = [Path(f"in/{number}.png") for number in range(9)]


@pytest.fixture
def path(tmp_path) -> Path:
    return tmp_path / "checkpoint.jsonl"


class Reader:
    """Answers with the name of each file, and remembers which it was asked for."""

    def __init__(self):
        self.read = []

    def __call__(self, files):
        for file in files:
            self.read.append(str(file))
            yield {"file": str(file), "answer": len(self.read)}


def _begun(path, count, files=FILES) -> list[dict]:
    """The records of a command that was interrupted after so many."""
    records = checkpoint.continued(path, ASKED, files, Reader())
    first = list(islice(records, count))
    records.close()
    return first


def _continued(path, files=FILES, asked=ASKED) -> tuple[list[dict], list[str]]:
    """All records, and the files that were read for them now."""
    reader = Reader()
    return list(checkpoint.continued(path, asked, files, reader)), reader.read


def _names(records) -> list[str]:
    return [record["file"] for record in records]


def test_it_says_in_its_first_line_what_was_asked_and_then_keeps_every_record(path):
    records, read = _continued(path)
    assert [json.loads(line) for line in path.read_text().splitlines()] == [ASKED, *records]
    assert _names(records) == read == [str(file) for file in FILES]


def test_the_same_command_gives_the_kept_records_again_and_reads_only_the_rest(path):
    first = _begun(path, 4)
    records, read = _continued(path)
    assert records[:4] == first
    assert _names(records) == [str(file) for file in FILES]
    assert read == [str(file) for file in FILES[4:]]
    assert _continued(path) == (records, [])


def test_a_record_is_kept_before_it_is_given(path):
    records = checkpoint.continued(path, ASKED, FILES, Reader())
    for count, record in enumerate(islice(records, 3), start=1):
        lines = path.read_text().splitlines()
        assert len(lines) == 1 + count
        assert json.loads(lines[-1]) == record


@pytest.mark.parametrize("torn", [b'{"file": "in/3.png", "ans', b'{"file": "in/3.png"}', b"\0\0\0\n", b"\n"])
def test_a_last_line_that_is_not_whole_is_cut_off_and_its_file_is_read_again(path, torn):
    _begun(path, 3)
    path.write_bytes(path.read_bytes() + torn)
    records, read = _continued(path)
    assert read == [str(file) for file in FILES[3:]]
    assert [json.loads(line) for line in path.read_text().splitlines()] == [ASKED, *records]


def test_damage_before_the_last_line_is_refused_and_nothing_is_changed(path):
    _begun(path, 3)
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(before := b"".join([*lines[:2], b"garbage\n", *lines[3:]]))
    with pytest.raises(CheckpointRefused, match=r"is damaged after \d+ bytes; delete it"):
        _continued(path)
    assert path.read_bytes() == before


def test_the_checkpoint_of_another_command_is_refused_with_what_differs(path):
    _begun(path, 3)
    before = path.read_bytes()
    other = ASKED | {"model": "m@v2", "files": ["in", "more"]}
    with pytest.raises(CheckpointRefused) as refused:
        _continued(path, asked=other)
    assert "another command: model was m@v1, is m@v2; files was in, is in, more. Give another file" in str(
        refused.value
    )
    assert path.read_bytes() == before


@pytest.mark.parametrize("content", [b"\x89PNG\r\n\x1a\n", b"{}\n", b"a.png: Normal (Normal 0.9)\n", b'{"file": "a"}'])
def test_a_file_that_is_no_checkpoint_is_left_as_it_is(path, content):
    path.write_bytes(content)
    with pytest.raises(CheckpointRefused, match=r"is not a checkpoint of lungkit predict; give another file"):
        _continued(path)
    assert path.read_bytes() == content


def test_an_empty_file_is_a_checkpoint_that_has_not_begun(path):
    path.touch()
    assert len(_continued(path)[0]) == len(FILES)


def test_two_commands_do_not_write_into_one_checkpoint(path):
    running = checkpoint.continued(path, ASKED, FILES, Reader())
    next(running)
    with pytest.raises(CheckpointRefused, match="another command is writing to it"):
        _continued(path)
    assert len(list(running)) == len(FILES) - 1


def test_files_that_came_or_went_meanwhile_cost_no_answer_and_no_second_reading(path):
    _begun(path, 4)
    now = [Path("in/00.png"), *FILES[:2], *FILES[3:], Path("in/new.png")]  # in/2.png is gone
    records, read = _continued(path, now)
    assert read == ["in/00.png", *map(str, FILES[4:]), "in/new.png"]
    assert _names(records) == [*map(str, FILES[:4]), *read]


def test_names_of_any_bytes_are_known_again(path):
    odd = [Path("in/\udcff.png"), Path("in/a\nb.png"), Path("in/ä.png")]
    _begun(path, 2, odd)
    assert _continued(path, odd)[1] == ["in/ä.png"]


def test_what_is_kept_is_not_kept_in_memory(path):
    """Only the names of files that are out of turn are."""
    _begun(path, 4)
    records = checkpoint.continued(path, ASKED, iter(FILES), Reader())
    next(records)
    assert records.gi_frame.f_locals["out_of_turn"] == set()
    list(islice(records, 3))
    assert records.gi_frame.f_locals["out_of_turn"] == set()

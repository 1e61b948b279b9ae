"""Files and folders appear whole or not at all, and what a killed process left is removed."""

import subprocess
import sys
from pathlib import Path

import pytest

from lungkit import files


def _names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_folder_appears_when_it_is_filled(tmp_path):
    with files.new_folder(tmp_path / "deep" / "set") as draft:
        (draft / "one").write_text("1")
        assert not (tmp_path / "deep" / "set").exists()
    assert (tmp_path / "deep" / "set" / "one").read_text() == "1"
    assert _names(tmp_path / "deep") == ["set"]


@pytest.mark.parametrize("stop", [KeyboardInterrupt, OSError(28, "full"), SystemExit])
def test_a_stopped_filling_leaves_nothing(tmp_path, stop):
    with pytest.raises(BaseException), files.new_folder(tmp_path / "set") as draft:  # noqa: B017
        (draft / "one").write_text("1")
        raise stop
    assert _names(tmp_path) == []


def test_the_error_of_a_full_disk_names_the_folder_to_be_made(tmp_path):
    for filename in (None, "draft"):
        with pytest.raises(OSError) as refused, files.new_folder(tmp_path / "set") as draft:
            raise OSError(28, "No space left on device", filename and str(draft / "one.png"))
        assert refused.value.filename == str(tmp_path / "set")


def test_a_folder_filled_by_another_process_in_the_meantime_stays(tmp_path):
    with files.new_folder(tmp_path / "set") as draft:
        (draft / "one").write_text("mine")
        (tmp_path / "set").mkdir()
        (tmp_path / "set" / "one").write_text("theirs")
    assert (tmp_path / "set" / "one").read_text() == "theirs"
    assert _names(tmp_path) == ["set"]


def test_a_folder_that_cannot_take_its_place_is_an_error(tmp_path):
    with pytest.raises(NotADirectoryError), files.new_folder(tmp_path / "set"):
        (tmp_path / "set").write_text("a file stands there")
    assert _names(tmp_path) == ["set"]


@pytest.mark.parametrize("name", ["set", "s" * 255, "ä" * 127])
def test_drafts_of_killed_processes_are_removed_and_those_of_living_ones_are_not(tmp_path, name):
    script = f"""
import sys, time
from pathlib import Path
from lungkit import files
with files.new_folder(Path({str(tmp_path / name)!r})) as draft:
    (draft / "half").write_text("1")
    print("filling", flush=True)
    time.sleep(60)
"""
    processes = [subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE) for _ in range(2)]
    for process in processes:
        process.stdout.readline()
    try:
        processes[0].kill()
        processes[0].wait()
        assert len(_names(tmp_path)) == 2
        with files.new_folder(tmp_path / name) as draft:
            (draft / "whole").write_text("1")
        assert _names(tmp_path / name) == ["whole"]
        (left,) = [path for path in tmp_path.iterdir() if path.name != name]
        assert (left / "new" / "half").is_file()
    finally:
        processes[1].kill()
        processes[1].wait()


def test_a_file_is_replaced_in_one_step(tmp_path):
    (tmp_path / "file").write_text("old")
    files.replace(tmp_path / "file", "neü")
    assert (tmp_path / "file").read_text("utf-8") == "neü"
    files.replace(tmp_path / "file", b"bytes")
    assert _names(tmp_path) == ["file"]


def test_a_file_that_cannot_be_written_is_named_and_leaves_no_draft(tmp_path):
    (tmp_path / "taken").mkdir()
    with pytest.raises(OSError, match=r"taken") as refused:
        files.replace(tmp_path / "taken", "text")
    assert refused.value.filename == str(tmp_path / "taken")
    assert _names(tmp_path) == ["taken"]
    with pytest.raises(OSError, match="longer"):
        files.replace(tmp_path / ("longer" * 50), "text")


@pytest.mark.parametrize(("name", "most", "cut"), [("abc", 2, "ab"), ("aä", 2, "a"), ("aä", 3, "aä"), ("", 5, "")])
def test_a_name_is_cut_between_letters(name, most, cut):
    assert files.cut_name(name, most) == cut


def test_the_hash_of_a_file_is_that_of_its_bytes(tmp_path):
    (tmp_path / "file").write_bytes(b"abc")
    known = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert files.sha256(b"abc") == files.sha256(tmp_path / "file") == known


def test_a_draft_has_the_suffix_of_its_file_and_is_removed_unless_it_was_moved(tmp_path):
    target = tmp_path / f"{'s' * 250}.npz"
    with files.draft(target) as draft:
        assert draft.suffix == ".npz"
        Path(f"{draft}-wal").write_text("what SQLite leaves")
    assert _names(tmp_path) == []
    with files.draft(target, mode=0o600) as draft:
        draft.write_text("whole")
        files.put(draft, target)
    assert target.read_text() == "whole"
    assert target.stat().st_mode & 0o777 == 0o600
    assert _names(tmp_path) == [target.name]


def test_a_durable_file_is_on_the_disk_before_it_takes_its_place_and_its_folder_after_that(tmp_path, monkeypatch):
    order = []
    fsync = files.os.fsync
    monkeypatch.setattr(
        files.os, "fsync", lambda number: (order.append(Path(f"/proc/self/fd/{number}").resolve()), fsync(number))
    )
    files.replace(tmp_path / "quick", "1")
    assert order == []
    files.replace(tmp_path / "pointer", "1", durable=True)
    assert [path.name.partition("-")[2] for path in order[:1]] == ["pointer"]
    assert order[1:] == [tmp_path]
    with files.draft_folder(tmp_path, "version") as new:
        (new / "weights").write_text("1")
        order.clear()
        files.put(new, tmp_path / "v1")
    assert [path.name for path in order] == ["weights", "new", tmp_path.name]


def test_a_lock_that_is_taken_is_refused_or_waited_for(tmp_path):
    lock = tmp_path / "lock"
    with files.locked(lock), pytest.raises(BlockingIOError), files.locked(lock, wait=False):
        pass
    with files.locked(lock, wait=False):
        pass

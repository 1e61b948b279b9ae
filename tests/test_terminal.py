"""What commands show: nothing is cut on a narrow screen or in a pipe, and a refusal of the system is one line."""

import errno
import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import pytest

from lungkit import cli, terminal

ROOT = Path(__file__).parents[1]
CLASSES = ["no tumour", "glioma", "meningioma", "pituitary adenoma"]
COLUMNS = ["", "all", *CLASSES]
ROWS = [
    [figure, f"0.9{i}1 (0.8{i}0–1.000)", *(f"0.{k}{i}1 (0.{k}{i}0–0.{k}{i}2)" for k in range(1, 5))]
    for i, figure in enumerate(["Accuracy", "Specificity", "Average precision"])
]
LONG = "chest-xray-pneumonia-" + "x" * 79
_SHOW = f"from lungkit import terminal; terminal.table({COLUMNS!r}, {ROWS!r}, title={LONG!r}); terminal.say({LONG!r})"


def _in_terminal(script: str, width: int) -> str:
    """What a script shows on a terminal of this width."""
    ours, theirs = pty.openpty()
    environment = os.environ | {"COLUMNS": str(width), "TERM": "xterm", "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen([sys.executable, "-c", script], stdout=theirs, stdin=theirs, env=environment)
    os.close(theirs)
    shown = b""
    try:
        while part := os.read(ours, 4096):
            shown += part
    except OSError:  # the terminal was closed at the other end
        pass
    assert process.wait(60) == 0
    os.close(ours)
    return re.sub(r"\x1b\[[0-9;]*m", "", shown.decode()).replace("\r\n", "\n")


@pytest.mark.parametrize("width", [20, 40, 80, 200])
def test_a_table_shows_every_cell_whole_on_a_terminal_of_any_width(width):
    shown = _in_terminal(_SHOW, width)
    assert "…" not in shown
    assert all(cell in shown for row in ROWS for cell in row)
    assert all(name in shown for name in CLASSES)
    assert shown.count(LONG) == 2
    lines = [line for line in shown.splitlines() if LONG not in line]
    if width >= 80:
        assert max(map(len, lines)) <= width


def test_a_pipe_has_no_width():
    environment = os.environ | {"COLUMNS": "40", "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", _SHOW], capture_output=True, text=True, env=environment, timeout=60)
    for row in ROWS:
        assert any(all(cell in line for cell in row) for line in done.stdout.splitlines()), "a row is one line"


def test_prose_is_wrapped_between_words_where_that_makes_the_table_fit():
    script = "from lungkit import terminal; terminal.table(['a', 'b'], [['name', 'word ' * 40]], prose=['b'])"
    shown = _in_terminal(script, 60)
    assert shown.count("word") == 40
    assert "┃ a" in shown


# --- the system refuses


@pytest.mark.parametrize(
    ("number", "said"),
    [
        (errno.ENOSPC, "the disk is full"),
        (errno.EROFS, "the file system is read-only"),
        (errno.EACCES, "you have no permission"),
        (errno.ENAMETOOLONG, "the name is too long"),
        (errno.ENOTDIR, "there is a file where a folder is needed"),
        (errno.ETIMEDOUT, "timed out"),
    ],
)
def test_a_refusal_names_the_file_and_the_reason(number, said):
    told = terminal.refusal(OSError(number, os.strerror(number).lower(), "/some/file"))
    assert told.startswith("/some/file: ")
    assert said in told


def test_what_cannot_be_written_is_one_line_in_every_command(squares, tmp_path, monkeypatch, capsys):
    file = tmp_path / "file"
    file.write_text("")
    for arguments, environment in (
        (["data", "audit", squares, "--out", file], {}),
        (["data", "audit", squares, "--out", file / "below"], {}),
        (["data", "phantom", file / "below", "--slices", 20], {}),
        (["data", "audit", squares, "--out", tmp_path / ("x" * 300)], {}),
        (["run", "01", "--data", squares], {"LUNGKIT_REPORTS": str(file)}),
    ):
        monkeypatch.setattr(sys, "argv", ["lungkit", *map(str, arguments)])
        with monkeypatch.context() as patch, pytest.raises(SystemExit) as ended:
            for name, value in environment.items():
                patch.setenv(name, value)
            cli.main()
        shown = capsys.readouterr().err
        said = shown.splitlines()[-1]
        assert ended.value.code == 1, arguments
        assert said.startswith("error: ") and str(tmp_path) in said, said
        assert "Traceback" not in shown
    assert sorted(path.name for path in tmp_path.iterdir() if "x" not in path.name) == ["file"]


def test_a_full_disk_is_named_even_if_the_system_names_no_file(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(terminal, "_is_full", lambda folder: folder == tmp_path / "data")
    monkeypatch.setattr(sys, "argv", ["lungkit", "models", "list"])
    monkeypatch.setattr(cli, "app", lambda: (_ for _ in ()).throw(OSError(errno.ENOSPC, "No space left on device")))
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 1
    assert capsys.readouterr().err == f"error: {tmp_path / 'data'}: the disk is full\n"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_output_that_cannot_be_written_is_one_line_and_a_reader_that_has_seen_enough_none():
    command = [sys.executable, "-c", "from lungkit import cli; cli.main()", "models", "list"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, env=environment, timeout=60)
    assert (done.returncode, done.stderr) == (1, "error: the disk is full\n")
    ours, theirs = os.pipe()
    os.close(ours)
    done = subprocess.run(command, stdout=theirs, stderr=subprocess.PIPE, text=True, env=environment, timeout=60)
    os.close(theirs)
    assert (done.returncode, done.stderr) == (1, "")


def test_memory_that_is_not_enough_is_one_line(monkeypatch, capsys):
    monkeypatch.setattr(cli, "app", lambda: (_ for _ in ()).throw(MemoryError))
    with pytest.raises(SystemExit):
        cli.main()
    assert capsys.readouterr().err.startswith("error: the memory is not enough;")


# --- Ctrl-C


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        ("train ct-covid --data x", "interrupted; the same command continues where it stopped"),
        ("run 03", "interrupted; the same command continues a search or a training where it stopped"),
        ("data phantom x", "interrupted; nothing was kept"),
        (
            "predict run",
            "interrupted; files without a line were not read; with --checkpoint, the same command continues",
        ),
        ("models list", "interrupted"),
    ],
)
def test_ctrl_c_says_what_the_command_leaves(typed, said, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["lungkit", *typed.split()])
    monkeypatch.setattr(cli.TyperGroup, "invoke", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert (ended.value.code, capsys.readouterr().err) == (130, f"{said}\n")

"""Folders are read file by file whatever is in them, with the answers that the clinic gives one at a time."""

import dataclasses
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import psutil
import pytest
from PIL import Image as Picture
from typer.testing import CliRunner

from lungkit import cli
from lungkit.clinic import batch, decode
from lungkit.clinic.checkpoint import CheckpointRefused
from lungkit.clinic.predictor import REVIEW, Predictor
from lungkit.data import images, preprocess
from lungkit.errors import LungkitError
from lungkit.models import graph, registry
from lungkit.models.card import About
from lungkit.models.prediction import Check
from tests.data.test_images import dicom

CAT = Path(__file__).with_name("cat.jpg")


@pytest.fixture
def reads_many(tiny_version) -> Predictor:
    return Predictor(tiny_version, heat=False, many=True)


@pytest.fixture
def broken(tmp_path) -> list[Path]:
    """Three files that cannot be read: not an image, cut off, and not there."""
    text, cut = tmp_path / "text.png", tmp_path / "cut.jpg"
    text.write_text("not an image")
    cut.write_bytes(CAT.read_bytes()[:2000])
    return [text, cut, tmp_path / "gone.png"]


@pytest.fixture
def many_processes(monkeypatch):
    """As if the few files of a test were many."""
    monkeypatch.setattr(batch, "_FEW", 0)


# --- the same answers


@pytest.mark.parametrize("workers", [None, 2])
def test_answers_are_those_of_one_at_a_time_in_the_order_of_the_files(tiny_version, reads_many, slice_files, workers):
    one = Predictor(tiny_version)
    answers = list(batch.read_files(reads_many, slice_files, workers))
    assert [answer.file for answer in answers] == slice_files
    for answer, file in zip(answers, slice_files, strict=True):
        expected = one.read(images.read(file))
        np.testing.assert_allclose(answer.reading.probabilities, expected.probabilities, atol=1e-6)
        assert (answer.reading.label, answer.reading.decision) == (expected.label, expected.decision)
        for check, same in zip(answer.reading.checks, expected.checks, strict=True):
            assert check.value == pytest.approx(same.value, rel=1e-4)
            assert check.words == same.words
        assert answer.sha256 == hashlib.sha256(file.read_bytes()).hexdigest()
        assert 0 < answer.reading.milliseconds < 5000


@pytest.mark.parametrize("workers", [None, 2])
def test_broken_files_are_reported_where_they_stand_and_the_rest_is_read(reads_many, slice_files, broken, workers):
    files = [broken[0], *slice_files[:9], broken[1], slice_files[9], broken[2]]
    answers = list(batch.read_files(reads_many, files, workers))
    assert [answer.file for answer in answers] == files
    assert [answer.file for answer in answers if answer.reading is None] == broken
    reasons = [answer.error for answer in answers if answer.error]
    assert [reason.split(": ")[1].split(".")[0] for reason in reasons] == ["not an image", "truncated", "no such file"]
    (alone,) = batch.read_files(reads_many, [slice_files[9]])
    np.testing.assert_allclose(answers[11].reading.probabilities, alone.reading.probabilities, atol=1e-6)


def test_nothing_but_broken_files_gives_nothing_but_reasons(reads_many, broken):
    answers = list(batch.read_files(reads_many, broken * 9))
    assert len(answers) == 27
    assert all(answer.error and answer.reading is None for answer in answers)


def test_no_file_gives_no_answer(reads_many):
    assert list(batch.read_files(reads_many, [])) == []


def test_a_file_that_is_no_file_is_not_waited_for(reads_many, tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    (answer,) = batch.read_files(reads_many, [tmp_path / "pipe.png"])
    assert "not a regular file" in answer.error


def test_what_is_hashed_is_what_is_read(tmp_path, monkeypatch):
    """The file may be replaced while it is read; the hash must not be of other pixels."""
    file = shutil.copyfile(CAT, tmp_path / "cat.jpg")
    before, prepare = hashlib.sha256(CAT.read_bytes()).hexdigest(), preprocess.prepare

    def read_while_replaced(*source, **options):
        file.write_bytes(b"something else")
        return prepare(*source, **options)

    monkeypatch.setattr(preprocess, "prepare", read_while_replaced)
    (decoded,), tensors = decode.decode([file], preprocess.Preprocessing(size=(32, 32)))
    assert len(tensors) == 1
    assert decoded.sha256 == before


# --- processes


def _decoder_processes() -> list[psutil.Process]:
    return [child for child in psutil.Process().children(recursive=True) if child.num_threads() and _decodes(child)]


def _decodes(process: psutil.Process) -> bool:
    try:
        return "forkserver" in " ".join(process.cmdline()) and process.parent().pid != os.getpid()
    except psutil.NoSuchProcess:
        return False


def test_a_decoder_that_dies_takes_no_other_file_with_it(reads_many, slice_files, many_processes):
    files = slice_files * 12
    answers = batch.read_files(reads_many, files, workers=2)
    first = next(answers)
    for process in _decoder_processes():
        process.send_signal(signal.SIGKILL)
    read = [first, *answers]
    assert [answer.file for answer in read] == files
    assert all(answer.reading for answer in read)


def test_a_file_that_crashes_its_decoder_is_named(reads_many, slice_files, monkeypatch):
    decoders = batch._Decoders(reads_many.spec, 1, processes=True)
    monkeypatch.setattr(batch.decode, "decode", _decode_or_crash)
    crashing = Path("crash.dcm")
    batches = list(decoders.batches([*slice_files[:3], crashing, *slice_files[3:5]]))
    decoders.close()
    decoded = [file for files, _ in batches for file in files]
    assert [file.error for file in decoded if file.error] == [
        "crash.dcm: damaged: its decoder crashed. Export the image again, or convert it to PNG."
    ]
    assert sum(len(tensors) for _, tensors in batches) == 5


_decode = decode.decode


def _decode_or_crash(files, spec):
    """Stands for a decoder in C that a file makes write where it must not."""
    if any(file.name == "crash.dcm" for file in files):
        os._exit(1)
    return _decode(files, spec)


def test_stopping_half_way_leaves_no_process_behind(reads_many, slice_files, many_processes):
    answers = batch.read_files(reads_many, slice_files * 12, workers=2)
    next(answers)
    processes = _decoder_processes()
    assert processes
    answers.close()
    _, alive = psutil.wait_procs(processes, timeout=20)
    assert not alive


def test_only_a_few_batches_are_ahead_of_what_was_asked_for(reads_many, slice_files):
    taken = []

    class Counted(list):
        def __iter__(self):
            for file in super().__iter__():
                taken.append(file)
                yield file

    answers = batch.read_files(reads_many, Counted(slice_files * 400), workers=2)
    for _ in range(20):
        next(answers)
    assert len(taken) < 20 * batch.BATCH
    answers.close()


def test_a_stream_gives_what_stands_beside_each_batch_with_its_own_outputs(tiny_version, slice_files):
    spec = tiny_version.card.preprocessing
    tensors = preprocess.read_batch(slice_files[:6], spec)
    compiled = graph.Graph(tiny_version.folder, many=True)
    sizes = [1, 0, 3, 2, 0] * 5
    batches = [(number, tensors[:size]) for number, size in enumerate(sizes)]
    answered = list(compiled.stream(batches))
    assert [number for number, _, _ in answered] == list(range(25))
    whole = compiled(tensors)
    for (_, outputs, milliseconds), size in zip(answered, sizes, strict=True):
        assert (milliseconds > 0) == (size > 0)
        for name in graph.OUTPUTS if size else ():
            np.testing.assert_allclose(outputs[name], whole[name][:size], atol=1e-5)


# --- which files


@pytest.fixture
def folder(tmp_path) -> Path:
    for name in ("b.png", "a.dcm", "below/c.JPG", "below/IM0001", "below/notes.txt", ".hidden.png", "labels.csv"):
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / name).write_bytes(b"")
    return tmp_path / "in"


def _names(found) -> list[str]:
    return [file.name for file in found[0]]


def test_a_folder_stands_for_the_images_in_it_and_below_and_the_rest_is_noted(folder):
    found = batch.find([str(folder)])
    assert _names(found) == ["a.dcm", "b.png", "IM0001", "c.JPG"]
    assert found.notes == [
        f"{folder}: files passed over: 3 (.hidden.png, below/notes.txt, labels.csv). They are no images, or hidden."
    ]


def test_images_are_told_by_content_whatever_they_are_called(folder):
    for name in ("a.jfif", "b.jpe", "no-ending", "scan.dat"):
        shutil.copy(CAT, folder / name)
    assert {"a.jfif", "b.jpe", "no-ending", "scan.dat"} <= set(_names(batch.find([str(folder)])))


def test_a_glob_that_finds_a_folder_stands_for_what_is_in_it(folder):
    found = batch.find([str(folder.parent / "i*")])
    assert _names(found) == ["a.dcm", "b.png", "IM0001", "c.JPG"]
    assert len(found.notes) == 1


def test_a_file_is_kept_whatever_its_name_and_once(folder):
    notes = str(folder / "below" / "notes.txt")
    assert _names(batch.find([notes, str(folder / "b.png"), str(folder), notes])) == [
        "notes.txt", "b.png", "a.dcm", "IM0001", "c.JPG",
    ]  # fmt: skip


def test_globs_are_understood_from_the_root_and_from_here_and_below(folder, monkeypatch):
    assert _names(batch.find([str(folder / "*.png")])) == [".hidden.png", "b.png"]
    monkeypatch.chdir(folder)
    assert _names(batch.find(["**/*.JPG"])) == ["c.JPG"]


def test_a_file_whose_name_looks_like_a_glob_is_that_file(folder):
    (folder / "scan[1].png").write_bytes(b"")
    assert _names(batch.find([str(folder / "scan[1].png")])) == ["scan[1].png"]


def test_patterns_that_stand_for_nothing_are_told(folder):
    (folder / "empty").mkdir()
    files, nothing, _ = batch.find([str(folder / "*.xyz"), str(folder / "empty"), str(folder / "missing.png")])
    assert nothing == [str(folder / "*.xyz"), str(folder / "empty")]
    assert [file.name for file in files] == ["missing.png"], "reading it says that it is not there"


def test_folders_are_walked_no_further_than_files_are_asked_for(tmp_path, monkeypatch):
    for number in range(60):
        (tmp_path / f"{number // 20}").mkdir(exist_ok=True)
        (tmp_path / f"{number // 20}" / f"{number:02}.png").touch()
    (tmp_path / "1" / "notes.txt").touch()
    looked_at, is_image = [], batch.folders.is_image
    monkeypatch.setattr(batch.folders, "is_image", lambda path: looked_at.append(path) or is_image(path))
    files = batch.Files([str(tmp_path), str(tmp_path / "1"), str(tmp_path / "gone-*.png")])
    assert files.nothing == [str(tmp_path / "gone-*.png")]
    found = iter(files)
    assert next(found).name == "00.png"
    assert len(looked_at) == 2, "the first of each folder"
    assert [file.name for file in found] == [f"{number:02}.png" for number in range(1, 60)], "each once, in order"
    assert [note.partition(":")[0] for note in files.notes] == [str(tmp_path), str(tmp_path / "1")]


# --- the command


@pytest.fixture
def lungkit(monkeypatch):
    """A function: exit code, standard output and standard error of a command."""

    def run(*arguments) -> tuple[int, str, str]:
        ran = CliRunner().invoke(cli.app, [str(argument) for argument in arguments])
        if ran.exception and not isinstance(ran.exception, SystemExit):
            raise ran.exception
        return ran.exit_code, ran.stdout, ran.stderr

    return run


def test_predict_prints_one_json_object_for_each_file_and_a_bar_beside_it(lungkit, tiny_version, slice_files):
    code, out, err = lungkit("predict", *slice_files[:3], "--json")
    records = [json.loads(line) for line in out.splitlines()]
    assert code == 0
    assert [record["file"] for record in records] == [str(file) for file in slice_files[:3]]
    for record in records:
        assert set(record) == {
            "file", "sha256", "probabilities", "label", "decision", "checks", "model", "version", "ms",
        }  # fmt: skip
        assert list(record["probabilities"]) == ["Normal", "Pneumonia", "COVID-19"]
        assert sum(record["probabilities"].values()) == pytest.approx(1)
        assert record["decision"] in (record["label"], REVIEW)
        assert (record["model"], record["version"]) == ("tiny-cnn", "v1")
        assert {check["name"] for check in record["checks"]} == {"kind", "intensity", "size"}
    assert "3/3" in err


def test_predict_says_what_was_out_of_the_ordinary_when_a_file_was_read(lungkit, tiny_version, tmp_path):
    file = tmp_path / "scan.dcm"
    file.write_bytes(dicom(PixelSpacing=[0.4, 0.2], WindowCenter=5, WindowWidth=0))
    note = (
        "window not used: WindowCenter 5.0, WindowWidth 0.0; "
        "scaled from 50 x 40 to 50 x 80, as its pixels are not square"
    )
    assert note in lungkit("predict", file)[1]
    assert json.loads(lungkit("predict", file, "--json")[1])["note"] == note


def test_predict_reports_a_broken_file_goes_on_and_ends_with_1(lungkit, tiny_version, slice_files, broken, tmp_path):
    code, out, _ = lungkit("predict", broken[0], slice_files[0], tmp_path / "*.tif", "--json")
    assert code == 1
    nothing, text, read = (json.loads(line) for line in out.splitlines())
    assert nothing == {"file": str(tmp_path / "*.tif"), "error": f"{tmp_path / '*.tif'}: no image file there"}
    assert (text["file"], text["sha256"]) == (str(broken[0]), hashlib.sha256(b"not an image").hexdigest())
    assert "not an image" in text["error"]
    assert read["label"]


def test_predict_of_a_folder_says_what_it_passed_over_and_json_stays_json(lungkit, tiny_version, slice_files, tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    shutil.copy(slice_files[0], folder / "slice")
    (folder / "README.txt").write_text("notes")
    (folder / "rest.zip").write_bytes(b"PK\x03\x04")
    code, out, _ = lungkit("predict", folder)
    assert code == 0
    lines = out.splitlines()
    assert lines[0] == f"{folder}: files passed over: 1 (README.txt). They are no images, or hidden."
    assert lines[1].startswith(f"{folder}: archives: 1 (rest.zip).")
    _, out, err = lungkit("predict", folder, "--json")
    assert [json.loads(line)["file"] for line in out.splitlines()] == [str(folder / "slice")]
    assert "README.txt" in err and "rest.zip" in err


def test_predict_tells_of_files_with_odd_names_in_one_line_each(lungkit, tiny_version, tmp_path):
    odd = [os.fsencode(tmp_path) + name for name in (b"/a\nb.png", b"/\xff.png")]
    for name in odd:
        with open(name, "wb"):  # noqa: PTH123 (bytes, which Path does not take)
            pass
    code, out, _ = lungkit("predict", *map(os.fsdecode, odd))
    assert code == 1
    assert [line.partition(": ")[2] for line in out.splitlines()] == ["empty file. Copy or export it again."] * 2


def test_predict_says_in_a_line_what_was_decided_and_what_looks_wrong(lungkit, tiny_version):
    code, out, _ = lungkit("predict", CAT)
    assert code == 0
    assert out.startswith(f"{CAT}: {REVIEW} (")
    assert "Hounsfield" in out


@pytest.fixture
def for_adults(tiny_version) -> None:
    """The model "adults": the tiny one, with a card that states ages."""
    card = dataclasses.replace(tiny_version.card, about=About(ages=(18, None)))
    made = (registry.CARD, registry.README, registry.SUMS)  # by the registry
    left_out = shutil.ignore_patterns(*made)
    registry.add(
        "adults", card, lambda folder: shutil.copytree(tiny_version.folder, folder, ignore=left_out, dirs_exist_ok=True)
    )


def test_predict_of_a_patient_whom_the_model_is_not_for_says_so_and_gives_no_class(
    lungkit, for_adults, slice_files, tmp_path
):
    adults = (slice_files[0], "--model", "adults")
    child = (*adults, "--age", "3", "--heatmaps", tmp_path / "heat")
    code, out, _ = lungkit("predict", *child)
    words = "the patient is 3 years old; this model learned from patients of 18 years and more"
    assert (code, out.rstrip().partition("; ")[0]) == (0, f"{slice_files[0]}: not for this patient")
    assert words in out
    code, out, _ = lungkit("predict", *child, "--json")
    record = json.loads(out)
    assert (record["decision"], record["label"], record["probabilities"]) == ("not for this patient", None, {})
    assert words in [check["words"] for check in record["checks"] if not check["passed"]]
    assert "heatmap" not in record and not [*(tmp_path / "heat").iterdir()]
    adult = json.loads(lungkit("predict", *adults, "--age", "40", "--json")[1])
    assert adult["label"] in adult["probabilities"]


def test_a_checkpoint_keeps_to_the_age_that_its_command_was_given(lungkit, for_adults, slice_files, tmp_path):
    asked = ("predict", slice_files[0], "--model", "adults", "--json", "--checkpoint", tmp_path / "checkpoint.jsonl")
    first = lungkit(*asked, "--age", "40")
    assert json.loads(first[1])["label"] is not None
    assert lungkit(*asked, "--age", "40")[:2] == first[:2]
    for other in ((), ("--age", "3")):
        with pytest.raises(CheckpointRefused, match=r"another command: age was 40.0, is (none|3.0)"):
            lungkit(*asked, *other)


def test_an_image_that_the_model_is_not_for_is_told_without_a_class(prediction):
    refused = prediction(decision=REVIEW, checks=(Check("view", False, 0, 1, "the file states the view LL"),))
    told = batch.record(batch.Answer(Path("a.png"), "0" * 64, refused, ""))
    assert (told["decision"], told["label"], told["probabilities"]) == ("not for this image", None, {})
    assert batch.sentence(told) == "a.png: not for this image; the file states the view LL"


def test_predict_writes_the_heat_map_of_each_label_in_the_images_aspect(lungkit, tiny_version, tmp_path):
    code, out, _ = lungkit("predict", CAT, "--json", "--heatmaps", tmp_path / "heat")
    record = json.loads(out)
    reading = Predictor(tiny_version).read(images.read(CAT))
    heat = np.asarray(Picture.open(record["heatmap"]), np.float32) / 255
    assert code == 0
    assert Path(record["heatmap"]).parent == tmp_path / "heat"
    assert heat.shape == (43, 64), "451 x 300"
    np.testing.assert_allclose(heat, reading.heat[reading.classes.index(reading.label)], atol=1 / 255)


@pytest.mark.parametrize("letters", ["x" * 251, "ä" * 125, "胸" * 83], ids=["plain", "umlauts", "Chinese"])
def test_the_heat_map_of_an_image_with_the_longest_name_gets_a_shorter_one(
    lungkit, tiny_version, slice_files, tmp_path, letters
):
    image = tmp_path / f"{letters}.dcm"
    shutil.copy(slice_files[0], image)
    code, out, _ = lungkit("predict", image, slice_files[1], "--heatmaps", tmp_path / "heat", "--json")
    assert code == 0
    named = [Path(json.loads(line)["heatmap"]) for line in out.splitlines()]
    assert [path.is_file() for path in named] == [True, True]
    assert named[0].name.startswith(letters[:70])


def test_a_heat_map_that_cannot_be_written_is_told_and_the_other_files_are_read(
    lungkit, tiny_version, slice_files, tmp_path
):
    first, second, third = slice_files[:3]
    sha256 = hashlib.sha256(second.read_bytes()).hexdigest()
    taken = tmp_path / "heat" / f"{second.stem}-{sha256[:12]}.png"
    taken.mkdir(parents=True)  # a folder stands where the file should go
    code, out, err = lungkit("predict", first, second, third, "--heatmaps", tmp_path / "heat")
    assert (code, "Traceback" in err) == (1, False)
    lines = out.splitlines()
    assert [line.partition(":")[0] for line in lines] == [str(first), str(second), str(third)]
    assert lines[1].endswith(f"; no heat map: {taken}: it is a folder, not a file")
    assert not any("no heat map" in line for line in (lines[0], lines[2]))
    _, out, _ = lungkit("predict", second, "--heatmaps", tmp_path / "heat", "--json")
    assert json.loads(out)["heatmap_error"] == f"{taken}: it is a folder, not a file"


def test_a_heat_map_on_a_full_disk_leaves_no_part_of_itself(tiny_version, slice_files, tmp_path):
    resource = pytest.importorskip("resource")
    predictor = Predictor(tiny_version, heat=True, many=True)
    (answer,) = batch.read_files(predictor, slice_files[:1])
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10, limits[1]))
    try:
        with pytest.raises(OSError, match=r"File too large: '.*png'"):
            batch.write_heat(answer, tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert list(tmp_path.glob("*.png")) == []


def test_predict_does_not_write_heat_maps_over_a_file(lungkit, tiny_version, tmp_path):
    (tmp_path / "heat").write_text("")
    with pytest.raises(LungkitError, match="no folder for heat maps"):
        lungkit("predict", CAT, "--heatmaps", tmp_path / "heat")


def test_predict_reads_with_the_version_that_is_named(lungkit, tiny_version):
    assert json.loads(lungkit("predict", CAT, "--json", "--model", "tiny-cnn@v1")[1])["version"] == "v1"
    with pytest.raises(LungkitError, match="no version 'v7'"):
        lungkit("predict", CAT, "--model", "tiny-cnn@v7")


def test_predict_works_as_a_program_with_workers_and_without_training_libraries(tiny_version, slice_files):
    code = (
        "import sys\n"
        "from lungkit import cli\n"
        "if __name__ == '__main__':\n"
        f"    files = {[str(file) for file in slice_files[:12]]!r}\n"
        "    sys.argv = ['lungkit', 'predict', *files, '--json', '--workers', '2']\n"
        "    try:\n"
        "        cli.main()\n"
        "    finally:\n"
        "        print(*sorted({'tensorflow', 'keras', 'sklearn', 'matplotlib'} & set(sys.modules)), 'end')\n"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    *lines, end = ran.stdout.splitlines()
    assert len(lines) == 12
    assert end == "end"

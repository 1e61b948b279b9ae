"""Reads many files with one version: decoding and inference overlap, and memory stays flat.

Processes decode, as threads would wait for each other on Python's lock; the runtime computes meanwhile in threads of
its own. A few batches are on their way at any moment, however many files there are, and answers come in the order of
the files.
"""

import io
import multiprocessing
import os
import signal
import stat
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import BrokenExecutor, Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from itertools import chain, islice, takewhile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import PIL.Image

from lungkit import files as whole
from lungkit import terminal
from lungkit.clinic import decode
from lungkit.clinic.predictor import Predictor
from lungkit.data import folders, preprocess
from lungkit.data.notes import Tally
from lungkit.errors import LungkitError
from lungkit.models.grades import range_name
from lungkit.models.prediction import Prediction

_Batch = tuple[list[decode.Decoded], np.ndarray]  # what decode.decode gives

BATCH = 8  # images at a time: the feature maps of more of them leave the processor's cache
_AHEAD = 4  # batches that wait, decoded, for the graph
_FEW = 48  # files that are read sooner than processes start


@dataclass(frozen=True, eq=False)
class Answer:
    """What became of one file: a reading, or why there is none."""

    file: Path
    sha256: str  # of the file's bytes; empty where it could not be opened
    reading: Prediction | None
    error: str


def read_files(predictor: Predictor, files: Iterable[Path], workers: int | None = None) -> Iterator[Answer]:
    """One answer for each file, in order; a file that is refused gets its reason, and the rest go on.

    predictor: made with many=True. workers: processes that decode; default: one a processor, none for a few files.
    A reading's `milliseconds` are those spent on its file, not those it waited for others.
    """
    rest = iter(files)
    first = list(islice(rest, _FEW + 1))
    decoders = _Decoders(predictor.spec, workers, processes=workers is not None or len(first) > _FEW)
    try:
        for decoded, outputs, milliseconds in predictor.graph.stream(decoders.batches(chain(first, rest))):
            yield from _answers(predictor, decoded, outputs, milliseconds)
    finally:
        decoders.close()


def read_here(predictor: Predictor, files: Sequence[Path], home: Path = Path()) -> Iterator[Answer]:
    """As `read_files`, in this thread alone, for a process that is one of many. home: as in decode.decode."""
    for start in range(0, len(files), BATCH):
        decoded, tensors = decode.decode(files[start : start + BATCH], predictor.spec, home)
        started = time.perf_counter()
        outputs = predictor.graph(tensors) if len(tensors) else {}
        yield from _answers(predictor, decoded, outputs, 1000 * (time.perf_counter() - started))


def crashed(file: Path) -> Answer:
    """The answer for a file that ends the process that reads it."""
    return Answer(
        file, "", None, f"{file}: damaged: its decoder crashed. Export the image again, or convert it to PNG."
    )


def _answers(
    predictor: Predictor, decoded: list[decode.Decoded], outputs: dict[str, np.ndarray], milliseconds: float
) -> Iterator[Answer]:
    row = 0
    for file in decoded:
        if file.facts is None:
            yield Answer(file.file, file.sha256, None, file.error)
            continue
        spent = file.seconds + milliseconds / 1000 / len(outputs["probabilities"])
        of_file = {name: values[row] for name, values in outputs.items()}
        reading = predictor.reading(file.facts, of_file, time.perf_counter() - spent)
        yield Answer(file.file, file.sha256, reading, "")
        row += 1


class _Decoders:
    """Workers that turn files into batches of tensors, some batches ahead."""

    def __init__(self, spec: preprocess.Preprocessing, workers: int | None, processes: bool):
        self._spec, self._workers, self._processes = spec, workers or os.cpu_count() or 1, processes
        self._executor = self._start()

    def batches(self, files: Iterable[Path]) -> Iterator[_Batch]:
        """What decode.decode gives, BATCH files at a time, in order."""
        waiting: deque[tuple[list[Path], Future[_Batch]]] = deque()
        rest = iter(files)
        while chunk := list(islice(rest, BATCH)):
            waiting.append((chunk, self._submit(chunk)))
            if len(waiting) >= self._workers + _AHEAD:
                yield self._result(*waiting.popleft())
        while waiting:
            yield self._result(*waiting.popleft())

    def close(self) -> None:
        """End the workers; what they have not begun is dropped."""
        # Waited for: at the interpreter's end, one that still stops trips over pipes that are closed already.
        self._executor.shutdown(cancel_futures=True)

    def _start(self) -> Executor:
        if not self._processes:
            return ThreadPoolExecutor(self._workers)
        # Not forked from here: the runtime's threads would be missing in the copies, with their locks held.
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload([decode.__name__])
        return ProcessPoolExecutor(self._workers, mp_context=context, initializer=_begin)

    def _submit(self, chunk: list[Path]) -> Future[_Batch]:
        try:
            return self._executor.submit(decode.decode, chunk, self._spec)
        except BrokenExecutor:  # noticed before its result was asked for
            self._executor = self._start()
            return self._executor.submit(decode.decode, chunk, self._spec)

    def _result(self, chunk: list[Path], future: Future[_Batch]) -> _Batch:
        try:
            return future.result()
        except BrokenExecutor:  # a process died, with the batches that were on their way: which file was it?
            alone = [self._alone(file) for file in chunk]
            return [file for files, _ in alone for file in files], np.concatenate([tensors for _, tensors in alone])

    def _alone(self, file: Path) -> _Batch:
        for _ in range(2):  # the first process may be one that another file has broken
            try:
                return self._submit([file]).result()
            except BrokenExecutor:
                self._executor = self._start()
        return [decode.Decoded(file, "", None, crashed(file).error, 0.0)], np.empty(
            (0, *self._spec.size, 1), np.float32
        )


def _begin() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent's to answer
    os.nice(10)  # behind the graph's threads: what they wait for is decoded some batches ahead anyway


# --- what is told of each


def record(answer: Answer, heatmap: Path | None = None, undrawn: str = "") -> dict[str, Any]:
    """JSON-ready: file, sha256, probabilities, label, decision, checks, model, version, ms; or file and error.

    "grades" stands where the classes are grades: the range, what it means, and what a person has to know. Where the
    version is not for the patient or the image, the decision says so in place of a class; there are no probabilities,
    no label, no grades and no heat map then.
    "note" stands where the reader did something out of the ordinary. With heat maps also "heatmap", its path, or
    "heatmap_error", why it could not be written (`undrawn`).
    """
    reading = answer.reading
    if reading is None:
        return {"file": str(answer.file), "sha256": answer.sha256 or None, "error": answer.error}
    refused = reading.refusal
    told = {
        "file": str(answer.file),
        "sha256": answer.sha256,
        "probabilities": {} if refused else dict(zip(reading.classes, reading.probabilities.tolist(), strict=True)),
        "label": None if refused else reading.label,
        "decision": refused.lower() or reading.decision,
        "checks": [asdict(check) for check in reading.checks],
        "model": reading.model,
        "version": reading.version,
        "ms": round(reading.milliseconds, 3),
    }
    told |= {"grades": asdict(reading.grades)} if reading.grades and not refused else {}
    told |= {"note": reading.note} if reading.note else {}
    return told | ({"heatmap": str(heatmap)} if heatmap else {}) | ({"heatmap_error": undrawn} if undrawn else {})


def told(answer: Answer, heatmaps: Path | None = None, home: Path = Path()) -> dict[str, Any]:
    """The record of an answer, after its heat map was written into a folder, if one is given and it has a finding.

    home: the folder that a relative `heatmaps` starts from. What the record says of both stays as it was typed.
    """
    if heatmaps is None or answer.reading is None or answer.reading.refusal:
        return record(answer)
    try:
        return record(answer, heatmaps / write_heat(answer, home / heatmaps).name)
    except OSError as error:  # the other files still have their answers
        return record(answer, undrawn=terminal.refusal(error))


def failed(record: dict[str, Any]) -> bool:
    """Whether a record says that a file was not read, or that its heat map could not be written."""
    return "error" in record or "heatmap_error" in record


def sentence(record: dict[str, Any]) -> str:
    """One line for people, of a record: the file, the decision, how likely, which checks failed, how it was read, if
    that is out of the ordinary, and why there is no heat map.
    """
    if "error" in record:
        return folders.one_line(record["error"])
    label, decision, graded = record["label"], record["decision"], record.get("grades")
    wrong = [check["words"] for check in record["checks"] if not check["passed"]]
    likely = f" ({label} {record['probabilities'][label]:.3f})" if label else ""
    if graded:
        name = range_name(graded["names"])
        likely = f" ({'' if decision == name else f'{name} '}{graded['probability']:.3f})"
        wrong = [graded["extent"], *wrong, graded["caution"]]
    noted = [record["note"]] if "note" in record else []
    undrawn = [f"no heat map: {record['heatmap_error']}"] if "heatmap_error" in record else []
    return "; ".join([f"{folders.one_line(record['file'])}: {decision}{likely}", *wrong, *noted, *undrawn])


def make_folder(folder: Path) -> None:
    """The folder for heat maps; refused where it cannot be made."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise LungkitError(f"no folder for heat maps can be made: {terminal.refusal(error)}") from None


def write_heat(answer: Answer, folder: Path) -> Path:
    """The heat map of the reading's label as a grey PNG in the image's aspect, at the model's resolution.

    Its name begins with the image's, which is cut where the whole would be too long for a file's name. OSError where it
    cannot be written; no part of it is left then.
    """
    reading, drawn = answer.reading, io.BytesIO()
    if reading is None or reading.heat is None:
        raise LungkitError(f"{answer.file} has no heat map: it was not read, or without one")
    heat = reading.heat[reading.classes.index(reading.label)]
    PIL.Image.fromarray(np.rint(255 * heat).astype(np.uint8)).save(drawn, "PNG")
    ending = f"-{answer.sha256[:12]}.png"
    path = folder / f"{whole.cut_name(answer.file.stem, whole.LONGEST_NAME - len(ending))}{ending}"
    whole.replace(path, drawn.getvalue())
    return path


# --- which files


class Found(NamedTuple):
    """What names, folders and globs stand for."""

    files: list[Path]  # each once
    nothing: list[str]  # the patterns that stand for no file
    notes: list[str]  # a line for each kind of thing in a folder that is not read


def find(patterns: Iterable[str]) -> Found:
    """The files that names, folders and globs stand for.

    A folder stands for every image in it and below it, whatever its name; what is passed over is noted. A file that is
    named, or that a glob finds, is kept whatever it is: reading it says what is wrong.
    """
    files = Files(patterns)
    found = list(files)
    return Found(found, files.nothing, files.notes)


class Files:
    """What `find` finds, file by file, for archives of millions. Iterate it once.

    nothing: the patterns that stand for no file. notes: complete when the last file was given. The places that the
    patterns name are kept, and no file, unless one place lies in another.
    """

    def __init__(self, patterns: Iterable[str]):
        self.nothing: list[str] = []
        self.notes: list[str] = []
        self._places: dict[Path, _Folder | None] = {}  # None: a file
        for pattern in patterns:
            places = _expanded(pattern)
            for place in places:
                if place not in self._places:
                    self._places[place] = _Folder(place) if stat.S_ISDIR(folders.mode(place)) else None
            if all(self._is_empty(place) for place in places):
                self.nothing.append(pattern)

    def __iter__(self) -> Iterator[Path]:
        above = {parent for place in self._places for parent in place.parents}
        given: set[Path] = set()
        for place, folder in self._places.items():
            shared = place in above or not self._places.keys().isdisjoint(place.parents)
            for file in [place] if folder is None else folder.files():
                if file not in given:
                    yield file
                if shared:
                    given.add(file)
            if folder is not None:
                self.notes += [f"{folders.one_line(place)}: {note}" for note in folder.tally.notes()]

    def _is_empty(self, place: Path) -> bool:
        folder = self._places[place]
        return folder is not None and folder.is_empty


class _Folder:
    """A folder that is walked as its files are asked for."""

    def __init__(self, place: Path):
        self.tally = Tally(place)
        self._walk = self._images(place)
        self._first = list(islice(self._walk, 1))

    @property
    def is_empty(self) -> bool:
        """Whether there is no image in it."""
        return not self._first

    def files(self) -> Iterator[Path]:
        """The images in it and below it, sorted; once."""
        return chain(self._first, self._walk)

    def _images(self, place: Path) -> Iterator[Path]:
        for kind, path in folders.walk(place):
            if kind == "images":
                yield path
            self.tally.add(kind, path)


def _expanded(pattern: str) -> list[Path]:
    """The files and folders that a name or a glob stands for."""
    path = Path(pattern).expanduser()
    return sorted(_matches(path)) if _has_wildcard(pattern) and not folders.mode(path) else [path]


def _has_wildcard(text: str) -> bool:
    return any(character in text for character in "*?[")


def _matches(pattern: Path) -> Iterator[Path]:
    """What a glob stands for, also one from the root of the file system, which Path.glob does not take."""
    plain = list(takewhile(lambda part: not _has_wildcard(part), pattern.parts))
    found = Path(*plain).glob(str(Path(*pattern.parts[len(plain) :])))
    return (path for path in found if not folders.is_rubbish(path.name))

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
from itertools import islice, takewhile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import PIL.Image

from lungkit import files as whole
from lungkit import terminal
from lungkit.clinic import decode
from lungkit.clinic.predictor import Predictor
from lungkit.data import folders, preprocess
from lungkit.data.notes import survey_notes
from lungkit.errors import LungkitError
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


def read_files(predictor: Predictor, files: Sequence[Path], workers: int | None = None) -> Iterator[Answer]:
    """One answer for each file, in order; a file that is refused gets its reason, and the rest go on.

    predictor: made with many=True. workers: processes that decode; default: one a processor, none for a few files.
    A reading's `milliseconds` are those spent on its file, not those it waited for others.
    """
    decoders = _Decoders(predictor.spec, workers, processes=workers is not None or len(files) > _FEW)
    try:
        for decoded, outputs, milliseconds in predictor.graph.stream(decoders.batches(files)):
            yield from _answers(predictor, decoded, outputs, milliseconds)
    finally:
        decoders.close()


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

    def batches(self, files: Sequence[Path]) -> Iterator[_Batch]:
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
        error = f"{file}: damaged: its decoder crashed. Export the image again, or convert it to PNG."
        return [decode.Decoded(file, "", None, error, 0.0)], np.empty((0, *self._spec.size, 1), np.float32)


def _begin() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent's to answer
    os.nice(10)  # behind the graph's threads: what they wait for is decoded some batches ahead anyway


# --- what is told of each


def record(answer: Answer, heatmap: Path | None = None, undrawn: str = "") -> dict[str, Any]:
    """JSON-ready: file, sha256, probabilities, label, decision, checks, model, version, ms; or file and error.

    "grades" stands where the classes are grades: the range, what it means, and what a person has to know.
    "note" stands where the reader did something out of the ordinary. With heat maps also "heatmap", its path, or
    "heatmap_error", why it could not be written (`undrawn`).
    """
    reading = answer.reading
    if reading is None:
        return {"file": str(answer.file), "sha256": answer.sha256 or None, "error": answer.error}
    told = {
        "file": str(answer.file),
        "sha256": answer.sha256,
        "probabilities": dict(zip(reading.classes, reading.probabilities.tolist(), strict=True)),
        "label": reading.label,
        "decision": reading.decision,
        "checks": [asdict(check) for check in reading.checks],
        "model": reading.model,
        "version": reading.version,
        "ms": round(reading.milliseconds, 3),
    }
    told |= {"grades": asdict(reading.grades)} if reading.grades else {}
    told |= {"note": reading.note} if reading.note else {}
    return told | ({"heatmap": str(heatmap)} if heatmap else {}) | ({"heatmap_error": undrawn} if undrawn else {})


def sentence(answer: Answer, undrawn: str = "") -> str:
    """One line for people: the file, the decision, how likely, which checks failed, how it was read, if that is out of
    the ordinary, and why there is no heat map.
    """
    reading = answer.reading
    if reading is None:
        return folders.one_line(answer.error)
    likely = reading.probabilities[reading.classes.index(reading.label)]
    told = f"{folders.one_line(answer.file)}: {reading.decision} ({reading.label} {likely:.3f})"
    failed = [check.words for check in reading.checks if not check.passed]
    if graded := reading.grades:
        named = "" if reading.decision == graded.name else f"{graded.name} "
        told = f"{folders.one_line(answer.file)}: {reading.decision} ({named}{graded.probability:.3f})"
        failed = [graded.extent, *failed, graded.caution]
    noted = [reading.note] if reading.note else []
    return "; ".join([told, *failed, *noted, *([f"no heat map: {undrawn}"] if undrawn else [])])


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
    found: dict[Path, None] = {}
    nothing, notes = [], []
    for pattern in patterns:
        path = Path(pattern).expanduser()
        named = sorted(_matches(path)) if _has_wildcard(pattern) and not folders.mode(path) else [path]
        files = []
        for place in named:
            if stat.S_ISDIR(folders.mode(place)):
                survey = folders.survey(place)
                files += survey.images
                notes += [f"{folders.one_line(place)}: {note}" for note in survey_notes(survey, place)]
            else:
                files.append(place)
        if not files:
            nothing.append(pattern)
        found.update(dict.fromkeys(files))
    return Found(list(found), nothing, list(dict.fromkeys(notes)))


def _has_wildcard(text: str) -> bool:
    return any(character in text for character in "*?[")


def _matches(pattern: Path) -> Iterator[Path]:
    """What a glob stands for, also one from the root of the file system, which Path.glob does not take."""
    plain = list(takewhile(lambda part: not _has_wildcard(part), pattern.parts))
    found = Path(*plain).glob(str(Path(*pattern.parts[len(plain) :])))
    return (path for path in found if not folders.is_rubbish(path.name))

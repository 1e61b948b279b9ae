"""Processor time from a JPEG's bytes to the model's tensor: decoded in full, and at the scale that the tensor needs.

Both read the same pictures in the same run, in turns. Printed are medians, ratios within a round, and how far the two
tensors are apart; nothing passes or fails. What the rows mean is in bench/README.md.
"""

import argparse
import dataclasses
import io
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import PIL.Image
from rich.console import Console
from rich.table import Table

from bench.machine import machine
from lungkit.clinic import batch
from lungkit.clinic.predictor import Predictor
from lungkit.data import images, preprocess
from lungkit.models import registry
from lungkit.progress import bar

SIDES = (512, 1024, 2048, 3000)
QUALITY = 92
FULL, SCALED = preprocess.Preprocessing(jpeg="full"), preprocess.Preprocessing(jpeg="scaled")
WAYS: dict[str, Callable[[bytes], np.ndarray]] = {
    "full": lambda content: preprocess.prepare(content, FULL).tensor,
    "scaled": lambda content: preprocess.prepare(content, SCALED).tensor,
    # The clinic decodes in full for the screen, and makes the tensor as well.
    "clinic, full": lambda content: preprocess.prepare(images.read(content), FULL).tensor,
    "clinic, scaled": lambda content: preprocess.prepare(images.read(content), SCALED).tensor,
}
Times = dict[str, list[float]]  # way -> milliseconds of each round


def pictures(folder: Path | None, count: int) -> list[PIL.Image.Image]:
    """Some of a folder's pictures, or smooth ones made up."""
    if folder:
        files = batch.find([str(folder)]).files
        chosen = files[:: max(1, len(files) // count)][:count]
        return [PIL.Image.fromarray(np.rint(255 * images.read(file).pixels).astype(np.uint8)) for file in chosen]
    random = np.random.default_rng(7)
    return [PIL.Image.fromarray(random.integers(20, 230, (48, 48), np.uint8)) for _ in range(count)]


def jpeg(picture: PIL.Image.Image, side: int) -> bytes:
    """Enlarged to `side`, with the noise of a detector."""
    smooth = np.asarray(picture.resize((side, side), PIL.Image.Resampling.BICUBIC), np.float32)
    noisy = smooth + np.random.default_rng(side).normal(0, 3, smooth.shape)
    content = io.BytesIO()
    PIL.Image.fromarray(np.clip(noisy, 0, 255).astype(np.uint8)).save(content, "JPEG", quality=QUALITY)
    return content.getvalue()


def measured(contents: list[bytes], rounds: int, label: str) -> Times:
    """Each round times every way on every picture; the order turns round by round. A first round only warms up."""
    times: Times = {}
    for number in bar(range(rounds + 1), label=label, unit="round"):
        for name, way in list(WAYS.items())[:: 1 if number % 2 else -1]:
            started = time.process_time()
            for content in contents:
                way(content)
            if number:
                times.setdefault(name, []).append(1000 * (time.process_time() - started) / len(contents))
    return times


def ratio(times: Times, new: str, old: str) -> str:
    return f"{statistics.median(a / b for a, b in zip(times[new], times[old], strict=True)):.2f}"


def apart(contents: list[bytes]) -> tuple[float, float]:
    """Mean and largest difference of the two tensors, in grey levels of 255."""
    differences = [255 * np.abs(WAYS["scaled"](content) - WAYS["full"](content)) for content in contents]
    return float(np.mean(differences)), float(np.max(differences))


def with_model(model: str, contents: list[bytes], rounds: int) -> Iterator[tuple[str, float, float]]:
    """What a reading with a version of the registry takes, in full and scaled: medians of wall-clock times."""
    version = registry.find(model)
    many, one = Predictor(version, heat=False, many=True), Predictor(version)
    specs = [dataclasses.replace(one.spec, jpeg=jpeg) for jpeg in ("full", "scaled")]
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder, f"{number}.jpg") for number in range(8 * len(contents))]
        for number, file in enumerate(files):
            file.write_bytes(contents[number % len(contents)])
        ways = {
            "lungkit predict, images/s": lambda: len(files) / _seconds(lambda: list(batch.read_files(many, files, 2))),
            "one reading in the clinic, ms": lambda: 1000 * _seconds(lambda: one.read(images.read(contents[0]))),
        }
        for name, way in ways.items():
            times: list[list[float]] = [[], []]
            for number in range(2 * (rounds + 1)):
                many.spec = one.spec = specs[number % 2]
                times[number % 2].append(way())
            yield name, *(statistics.median(some[1:]) for some in times)


def _seconds(work: Callable) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--folder", type=Path, help="a folder of pictures to enlarge (default: made up)")
    arguments.add_argument("--images", type=int, default=8, help="how many pictures (8)")
    arguments.add_argument("--rounds", type=int, default=9, help="how often everything is measured (9)")
    arguments.add_argument("--model", help="NAME or NAME@vN in the registry, to read 2,048 x 2,048 pixels with")
    chosen = arguments.parse_args()
    console = Console(width=100)  # no column is cut
    console.print(machine("pillow", "numpy"), highlight=False)
    shown = Table(title="milliseconds of processor time from the bytes of a JPEG to 224 x 224", title_justify="left")
    for heading in ("side", *WAYS, "ratio", "clinic's ratio", "mean apart", "largest"):
        shown.add_column(heading, justify="right")
    some = pictures(chosen.folder, chosen.images)
    for side in SIDES:
        contents = [jpeg(picture, side) for picture in some]
        times = measured(contents, chosen.rounds, f"{side} x {side}")
        medians = [f"{statistics.median(times[name]):.1f}" for name in WAYS]
        ratios = ratio(times, "scaled", "full"), ratio(times, "clinic, scaled", "clinic, full")
        shown.add_row(str(side), *medians, *ratios, *(f"{levels:.2f}" for levels in apart(contents)))
    console.print(shown)
    if chosen.model:
        for name, full, scaled in with_model(chosen.model, [jpeg(picture, 2048) for picture in some], chosen.rounds):
            console.print(f"{chosen.model}, {name}: in full {full:.1f}, scaled {scaled:.1f}", highlight=False)


if __name__ == "__main__":
    main()

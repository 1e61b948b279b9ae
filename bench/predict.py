"""Images per second of `lungkit predict` next to the runtime alone and to Keras, and memory over many files.

All read the same files with the same weights, in the same run, in turns, so that a busy machine slows all. Printed are
medians and ratios; nothing passes or fails. What the rows mean is in bench/README.md.
"""

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import psutil
from rich.console import Console
from rich.table import Table

from bench.machine import machine
from lungkit import progress
from lungkit.clinic import batch
from lungkit.clinic.predictor import Predictor
from lungkit.data import dataset, phantom, preprocess
from lungkit.models import registry
from lungkit.progress import bar

# Keras is imported within functions: the decoding processes import this file too.

MIB = 2**20
SHIPPED = "chest-xray-pneumonia"
Rates = dict[str, list[float]]  # what -> images/s of each round


def untrained(network: str, source: Path, side: int) -> registry.Version:
    """A registered network that was not trained on its images: how fast it answers does not depend on that."""
    from lungkit.backend import keras

    from lungkit.models import backbones, cnn, ensemble
    from lungkit.training import release

    keras.utils.set_random_seed(7)
    recipe = {"label_column": None, "limit": None, "seed": 7}
    chest = dataset.load_split(source, **recipe)
    spec = preprocess.training_statistics(chest.files("train"), preprocess.Preprocessing(size=(side, side)))
    shape, classes = (side, side, 1), len(chest.classes)
    if network == "cnn":
        model = cnn.build(shape, classes)
    elif network == SHIPPED:
        # As lungkit.training.recipes has it: one network that also reads the mirrored image.
        model = ensemble.combine(
            [backbones.build("efficientnet_lite0", shape, classes, preprocessing=spec)], "mirrored"
        )
    else:
        pretrained = network == "efficientnet_lite0"  # the weights of the others would be downloads
        model = backbones.build(network, shape, classes, pretrained=pretrained, preprocessing=spec)
    name = f"bench-{network.replace('_', '-')}"
    return release.register(model, name, chest, spec, architecture={}, training={}, recipe=recipe)


class Bench:
    """One version, and the ways to have a folder's images read by it."""

    def __init__(self, version: registry.Version, files: list[Path]):
        from lungkit.models import saved

        self.files = files
        self.one_at_a_time = Predictor(version)
        self.many = Predictor(version, heat=False, many=True)
        self.keras = saved.load(version)
        self.spec = self.many.spec
        self.tensors = preprocess.read_batch(files, self.spec)
        self.few = self.tensors[:32]

    def ways(self) -> dict[str, Callable[[], int]]:
        """What is timed: each answers how many images it took."""
        return {
            "folder: lungkit predict": self.folder,
            "folder: read, then Keras predict": self.keras_folder,
            "decoding alone": self.decoding,
            "runtime alone": self.runtime,
            "Keras predict, batch 32": lambda: len(self.keras.predict(self.tensors, batch_size=32, verbose=0)),
            "runtime alone, batch 32": lambda: self.runtime(32),
            "one image: runtime with heat maps": self.single,
            "one image: Keras predict": self.keras_single,
            "one image: Keras call": self.keras_call,
        }

    def folder(self) -> int:
        return sum(answer.reading is not None for answer in batch.read_files(self.many, self.files))

    def keras_folder(self) -> int:
        # Not preprocess.read_batch: it would decode each file in the first round only.
        read = progress.parallel(lambda file: preprocess.prepare(file, self.spec).tensor, self.files)
        return len(self.keras.predict(np.stack(list(read)), batch_size=32, verbose=0))

    def decoding(self) -> int:
        decoders = batch._Decoders(self.spec, None, processes=True)
        count = sum(len(tensors) for _, tensors in decoders.batches(self.files))
        decoders.close()
        return count

    def runtime(self, size: int = batch.BATCH) -> int:
        batches = ((None, self.tensors[i : i + size]) for i in range(0, len(self.tensors), size))
        return sum(len(outputs["probabilities"]) for _, outputs, _ in self.many.graph.stream(batches))

    def single(self) -> int:
        return sum(len(self.one_at_a_time.graph(tensor[None])["heat"]) for tensor in self.few)

    def keras_single(self) -> int:
        return sum(len(self.keras.predict(tensor[None], verbose=0)) for tensor in self.few)

    def keras_call(self) -> int:
        return sum(len(self.keras(tensor[None], training=False).numpy()) for tensor in self.few)


def measured(bench: Bench, rounds: int) -> Rates:
    """Each round times every way once; the order turns round by round. A first round only warms up."""
    rates: Rates = {}
    for number in bar(range(rounds + 1), label="rounds", unit="round"):
        ways = list(bench.ways().items())
        for name, way in ways if number % 2 else ways[::-1]:
            started = time.perf_counter()
            count = way()
            if number:
                rates.setdefault(name, []).append(count / (time.perf_counter() - started))
    return rates


def table(title: str, rates: Rates) -> Table:
    shown = Table(title=title, title_justify="left")
    for heading, side in (("", "left"), ("images/s", "right"), ("range", "right")):
        shown.add_column(heading, justify=side)
    for name, values in rates.items():
        shown.add_row(name, f"{statistics.median(values):,.0f}", f"{min(values):,.0f}–{max(values):,.0f}")
    return shown


def ratios(rates: Rates) -> dict[str, float]:
    """Medians of the ratios within a round, where all ran under much the same load."""
    folder, decoding, runtime = (rates[n] for n in ("folder: lungkit predict", "decoding alone", "runtime alone"))
    # Decoding and the graph share the processors: one after the other, an image costs the sum of both times.
    both = [1 / (1 / d + 1 / r) for d, r in zip(decoding, runtime, strict=True)]
    pairs = {
        "folder / runtime alone on decoded tensors": (folder, runtime),
        "folder / runtime and decoding, which share the processors": (folder, both),
        "folder / Keras predict on decoded tensors, batch 32": (folder, rates["Keras predict, batch 32"]),
        "folder / Keras predict on decoded tensors, one at a time": (folder, rates["one image: Keras predict"]),
        "folder / the same folder read, then Keras predict": (folder, rates["folder: read, then Keras predict"]),
        "runtime / Keras predict, batch 32": (runtime, rates["Keras predict, batch 32"]),
        "one image with heat maps / Keras predict without": (
            rates["one image: runtime with heat maps"],
            rates["one image: Keras predict"],
        ),
        "one image with heat maps / Keras call without": (
            rates["one image: runtime with heat maps"],
            rates["one image: Keras call"],
        ),
    }
    return {name: statistics.median(a / b for a, b in zip(*pair, strict=True)) for name, pair in pairs.items()}


def memory(bench: Bench, count: int) -> tuple[list[float], list[float]]:
    """Resident MiB of this process, and of its decoders together, at each tenth of `count` files."""
    process, own, decoders = psutil.Process(), [], []
    files = [bench.files[i % len(bench.files)] for i in range(count)]
    answers = batch.read_files(bench.many, files)
    for number, _ in enumerate(bar(answers, total=count, label="memory", unit="image"), start=1):
        if number % max(1, count // 10) == 0:
            own.append(process.memory_info().rss / MIB)
            decoders.append(sum(child.memory_info().rss for child in process.children(recursive=True)) / MIB)
    return own, decoders


def report(console: Console, bench: Bench, where: str, rounds: int) -> None:
    height, width = bench.spec.size
    rates = measured(bench, rounds)
    console.print(table(f"{where}: {len(bench.files)} files, model input {height} x {width}", rates))
    for name, ratio in ratios(rates).items():
        console.print(f"  {ratio:6.2f}  {name}", highlight=False)


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--folder", type=Path, help="a folder of real images, measured too")
    arguments.add_argument("--model", help="NAME or NAME@vN in the registry (default: --network)")
    arguments.add_argument(
        "--network", nargs="+", default=["cnn", "efficientnet_lite0", SHIPPED],
        help=f"untrained networks made for this: cnn, a name of lungkit.models.backbones, {SHIPPED} (all three)",
    )  # fmt: skip
    arguments.add_argument("--side", type=int, default=224, help="input of the untrained networks, pixels (224)")
    arguments.add_argument("--images", type=int, default=240, help="how many phantom slices are made (240)")
    arguments.add_argument("--rounds", type=int, default=3, help="how often everything is measured (3)")
    arguments.add_argument("--files", type=int, default=10_000, help="how many files memory is watched over (10000)")
    chosen = arguments.parse_args()
    console = Console()
    console.print(machine("openvino", "tensorflow", "keras", "pillow"), highlight=False)
    given = registry.find(chosen.model) if chosen.model else None
    with tempfile.TemporaryDirectory() as folder:
        for name in ("data", "artifacts"):
            os.environ[f"LUNGKIT_{name.upper()}"] = str(Path(folder, name))
        source = phantom.make_dataset(Path(folder, "phantom"), n_slices=chosen.images)
        drawn = batch.find([str(source / "slices")])[0]
        real = batch.find([str(chosen.folder)])[0] if chosen.folder else []
        versions = [given] if given else [untrained(network, source, chosen.side) for network in chosen.network]
        for version in versions:
            report(console, Bench(version, drawn), f"{version.model}, phantom (DICOM)", chosen.rounds)
            if real:
                report(console, Bench(version, real), f"{version.model}, {chosen.folder.name}", chosen.rounds)
        own, decoders = memory(Bench(versions[0], real or drawn), chosen.files)
    console.print(
        f"Memory over {chosen.files} files, at each tenth of them, MiB (Keras, which only this comparison needs, is in "
        f"the same process): {', '.join(f'{mib:.0f}' for mib in own)}; its decoding processes together "
        f"{', '.join(f'{mib:.0f}' for mib in decoders)}.",
        highlight=False,
    )


if __name__ == "__main__":
    main()

"""Images per second of `lungkit predict` next to the runtime alone and to Keras, and memory over many files.

All read the same files with the same weights, in the same run, in turns, so that a busy machine slows all. Printed are
medians and ratios; nothing passes or fails. What the rows mean is in bench/README.md.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import cached_property, partial
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
ROOT = Path(__file__).resolve().parent.parent
COMMAND = "from lungkit import cli; cli.main()"
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


def copied(version: registry.Version, name: str, int8: bool = False) -> registry.Version:
    """The version registered again as `name`; `int8`: with its graph in 8 bits, however much that changes its answers.

    What it says does not matter here. Its folder is then one that the command finds, in this checkout and in others.
    """

    def write(folder: Path) -> None:
        for file in version.card.files:
            shutil.copy(version.folder / file, folder / file)
        if int8:
            from lungkit.training import quantization

            noise = np.random.default_rng(7).normal(size=(16, *version.card.preprocessing.size, 1))
            quantization.attempt(folder, noise.astype(np.float32), lambda runtime: (1.0, 1.0, 1.0))

    return registry.add(name, version.card, write)


def torch_eager(python: Path, side: int) -> dict[str, float]:
    """What bench/torch_eager.py measures with a Python that has torch and timm."""
    command = [str(python), str(ROOT / "bench/torch_eager.py"), "--side", str(side)]
    return json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def command_rate(checkout: Path, version: registry.Version, folder: Path) -> int:
    """Read a folder by `lungkit predict` of a checkout, from the start of the process to its end; how many images."""
    environment = os.environ | {"PYTHONPATH": str(checkout)}
    command = [sys.executable, "-c", COMMAND, "predict", str(folder), "--model", str(version), "--json"]
    done = subprocess.run(command, env=environment, cwd=checkout, capture_output=True, text=True)
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    if not answers or "probabilities" not in answers[0]:
        raise SystemExit(f"lungkit predict of {checkout} gave no answer: {done.stderr or done.stdout}")
    return len(answers)


class Bench:
    """One version, and the ways to have a folder's images read by it.

    other: another checkout whose command reads the same folder. int8: the version with its graph in 8 bits.
    """

    def __init__(
        self,
        version: registry.Version,
        files: list[Path],
        other: Path | None = None,
        int8: registry.Version | None = None,
    ):
        from lungkit.models import saved

        self.version, self.files, self.other, self.int8 = version, files, other, int8
        self.one_at_a_time = Predictor(version)
        self.many = Predictor(version, heat=False, many=True)
        self.eight_bits = Predictor(int8, heat=False, many=True) if int8 else None
        self.keras = saved.load(version) if saved.holds_keras(version) else None
        self.spec = self.many.spec

    @cached_property
    def tensors(self) -> np.ndarray:
        return preprocess.read_batch(self.files, self.spec)

    @property
    def few(self) -> np.ndarray:
        return self.tensors[:32]

    def ways(self) -> dict[str, Callable[[], int]]:
        """What is timed: each answers how many images it took."""
        ways: dict[str, Callable[[], int]] = {
            "folder: lungkit predict": partial(self.folder, self.many),
            "decoding alone": self.decoding,
            "runtime alone": partial(self.runtime, self.many),
            "one image: runtime with heat maps": self.single,
        }
        if self.eight_bits:
            ways["folder: lungkit predict, 8 bits"] = partial(self.folder, self.eight_bits)
            ways["runtime alone, 8 bits"] = partial(self.runtime, self.eight_bits)
        if self.keras:
            ways |= {
                "folder: read, then Keras predict": self.keras_folder,
                "Keras predict, batch 32": lambda: len(self.keras.predict(self.tensors, batch_size=32, verbose=0)),
                "runtime alone, batch 32": lambda: self.runtime(self.many, 32),
                "one image: Keras predict": self.keras_single,
                "one image: Keras call": self.keras_call,
            }
        return ways

    def commands(self) -> dict[str, Callable[[], int]]:
        """The whole command, in this checkout and in the other one."""
        folder = self.files[0].parent
        commands = {"command": partial(command_rate, ROOT, self.version, folder)}
        if self.other:
            commands["command of the other checkout"] = partial(command_rate, self.other, self.version, folder)
        if self.int8:
            commands["command, 8 bits"] = partial(command_rate, ROOT, self.int8, folder)
        return commands

    def folder(self, predictor: Predictor) -> int:
        return sum(answer.reading is not None for answer in batch.read_files(predictor, self.files))

    def keras_folder(self) -> int:
        # Not preprocess.read_batch: it would decode each file in the first round only.
        read = progress.parallel(lambda file: preprocess.prepare(file, self.spec).tensor, self.files)
        return len(self.keras.predict(np.stack(list(read)), batch_size=32, verbose=0))

    def decoding(self) -> int:
        decoders = batch._Decoders(self.spec, None, processes=True)
        count = sum(len(tensors) for _, tensors in decoders.batches(self.files))
        decoders.close()
        return count

    def runtime(self, predictor: Predictor, size: int = batch.BATCH) -> int:
        batches = ((None, self.tensors[i : i + size]) for i in range(0, len(self.tensors), size))
        return sum(len(outputs["probabilities"]) for _, outputs, _ in predictor.graph.stream(batches))

    def single(self) -> int:
        return sum(len(self.one_at_a_time.graph(tensor[None])["heat"]) for tensor in self.few)

    def keras_single(self) -> int:
        return sum(len(self.keras.predict(tensor[None], verbose=0)) for tensor in self.few)

    def keras_call(self) -> int:
        return sum(len(self.keras(tensor[None], training=False).numpy()) for tensor in self.few)


def measured(ways: dict[str, Callable[[], int]], rounds: int, warm: bool = True) -> Rates:
    """Each round times every way once; the order turns round by round. warm: a round before that is not counted."""
    rates: Rates = {}
    for number in bar(range(0 if warm else 1, rounds + 1), label="rounds", unit="round"):
        for name, way in list(ways.items())[:: 1 if number % 2 else -1]:
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
    shared = {}
    for bits in ("", ", 8 bits"):
        if "decoding alone" in rates and f"runtime alone{bits}" in rates:
            # Decoding and the graph share the processors: one after the other, an image costs the sum of both times.
            pairs = zip(rates["decoding alone"], rates[f"runtime alone{bits}"], strict=True)
            shared[f"runtime and decoding, which share the processors{bits}"] = [1 / (1 / d + 1 / r) for d, r in pairs]
    all_rates = rates | shared
    compared = [
        ("folder: lungkit predict", "runtime alone"),
        ("folder: lungkit predict", "runtime and decoding, which share the processors"),
        ("folder: lungkit predict, 8 bits", "runtime and decoding, which share the processors, 8 bits"),
        ("folder: lungkit predict, 8 bits", "folder: lungkit predict"),
        ("runtime alone, 8 bits", "runtime alone"),
        ("command", "command of the other checkout"),
        ("command, 8 bits", "command of the other checkout"),
        ("folder: lungkit predict", "Keras predict, batch 32"),
        ("folder: lungkit predict", "one image: Keras predict"),
        ("folder: lungkit predict", "folder: read, then Keras predict"),
        ("runtime alone", "Keras predict, batch 32"),
        ("one image: runtime with heat maps", "one image: Keras predict"),
        ("one image: runtime with heat maps", "one image: Keras call"),
    ]
    return {
        f"{one} / {of}": statistics.median(a / b for a, b in zip(all_rates[one], all_rates[of], strict=True))
        for one, of in compared
        if one in all_rates and of in all_rates
    }


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


def report(console: Console, bench: Bench, where: str, rounds: int, part: str) -> None:
    height, width = bench.spec.size
    parts = {
        "inside": lambda: measured(bench.ways(), rounds),
        "commands": lambda: measured(bench.commands(), rounds, False),
    }
    for name, of_part in parts.items():
        if part in ("", name):
            rates = of_part()
            console.print(table(f"{where}: {len(bench.files)} files, model input {height} x {width}", rates))
            for name, ratio in ratios(rates).items():
                console.print(f"  {ratio:6.2f}  {name}", highlight=False)


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--folder", type=Path, help="a folder of images, measured in place of the phantom's")
    arguments.add_argument("--model", help="NAME or NAME@vN in the registry (default: --network)")
    arguments.add_argument(
        "--network", nargs="+", default=["cnn", "efficientnet_lite0", SHIPPED],
        help=f"untrained networks made for this: cnn, a name of lungkit.models.backbones, {SHIPPED} (all three)",
    )  # fmt: skip
    arguments.add_argument("--other", type=Path, help="another checkout, whose `lungkit predict` reads the same folder")
    arguments.add_argument(
        "--int8", action="store_true", help="the same with the graph in 8 bits (needs lungkit[int8])"
    )
    arguments.add_argument(
        "--torch", type=Path, help="a Python with torch and timm, for the shipped network in PyTorch"
    )
    arguments.add_argument("--part", choices=["inside", "commands"], default="", help="one of the two (default: both)")
    arguments.add_argument("--side", type=int, default=224, help="input of the untrained networks, pixels (224)")
    arguments.add_argument("--images", type=int, default=240, help="how many phantom slices are made (240)")
    arguments.add_argument("--rounds", type=int, default=3, help="how often everything is measured (3)")
    arguments.add_argument("--files", type=int, default=10_000, help="how many files memory is watched over (10000)")
    chosen = arguments.parse_args()
    console = Console()
    console.print(machine("openvino", "tensorflow", "keras", "pillow"), highlight=False)
    given = registry.find(chosen.model) if chosen.model else None
    with tempfile.TemporaryDirectory() as temporary:
        for name in ("data", "artifacts"):
            os.environ[f"LUNGKIT_{name.upper()}"] = str(Path(temporary, name))
        source = phantom.make_dataset(Path(temporary, "phantom"), n_slices=chosen.images)
        folder = chosen.folder or source / "slices"
        files = batch.find([str(folder)]).files
        if given:
            versions = [copied(given, given.model)]
        else:
            versions = [untrained(network, source, chosen.side) for network in chosen.network]
        for version in versions:
            int8 = copied(version, f"{version.model}-int8", int8=True) if chosen.int8 else None
            bench = Bench(version, files, chosen.other and chosen.other.resolve(), int8)
            report(console, bench, f"{version.model}, {folder.name}", chosen.rounds, chosen.part)
        if chosen.torch:
            console.print(f"PyTorch, eager: {torch_eager(chosen.torch, chosen.side)}", highlight=False)
        if not chosen.files:
            return
        own, decoders = memory(Bench(versions[0], files), chosen.files)
    console.print(
        f"Memory over {chosen.files} files, at each tenth of them, MiB (Keras, which only this comparison needs, is in "
        f"the same process): {', '.join(f'{mib:.0f}' for mib in own)}; its decoding processes together "
        f"{', '.join(f'{mib:.0f}' for mib in decoders)}.",
        highlight=False,
    )


if __name__ == "__main__":
    main()

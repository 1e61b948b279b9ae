"""Images per second of `lungkit predict` alone and with the workers of a dask scheduler on the same machine.

All ways read the same JPEGs with the same version in the same run. They take turns, because a busy machine then slows
all of them. It prints medians, and ratios within a round; nothing passes or fails. bench/README.md explains the rows.
"""

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import dask
import distributed
import numpy as np
import PIL.Image
import psutil
from rich.console import Console

from bench.machine import machine
from bench.predict import measured, table
from lungkit.clinic import batch, cluster
from lungkit.clinic.predictor import Predictor
from lungkit.models import registry

SIDE = 512  # pixels of the JPEGs


def pictures(folder: Path, count: int) -> list[Path]:
    """Grey JPEGs with the smooth and the fine texture of a radiograph, no two alike."""
    rng = np.random.default_rng(7)
    for number in range(count):
        coarse = PIL.Image.fromarray(rng.integers(20, 230, (12, 12), np.uint8)).resize((SIDE, SIDE), 3)
        noisy = np.asarray(coarse, np.float32) + rng.normal(0, 6, (SIDE, SIDE))
        PIL.Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(folder / f"{number:04}.jpg", quality=90)
    return sorted(folder.iterdir())


class Ways:
    """One version and its files, and the ways to have them read."""

    def __init__(self, version: registry.Version, files: list[Path]):
        self.files = files
        self.job = cluster.job(version, registry.fingerprint(version), None)
        self.all = Predictor(version, heat=False, many=True)
        self.one = Predictor(version, heat=False, many=True, threads=1)

    def alone(self) -> int:
        return sum(answer.reading is not None for answer in batch.read_files(self.all, self.files))

    def one_thread(self) -> int:
        """What a worker does, without dask."""
        return len([batch.told(answer) for answer in batch.read_here(self.one, self.files)])

    def spread(self, address: str) -> int:
        return sum("label" in record for record in cluster.read_files(address, self.job, self.files))


def processor_seconds() -> float:
    """Of this process, in which the client and the schedulers run, and of all workers."""
    process = psutil.Process()
    times = [each.cpu_times() for each in (process, *process.children(recursive=True))]
    return sum(each.user + each.system for each in times)


def processor_seconds_a_file(way: Callable[[], int]) -> float:
    before = processor_seconds()
    count = way()
    return (processor_seconds() - before) / count


def workers(count: int) -> distributed.LocalCluster:
    """A scheduler with so many workers of one thread."""
    return distributed.LocalCluster(
        n_workers=count, threads_per_worker=1, host="127.0.0.1", dashboard_address="127.0.0.1:0"
    )


def seconds_of_nothing(address: str, count: int) -> float:
    """Seconds that dask takes for each chunk whose work is nothing."""
    with distributed.Client(address) as client:
        started = time.perf_counter()
        client.gather([client.submit(len, [number], pure=False) for number in range(count)])
        return (time.perf_counter() - started) / count


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--model", default="chest-xray-pneumonia", help="NAME or NAME@vN (chest-xray-pneumonia)")
    arguments.add_argument("--images", type=int, default=600, help="how many JPEGs are made (600)")
    arguments.add_argument("--rounds", type=int, default=3, help="how often everything is measured (3)")
    chosen = arguments.parse_args()
    console = Console()
    console.print(machine("distributed", "openvino", "pillow"), highlight=False)
    os.environ["LUNGKIT_ARTIFACTS"] = str(registry.config.artifacts_dir())  # also for the workers
    with tempfile.TemporaryDirectory() as temporary, dask.config.set({"logging.distributed": "error"}):
        version = registry.find(chosen.model)
        ways = Ways(version, pictures(Path(temporary), chosen.images))
        with workers(1) as one, workers(2) as two:
            named: dict[str, Callable[[], int]] = {
                "lungkit predict alone": ways.alone,
                "a worker's work, without dask": ways.one_thread,
                "--scheduler, one worker": partial(ways.spread, one.scheduler_address),
                "--scheduler, two workers": partial(ways.spread, two.scheduler_address),
            }
            rates = measured(named, chosen.rounds)
            bare, with_dask = (processor_seconds_a_file(way) for way in list(named.values())[1:3])
            nothing = seconds_of_nothing(one.scheduler_address, 200)
    console.print(table(f"{version}: {chosen.images} JPEGs of {SIDE} x {SIDE}, workers of one thread", rates))
    alone, plain, single, double = rates.values()
    for name, top, bottom in (
        ("one worker / its work without dask", single, plain),
        ("two workers / one worker", double, single),
        ("two workers / lungkit predict alone", double, alone),
    ):
        pairs = [a / b for a, b in zip(top, bottom, strict=True)]
        console.print(f"  {statistics.median(pairs):6.2f}  {name} ({min(pairs):.2f}–{max(pairs):.2f})", highlight=False)
    lost = [1000 / a - 1000 / b for a, b in zip(single, plain, strict=True)]
    console.print(
        f"Overhead with one worker: {statistics.median(lost):.2f} ms for each file ({min(lost):.2f}–{max(lost):.2f}), "
        f"start and end of the client included; of the processors {1000 * (with_dask - bare):.2f} ms, added to "
        f"{1000 * bare:.2f} ms. dask alone takes {1000 * nothing:.1f} ms for a chunk of "
        f"{cluster.CHUNK} files.",
        highlight=False,
    )


if __name__ == "__main__":
    main()

"""Images per second of lungkit.training.pipeline beside keras.utils.image_dataset_from_directory.

Both read the same throw-away JPEGs, in the same run, in turns, so that a busy machine slows both. Printed are medians
and ratios; nothing passes or fails. What the rows mean, and why they differ, is in bench/README.md.
"""

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from lungkit.backend import keras

import numpy as np
import tensorflow as tf
from PIL import Image
from rich.console import Console
from rich.table import Table

from bench.machine import machine
from lungkit import config
from lungkit.data import dataset as datasets
from lungkit.data import tensor_cache
from lungkit.data.preprocess import Preprocessing
from lungkit.progress import bar
from lungkit.training import pipeline

CLASSES = ("Normal", "Pneumonia")
SIDES = (512, 2000)  # pixels of the stored images
BATCH = 32
PREPROCESSING = Preprocessing(size=(224, 224))
CONTESTANTS = ("lungkit", "keras")
Rates = dict[tuple[str, bool, str], list[float]]  # (contestant, augmented, epoch) -> images/s of each round


def write_images(folder: Path, count: int, side: int, seed: int = 7) -> None:
    """folder/train/CLASS/*.jpg: grey, side x side, smooth with some grain, as compressible as a chest X-ray."""
    rng = np.random.default_rng(seed)
    grain = rng.normal(0, 2.5, (side, side))  # 1.3 to 1.5 bits a pixel; JPEGs of chest X-rays have 1.0 to 1.5
    for name in CLASSES:
        (folder / "train" / name).mkdir(parents=True)
    for i in range(count):
        coarse = Image.fromarray(rng.integers(20, 230, (12, 12), dtype=np.uint8))
        smooth = np.asarray(coarse.resize((side, side), Image.Resampling.BICUBIC))
        pixels = np.clip(smooth + np.roll(grain, (37 * i, 91 * i), (0, 1)), 0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(folder / "train" / CLASSES[i % len(CLASSES)] / f"{i:05d}.jpg", quality=92)


def lungkit_stream(dataset: datasets.Dataset, augment: pipeline.Augmentation | None) -> tf.data.Dataset:
    return pipeline.batches(dataset, "train", PREPROCESSING, BATCH, augment=augment)


def keras_stream(dataset: datasets.Dataset, augment: pipeline.Augmentation | None) -> tf.data.Dataset:
    """What Keras's own guides build: decode, 0..1, cache, augment, prefetch."""
    stream = keras.utils.image_dataset_from_directory(
        dataset.root / "train",
        class_names=list(dataset.classes),
        color_mode="grayscale",
        batch_size=BATCH,
        image_size=PREPROCESSING.size,
        pad_to_aspect_ratio=True,
        shuffle=False,
        verbose=False,
    )
    stream = stream.map(lambda x, y: (x / 255, y), num_parallel_calls=tf.data.AUTOTUNE).cache()
    if augment is not None:
        # The same work as lungkit's; the keys come in the order of chance, as Keras' own layers draw in parallel.
        key = partial(tf.random.uniform, (), maxval=2**31 - 1, dtype=tf.int32)
        stream = stream.map(lambda x, y: (augment(x, key=key()), y), num_parallel_calls=tf.data.AUTOTUNE)
    return stream.prefetch(tf.data.AUTOTUNE)


STREAMS: dict[str, Callable] = {"lungkit": lungkit_stream, "keras": keras_stream}


def epoch_rate(stream: tf.data.Dataset, count: int) -> float:
    """Images per second of one pass over the stream."""
    started = time.perf_counter()
    seen = sum(len(labels) for _, labels in stream)
    elapsed = time.perf_counter() - started
    assert seen == count, f"{seen} of {count} images came out"
    return count / elapsed


def measured(dataset: datasets.Dataset, rounds: int) -> Rates:
    """Each round builds every stream again and runs it twice; the order turns round by round.

    lungkit's first epoch begins with an empty cache of tensors ("first"); once more, it reads what an earlier step of
    the run has decoded ("first, decoded before").
    """
    count = len(dataset.files("train"))
    rates: Rates = {}
    for number in bar(range(rounds), label="rounds", unit="round"):
        for augmented in (False, True):
            for contestant in CONTESTANTS if number % 2 == 0 else CONTESTANTS[::-1]:
                _forget_tensors()
                stream = STREAMS[contestant](dataset, pipeline.augmentation() if augmented else None)
                for epoch in ("first", "later"):
                    rates.setdefault((contestant, augmented, epoch), []).append(epoch_rate(stream, count))
                again = STREAMS["lungkit"](dataset, pipeline.augmentation() if augmented else None)
                if contestant == "lungkit":
                    rates.setdefault(("lungkit", augmented, "first, decoded before"), []).append(
                        epoch_rate(again, count)
                    )
                else:
                    rates["keras", augmented, "first, decoded before"] = rates["keras", augmented, "first"]
    return rates


def _forget_tensors() -> None:
    for pack in (config.data_dir() / "tensors").glob("*"):
        pack.unlink()
    tensor_cache._cache.cache_clear()


def difference(dataset: datasets.Dataset) -> float:
    """Mean absolute difference (grey range 0..1) of the two first batches: that both did the same work."""
    (ours, our_labels), (theirs, their_labels) = (next(iter(make(dataset, None))) for make in STREAMS.values())
    assert np.array_equal(our_labels, their_labels), "the two pipelines give the images in another order"
    return float(np.abs(np.asarray(ours) - np.asarray(theirs)).mean())


def listing_seconds(dataset: datasets.Dataset) -> Iterator[tuple[str, float]]:
    """What comes once before the first epoch: to list the files (here also to hash them and read their headers)."""
    for name, build in (
        ("lungkit.data.dataset.load", lambda: datasets.load(dataset.root)),
        ("image_dataset_from_directory", lambda: keras_stream(dataset, None)),
    ):
        started = time.perf_counter()
        build()
        yield name, time.perf_counter() - started


def table(rates: Rates, side: int) -> Table:
    shown = Table(title=f"images per second, median (range); {side} x {side} JPEG to {PREPROCESSING.size} float32")
    for heading in ("epoch", "lungkit", "keras", "ratio"):
        shown.add_column(heading, justify="left" if heading == "epoch" else "right")
    for epoch in ("first", "first, decoded before", "later"):
        for augmented in (False, True):
            ours, theirs = (rates[contestant, augmented, epoch] for contestant in CONTESTANTS)
            # Within a round, where both ran under much the same load.
            ratio = statistics.median(a / b for a, b in zip(ours, theirs, strict=True))
            shown.add_row(epoch + ", augmented" * augmented, _spread(ours), _spread(theirs), f"{ratio:.2f}")
    return shown


def _spread(rates: list[float]) -> str:
    return f"{statistics.median(rates):,.0f} ({min(rates):,.0f}–{max(rates):,.0f})"


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--images", type=int, default=320, help="how many JPEGs are made (320)")
    arguments.add_argument("--rounds", type=int, default=3, help="how often everything is measured (3)")
    arguments.add_argument("--side", type=int, nargs="+", default=SIDES, help="pixels of the stored images (512 2000)")
    chosen = arguments.parse_args()
    console = Console(width=110)  # no column is cut
    gpus = len(tf.config.list_physical_devices("GPU"))
    console.print(machine("tensorflow", "keras", "pillow", "numpy") + f", {gpus} GPUs", highlight=False)
    for side in chosen.side:
        with tempfile.TemporaryDirectory() as folder:
            os.environ["LUNGKIT_DATA"] = str(Path(folder, "data"))
            pictures = Path(folder, "pictures")
            write_images(pictures, chosen.images if side < 1000 else chosen.images // 4, side)
            dataset = datasets.load(pictures)
            gap = difference(dataset)  # also warms up the file cache and TensorFlow
            rates = measured(dataset, chosen.rounds)
            listed = ", ".join(f"{name} {seconds:.2f} s" for name, seconds in listing_seconds(dataset))
        console.print(table(rates, side))
        console.print(f"Once, before the first epoch: {listed}.", highlight=False)
        console.print(f"Mean difference of the two tensors: {gap:.4f} of the grey range.", highlight=False)


if __name__ == "__main__":
    main()

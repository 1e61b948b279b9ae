"""Training of the network that finds lungs (lungkit.models.lungs), and how well it does.

X-rays: masks of covid_chestxray, drawn by people. CT: slices as pictures have no masks, so a classical finder makes
them (dark regions that the body surrounds, as in Hu, Hoffman and Reinhardt, IEEE Trans. Med. Imaging 20:490, 2001,
without their threshold in HU), and the phantom gives its own.
"""

import hashlib
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lungkit.backend import keras

import numpy as np
import pandas as pd
from scipy import ndimage

from lungkit import wording
from lungkit.data import dataset, phantom, preprocess
from lungkit.data.phantom.patient import CLASSES
from lungkit.errors import LungkitError
from lungkit.models import lungs, weights_file
from lungkit.progress import bar
from lungkit.training import probes
from lungkit.training.evaluation import mean_with_interval
from lungkit.training.gradcam import otsu_threshold

_SIDE = lungs.SIDE
_BATCH, _RATE = 32, 4e-3
_HELD_OUT = 5  # one patient in so many is not learned from
_WHOLE = preprocess.Preprocessing(size=(2 * _SIDE, 2 * _SIDE))  # as images are read; halved for the finder
_PHANTOMS = 100  # patients


@dataclass(frozen=True, eq=False)
class Masked:
    """Pictures and where their lungs are, both float32 0..1 (n, SIDE, SIDE); and whose they are, (n,).

    Without masks these are all 0.
    """

    pictures: np.ndarray
    masks: np.ndarray
    patients: np.ndarray

    @property
    def held_out(self) -> np.ndarray:
        """Which of them are not learned from: bool (n,), by the patient's name alone."""
        digests = (hashlib.sha1(name.encode(), usedforsecurity=False).hexdigest() for name in self.patients)
        return np.array([int(digest, 16) % _HELD_OUT == 0 for digest in digests])


def xrays(folder: Path) -> Masked:
    """The frontal X-rays of a folder laid out as covid_chestxray that have a mask of the lungs."""
    rows = probes.frontal(folder).dropna(subset="mask")
    pictures = preprocess.read_batch(rows["file"].tolist(), _WHOLE, label="X-rays")[..., 0]
    masks = preprocess.read_batch(rows["mask"].tolist(), _WHOLE, label="masks")[..., 0]
    return Masked(_halved(pictures), _halved(masks), rows["patient_id"].to_numpy(str))


def unmasked(data: dataset.Dataset) -> Masked:
    """All pictures of a data set."""
    pictures = _halved(preprocess.read_batch(data.files(), _WHOLE, label=data.name)[..., 0])
    return Masked(pictures, np.zeros_like(pictures), np.asarray(data.patients()))


def slices(sources: Sequence[str | Path]) -> Masked:
    """CT slices of data sets, with masks by `surrounded`, and slices of phantoms with their own.

    Slices on which `surrounded` finds no lungs are left out.
    """
    rows: list[tuple[np.ndarray, np.ndarray, str]] = []
    for source in sources:
        data = dataset.load(source)
        pictures = preprocess.read_batch(data.files(), _WHOLE, label=data.name)[..., 0]
        rows += [
            (picture, mask, patient)
            for picture, patient in zip(pictures, data.patients(), strict=True)
            if (mask := surrounded(picture)).any()
        ]
    for number in bar(range(_PHANTOMS), label="phantoms", unit="patient"):
        label = CLASSES[number % len(CLASSES)]
        for one in phantom.make_patient(f"P{number}", label, 900 + number, 3, 2 * _SIDE):
            picture = preprocess.window_level(one.hu, *_WHOLE.window)
            rows.append((picture, one.lungs, f"phantom {number}"))
    pictures, masks, patients = zip(*rows, strict=True)
    return Masked(_halved(np.stack(pictures)), _halved(np.stack(masks)), np.array(patients))


def surrounded(picture: np.ndarray) -> np.ndarray:
    """The lungs of a CT slice (height, width), 0..1, whatever its window: bool, of the same shape; empty without any.

    Tissue is what lies above Otsu's threshold; the largest piece of it is the body; holes in it are lung where they are
    large enough. Then what lies within the lungs' outline, vessels and consolidations, is filled in.
    """
    smooth = ndimage.median_filter(picture, 3)
    seen = smooth[smooth > 0.02]
    tissue = smooth > otsu_threshold(seen if seen.size > 0.3 * smooth.size else smooth)
    edge = np.concatenate([tissue[0], tissue[-1], tissue[:, 0], tissue[:, -1]])
    padded = np.pad(tissue, 4, constant_values=edge.mean() > 0.5)  # a picture cut from a larger one continues outside
    pieces, count = ndimage.label(ndimage.binary_closing(padded) | padded)
    if not count:
        return np.zeros(picture.shape, bool)
    body = pieces == 1 + np.argmax(ndimage.sum_labels(np.ones_like(pieces), pieces, range(1, count + 1)))
    inside = ndimage.binary_opening(ndimage.binary_fill_holes(body) & ~padded)[4:-4, 4:-4]
    pieces, count = ndimage.label(inside)
    sizes = np.asarray(ndimage.sum_labels(np.ones_like(pieces), pieces, range(1, count + 1)))
    large = [i + 1 for i, size in enumerate(sizes) if size > max(0.12 * sizes.max(), 0.004 * picture.size)]
    closed = ndimage.binary_closing(np.pad(np.isin(pieces, large), 8), iterations=5)
    return np.asarray(ndimage.binary_fill_holes(closed)[8:-8, 8:-8])


# --- training


def train(kind: str, data: Masked, epochs: int, seed: int = 0) -> tuple[keras.Model, np.ndarray]:
    """A finder that learned from the patients who are not held out, and Dice of each held-out picture (n,)."""
    import tensorflow as tf

    learned_from = np.flatnonzero(~data.held_out)
    if not 0 < len(learned_from) < len(data.patients):
        raise LungkitError(f"{len(data.patients)} pictures with masks are too few to hold some patients out")
    keras.utils.set_random_seed(seed)
    model, steps = lungs.finder(), epochs * max(20, len(learned_from) // _BATCH)
    rate = keras.optimizers.schedules.CosineDecay(
        _RATE / 40, steps - steps // 10, warmup_target=_RATE, warmup_steps=steps // 10
    )
    optimizer = keras.optimizers.AdamW(rate, weight_decay=1e-4)

    @tf.function
    def step(pictures: Any, masks: Any) -> None:
        with tf.GradientTape() as tape:
            loss = _loss(masks, model(pictures, training=True))
        optimizer.apply(tape.gradient(loss, model.trainable_variables), model.trainable_variables)

    for batch in bar(_batches(kind, data, learned_from, steps, seed), label="lung finder", unit="batch", total=steps):
        step(*batch)
    return model, dice(model, data.pictures[data.held_out], data.masks[data.held_out])


def _loss(masks: keras.KerasTensor, found: keras.KerasTensor) -> keras.KerasTensor:
    """Cross-entropy and soft Dice."""
    ops = keras.ops
    both, either = ops.sum(masks * found, axis=(1, 2, 3)), ops.sum(masks + found, axis=(1, 2, 3))
    overlap = ops.mean((2 * both + 50) / (either + 50))
    return ops.mean(keras.losses.binary_crossentropy(masks, found)) + 1 - overlap


def _batches(kind: str, data: Masked, rows: np.ndarray, steps: int, seed: int) -> Iterator[tuple[np.ndarray, ...]]:
    """Varied pictures and masks of the finder's size; the next batch is made while one is learned from."""
    random = np.random.default_rng(seed)

    def batch() -> tuple[np.ndarray, ...]:
        both = [varied(kind, data.pictures[i], data.masks[i], random) for i in random.choice(rows, _BATCH)]
        return tuple(np.stack(part)[..., None].astype(np.float32) for part in zip(*both, strict=True))

    with ThreadPoolExecutor(1) as pool:
        coming = pool.submit(batch)
        for _ in range(steps):
            ready, coming = coming.result(), pool.submit(batch)
            yield ready


def varied(
    kind: str, picture: np.ndarray, mask: np.ndarray, random: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """A picture and its mask (SIDE, SIDE) as another patient, scanner or printer could have given them.

    Turned, scaled, moved, mirrored, cut off at a side; its greys stretched and bent; letters on it, opacities in the
    lungs, blur and noise.
    """
    matrix, offset = _placing(random)
    if random.random() < 0.5:
        picture, mask = picture[:, ::-1], mask[:, ::-1]
    around = 0.0 if random.random() < 0.7 else random.uniform()
    picture = ndimage.affine_transform(picture, matrix, offset, order=1, cval=around)
    mask = ndimage.affine_transform(mask, matrix, offset, order=1)
    if random.random() < 0.5:
        picture = picture + _opacity(kind, mask, random)
    low, high = random.uniform(-0.3, 0.2), random.uniform(0.75, 1.4)
    picture = np.clip(np.clip(picture, 0, 1) ** np.exp(random.uniform(-0.7, 0.7)) * (high - low) + low, 0, 1)
    if random.random() < 0.25:
        away = _at_a_side(random)
        picture[away] = mask[away] = 0
    for _ in range(random.integers(0, 4)):
        height, width = random.integers(3, 15, 2)
        row, column = random.integers(0, _SIDE - height), random.integers(0, _SIDE - width)
        picture[row : row + height, column : column + width] = random.uniform(0.3, 1)
    if random.random() < 0.4:
        picture = ndimage.gaussian_filter(picture, random.uniform(0.3, 1))
    noise = random.normal(0, random.uniform(0, 0.06), picture.shape)
    return np.clip(picture + noise, 0, 1).astype(np.float32), mask


def _placing(random: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Matrix and offset of ndimage.affine_transform."""
    angle, zoom, taller = (
        np.deg2rad(random.normal(0, 8)),
        np.exp(random.uniform(-0.45, 0.3)),
        np.exp(random.normal(0, 0.1)),
    )
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    matrix = turn @ np.diag([1 / (zoom * taller), taller / zoom])
    middle = np.full(2, (_SIDE - 1) / 2)
    return matrix, middle - matrix @ (middle + random.uniform(-0.12, 0.12, 2) * _SIDE)


def _at_a_side(random: np.random.Generator) -> tuple[slice, slice]:
    """A strip along one of the four sides."""
    wide = int(random.uniform(0.05, 0.25) * _SIDE)
    strip = slice(0, wide) if random.random() < 0.5 else slice(_SIDE - wide, _SIDE)
    return (strip, slice(None)) if random.random() < 0.5 else (slice(None), strip)


def _opacity(kind: str, mask: np.ndarray, random: np.random.Generator) -> np.ndarray | float:
    """Up to three opacities in the lungs: what the finder must not take for tissue around them."""
    inside = np.argwhere(mask > 0.5)
    if not len(inside):
        return 0.0
    total = np.zeros(mask.shape)
    for _ in range(random.integers(1, 4)):
        middle = inside[random.integers(len(inside))][:, None, None]
        apart = (np.indices(mask.shape) - middle) / random.uniform(4, 18, (2, 1, 1))
        patch = np.exp(-(apart**2).sum(axis=0) / 2) * random.uniform(0.1, 0.6)
        if kind == "CT":
            grain = ndimage.gaussian_filter(random.normal(0, 1, mask.shape), random.uniform(1.5, 4))
            patch = patch * (5 * grain > -0.3) * mask
        total += patch
    return total


def _halved(pictures: np.ndarray) -> np.ndarray:
    """Pictures (n, 2 SIDE, 2 SIDE) at half the size: each pixel is the mean of four."""
    return pictures.reshape(len(pictures), _SIDE, 2, _SIDE, 2).mean(axis=(2, 4), dtype=np.float32)


# --- how well it finds them


def dice(model: keras.Model, pictures: np.ndarray, masks: np.ndarray) -> np.ndarray:
    """Twice the overlap of what is found and the mask over the sum of their areas, of each picture (n,)."""
    found, mask = model.predict(pictures[..., None], verbose=0)[..., 0] > 0.5, masks > 0.5
    return 2 * (found & mask).sum(axis=(1, 2)) / np.maximum((found.sum((1, 2)) + mask.sum((1, 2))), 1)


def plausibility(model: keras.Model, pictures: np.ndarray) -> pd.DataFrame:
    """Of masks found where no one drew any, a row per picture (n, SIDE, SIDE): `area` (share of the picture), `parts`
    (pieces of 1 % of it or more), `smaller` (the second largest part over the largest) and `at_border` (share of the
    mask's rim that lies on the picture's border).
    """
    return pd.DataFrame([_facts(mask) for mask in model.predict(pictures[..., None], verbose=0)[..., 0] > 0.5])


def _facts(mask: np.ndarray) -> dict[str, float]:
    pieces, count = ndimage.label(mask)
    sizes = np.sort(ndimage.sum_labels(np.ones_like(pieces), pieces, range(1, count + 1)))[::-1] / mask.size
    rim = mask & ~ndimage.binary_erosion(mask)
    border = np.ones_like(mask)
    border[1:-1, 1:-1] = False
    return {
        "area": float(mask.mean()),
        "parts": float((sizes >= 0.01).sum()),
        "smaller": float(sizes[1] / sizes[0]) if len(sizes) > 1 else 0.0,
        "at_border": float((rim & border).sum() / max(1, rim.sum())),
    }


def command(kind: str, sources: Sequence[str], out: Path, plausible: Sequence[str], epochs: int) -> list[str]:
    """Train a finder, keep its weights in `out`, and say how well it does; the arguments of `lungkit lungs`."""
    if kind not in lungs.KINDS or (kind == "X-ray" and len(sources) != 1):
        raise LungkitError("give X-ray with one folder of masks, or CT with data sets of slices")
    data = xrays(Path(sources[0])) if kind == "X-ray" else slices(sources)
    started = time.perf_counter()
    model, scores = train(kind, data, epochs)
    minutes = (time.perf_counter() - started) / 60
    held_out = data.held_out
    figure = wording.figure(*mean_with_interval(scores, data.patients[held_out]))
    patients = len(set(data.patients[held_out]))
    lines = [
        f"Dice {figure}, of the worst twentieth {np.quantile(scores, 0.05):.3f}: {held_out.sum()} pictures of "
        f"{patients} patients that it did not learn from; {(~held_out).sum()} learned from in {minutes:.0f} minutes",
    ]
    for source in plausible:
        given = dataset.load(source)
        facts = plausibility(model, unmasked(given).pictures)
        low, middle, high = np.quantile(facts["area"], (0.01, 0.5, 0.99))
        lines.append(
            f"{given.name}, {len(facts):,} images: two parts or more in {wording.percent((facts['parts'] >= 2).mean())}"
            f" (exactly two in {wording.percent((facts['parts'] == 2).mean())}), the second at least a third of the "
            f"largest in {wording.percent((facts['smaller'] >= 1 / 3).mean())}; lungs are {middle:.2f} of the picture "
            f"({low:.2f} to {high:.2f} in 98 %), and reach its border in "
            f"{wording.percent((facts['at_border'] > 0.05).mean())}"
        )
    return [*lines, f"{out}: SHA-256 {weights_file.write(model, out)}"]

"""What a large network knows of chest CT, brought into one that is small enough to ship (Hinton et al., 2015).

The student learns the teacher's feature maps at every place of a slice's lungs (Romero et al., "FitNets", ICLR 2015),
no label: squared error of the standardised maps, their direction, and their means within the lungs, which heads read.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lungkit.backend import keras

import numpy as np

from lungkit import files, resume
from lungkit.data import dataset, preprocess
from lungkit.models import backbones, efficientnet_lite, lungs, weights_file
from lungkit.progress import bar
from lungkit.training import ct_teacher, finetune, fit, pipeline

_BATCH, _RATE, _EMA = 16, 1e-3, 0.99
_RANGE = (-4.0, 6.0)  # of a standardised feature: a few maps have single values far beyond
_OUTSIDE = 0.15  # what a place without lung counts for, added to the share of lung everywhere
# Maps could not follow where an image is turned or scaled.
_STILL: dict[str, Any] = {"rotation": 0.0, "translation": 0.0, "scaling": 0.0, "flip": False}
_GREYS: dict[str, Any] = {"sharpness": 1.0, "noise": 0.05, "brightness": 0.08, "contrast": 0.2, "gamma": 0.35}

ops = keras.ops


def learn(
    sources: Sequence[str | Path], teacher: Path, folder: Path, epochs: int, fold: str | None = "1/4", seed: int = 7
) -> tuple[keras.Model, dict[str, float]]:
    """The student after `epochs`, its weights the average of the last steps, and figures on the validation slices.

    sources: data sets of CT slices. The test part of each, by `fold` and `seed` as a recipe splits it, is left out, so
    models built on the student may be tested on it; the validation part is what the figures are measured on.
    teacher: the folder of the teacher's weights. folder: keeps maps and training; a call continues there.
    """
    square = lungs.LungSquare("CT", ct_teacher.SIDE, 0.0, 1.0)
    whole = preprocess.Preprocessing(size=(lungs.WHOLE, lungs.WHOLE))
    sets = [dataset.load_split(source, fold=fold, seed=seed) for source in sources]
    settings = {"sources": [data.fingerprint for data in sets], "fold": fold, "seed": seed, "greys": _GREYS}
    resume.same_settings(folder, settings, "distillation")
    squares = {
        part: [
            finetune.seen(preprocess.read_batch(data.files(part), whole, label=data.name), square).astype(np.float16)
            for data in sets
        ]
        for part in ("train", "val")
    }
    pictures = np.concatenate(squares["train"] + squares["val"])
    train, validation = np.split(np.arange(len(pictures)), [sum(map(len, squares["train"]))])
    maps = _maps(pictures, teacher, folder / "maps.npy")
    scale = _statistics(maps, train)
    model = student()
    model.compile(_optimizer(epochs * -(-len(train) // _BATCH)), taught_loss)
    model, history = fit.fit(
        model,
        Taught(pictures, maps, train, scale, varied=True),
        Taught(pictures, maps, validation, scale, varied=False),
        folder / "student",
        epochs=epochs,
        patience=epochs,
    )
    return model, {"loss": float(history["val_loss"].min()), "minutes": float(history["seconds"].sum() / 60)}


def _optimizer(steps: int) -> keras.optimizers.Optimizer:
    warmup = max(1, steps // 20)
    rate = keras.optimizers.schedules.CosineDecay(1e-5, steps - warmup, warmup_target=_RATE, warmup_steps=warmup)
    return keras.optimizers.AdamW(rate, weight_decay=1e-4, clipnorm=1.0, use_ema=True, ema_momentum=_EMA)


def student() -> keras.Model:
    """Squares of the lungs, as lungs.LungSquare gives them, to the teacher's maps, standardised; from ImageNet."""
    side = (ct_teacher.SIDE, ct_teacher.SIDE)
    spec = preprocess.Preprocessing(size=side, mean=lungs.MEAN, std=lungs.STD)
    model = backbones.build(backbones.CT_STUDENT, (*side, 2), 2, pretrained=False, preprocessing=spec)
    efficientnet_lite.load_imagenet(model)
    return keras.Model(model.input, model.get_layer("taught").output, name=backbones.CT_STUDENT)


@keras.saving.register_keras_serializable("lungkit")
def taught_loss(target: keras.KerasTensor, maps: keras.KerasTensor) -> keras.KerasTensor:
    """Of each image: (n,). target: (n, h, w, C + 1), the teacher's maps and the weight of each place; maps: without."""
    wanted, weight = ops.clip(target[..., :-1], *_RANGE), target[..., -1:]
    weight = weight / ops.sum(weight, axis=(1, 2), keepdims=True)
    squared = ops.sum(ops.mean(ops.square(maps - wanted), axis=-1, keepdims=True) * weight, axis=(1, 2, 3))
    cosine = ops.sum(ops.normalize(maps, axis=-1) * ops.normalize(wanted, axis=-1), axis=-1, keepdims=True)
    means = ops.sum((maps - wanted) * weight, axis=(1, 2))
    return squared + 1 - ops.sum(cosine * weight, axis=(1, 2, 3)) + 5 * ops.mean(ops.square(means), axis=-1)


class Taught(keras.utils.PyDataset):
    """Batches for `Model.fit`: squares (n, SIDE, SIDE, 2), and the teacher's maps with the weight of each place.

    Where `varied`, greys change and the teacher's maps do not; and squares move by whole cells of the maps, which move
    with them. What comes in at the side has the weight 0.
    """

    def __init__(
        self,
        pictures: np.ndarray,
        maps: np.ndarray,
        rows: np.ndarray,
        scale: tuple[np.ndarray, np.ndarray],
        varied: bool,
        seed: int = 7,
    ):
        super().__init__()
        self._pictures, self._maps, self._rows, self._scale = pictures, maps, rows.copy(), scale
        self._varied, self._seed, self._epoch = varied, seed, -1
        self._greys = pipeline.augmentation(**_STILL, **_GREYS, mean=lungs.MEAN, std=lungs.STD, seed=seed)
        self.on_epoch_end()

    def __len__(self) -> int:
        return -(-len(self._rows) // _BATCH)

    def __getitem__(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        rows = np.sort(self._rows[number * _BATCH : (number + 1) * _BATCH])
        seen = self._pictures[rows].astype(np.float32)
        mean, deviation = self._scale
        wanted = (self._maps[rows].astype(np.float32) - mean) / deviation
        lung = (seen[..., 1:] * lungs.STD + lungs.MEAN).reshape(
            len(rows), ct_teacher.CELLS, -1, ct_teacher.CELLS, ct_teacher.SIDE // ct_teacher.CELLS
        )
        wanted = np.concatenate([wanted, lung.mean(axis=(2, 4))[..., None] + _OUTSIDE], axis=-1)
        if self._varied:
            key = pipeline.derived(self._seed, self._epoch, number)
            seen = keras.ops.convert_to_numpy(self._greys(seen, key=key)).copy()
            random = np.random.default_rng(key)
            for one, target in zip(seen, wanted, strict=True):
                _move(one, target, *random.integers(-2, 3, 2))
        return seen, wanted

    def on_epoch_end(self) -> None:
        """Another order for the next epoch, where images are varied at all."""
        self._epoch += 1
        if self._varied:
            np.random.default_rng((self._seed, self._epoch)).shuffle(self._rows)


def _move(square: np.ndarray, target: np.ndarray, down: int, right: int) -> None:
    """Move both, in place, by cells of the maps; what was at the side is repeated there."""
    cell = len(square) // len(target)
    for picture, size in ((square, cell), (target, 1)):
        rows = np.clip(np.arange(len(picture)) - down * size, 0, len(picture) - 1)
        columns = np.clip(np.arange(len(picture)) - right * size, 0, len(picture) - 1)
        picture[:] = picture[rows][:, columns]
    at = np.arange(len(target))
    for shift, weight in ((down, target[..., -1]), (right, target[..., -1].T)):
        weight[(at - shift < 0) | (at - shift >= len(target))] = 0


def _maps(pictures: np.ndarray, teacher: Path, file: Path) -> np.ndarray:
    """The teacher's maps of the squares, float16 (n, CELLS, CELLS, CHANNELS), on disk; computed once."""
    if not file.exists():
        runtime = ct_teacher.graph_of(teacher)
        shape = (len(pictures), ct_teacher.CELLS, ct_teacher.CELLS, ct_teacher.CHANNELS)
        with files.draft(file) as draft:
            maps = np.lib.format.open_memmap(draft, "w+", np.float16, shape)
            for number, picture in enumerate(bar(pictures, label="teacher", unit="slice")):
                grey = picture[..., :1].astype(np.float32) * lungs.STD + lungs.MEAN
                answer = runtime(ct_teacher.as_it_learned(grey)[None])[0][0]
                maps[number] = ct_teacher.as_it_learned(answer)
            maps.flush()
            files.put(draft, file, durable=False)
    return np.load(file, mmap_mode="r")


def _statistics(maps: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and deviation of each channel over all places of these rows."""
    total, squares, count = np.zeros(maps.shape[-1]), np.zeros(maps.shape[-1]), 0
    for start in range(0, len(rows), _BATCH):
        part = maps[rows[start : start + _BATCH]].reshape(-1, maps.shape[-1]).astype(np.float64)
        total, squares, count = total + part.sum(axis=0), squares + (part**2).sum(axis=0), count + len(part)
    mean = total / count
    return mean.astype(np.float32), (np.sqrt(np.maximum(squares / count - mean**2, 0)) + 1e-3).astype(np.float32)


def command(sources: Sequence[str], teacher: Path, folder: Path, out: Path, epochs: int) -> list[str]:
    """Distil, keep the student's weights in `out`, and say what it took; the arguments of `lungkit distil`."""
    model, figures = learn(sources, teacher, folder, epochs)
    trunk = {name: f"{figure:.3g}" for name, figure in figures.items()}
    return [
        f"distilled in {trunk['minutes']} minutes; loss on validation slices {trunk['loss']}; "
        f"{model.count_params():,} parameters",
        f"{out}: SHA-256 {weights_file.write(model, out)}",
    ]

"""Lungs first: a small network finds them, and a classifier sees their square alone.

Shoulders, borders, letters and a scanner's table tell hospitals apart, not diseases. All of this is part of the
exported graph: from the whole image to the square of the lungs, its greys stretched to what is in it, and back from the
classifier's heat to the place in the whole image.
"""

from typing import Any

from lungkit.backend import keras

import numpy as np

from lungkit.errors import LungkitError
from lungkit.models import weights_file
from lungkit.models.input_checks import ORIENTATIONS

layers, ops = keras.layers, keras.ops

KINDS = ("X-ray", "CT")  # modalities there is a finder for
SIDE = 96  # pixels, of what the finder sees and of its mask
WHOLE = 3 * SIDE  # of the whole image: each of the finder's pixels is the mean of 3 x 3
MEAN, STD = 0.5, 0.25  # by which the greys of the square, 0..1, are standardised
FILTERS = (8, 16, 32, 64)
MARGIN = 0.06  # of the lungs' height or width, on each side
_LEAST = 0.02  # of the image: where less is lung, the whole image is taken
_TAIL = 0.005  # of the lungs' area that may lie beyond each side of the box: specks, not lungs
_LEVELS = 128  # of greys, when percentiles are looked for


def finder() -> keras.Model:
    """The network that finds lungs: greys 0..1 (N, SIDE, SIDE, 1) to the probability of lung, of the same shape.

    A U-Net (Ronneberger et al., MICCAI 2015) of 120,000 parameters.
    """
    image = keras.Input((SIDE, SIDE, 1), name="image")
    x, skipped = layers.GroupNormalization(1, axis=-1, center=False, scale=False, name="standardised")(image), []
    for depth, filters in enumerate(FILTERS):
        if depth:
            skipped.append(x)
            x = layers.MaxPooling2D(name=f"down{depth}")(x)
        x = _twice(x, filters, f"in{depth}")
    for depth in reversed(range(len(FILTERS) - 1)):
        x = layers.UpSampling2D(name=f"up{depth}")(x)
        x = _twice(layers.Concatenate(name=f"joined{depth}")([skipped[depth], x]), FILTERS[depth], f"out{depth}")
    return keras.Model(image, layers.Conv2D(1, 1, activation="sigmoid", name="lung")(x), name="lung_finder")


def orientation_features(network: keras.Model) -> keras.Model:
    """What tells how a picture lies: pictures as `finder` takes them to (N, features), from its own deepest maps."""
    deepest = network.get_layer(f"in{len(FILTERS) - 1}b_relu").output
    coarse = [
        layers.Flatten(name=f"{name}_flat")(layers.AveragePooling2D(maps.shape[1] // cells, name=f"{name}_cells")(maps))
        for name, maps, cells in (("deepest", deepest, 3), ("lung", network.output, 6))
    ]
    return keras.Model(network.input, layers.Concatenate(name="orientation_features")(coarse))


def _twice(x: keras.KerasTensor, filters: int, name: str) -> keras.KerasTensor:
    for part in "ab":
        x = layers.Conv2D(filters, 3, padding="same", use_bias=False, name=f"{name}{part}_conv")(x)
        x = layers.BatchNormalization(momentum=0.9, name=f"{name}{part}_norm")(x)
        x = layers.Activation("relu", name=f"{name}{part}_relu")(x)
    return x


def trained(kind: str) -> keras.Model:
    """The finder for one of KINDS, with the weights that come with lungkit; they do not change in training."""
    model = finder()
    weights_file.load(model, f"lungs_{_kind_name(kind)}.npz")
    model.trainable = False
    return model


def with_orientation(kind: str) -> keras.Model:
    """The trained finder with a second output: the probability of each of ORIENTATIONS, (N, 8)."""
    network = trained(kind)
    features = orientation_features(network)
    lies = layers.Dense(len(ORIENTATIONS), activation="softmax", name="orientation")
    model = keras.Model(network.input, [network.output, lies(features.output)], name=network.name)
    weights_file.load(model, f"orientation_{_kind_name(kind)}.npz")
    model.trainable = False
    return model


def _kind_name(kind: str) -> str:
    """As it is in the names of files."""
    if kind not in KINDS:
        raise LungkitError(f"lungs can be found on {' and '.join(KINDS)} images, not on '{kind}'")
    return kind.lower().replace("-", "")


@keras.saving.register_keras_serializable("lungkit")
class LungSquare(keras.layers.Layer):
    """The square of the lungs of whole images (N, height, width, 1), which are as high as wide, WHOLE or a multiple.

    Gives four tensors: (N, side, side, 2), the greys of the square and the probability of lung there, both
    standardised by MEAN and STD; (N, 3), the square's top, left and side as shares of the whole image;
    (N, SIDE, SIDE), the probability of lung in the whole image; and (N, 8), that of each of ORIENTATIONS. Greys are
    stretched to what the square shows: of an X-ray from its 1st to its 99th percentile; of CT so that the lungs' dark
    parts and the tissue around them always have the same greys. Where no lungs are found, the square is all of it.

    kind: one of KINDS. mean, std: what the whole images were standardised by.
    """

    def __init__(self, kind: str, side: int, mean: float, std: float, **options: Any) -> None:
        super().__init__(**options)
        self.kind, self.side, self.mean, self.std = kind, side, mean, std
        self.finder = with_orientation(kind)
        self.trainable = False

    def call(self, images: keras.KerasTensor) -> tuple[keras.KerasTensor, ...]:
        """The squares, where they are, where the lungs are, and how the images lie."""
        grey = ops.clip(images * self.std + self.mean, 0, 1)
        everywhere, lies = self.finder(ops.average_pool(grey, images.shape[1] // SIDE), training=False)
        box = _box(everywhere[..., 0])
        square, lung = _cut(grey, box, self.side), _cut(everywhere, box, self.side)
        both = ops.concatenate([_stretched(square, lung, self.kind), lung], axis=-1)
        return (both - MEAN) / STD, box, everywhere[..., 0], lies

    def get_config(self) -> dict[str, Any]:
        """The arguments that make this layer again."""
        return super().get_config() | {"kind": self.kind, "side": self.side, "mean": self.mean, "std": self.std}


@keras.saving.register_keras_serializable("lungkit")
class Channel(keras.layers.Layer):
    """One channel of images (N, height, width, channels), by its number: (N, height, width, 1)."""

    def __init__(self, number: int, **options: Any) -> None:
        super().__init__(**options)
        self.number = number

    def call(self, images: keras.KerasTensor) -> keras.KerasTensor:
        """The channel."""
        return images[..., self.number : self.number + 1]

    def get_config(self) -> dict[str, Any]:
        """The arguments that make this layer again."""
        return super().get_config() | {"number": self.number}


@keras.saving.register_keras_serializable("lungkit")
class InLungs(keras.layers.Layer):
    """Weights feature maps by the probability of lung: their mean is then taken within the lungs.

    Takes the maps (N, h, w, C) and what LungSquare gives, (N, side, side, 2). A little weight stays everywhere: where
    no lungs are found, the mean is that of the whole square.
    """

    least = 0.02

    def call(self, both: list[keras.KerasTensor]) -> keras.KerasTensor:
        """The weighted maps (N, h, w, C)."""
        maps, square = both
        share = ops.average_pool(square[..., 1:] * STD + MEAN, square.shape[1] // maps.shape[1]) + self.least
        return maps * share / ops.mean(share, axis=(1, 2), keepdims=True)


def square_of(model: keras.Model) -> LungSquare | None:
    """The layer by which a model of whole images looks at the square of the lungs; None where it does not."""
    return next((layer for layer in model.layers if isinstance(layer, LungSquare)), None)


def placed_back(heat: keras.KerasTensor, box: keras.KerasTensor, side: int) -> keras.KerasTensor:
    """Maps of the square, (N, h, w, C), where they lie in the whole image: (N, side, side, C), 0 outside the square."""
    rows = _spread(box[:, 0], box[:, 2], heat.shape[1], side)
    columns = _spread(box[:, 1], box[:, 2], heat.shape[2], side)
    return ops.einsum("nrh,nhwc,nsw->nrsc", rows, heat, columns)


def _box(lung: keras.KerasTensor) -> keras.KerasTensor:
    """Top, left and side (N, 3) of a square around the lungs (N, SIDE, SIDE), as shares; within the image."""
    area = ops.where(lung > 0.5, lung, 0.0)
    reach = [_reach(ops.sum(area, axis=other)) for other in (2, 1)]
    side = ops.minimum(ops.max(ops.stack([high - low for low, high in reach]), axis=0) * (1 + 2 * MARGIN), 1.0)
    side = ops.where(ops.mean(area, axis=(1, 2)) < _LEAST, 1.0, side)
    starts = [ops.clip((low + high - side) / 2, 0, 1 - side) for low, high in reach]
    return ops.stack([*starts, side], axis=1)


def _reach(profile: keras.KerasTensor) -> tuple[keras.KerasTensor, keras.KerasTensor]:
    """Where, as shares of the side, the area (N, SIDE) begins and ends."""
    below = ops.cumsum(profile, axis=1) / (ops.sum(profile, axis=1, keepdims=True) + 1e-6)
    low, high = (ops.sum(ops.cast(below < share, "float32"), axis=1) for share in (_TAIL, 1 - _TAIL))
    return low / SIDE, (high + 1) / SIDE


def _cut(images: keras.KerasTensor, box: keras.KerasTensor, side: int) -> keras.KerasTensor:
    """The squares, scaled to (N, side, side, C) by a triangle filter that does not alias."""
    rows, columns = (_sampling(box[:, axis], box[:, 2], images.shape[1], side) for axis in (0, 1))
    return ops.einsum("nrh,nhwc,nsw->nrsc", rows, images, columns)


def _sampling(start: keras.KerasTensor, length: keras.KerasTensor, pixels: int, side: int) -> keras.KerasTensor:
    """(N, side, pixels): what each of the square's rows takes of each row of the whole."""
    steps = ops.reshape((np.arange(side, dtype=np.float32) + 0.5) / side, (1, side, 1))
    at = (ops.reshape(start, (-1, 1, 1)) + steps * ops.reshape(length, (-1, 1, 1))) * pixels - 0.5
    width = ops.maximum(ops.reshape(length, (-1, 1, 1)) * pixels / side, 1.0)
    weights = ops.relu(1 - ops.abs(at - np.arange(pixels, dtype=np.float32)) / width)
    return weights / ops.sum(weights, axis=2, keepdims=True)


def _spread(start: keras.KerasTensor, length: keras.KerasTensor, cells: int, side: int) -> keras.KerasTensor:
    """(N, side, cells): what each row of the whole takes of the square's cells."""
    rows = ops.reshape((np.arange(side, dtype=np.float32) + 0.5) / side, (1, side, 1))
    share = (rows - ops.reshape(start, (-1, 1, 1))) / ops.reshape(length, (-1, 1, 1))
    at = ops.clip(share * cells - 0.5, 0, cells - 1)
    weights = ops.relu(1 - ops.abs(at - np.arange(cells, dtype=np.float32)))
    return ops.where((share >= 0) & (share <= 1), weights, 0.0)


def _stretched(square: keras.KerasTensor, lung: keras.KerasTensor, kind: str) -> keras.KerasTensor:
    """The square's greys (N, side, side, 1), stretched; see LungSquare."""
    few, inside = (ops.average_pool(part, 4) for part in (square, lung))
    if kind == "CT":
        around = ops.relu(ops.max_pool(inside, 9, 1, "same") - ops.max_pool(inside, 3, 1, "same"))
        dark, bright = _percentile(few, inside, 0.3), _percentile(few, around, 0.6)
        low, high = 0.12, 0.82
    else:
        everywhere = ops.ones_like(few)
        (dark, low), (bright, high) = (
            (_percentile(few, everywhere, 0.01), 0.0),
            (_percentile(few, everywhere, 0.99), 1.0),
        )
    width = ops.maximum(bright - dark, 0.1)
    return ops.clip((square - dark) / width * (high - low) + low, 0, 1)


def _percentile(values: keras.KerasTensor, weights: keras.KerasTensor, share: float) -> keras.KerasTensor:
    """The grey (N, 1, 1, 1) below which this share of the weight lies; greys 0..1."""
    pixels = values.shape[1] * values.shape[2]
    flat, weight = ops.reshape(values, (-1, 1, pixels)), ops.reshape(weights, (-1, 1, pixels)) + 1e-4
    levels = (np.arange(_LEVELS, dtype=np.float32) + 0.5).reshape(1, _LEVELS, 1) / _LEVELS
    below = ops.sum(ops.clip((levels - flat) * _LEVELS + 0.5, 0, 1) * weight, axis=2) / ops.sum(weight, axis=2)
    return ops.reshape(ops.mean(ops.cast(below < share, "float32"), axis=1), (-1, 1, 1, 1))

"""Training images: decoded once, varied by a seed that decides every number, in batches that any thread may make."""

import itertools
import math
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

from lungkit.backend import keras

import numpy as np

from lungkit.data import preprocess
from lungkit.data.dataset import Dataset

# Tensors of a split are kept in memory up to this size; beyond it each batch is read from the disk.
MEMORY_BYTES = 4 * 2**30
_CORES = os.cpu_count() or 1


class _Fixed(keras.random.SeedGenerator):
    """Gives Keras one seed that is known beforehand, where it asks for the next of a row."""

    def __init__(self, seed):
        self.fixed = seed

    def next(self, ordered=True):
        return self.fixed


class _Draws:
    """The random numbers of one step on one batch. They follow from the batch's key and the step's alone."""

    def __init__(self, key, step: int):
        self._key, self._step = keras.ops.cast(key, "uint32"), step

    def _seed(self) -> _Fixed:
        self._step += 1
        return _Fixed(keras.ops.stack([self._key, keras.ops.cast(self._step, "uint32")]))

    def uniform(self, shape: tuple, low: float = 0.0, high: float = 1.0):
        return keras.random.uniform(shape, low, high, seed=self._seed())

    def normal(self, shape: tuple):
        return keras.random.normal(shape, seed=self._seed())


def _mirrored(pictures, draws: _Draws):
    """Left and right of half of the images exchanged."""
    drawn = draws.uniform((keras.ops.shape(pictures)[0], 1, 1, 1))
    return keras.ops.where(drawn < 0.5, keras.ops.flip(pictures, axis=2), pictures)


def _moved(pictures, draws: _Draws, rotation: float, translation: float, scaling: float, stretch: float, fill: float):
    """Each image turned, moved and scaled in one resampling.

    Keras' own three layers interpolate one after the other: three times the work, and a blur that the images of
    validation and test do not have. For the same reason a quarter of the images is left as it is.
    """
    ops = keras.ops
    count, height, width = ops.shape(pictures)[0], pictures.shape[1], pictures.shape[2]
    moved = ops.cast(draws.uniform((count,)) < 0.75, "float32")
    reaches = (np.deg2rad(rotation), translation * width, translation * height, scaling, stretch)
    angle, right, down, zoom, taller = (draws.uniform((count,), -reach, reach) * moved for reach in reaches)
    # Maps each pixel of the result to where it comes from: about the centre, then moved.
    x, y = (width - 1) / 2, (height - 1) / 2
    wide, high = 1 + zoom - taller, 1 + zoom + taller
    xx, xy = ops.cos(angle) * wide, -ops.sin(angle) * high
    yx, yy = ops.sin(angle) * wide, ops.cos(angle) * high
    rows = [xx, xy, x - xx * x - xy * y + right, yx, yy, y - yx * x - yy * y + down]
    transforms = ops.stack([*rows, ops.zeros_like(xx), ops.zeros_like(xx)], axis=1)
    return ops.image.affine_transform(
        pictures, transforms, interpolation="bilinear", fill_mode="constant", fill_value=fill
    )


def _detailed(pictures, draws: _Draws, sharpness: float, noise: float, std: float):
    """Each image blurred or sharpened, with noise, as detectors and resampling differ.

    Where the classes come from different detectors, fine detail tells them apart without any disease.
    """
    each = (keras.ops.shape(pictures)[0], 1, 1, 1)
    share = draws.uniform(each, -sharpness, sharpness)
    strength, grain = draws.uniform(each, 0, noise / std), draws.normal(keras.ops.shape(pictures))
    detail = pictures - keras.ops.average_pool(pictures, 5, strides=1, padding="same")
    return pictures + share * detail + strength * grain


def _exposed(pictures, draws: _Draws, contrast: float, brightness: float, gamma: float, mean: float, std: float):
    """Contrast, brightness and the grey curve of each image varied, within black and white.

    The grey curve is how hospitals' processing differs where contrast and brightness do not cover it. (Keras' own
    layers for this need TensorFlow, also on another backend.)
    """
    ops, each = keras.ops, (keras.ops.shape(pictures)[0], 1, 1, 1)
    stretch, shift, bend = (draws.uniform(each, -reach, reach) for reach in (contrast, brightness, gamma))
    grey = pictures * std + mean
    middle = ops.mean(grey, axis=(1, 2, 3), keepdims=True)
    grey = ops.clip((grey - middle) * (1 + stretch) + middle + shift, 0.0, 1.0)
    if gamma:
        grey = ops.power(ops.maximum(grey, 1e-6), ops.exp(bend))
    return (grey - mean) / std


def _of_greys(step: Callable) -> Callable:
    """The step on the first channel alone: the second says where the lungs are."""

    def on_first(pictures, draws: _Draws):
        greys = step(pictures[..., :1], draws)
        return greys if pictures.shape[-1] == 1 else keras.ops.concatenate([greys, pictures[..., 1:]], axis=-1)

    return on_first


class Augmentation:
    """Varies a batch (N, height, width, 1 or 2) of preprocessed images; see `augmentation`."""

    def __init__(self, steps: Sequence[Callable], seed: int):
        self._steps, self._seed, self._calls = tuple(steps), seed, 0

    def __call__(self, pictures, training: bool = True, key=None):
        """The images, varied if `training`. key: an integer that, with the seed, decides every number; default: the
        number of this call.
        """
        if not training:
            return pictures
        if key is None:
            key, self._calls = self._calls, self._calls + 1
        pictures = keras.ops.convert_to_tensor(pictures)
        for number, step in enumerate(self._steps):
            pictures = step(pictures, _Draws(key, derived(self._seed, number)))
        return pictures


def derived(*numbers: int) -> int:
    """A seed, 0 to 2**30 - 1, that follows from others."""
    return int(np.random.SeedSequence(numbers).generate_state(1)[0] >> 2)


# The defaults of `augmentation` that vary something, as a card states them.
MILD = {"rotation": 10.0, "translation": 0.06, "scaling": 0.1, "brightness": 0.08, "contrast": 0.15, "flip": True}


def augmentation(
    *,
    rotation: float = MILD["rotation"],
    translation: float = MILD["translation"],
    scaling: float = MILD["scaling"],
    stretch: float = 0.0,
    sharpness: float = 0.0,
    noise: float = 0.0,
    brightness: float = MILD["brightness"],
    contrast: float = MILD["contrast"],
    gamma: float = 0.0,
    flip: bool = True,
    mean: float = 0.0,
    std: float = 1.0,
    seed: int = 7,
) -> Augmentation:
    """What varies a batch (N, height, width, 1) of preprocessed images, on any backend of Keras.

    rotation: up to ± degrees; translation and scaling: up to ± this share of the side; stretch: one axis grows by up to
    this share while the other shrinks by it; sharpness: what a 5 x 5 mean takes away is weakened or strengthened by up
    to this share (1: from the blurred image to one with twice the detail); noise: a standard deviation of up to this
    share of the range from black to white; brightness: up to ± this share of it; contrast: the distance from the
    image's mean grows or shrinks by up to this share; gamma: greys 0..1 are raised to a power from exp(-gamma) to
    exp(gamma); flip: left-right for half of the images.
    The defaults are mild and true to the anatomy: a chest is never upside down, a few degrees are how people lie.
    `mean` and `std` are those of the preprocessing: new border pixels are black, not grey.
    """
    steps: list[Callable] = [
        partial(_moved, rotation=rotation, translation=translation, scaling=scaling, stretch=stretch, fill=-mean / std),
        _of_greys(partial(_exposed, contrast=contrast, brightness=brightness, gamma=gamma, mean=mean, std=std)),
    ]
    if sharpness or noise:
        steps.insert(1, _of_greys(partial(_detailed, sharpness=sharpness, noise=noise, std=std)))
    return Augmentation([_mirrored, *steps] if flip else steps, seed)


# As far as images of one kind differ between devices and printers, when a decision rule is chosen.
_OTHER_DEVICES: dict[str, Any] = {
    "rotation": 5.0,
    "translation": 0.04,
    "scaling": 0.08,
    "sharpness": 0.7,
    "noise": 0.03,
    "brightness": 0.08,
    "contrast": 0.2,
    "gamma": 0.3,
}


def changed(images: np.ndarray, mean: float, std: float, copies: int = 3) -> Iterator[np.ndarray]:
    """Copies of preprocessed images (n, height, width, 1 or 2) as other devices could have taken them.

    mean, std: of the preprocessing. The same images give the same copies.
    """
    vary = augmentation(**_OTHER_DEVICES, flip=False, mean=mean, std=std)
    for copy in range(copies):
        parts = (vary(images[start : start + 64], key=derived(copy, start)) for start in range(0, len(images), 64))
        yield np.concatenate([keras.ops.convert_to_numpy(part) for part in parts])


class InMemory(keras.utils.PyDataset):
    """Batches of images that lie in memory, for `Model.fit` on any backend of Keras: (images, one-hot, weights).

    Every number of a batch follows from the seed, the epoch and the batch's place in it, in whatever order or thread
    batches are asked for.

    images: float32 (n, height, width, 1), preprocessed. labels: (n,) integers.
    augment: as `augmentation` gives, applied to each batch; None: the images as they are, in their order.
    mixup: the alpha of MixUp (Zhang et al., ICLR 2018): each image and its label become a blend with another one's, by
        a share drawn from Beta(alpha, alpha) for the batch. 0: none.
    cutmix: the alpha of CutMix (Yun et al., ICCV 2019): a rectangle of each image is another one's, its share of the
        area drawn likewise; labels are blended by it. 0: none. With both, each batch gets one of the two by chance.
    weights: in the loss, of each class or of each image (n,); a blend's is the blend of both.
    """

    def __init__(
        self,
        images: np.ndarray,
        labels: np.ndarray,
        n_classes: int,
        batch_size: int = 32,
        *,
        augment: Augmentation | None = None,
        mixup: float = 0.0,
        cutmix: float = 0.0,
        weights: dict[int, float] | np.ndarray | None = None,
        seed: int = 7,
    ):
        super().__init__()
        self._images, self._targets = images, np.eye(n_classes, dtype=np.float32)[labels]
        if not isinstance(weights, np.ndarray):
            weights = np.array([(weights or {}).get(label, 1.0) for label in np.asarray(labels).tolist()])
        self._weights = weights.astype(np.float32)
        self._batch_size, self._augment, self._mixup, self._cutmix = batch_size, augment, mixup, cutmix
        self._seed, self._epoch, self._order = seed, -1, np.arange(len(labels))
        self.on_epoch_end()

    def __len__(self) -> int:
        return math.ceil(len(self._order) / self._batch_size)

    def __getitem__(self, number: int):
        rows = self._order[number * self._batch_size : (number + 1) * self._batch_size]
        x, y, weights = self._images[rows], self._targets[rows], self._weights[rows]
        key = derived(self._seed, self._epoch, number)
        if self._augment is not None:
            x = keras.ops.convert_to_numpy(self._augment(x, key=key))
        random = np.random.default_rng(key)
        if self._cutmix and not (self._mixup and random.random() < 0.5):
            x, share = self._cut(x, random)
            y, weights = (_blended(part, share) for part in (y, weights))
        elif self._mixup:
            share = np.float32(random.beta(self._mixup, self._mixup))
            x, y, weights = (_blended(part, share) for part in (x, y, weights))
        return x, y, weights

    def _cut(self, x: np.ndarray, random: np.random.Generator) -> tuple[np.ndarray, np.float32]:
        """The images with one rectangle of the others', and the share of the area that is still their own."""
        length = np.sqrt(1 - random.beta(self._cutmix, self._cutmix))  # of each side that is cut out
        cut = []
        for side in x.shape[1:3]:
            middle, half = random.uniform(0, side), length * side / 2
            cut.append(slice(round(max(0, middle - half)), round(min(side, middle + half))))
        mixed = x.copy()
        mixed[:, *cut] = x[::-1][:, *cut]
        taken = mixed[0, ..., 0][tuple(cut)].size / x[0, ..., 0].size
        return mixed, np.float32(1 - taken)

    def on_epoch_end(self) -> None:
        """Another order for the next epoch, where images are varied at all."""
        self._epoch += 1
        if self._augment is not None:
            np.random.default_rng((self._seed, self._epoch)).shuffle(self._order)


def _blended(batch: np.ndarray, share: np.float32) -> np.ndarray:
    """Each row with that at the same place from the end, which gets the rest of the share."""
    return share * batch + (1 - share) * batch[::-1]


def batches(
    dataset: Dataset,
    split: str,
    preprocessing: preprocess.Preprocessing,
    batch_size: int = 32,
    *,
    augment: Augmentation | None = None,
    shuffle: bool = False,
    seed: int = 7,
):
    """A tf.data.Dataset of (images float32 (n, height, width, 1), labels int64 (n,)) of one split.

    `decoded`, then `served`.
    """
    return served(decoded(dataset, split, preprocessing), batch_size, augment=augment, shuffle=shuffle, seed=seed)


class _Split:
    """One split's images and labels, in the manifest's order; no file is read before the first batch is asked for."""

    def __init__(self, dataset: Dataset, split: str, preprocessing: preprocess.Preprocessing):
        self.files, self.labels, self.spec = dataset.files(split), dataset.labels(split), preprocessing
        self.shape = (*preprocessing.size, 1)
        self.in_memory = 4 * len(self.files) * math.prod(self.shape) <= MEMORY_BYTES
        self._lock, self._tensor = threading.Lock(), None

    def tensor(self):
        """All the images as one tensor, read once."""
        import tensorflow as tf

        with self._lock:
            if self._tensor is None:
                with tf.device("CPU"):
                    self._tensor = tf.convert_to_tensor(preprocess.read_batch(self.files, self.spec))
        return self._tensor

    def rows(self, numbers: np.ndarray) -> np.ndarray:
        """Some of the images, from the disk."""
        return preprocess.read_batch([self.files[number] for number in numbers], self.spec)

    def batches(self, size: int) -> Iterator[np.ndarray]:
        """The images in their order; the next are decoded while the caller works."""
        images = preprocess.prepared(self.files, self.spec)
        while some := [one.tensor for one in itertools.islice(images, size)]:
            yield np.stack(some)


def decoded(dataset: Dataset, split: str, preprocessing: preprocess.Preprocessing) -> _Split:
    """The images of one split for `served`, with the tensors that evaluation and prediction see (preprocess.prepared).

    All that is served shuffled from one of these shares its memory.
    """
    return _Split(dataset, split, preprocessing)


def served(
    source: _Split,
    batch_size: int = 32,
    *,
    augment: Augmentation | None = None,
    shuffle: bool = False,
    most: int | None = None,
    seed: int = 7,
):
    """Batches of what `decoded` gives, as a tf.data.Dataset: at most so many an epoch (None: all).

    The order is the manifest's, or with `shuffle` a new one each epoch. `augment` is applied to batches, several at a
    time. With the same seed the batches of every epoch are the same again, on any number of cores: the keys of what is
    varied are drawn in order, and `most` cuts before anything is drawn ahead, which `take` on the result would not.
    """
    import tensorflow as tf

    count = min(math.ceil(len(source.files) / batch_size), most or len(source.files))
    stream = _shuffled(source, batch_size, count, seed) if shuffle else _in_order(source, batch_size, count)
    if augment is not None:
        keys = tf.data.Dataset.random(seed=seed, rerandomize_each_iteration=True)
        stream = tf.data.Dataset.zip(stream, keys).map(
            lambda batch, key: (augment(batch[0], key=key % 2**31), batch[1]), num_parallel_calls=_CORES
        )
    stream = stream.prefetch(_CORES).apply(tf.data.experimental.assert_cardinality(count))
    # The thread that tunes would keep the end of an epoch waiting until it wakes up the next time.
    fixed = tf.data.Options()
    fixed.autotune.enabled = False
    return stream.with_options(fixed)


def _in_order(source: _Split, batch_size: int, count: int):
    """(images, labels) of `count` batches; kept in memory from the first epoch on, if they fit."""
    import tensorflow as tf

    signature = tf.TensorSpec((None, *source.shape), tf.float32)
    pictures = tf.data.Dataset.from_generator(lambda: source.batches(batch_size), output_signature=signature)
    labels = tf.data.Dataset.from_tensor_slices(source.labels).batch(batch_size)
    stream = tf.data.Dataset.zip(pictures, labels).take(count)
    return stream.cache() if source.in_memory else stream


def _shuffled(source: _Split, batch_size: int, count: int, seed: int):
    """(images, labels) of `count` batches in a new order each epoch: rows of one tensor, or from the disk."""
    import tensorflow as tf

    size = max(1, len(source.files))
    numbers = tf.data.Dataset.range(size).shuffle(size, seed=seed).batch(batch_size).take(count)
    labels = tf.constant(source.labels)

    def batch(rows, everything=None):
        if everything is None:
            pictures = tf.numpy_function(source.rows, [rows], tf.float32, stateful=False)
        else:
            pictures = tf.gather(everything, rows)
        return tf.ensure_shape(pictures, (None, *source.shape)), tf.gather(labels, rows)

    parts = [numbers]
    if source.in_memory:
        whole = tf.data.Dataset.from_tensors(0).map(lambda _: tf.py_function(source.tensor, [], tf.float32))
        parts.append(whole.cache().repeat())
    return tf.data.Dataset.zip(*parts).map(batch, num_parallel_calls=_CORES)

"""Data sets as tf.data pipelines: decoded in parallel, cached, augmented, prefetched."""

import math

from lungkit.backend import keras

import numpy as np

from lungkit.data import preprocess
from lungkit.data.dataset import Dataset

# Decoded images are kept in memory up to this size, beyond it decoded again each epoch.
CACHE_BYTES = 4 * 2**30


@keras.saving.register_keras_serializable("lungkit")
class RandomAffine(keras.layers.Layer):
    """Turns, moves and scales each image (N, height, width, channels) in one resampling.

    Keras' own three layers interpolate one after the other: three times the work, and a blur that the images
    of validation and test do not have. For the same reason a quarter of the images is left as it is.

    rotation: up to ± degrees; translation and scaling: up to ± this share of the side; stretch: one axis grows by up
    to this share while the other shrinks by it; fill: the new border's value.
    """

    def __init__(
        self,
        rotation: float,
        translation: float,
        scaling: float,
        stretch: float = 0.0,
        fill: float = 0.0,
        seed: int = 7,
        **options,
    ):
        super().__init__(**options)
        self.rotation, self.translation, self.scaling, self.stretch = rotation, translation, scaling, stretch
        self.fill, self.seed = fill, seed
        self.draws = keras.random.SeedGenerator(seed)

    def call(self, images, training=False):
        """Another draw for each image while training; otherwise the images themselves."""
        if not training:
            return images
        ops = keras.ops
        count, height, width = ops.shape(images)[0], images.shape[1], images.shape[2]
        moved = ops.cast(keras.random.uniform((count,), seed=self.draws) < 0.75, "float32")
        reaches = (np.deg2rad(self.rotation), self.translation * width, self.translation * height, self.scaling)
        angle, right, down, zoom, stretch = (
            keras.random.uniform((count,), -reach, reach, seed=self.draws) * moved for reach in (*reaches, self.stretch)
        )
        # Maps each pixel of the result to where it comes from: about the centre, then moved.
        x, y = (width - 1) / 2, (height - 1) / 2
        wide, high = 1 + zoom - stretch, 1 + zoom + stretch
        xx, xy = ops.cos(angle) * wide, -ops.sin(angle) * high
        yx, yy = ops.sin(angle) * wide, ops.cos(angle) * high
        rows = [xx, xy, x - xx * x - xy * y + right, yx, yy, y - yx * x - yy * y + down]
        transforms = ops.stack([*rows, ops.zeros_like(xx), ops.zeros_like(xx)], axis=1)
        return ops.image.affine_transform(
            images, transforms, interpolation="bilinear", fill_mode="constant", fill_value=self.fill
        )

    def get_config(self):
        """The arguments that make this layer again."""
        names = ("rotation", "translation", "scaling", "stretch", "fill", "seed")
        return super().get_config() | {name: getattr(self, name) for name in names}


@keras.saving.register_keras_serializable("lungkit")
class RandomMirror(keras.layers.Layer):
    """Exchanges left and right of half of the images (N, height, width, channels)."""

    def __init__(self, seed: int = 7, **options):
        super().__init__(**options)
        self.seed = seed
        self.draws = keras.random.SeedGenerator(seed)

    def call(self, images, training=False):
        """Another draw for each image while training; otherwise the images themselves."""
        if not training:
            return images
        drawn = keras.random.uniform((keras.ops.shape(images)[0], 1, 1, 1), seed=self.draws)
        return keras.ops.where(drawn < 0.5, keras.ops.flip(images, axis=2), images)

    def get_config(self):
        """The arguments that make this layer again."""
        return super().get_config() | {"seed": self.seed}


@keras.saving.register_keras_serializable("lungkit")
class RandomGrey(keras.layers.Layer):
    """Varies contrast, brightness and the grey curve of each image (N, height, width, 1), as exposure does.

    contrast: the distance from the image's mean grows or shrinks by up to this share. brightness: up to ± this share
    of the range from black to white. gamma: greys 0..1 are raised to a power from exp(-gamma) to exp(gamma), which is
    how hospitals' processing differs where contrast and brightness do not cover it. mean and std: those that the images
    were normalised by; greys stay within black and white.

    (Keras' own layers for this need TensorFlow, also on another backend.)
    """

    def __init__(
        self, contrast: float, brightness: float, gamma: float, mean: float, std: float, seed: int = 7, **options
    ):
        super().__init__(**options)
        self.contrast, self.brightness, self.gamma = contrast, brightness, gamma
        self.mean, self.std, self.seed = mean, std, seed
        self.draws = keras.random.SeedGenerator(seed)

    def call(self, images, training=False):
        """Another draw for each image while training; otherwise the images themselves."""
        if not training:
            return images
        ops = keras.ops
        stretch, shift, bend = (
            keras.random.uniform((ops.shape(images)[0], 1, 1, 1), -reach, reach, seed=self.draws)
            for reach in (self.contrast, self.brightness, self.gamma)
        )
        grey = images * self.std + self.mean
        middle = ops.mean(grey, axis=(1, 2, 3), keepdims=True)
        grey = ops.clip((grey - middle) * (1 + stretch) + middle + shift, 0.0, 1.0)
        if self.gamma:
            grey = ops.power(ops.maximum(grey, 1e-6), ops.exp(bend))
        return (grey - self.mean) / self.std

    def get_config(self):
        """The arguments that make this layer again."""
        names = ("contrast", "brightness", "gamma", "mean", "std", "seed")
        return super().get_config() | {name: getattr(self, name) for name in names}


@keras.saving.register_keras_serializable("lungkit")
class RandomDetail(keras.layers.Layer):
    """Blurs or sharpens each image (N, height, width, 1) and adds noise, as detectors and resampling differ.

    sharpness: what a 5 x 5 mean takes away is weakened or strengthened by up to this share (1: from the blurred image
    to one with twice the detail). noise: standard deviation of up to this share of the range from black to white; std:
    the one that the images were normalised by. Where the classes come from different detectors, fine detail tells them
    apart without any disease.
    """

    def __init__(self, sharpness: float, noise: float, std: float, seed: int = 7, **options):
        super().__init__(**options)
        self.sharpness, self.noise, self.std, self.seed = sharpness, noise, std, seed
        self.draws = keras.random.SeedGenerator(seed)

    def call(self, images, training=False):
        """Another draw for each image while training; otherwise the images themselves."""
        if not training or not (self.sharpness or self.noise):
            return images
        ops, each = keras.ops, (keras.ops.shape(images)[0], 1, 1, 1)
        share = keras.random.uniform(each, -self.sharpness, self.sharpness, seed=self.draws)
        detail = images - ops.average_pool(images, 5, strides=1, padding="same")
        strength = keras.random.uniform(each, 0, self.noise / self.std, seed=self.draws)
        grain = keras.random.normal(ops.shape(images), seed=self.draws)
        return images + share * detail + strength * grain

    def get_config(self):
        """The arguments that make this layer again."""
        return super().get_config() | {name: getattr(self, name) for name in ("sharpness", "noise", "std", "seed")}


def augmentation(
    *,
    rotation: float = 10.0,
    translation: float = 0.06,
    scaling: float = 0.1,
    stretch: float = 0.0,
    sharpness: float = 0.0,
    noise: float = 0.0,
    brightness: float = 0.08,
    contrast: float = 0.15,
    gamma: float = 0.0,
    flip: bool = True,
    mean: float = 0.0,
    std: float = 1.0,
    seed: int = 7,
) -> keras.Sequential:
    """Keras layers that vary a batch (N, height, width, 1) of preprocessed images.

    rotation: up to ± degrees; translation and scaling: up to ± this share of the side; stretch: as in RandomAffine;
    sharpness and noise: as in RandomDetail; brightness and contrast: up to ± this share of the grey range 0..1; gamma:
    powers from exp(-gamma) to exp(gamma) of the greys; flip: left-right for half of the images.
    The defaults are mild and true to the anatomy: a chest is never upside down, a few degrees are how people lie.
    `mean` and `std` are those of the preprocessing: new border pixels are black, not grey.
    """
    steps = [
        RandomAffine(rotation, translation, scaling, stretch, fill=-mean / std, seed=seed + 1),
        RandomDetail(sharpness, noise, std, seed=seed + 2),
        RandomGrey(contrast, brightness, gamma, mean, std, seed=seed + 4),
    ]
    if flip:
        steps.insert(0, RandomMirror(seed=seed))
    return keras.Sequential(steps, name="augmentation")


class InMemory(keras.utils.PyDataset):
    """Batches of images that lie in memory, for `Model.fit` on any backend of Keras: (images, one-hot, weights).

    images: float32 (n, height, width, 1), preprocessed. labels: (n,) integers.
    augment: layers as `augmentation` gives, applied to each batch; None: the images as they are, in their order.
    mixup: the alpha of MixUp (Zhang et al., ICLR 2018): each image and its label become a blend with another one's, by
        a share drawn from Beta(alpha, alpha) for the batch. 0: none.
    cutmix: the alpha of CutMix (Yun et al., ICCV 2019): a rectangle of each image is another one's, its share of the
        area drawn likewise; labels are blended by it. 0: none. With both, each batch gets one of the two by chance.
    weights: of each class in the loss; a blend's is the blend of both.
    """

    def __init__(
        self,
        images: np.ndarray,
        labels: np.ndarray,
        n_classes: int,
        batch_size: int = 32,
        *,
        augment: keras.Sequential | None = None,
        mixup: float = 0.0,
        cutmix: float = 0.0,
        weights: dict[int, float] | None = None,
        seed: int = 7,
    ):
        super().__init__()
        self._images, self._targets = images, np.eye(n_classes, dtype=np.float32)[labels]
        self._weights = np.array([(weights or {}).get(i, 1.0) for i in range(n_classes)], np.float32)
        self._batch_size, self._augment, self._mixup, self._cutmix = batch_size, augment, mixup, cutmix
        self._random = np.random.default_rng(seed)
        self._order = np.arange(len(labels))
        self.on_epoch_end()

    def __len__(self) -> int:
        return math.ceil(len(self._order) / self._batch_size)

    def __getitem__(self, number: int):
        chosen = self._order[number * self._batch_size : (number + 1) * self._batch_size]
        x, y = self._images[chosen], self._targets[chosen]
        if self._augment is not None:
            x = keras.ops.convert_to_numpy(self._augment(x, training=True))
        if self._cutmix and not (self._mixup and self._random.random() < 0.5):
            x, share = self._cut(x)
            y = share * y + (1 - share) * y[::-1]
        elif self._mixup:
            share = np.float32(self._random.beta(self._mixup, self._mixup))
            x, y = share * x + (1 - share) * x[::-1], share * y + (1 - share) * y[::-1]
        return x, y, y @ self._weights

    def _cut(self, x: np.ndarray) -> tuple[np.ndarray, np.float32]:
        """The images with one rectangle of the others', and the share of the area that is still their own."""
        length = np.sqrt(1 - self._random.beta(self._cutmix, self._cutmix))  # of each side that is cut out
        cut = []
        for side in x.shape[1:3]:
            middle, half = self._random.uniform(0, side), length * side / 2
            cut.append(slice(round(max(0, middle - half)), round(min(side, middle + half))))
        mixed = x.copy()
        mixed[:, *cut] = x[::-1][:, *cut]
        taken = mixed[0, *cut, 0].size / x[0, ..., 0].size
        return mixed, np.float32(1 - taken)

    def on_epoch_end(self) -> None:
        """Another order for the next epoch, where images are varied at all."""
        if self._augment is not None:
            self._random.shuffle(self._order)


def batches(
    dataset: Dataset,
    split: str,
    preprocessing: preprocess.Preprocessing,
    batch_size: int = 32,
    *,
    augment: keras.Sequential | None = None,
    shuffle: bool = False,
    seed: int = 7,
):
    """A tf.data.Dataset of (images float32 (n, height, width, 1), labels int64 (n,)) of one split.

    `decoded`, then `served`.
    """
    return served(decoded(dataset, split, preprocessing), batch_size, augment=augment, shuffle=shuffle, seed=seed)


def decoded(dataset: Dataset, split: str, preprocessing: preprocess.Preprocessing):
    """A tf.data.Dataset of (image float32 (height, width, 1), label int64) of one split, in the manifest's order.

    Files are decoded on all cores with `preprocess.prepare`, the same call that evaluation and prediction make, and
    cached in memory while they fit: for all that is served from it.
    """
    import tensorflow as tf

    files = [str(f) for f in dataset.files(split)]
    labels = dataset.labels(split)
    height, width = preprocessing.size

    def decode(file: bytes) -> np.ndarray:
        return preprocess.prepare(file.decode(), preprocessing).tensor

    def load(file, label):
        image = tf.numpy_function(decode, [file], tf.float32, stateful=False)
        return tf.ensure_shape(image, (height, width, 1)), label

    stream = tf.data.Dataset.from_tensor_slices((files, labels))
    stream = stream.map(load, num_parallel_calls=tf.data.AUTOTUNE)
    return stream.cache() if len(files) * height * width * 4 <= CACHE_BYTES else stream


def served(
    stream,
    batch_size: int = 32,
    *,
    augment: keras.Sequential | None = None,
    shuffle: bool = False,
    most: int | None = None,
    seed: int = 7,
):
    """Batches of what `decoded` gives, as a tf.data.Dataset: at most so many an epoch (None: all).

    The order is the manifest's, or with `shuffle` a new one each epoch. `augment` is applied to batches. With the same
    seeds and a fresh `augment` the batches of every epoch are the same again, on any number of cores: `most` cuts
    before anything is drawn ahead, which `take` on the result would not.
    """
    import tensorflow as tf

    images_in_all = int(stream.cardinality())
    if shuffle:
        stream = stream.shuffle(min(images_in_all, 8192), seed=seed)
    count = min(math.ceil(images_in_all / batch_size), most or images_in_all)
    stream = stream.batch(batch_size).take(count)
    if augment is not None:
        # One batch after the other: parallel calls would draw from the layers' seeds in an order of chance.
        stream = stream.map(lambda x, y: (augment(x, training=True), y))
    return stream.prefetch(tf.data.AUTOTUNE).apply(tf.data.experimental.assert_cardinality(count))

"""Data sets as tf.data pipelines: decoded in parallel, cached, augmented, prefetched."""

import math

from lungkit.backend import keras

import numpy as np

from lungkit.data import images
from lungkit.data.dataset import Dataset

# Decoded images are kept in memory up to this size, beyond it decoded again each epoch.
CACHE_BYTES = 4 * 2**30


def augmentation(
    *,
    rotation: float = 10.0,
    translation: float = 0.06,
    scaling: float = 0.1,
    brightness: float = 0.08,
    contrast: float = 0.15,
    flip: bool = True,
    mean: float = 0.0,
    std: float = 1.0,
    seed: int = 7,
) -> keras.Sequential:
    """Keras layers that vary a batch (N, height, width, 1) of preprocessed images.

    rotation: up to ± degrees; translation and scaling: up to ± this share of the side; brightness and
    contrast: up to ± this share of the grey range 0..1; flip: left-right for half of the images.
    The defaults are mild and true to the anatomy: a chest is never upside down, a few degrees are how people lie.
    `mean` and `std` are those of the preprocessing: new border pixels are black, not grey.
    """
    black = -mean / std
    fill = {"fill_mode": "constant", "fill_value": black, "interpolation": "bilinear"}
    steps = [
        keras.layers.RandomRotation(rotation / 360, seed=seed + 1, **fill),
        keras.layers.RandomTranslation(translation, translation, seed=seed + 2, **fill),
        keras.layers.RandomZoom((-scaling, scaling), seed=seed + 3, **fill),
        # Both work on the grey range 0..1, so images are taken back to it and normalised again.
        keras.layers.Rescaling(std, mean),
        keras.layers.RandomContrast(contrast, value_range=(0, 1), seed=seed + 4),
        keras.layers.RandomBrightness(brightness, value_range=(0, 1), seed=seed + 5),
        keras.layers.Rescaling(1 / std, -mean / std),
    ]
    if flip:
        steps.insert(0, keras.layers.RandomFlip("horizontal", seed=seed))
    return keras.Sequential(steps, name="augmentation")


def batches(
    dataset: Dataset,
    split: str,
    preprocessing: images.Preprocessing,
    batch_size: int = 32,
    *,
    augment: keras.Sequential | None = None,
    shuffle: bool = False,
    seed: int = 7,
):
    """A tf.data.Dataset of (images float32 (n, height, width, 1), labels int64 (n,)) of one split.

    Files are decoded on all cores with `images.read` and `images.preprocess`, the same calls that evaluation
    and prediction make, and cached in memory while they fit. The order is the manifest's, or with `shuffle`
    a new one each epoch. `augment` is applied to batches, after the cache.
    """
    import tensorflow as tf

    files = [str(f) for f in dataset.files(split)]
    labels = dataset.labels(split)
    height, width = preprocessing.size

    def decode(file: bytes) -> np.ndarray:
        return images.preprocess(images.read(file.decode()), preprocessing)

    def load(file, label):
        image = tf.numpy_function(decode, [file], tf.float32, stateful=False)
        return tf.ensure_shape(image, (height, width, 1)), label

    stream = tf.data.Dataset.from_tensor_slices((files, labels))
    stream = stream.map(load, num_parallel_calls=tf.data.AUTOTUNE)
    if len(files) * height * width * 4 <= CACHE_BYTES:
        stream = stream.cache()
    if shuffle:
        stream = stream.shuffle(min(len(files), 8192), seed=seed)
    stream = stream.batch(batch_size)
    if augment is not None:
        stream = stream.map(lambda x, y: (augment(x, training=True), y), num_parallel_calls=tf.data.AUTOTUNE)
    return stream.prefetch(tf.data.AUTOTUNE).apply(
        tf.data.experimental.assert_cardinality(math.ceil(len(files) / batch_size))
    )

"""Grad-CAM: where a classifier looked, how well that agrees with lesion masks, and whether it needed the learning.

It explains the models that lungkit builds: flat functional graphs of one image that end in logits.

Sources: Selvaraju et al., "Grad-CAM", ICCV 2017; Zhang et al., "Top-down neural attention by excitation
backprop", ECCV 2016 (pointing game); Otsu, IEEE Trans. SMC 9(1), 1979 (threshold); Adebayo et al.,
"Sanity checks for saliency maps", NeurIPS 2018 (randomisation).
"""

from itertools import pairwise
from typing import Any

from lungkit.backend import keras

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from scipy import stats

from lungkit import progress
from lungkit.errors import LungkitError
from lungkit.models import lungs
from lungkit.training.evaluation import SEED, mean_with_interval

MEASURES = ("pointing_game", "iou_otsu", "energy_inside", "mask_share")

ops = keras.ops
_LEARNED = (keras.layers.Dense, keras.layers.Conv2D, keras.layers.DepthwiseConv2D)  # randomisation_check changes these
_RANDOMISATION_STEPS = 8


def gradcam(
    model: keras.Model, images: np.ndarray, class_index: ArrayLike | None = None, batch_size: int = 8
) -> np.ndarray:
    """Grad-CAM heat maps of a classifier (Selvaraju et al. 2017).

    A map is ReLU(sum over channels of weight x feature map), the weight being the spatial mean of the gradient of the
    class's logit. It is resized bilinearly to the image, then divided by its own maximum. The feature maps are the last
    ones with more than one position, as in the exported graph.

    images: (n, height, width, channels), preprocessed as for `model.predict`.
    class_index: the class explained, one for all images or one for each; None: the predicted class.

    Returns float32 (n, height, width), each map 0..1 with its maximum at 1, or all zero: nothing supports the class.
    Raises LungkitError: images of another shape, an unknown class, a model without feature maps or logits, values that
    are not finite, a backend other than TensorFlow and JAX.
    """
    return _explain(model, images, class_index, batch_size)[0]


def _explain(
    model: keras.Model, images: np.ndarray, class_index: ArrayLike | None, batch_size: int = 8
) -> tuple[np.ndarray, np.ndarray]:
    """Heat maps (n, height, width) and the classes (n,) they explain."""
    images = np.asarray(images, dtype=np.float32)
    if images.ndim != 4 or len(images) == 0 or images.shape[1:] != model.input_shape[1:]:
        raise LungkitError(f"images have shape {images.shape}; the model needs 1 or more of {model.input_shape[1:]}")
    maps = _last_feature_maps(model)
    square = lungs.square_of(model)
    boxes = [square.output[1]] if square else []
    trunk, head = keras.Model(model.input, [maps, model.output, *boxes]), keras.Model(maps, model.output)
    heat, classes = [], []
    for start in range(0, len(images), batch_size):
        # Called so, Keras keeps the maps of every layer until the last: a gigabyte for eight images of eight networks.
        features, logits, *box = trunk(images[start : start + batch_size], training=False)
        logits = _as_numpy(logits)
        wanted = logits.argmax(axis=1)
        if class_index is not None:
            wanted = _class_per_image(class_index, len(images), logits.shape[1])[start : start + batch_size]
        gradient = score_gradient(head, features, wanted)
        heat.append(_heat_map(_as_numpy(features), gradient, images.shape[1:3], *box))
        classes.append(wanted)
    return np.concatenate(heat), np.concatenate(classes)


def _last_feature_maps(model: keras.Model) -> keras.KerasTensor:
    """The symbolic tensor (n, height, width, channels) that Grad-CAM explains."""
    if getattr(model.layers[-1], "activation", None) is not keras.activations.linear or len(model.outputs) != 1:
        raise LungkitError(f"model '{model.name}' does not end in one dense layer of logits, without an activation")
    # Back from the logits, not by the layers' outputs: a member's layers also belong to the network it was trained as.
    tensor = model.outputs[0]
    while hasattr(tensor, "shape") and tensor is not model.inputs[0]:
        if len(tensor.shape) == 4 and tensor.shape[1] * tensor.shape[2] > 1:
            return tensor
        tensor = tensor._keras_history.operation.input
    raise LungkitError(f"no layer of model '{model.name}' gives feature maps (n, height, width, channels)")


def score_gradient(head: keras.Model, features: Any, classes: np.ndarray) -> np.ndarray:
    """The gradient of each image's class logit with respect to its feature maps, float32 (n, h, w, k).

    head: from feature maps to logits. classes: (n,) integers.
    """
    wanted = ops.one_hot(classes, head.output_shape[1])

    def total(
        maps: Any,
    ) -> Any:  # images do not influence each other, so the gradient of the sum holds each image's own
        return ops.sum(ops.cast(head(maps, training=False), "float32") * wanted)

    if keras.config.backend() == "jax":
        import jax

        return _as_numpy(jax.grad(total)(features))
    if keras.config.backend() != "tensorflow":
        raise LungkitError(
            f"Grad-CAM needs Keras on TensorFlow or JAX, not on {keras.config.backend()}; set KERAS_BACKEND=tensorflow"
        )
    import tensorflow as tf

    with tf.GradientTape(watch_accessed_variables=False) as tape:
        tape.watch(features)
        score = total(features)
    return _as_numpy(tape.gradient(score, features))


def over_image(heat: Any, size: tuple[int, int], box: Any = None) -> Any:
    """Maps (n, h, w, classes) over the whole image, (n, *size, classes), bilinearly.

    box: (n, 3), the square that the maps show, as lungs.LungSquare gives it; None: they show all of the image.
    """
    if box is not None:
        return lungs.placed_back(heat, box, size[0])
    return ops.image.resize(heat, size, interpolation="bilinear", data_format="channels_last")


def _heat_map(features: np.ndarray, gradient: np.ndarray, size: tuple[int, int], box: Any = None) -> np.ndarray:
    heat = np.maximum(np.einsum("nhwk,nk->nhw", features, gradient.mean(axis=(1, 2))), 0)
    if not np.isfinite(heat).all():
        raise LungkitError("the model's feature maps or gradient are not finite: look for NaN in images and weights")
    heat = _as_numpy(over_image(ops.convert_to_tensor(heat[..., None]), size, box))[..., 0]
    peak = heat.max(axis=(1, 2), keepdims=True)
    return np.divide(heat, peak, out=np.zeros_like(heat), where=peak > 0)


def _as_numpy(tensor: Any) -> np.ndarray:
    return ops.convert_to_numpy(ops.cast(tensor, "float32"))


def _class_per_image(class_index: ArrayLike, n: int, n_classes: int) -> np.ndarray:
    classes = np.asarray(class_index)
    if not np.issubdtype(classes.dtype, np.integer) or classes.shape not in [(), (n,)]:
        raise LungkitError(
            f"class_index is {classes.dtype} of shape {classes.shape}; expected a whole number, or one per image ({n})"
        )
    if (classes < 0).any() or (classes >= n_classes).any():
        raise LungkitError(
            f"no class {classes.max() if classes.min() >= 0 else classes.min()}: the model's classes "
            f"are 0 to {n_classes - 1}"
        )
    return np.broadcast_to(classes, (n,))


# --- agreement with lesion masks ---


def localisation(heatmaps: np.ndarray, masks: np.ndarray) -> pd.DataFrame:
    """How well each heat map finds the lesion.

    heatmaps: (n, height, width), not negative, as from `gradcam`; masks: the same shape, lesion where not zero.

    Returns a row per image, in order, each measure 0..1:
      pointing_game  1 if the hottest pixel lies in the lesion; of several equally hot, the share that does
      iou_otsu       intersection over union of the lesion and the map above Otsu's threshold
      energy_inside  the share of all heat that lies in the lesion
      mask_share     the lesion's share of the image: what a uniform map gets in all three
    An image without a lesion has NaN in every column: there is nothing to find. A map without heat points at
    nothing and gets 0, not NaN, because leaving it out would flatter the mean.
    """
    heatmaps, masks = np.asarray(heatmaps, dtype=np.float64), np.asarray(masks) != 0
    if heatmaps.ndim != 3 or heatmaps.shape != masks.shape:
        raise LungkitError(
            f"heat maps {heatmaps.shape} and masks {masks.shape} differ; expected (n, height, width) twice"
        )
    if not (np.isfinite(heatmaps).all() and (heatmaps >= 0).all()):
        raise LungkitError("a heat map has negative or non-finite values; expected 0 or more")
    rows = [_agreement(heat, mask) for heat, mask in zip(heatmaps, masks, strict=True)]
    return pd.DataFrame(rows, columns=list(MEASURES), dtype=float)


def _agreement(heat: np.ndarray, mask: np.ndarray) -> tuple[float, float, float, float]:
    if not mask.any():
        return (np.nan,) * 4
    if heat.max() == 0:
        return 0.0, 0.0, 0.0, mask.mean()
    hot = heat > otsu_threshold(heat)
    return (
        mask[heat == heat.max()].mean(),
        (hot & mask).sum() / (hot | mask).sum(),
        heat[mask].sum() / heat.sum(),
        mask.mean(),
    )


def otsu_threshold(values: np.ndarray) -> float:
    """The value that parts `values` into two classes (up to it, above it) with the greatest variance between them.

    Otsu 1979, over the values themselves and not a histogram of them. Equal values have no two classes: -inf.
    """
    ordered = np.sort(values, axis=None).astype(np.float64)
    below = np.arange(1, ordered.size)
    above = ordered.size - below
    sums = np.cumsum(ordered)
    distance = (sums[-1] - sums[:-1]) / above - sums[:-1] / below  # between the two class means
    between = np.where(ordered[:-1] < ordered[1:], below * above * distance**2, -1.0)
    return ordered[between.argmax()] if between.size and between.max() >= 0 else -np.inf


def localisation_summary(frame: pd.DataFrame, patients: ArrayLike) -> pd.DataFrame:
    """The mean of each column of `localisation` with its 95 % bootstrap interval by patient.

    patients: the patient of each row of `frame`. Returns one row per measure: value, low, high, images, patients;
    rows of NaN (no lesion) do not count, and with one patient there is no interval (NaN).
    """
    means = {
        str(measure): mean_with_interval(values, patients, share=measure == "pointing_game")
        for measure, values in frame.items()
    }
    table, with_lesion = pd.DataFrame(means, ["value", "low", "high"]).T, frame.notna().all(axis=1).to_numpy()
    return table.assign(images=with_lesion.sum(), patients=len(np.unique(np.asarray(patients)[with_lesion])))


# --- does the map depend on what was learned? ---


def randomisation_check(
    model: keras.Model, images: np.ndarray, class_index: ArrayLike | None = None, patients: ArrayLike | None = None
) -> pd.DataFrame:
    """Cascading randomisation of the weights from the output backwards (Adebayo et al. 2018).

    Convolution and dense layers are re-initialised (He normal, biases zero) and stay so while the next follow: first
    the output layer alone, then the others in at most seven groups. After each step the maps of the same classes
    are compared with the model's own. Maps that explain the model lose their likeness; maps that stay alike
    show the image's edges whatever was learned. The weights are put back exactly, also after an error.
    Each step is one draw of weights: the interval covers other images, not other draws.

    images, class_index: as for `gradcam`; patients (n,): the images of one patient count together (None: none do).

    Returns a row per step: layer (the deepest one re-initialised so far), spearman (mean over images of the rank
    correlation with the original map; 0 where the new map is empty), low, high (95 % bootstrap interval by patient).
    Images whose original map is empty are left out.
    """
    original, classes = _explain(model, images, class_index)
    learned = [layer for layer in model.layers if isinstance(layer, _LEARNED)][::-1]
    groups = [learned[:1], *_in_groups(learned[1:], _RANDOMISATION_STEPS - 1)]
    before = model.get_weights()
    patients = np.arange(len(original)) if patients is None else patients
    seeds = iter(np.random.SeedSequence(SEED).generate_state(sum(len(layer.weights) for layer in learned)).tolist())
    rows = []
    try:
        for group in progress.bar(groups, label="randomise weights", unit="step"):
            for layer in group:
                for weight in layer.weights:
                    _reinitialise(weight, next(seeds))
            maps = gradcam(model, images, classes)
            alike = [_rank_correlation(*pair) for pair in zip(original, maps, strict=True)]
            rows.append((group[-1].name, *mean_with_interval(alike, patients)))
    finally:
        model.set_weights(before)
    return pd.DataFrame(rows, columns=["layer", "spearman", "low", "high"])


def _in_groups(layers: list, most: int) -> list[list]:
    cuts = np.linspace(0, len(layers), min(most, len(layers)) + 1).round().astype(int)
    return [layers[start:stop] for start, stop in pairwise(cuts)]


def _reinitialise(weight: keras.Variable, seed: int) -> None:
    fresh = keras.initializers.HeNormal(seed) if len(weight.shape) > 1 else keras.initializers.Zeros()
    weight.assign(fresh(weight.shape, dtype=weight.dtype))


def _rank_correlation(original: np.ndarray, other: np.ndarray) -> float:
    if np.ptp(original) == 0:
        return np.nan
    return 0.0 if np.ptp(other) == 0 else stats.spearmanr(original, other, axis=None).statistic

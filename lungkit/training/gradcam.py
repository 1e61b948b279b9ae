"""Grad-CAM: where a classifier looked, how well that agrees with lesion masks, and whether it needed the learning.

The model is never rebuilt. It runs as it is, with one layer's `call` listened to, so flat, nested,
reloaded and subclassed models are explained the same way. While a function here runs, the model is
changed for a moment (and put back, whatever happens): do not share it with another thread meanwhile.

Sources: Selvaraju et al., "Grad-CAM", ICCV 2017; Zhang et al., "Top-down neural attention by excitation
backprop", ECCV 2016 (pointing game); Otsu, IEEE Trans. SMC 9(1), 1979 (threshold); Adebayo et al.,
"Sanity checks for saliency maps", NeurIPS 2018 (randomisation).
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from functools import wraps
from itertools import pairwise

from lungkit.backend import keras

import matplotlib
import numpy as np
import pandas as pd
from scipy import stats

from lungkit import progress
from lungkit.errors import LungkitError
from lungkit.training.evaluation import mean_with_interval

MEASURES = ("pointing_game", "iou_otsu", "energy_inside", "mask_share")

_POOLING = (keras.layers.MaxPooling2D, keras.layers.AveragePooling2D)
_LEARNED = (  # what randomisation_check re-initialises
    keras.layers.Dense,
    keras.layers.Conv2D,
    keras.layers.Conv2DTranspose,
    keras.layers.DepthwiseConv2D,
    keras.layers.SeparableConv2D,
)
_LAST_ACTIVATIONS = ("Softmax", "Sigmoid", "LogSoftmax")  # as a layer or a bare operation of the graph
_RANDOMISATION_STEPS = 8


def gradcam(model, images, class_index=None, layer: str | None = None, batch_size: int = 32) -> np.ndarray:
    """Grad-CAM heat maps of a classifier (Selvaraju et al. 2017).

    A map is ReLU(sum over channels of weight x feature map), the weight being the spatial mean of the
    gradient of the class's logit; it is resized bilinearly to the image, then divided by its own maximum.
    The gradient is taken before a final softmax or sigmoid, which would flatten it where the model is sure.

    model: a Keras 3 model with one output (n, classes), logits or probabilities; at least one of its layers
        gives feature maps (n, height, width, channels). One output column is read as a binary classifier.
    images: (n, height, width, channels), preprocessed as for `model.predict`.
    class_index: the class explained, one for all images or one for each; None: the predicted class.
        For a binary classifier 1 is the positive class and 0 the negated score.
    layer: the layer whose maps are weighted: its name, or its path through nested models ("base/conv3").
        Default: the last one with more than one position, pooling layers passed over since they only coarsen it.

    Returns float32 (n, height, width), each map 0..1 with its maximum at 1, or all zero: nothing speaks for the class.
    Raises LungkitError: unknown layer or class, no feature map, output not from a layer, a backend without TensorFlow.
    """
    return _explain(model, images, class_index, layer, batch_size)[0]


def score_gradients(
    model, images, class_index=None, layer: str | None = None, batch_size: int = 32
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """What Grad-CAM is made of, a batch at a time; arguments as for `gradcam`.

    Yields (feature maps, gradient of each image's class logit with respect to them, classes explained):
    float32 (b, h, w, k) twice, and int (b,).
    """
    if keras.config.backend() != "tensorflow":
        raise LungkitError(
            f"Grad-CAM needs Keras on TensorFlow, and this is '{keras.config.backend()}'; set KERAS_BACKEND=tensorflow"
        )
    images = np.asarray(images, dtype=np.float32)
    if images.ndim != 4 or len(images) == 0:
        raise LungkitError(
            f"images have shape {images.shape}; expected (n, height, width, channels) with n of 1 or more"
        )
    if class_index is not None:
        class_index = _class_per_image(class_index, len(images))
    anatomy = _anatomy(model, images[:1])
    listened = anatomy.feature_map(layer)
    for start in range(0, len(images), batch_size):
        batch = slice(start, start + batch_size)
        yield _score_gradient(
            model, images[batch], None if class_index is None else class_index[batch], listened, anatomy.final
        )


def _explain(model, images, class_index, layer, batch_size) -> tuple[np.ndarray, np.ndarray]:
    """Heat maps (n, height, width) and the classes (n,) they explain."""
    size = np.shape(images)[1:3]
    maps, classes = [], []
    for features, gradient, explained in score_gradients(model, images, class_index, layer, batch_size):
        maps.append(_heat_map(features, gradient, size))
        classes.append(explained)
    return np.concatenate(maps), np.concatenate(classes)


def _heat_map(features: np.ndarray, gradient: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    heat = np.maximum(np.einsum("nhwk,nk->nhw", features, gradient.mean(axis=(1, 2))), 0)
    if not np.isfinite(heat).all():
        raise LungkitError("the model's feature maps or gradient are not finite: look for NaN in images and weights")
    resized = keras.ops.image.resize(heat[..., None], size, interpolation="bilinear", data_format="channels_last")
    heat = keras.ops.convert_to_numpy(resized)[..., 0]
    peak = heat.max(axis=(1, 2), keepdims=True)
    return np.divide(heat, peak, out=np.zeros_like(heat), where=peak > 0)


def _score_gradient(model, images, class_index, listened: keras.Operation, final: keras.Operation):
    import tensorflow as tf

    heard = []  # a shared layer speaks several times; its last word that leads to the score counts

    def hear(features):
        tape.watch(features)
        heard.append(features)

    with (
        tf.GradientTape(watch_accessed_variables=False) as tape,
        _without_activation(final),
        _listening(listened, hear),
    ):
        logits = model(tf.constant(images), training=False)
        if logits.shape[1] == 1:
            logits = tf.concat([-logits, logits], axis=1)
        _check_logits(tf.cast(logits, tf.float32).numpy())
        classes = tf.argmax(logits, axis=1).numpy() if class_index is None else class_index
        unknown = classes[(classes < 0) | (classes >= logits.shape[1])]
        if unknown.size:
            raise LungkitError(f"no class {unknown[0]}: the model's classes are 0 to {logits.shape[1] - 1}")
        # Images do not influence each other at inference, so the gradient of the sum holds each image's own.
        score = tf.reduce_sum(tf.gather(logits, classes, batch_dims=1))
    gradients = tape.gradient(score, heard)
    features, gradient = [pair for pair in zip(heard, gradients, strict=True) if pair[1] is not None][-1]
    return tf.cast(features, tf.float32).numpy(), tf.cast(gradient, tf.float32).numpy(), classes


def _check_logits(logits: np.ndarray) -> None:
    if (logits >= 0).all() and np.allclose(logits.sum(axis=1), 1, atol=1e-3):
        raise LungkitError(
            "the model's output is still probabilities without its last layer's activation: a softmax hides further in "
            "or in a custom layer, and the logits before it are unknown; make it the last layer, an Activation"
        )


def _class_per_image(class_index, n: int) -> np.ndarray:
    classes = np.asarray(class_index)
    if not np.issubdtype(classes.dtype, np.integer) or classes.shape not in [(), (n,)]:
        raise LungkitError(
            f"class_index is {classes.dtype} of shape {classes.shape}; expected a whole number, or one per image ({n})"
        )
    return np.broadcast_to(classes, (n,))


# --- what the model is made of, found by running it once ---


@dataclass(frozen=True)
class _Anatomy:
    """A model's parts in the order they ran, by path."""

    parts: dict[str, keras.Operation]
    feature_maps: dict[str, keras.Operation]  # those that give maps with more than one position and lead to the output
    final: keras.Operation  # the one that gives the model's output

    def feature_map(self, layer: str | None) -> keras.Operation:
        """The part of that path or name, or the default one."""
        if not self.feature_maps:
            raise LungkitError(
                "no layer of the model gives feature maps (n, height, width, channels): nothing to explain"
            )
        if layer is None:
            unpooled = [part for part in self.feature_maps.values() if not isinstance(part, _POOLING)]
            return (unpooled or list(self.feature_maps.values()))[-1]
        if layer in self.feature_maps:
            return self.feature_maps[layer]
        named = [path for path in self.feature_maps if path.rsplit("/", 1)[-1] == layer]
        if len(named) == 1:
            return self.feature_maps[named[0]]
        if named:
            raise LungkitError(f"several layers are named '{layer}': give one of the paths {', '.join(named)}")
        last = list(self.feature_maps)[-20:]
        raise LungkitError(
            f"no layer '{layer}' gives feature maps that lead to the output; {len(self.feature_maps)} do"
            f"{', at the end of them' if len(last) < len(self.feature_maps) else ''}: {', '.join(last)}"
        )


def _anatomy(model: keras.Model, image: np.ndarray) -> _Anatomy:
    """The parts that ran on one image (1, height, width, channels)."""
    import tensorflow as tf

    heard = []  # (path, part, output)

    def hears(path, part):
        def hear(output):
            # At inference some layers (dropout) hand on the tensor they got: it stays its maker's.
            if _is_float_tensor(output) and not any(output is earlier for *_, earlier in heard):
                tape.watch(output)
                heard.append((path, part, output))

        return _listening(part, hear)

    with ExitStack() as listening, tf.GradientTape(watch_accessed_variables=False) as tape:
        for path, part in _parts(model):
            listening.enter_context(hears(path, part))
        try:
            output = model(tf.constant(image), training=False)
        except (ValueError, tf.errors.InvalidArgumentError) as error:
            raise LungkitError(f"the model does not take images of shape {image.shape[1:]}: {error}") from error
    makers = [part for _, part, made in heard if made is output]
    if not makers or output.shape.rank != 2:
        raise LungkitError(
            f"model '{model.name}' does not end in one layer whose output is (n, classes), so its logits are unknown; "
            "end it in a Dense layer, with its activation inside it or as an Activation layer after it"
        )
    maps = [step for step in heard if step[2].shape.rank == 4 and step[2].shape[1] * step[2].shape[2] > 1]
    gradients = tape.gradient(output, [made for *_, made in maps])
    return _Anatomy(
        parts={path: part for path, part, _ in heard},
        feature_maps={
            path: part for (path, part, _), gradient in zip(maps, gradients, strict=True) if gradient is not None
        },
        final=makers[0],
    )


def _is_float_tensor(output) -> bool:
    import tensorflow as tf

    return isinstance(output, tf.Tensor) and output.dtype.is_floating


def _parts(model: keras.Model, above: str = "") -> Iterator[tuple[str, keras.Operation]]:
    """Every layer and operation of a model with its path; nested models are entered, a custom layer is one part."""
    for part in getattr(model, "operations", model.layers):
        if isinstance(part, keras.Model):
            yield from _parts(part, f"{above}{part.name}/")
        else:
            yield f"{above}{part.name}", part


def _listening(part: keras.Operation, hear: Callable) -> AbstractContextManager:
    """While open, `hear` gets each output of `part` as it is computed."""
    call = part.call

    @wraps(call)
    def call_and_tell(*args, **kwargs):
        output = call(*args, **kwargs)
        hear(output)
        return output

    return _replaced(part, "call", call_and_tell)


def _without_activation(final: keras.Operation) -> AbstractContextManager:
    """While open, the model's last part gives logits."""
    if hasattr(final, "activation"):
        return _replaced(final, "activation", keras.activations.linear)
    if type(final).__name__ in _LAST_ACTIVATIONS:
        return _replaced(final, "call", lambda inputs, *args, **kwargs: inputs)
    return nullcontext()


@contextmanager
def _replaced(part: keras.Operation, attribute: str, value):
    # Straight into the instance's dictionary: a Keras layer's own __setattr__ and __delattr__ track state.
    own = vars(part)
    before = own.get(attribute)
    had_own = attribute in own
    own[attribute] = value
    try:
        yield
    finally:
        if had_own:
            own[attribute] = before
        else:
            del own[attribute]


# --- the picture ---


def overlay(image: np.ndarray, heatmap: np.ndarray, alpha: float = 0.4, colormap: str = "inferno") -> np.ndarray:
    """The heat map over the image, as uint8 RGB (height, width, 3).

    image, heatmap: (height, width), both 0..1. Opacity is alpha x heat, so a cold region shows the image unchanged.
    Raises LungkitError where shapes differ or values leave 0..1 (a standardised tensor is not an image).
    """
    image, heatmap = np.asarray(image, dtype=np.float32), np.asarray(heatmap, dtype=np.float32)
    if image.ndim != 2 or image.shape != heatmap.shape:
        raise LungkitError(f"image {image.shape} and heat map {heatmap.shape} differ; expected (height, width) twice")
    for name, values in [("image", image), ("heat map", heatmap), ("alpha", np.float32(alpha))]:
        if not (values.min() >= 0 and values.max() <= 1):
            raise LungkitError(f"{name} holds values from {values.min():.3g} to {values.max():.3g}; expected 0 to 1")
    opacity = alpha * heatmap[..., None]
    colour = matplotlib.colormaps[colormap](heatmap)[..., :3]
    return np.rint(255 * ((1 - opacity) * image[..., None] + opacity * colour)).astype(np.uint8)


# --- agreement with lesion masks ---


def localisation(heatmaps: np.ndarray, masks: np.ndarray) -> pd.DataFrame:
    """How well each heat map finds the lesion.

    heatmaps: (n, height, width), not negative, as from `gradcam`; masks: the same shape, lesion where not zero.

    Returns a row per image, in order, each measure 0..1:
      pointing_game  1 if the hottest pixel lies in the lesion; of several equally hot, the share that does
      iou_otsu       intersection over union of the lesion and the map above Otsu's threshold
      energy_inside  the share of all heat that lies in the lesion
      mask_share     the lesion's share of the image: what a uniform map gets in all three
    An image without a lesion has NaN in every column: there is nothing to find. A map without heat found nothing
    and gets 0, not NaN, since leaving it out would flatter the mean.
    """
    heatmaps, masks = np.asarray(heatmaps, dtype=np.float64), np.asarray(masks) != 0
    if heatmaps.ndim != 3 or heatmaps.shape != masks.shape:
        raise LungkitError(
            f"heat maps {heatmaps.shape} and masks {masks.shape} differ; expected (n, height, width) twice"
        )
    if not (np.isfinite(heatmaps).all() and (heatmaps >= 0).all()):
        raise LungkitError("a heat map holds negative or non-finite values; expected 0 or more")
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


def localisation_summary(frame: pd.DataFrame, patients, n_boot: int = 1000, seed: int = 7) -> pd.DataFrame:
    """The mean of each column of `localisation` with its 95 % bootstrap interval by patient.

    patients: the patient of each row of `frame`. Returns one row per measure: value, low, high, images, patients;
    rows of NaN (no lesion) do not count, and with one patient there is no interval (NaN).
    """
    table = pd.DataFrame.from_dict(
        {measure: mean_with_interval(frame[measure], patients, n_boot, seed) for measure in frame.columns},
        orient="index",
        columns=["value", "low", "high"],
    )
    with_lesion = frame.notna().all(axis=1).to_numpy()
    return table.assign(images=with_lesion.sum(), patients=len(np.unique(np.asarray(patients)[with_lesion])))


# --- does the map depend on what was learned? ---


def randomisation_check(
    model, images, class_index=None, layer: str | None = None, patients=None, n_boot: int = 1000, seed: int = 7
) -> pd.DataFrame:
    """Cascading randomisation of the weights from the output backwards (Adebayo et al. 2018).

    Convolution and dense layers are re-initialised (He normal, biases zero) and stay so while the next follow: first
    the output layer alone, then the others in at most seven groups. After each step the maps of the same classes
    are compared with the model's own. Maps that explain the model lose their likeness; maps that stay alike
    show the image's edges whatever was learned. The weights are put back exactly, also after an error.
    Each step is one draw of weights: the interval speaks for other images, not for other draws (seed).

    images, class_index, layer: as for `gradcam`; patients (n,): whose images hang together (None: none do).

    Returns a row per step: layer (the deepest one re-initialised so far), spearman (mean over images of the rank
    correlation with the original map; 0 where the new map is empty), low, high (95 % bootstrap interval by patient).
    Images whose original map is empty are left out.
    """
    original, classes = _explain(model, images, class_index, layer, batch_size=32)
    anatomy = _anatomy(model, np.asarray(images[:1], dtype=np.float32))
    learned = [(path, part) for path, part in anatomy.parts.items() if isinstance(part, _LEARNED)][::-1]
    if not learned:
        raise LungkitError("the model has no convolution or dense layer to re-initialise")
    groups = [learned[:1], *_in_groups(learned[1:], _RANDOMISATION_STEPS - 1)]
    kept = [(weight, keras.ops.convert_to_numpy(weight)) for _, part in learned for weight in part.weights]
    patients = np.arange(len(original)) if patients is None else patients
    seeds = iter(np.random.SeedSequence(seed).generate_state(len(kept)).tolist())
    rows = []
    try:
        for group in progress.bar(groups, label="randomise weights", unit="step"):
            for _, part in group:
                for weight in part.weights:
                    _reinitialise(weight, next(seeds))
            maps = gradcam(model, images, classes, layer)
            alike = [_rank_correlation(*pair) for pair in zip(original, maps, strict=True)]
            rows.append((group[-1][0], *mean_with_interval(alike, patients, n_boot, seed)))
    finally:
        for weight, value in kept:
            weight.assign(value)
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

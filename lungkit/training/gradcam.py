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
from itertools import count, pairwise

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
_BACKENDS = ("tensorflow", "jax")  # whose gradients are asked for here


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
    Raises LungkitError: unknown layer or class, no feature map, output not from a layer, a backend that is neither
    TensorFlow nor JAX.
    """
    return _explain(model, images, class_index, layer, batch_size)[0]


def score_gradients(
    model, images, class_index=None, layer: str | None = None, batch_size: int = 32
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """What Grad-CAM is made of, a batch at a time; arguments as for `gradcam`.

    Yields (feature maps, gradient of each image's class logit with respect to them, classes explained):
    float32 (b, h, w, k) twice, and int (b,).
    """
    if keras.config.backend() not in _BACKENDS:
        raise LungkitError(
            f"Grad-CAM needs Keras on {' or '.join(_BACKENDS)}, and this is '{keras.config.backend()}'; "
            "set KERAS_BACKEND=tensorflow"
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
    with _without_activation(final):
        _, heard = _listen(model, images, {"listened": listened})

        def score(moved):
            logits = _moved(model, images, heard, moved)
            if logits.shape[1] == 1:
                logits = keras.ops.concatenate([-logits, logits], axis=1)
            classes = keras.ops.argmax(logits, axis=1) if class_index is None else class_index
            chosen = keras.ops.one_hot(classes, logits.shape[1], dtype=logits.dtype)
            # Images do not influence each other at inference, so the gradient of the sum holds each image's own.
            return keras.ops.sum(logits * chosen), (logits, classes)

        gradients, (logits, classes) = _gradients(score, [step.output for step in heard])
    logits, classes = keras.ops.convert_to_numpy(keras.ops.cast(logits, "float32")), _numpy(classes)
    _check_logits(logits)
    unknown = classes[(classes < 0) | (classes >= logits.shape[1])]
    if unknown.size:
        raise LungkitError(f"no class {unknown[0]}: the model's classes are 0 to {logits.shape[1] - 1}")
    # A shared layer speaks several times; its last word that leads to the score counts.
    features, gradient = [
        (step.output, gradient) for step, gradient in zip(heard, gradients, strict=True) if gradient is not None
    ][-1]
    return _numpy(features), _numpy(gradient), classes


def _numpy(tensor) -> np.ndarray:
    array = keras.ops.convert_to_numpy(tensor)
    return array if np.issubdtype(array.dtype, np.integer) else array.astype(np.float32)


def _gradients(function: Callable, outputs: list) -> tuple[list, tuple]:
    """The gradients of `function` by what is added to each of `outputs`, where nothing is, and what else it returns.

    function: a list of tensors to (a number, anything). A gradient is None where its tensor does not lead there.
    """
    nothing = [keras.ops.zeros_like(output) for output in outputs]
    if keras.config.backend() == "jax":
        import jax

        gradients, rest = jax.grad(function, has_aux=True)(nothing)
        return [gradient if bool((gradient != 0).any()) else None for gradient in gradients], rest
    import tensorflow as tf

    with tf.GradientTape(watch_accessed_variables=False) as tape:
        for tensor in nothing:
            tape.watch(tensor)
        value, rest = function(nothing)
    return tape.gradient(value, nothing), rest


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


@dataclass(frozen=True, eq=False)
class _Step:
    """One output of one part, as the model ran."""

    path: str
    part: keras.Operation
    turn: int  # how many outputs of this part came before
    output: object


def _anatomy(model: keras.Model, image: np.ndarray) -> _Anatomy:
    """The parts that ran on one image (1, height, width, channels)."""
    _refuse_other_shapes(model, image)
    output, heard = _listen(model, image, dict(_parts(model)))
    makers = [step.part for step in heard if step.output is output]
    if not makers or len(output.shape) != 2:
        raise LungkitError(
            f"model '{model.name}' does not end in one layer whose output is (n, classes), so its logits are unknown; "
            "end it in a Dense layer, with its activation inside it or as an Activation layer after it"
        )
    shapes = [step.output.shape for step in heard]
    maps = [step for step, shape in zip(heard, shapes, strict=True) if len(shape) == 4 and shape[1] * shape[2] > 1]

    def total(moved):
        return keras.ops.sum(_moved(model, image, maps, moved)), ()

    gradients, _ = _gradients(total, [step.output for step in maps])
    return _Anatomy(
        parts={step.path: step.part for step in heard},
        feature_maps={
            step.path: step.part for step, gradient in zip(maps, gradients, strict=True) if gradient is not None
        },
        final=makers[0],
    )


def _listen(model: keras.Model, images: np.ndarray, parts: dict[str, keras.Operation]) -> tuple[object, list[_Step]]:
    """The model's output for these images, and what those of its parts gave on the way there."""
    heard: list[_Step] = []

    def hears(path, part):
        turns = count()

        def hear(output):
            turn = next(turns)
            # At inference some layers (dropout) hand on the tensor they got: it stays its maker's.
            if _is_float_tensor(output) and not any(output is earlier.output for earlier in heard):
                heard.append(_Step(path, part, turn, output))
            return output

        return _listening(part, hear)

    with ExitStack() as listening:
        for path, part in parts.items():
            listening.enter_context(hears(path, part))
        output = model(keras.ops.convert_to_tensor(images), training=False)
    return output, heard


def _refuse_other_shapes(model: keras.Model, image: np.ndarray) -> None:
    """Run it once: whether it takes such an image, and a model that was not built yet builds itself unheard."""
    try:
        model(keras.ops.convert_to_tensor(image), training=False)
    except Exception as error:
        shape = type(error).__name__ in ("ValueError", "TypeError", "InvalidArgumentError")  # the last is TensorFlow's
        if not shape:
            raise
        raise LungkitError(f"the model does not take images of shape {image.shape[1:]}: {error}") from error


def _moved(model: keras.Model, images: np.ndarray, steps: list[_Step], by: list):
    """The model's output for these images, with a tensor added to the output of each of these steps."""
    added = {(id(step.part), step.turn): tensor for step, tensor in zip(steps, by, strict=True)}

    def adds(part):
        turns = count()

        def add(output):
            tensor = added.get((id(part), next(turns)))
            return output if tensor is None else output + tensor

        return _listening(part, add)

    with ExitStack() as listening:
        for part in {id(step.part): step.part for step in steps}.values():
            listening.enter_context(adds(part))
        return model(keras.ops.convert_to_tensor(images), training=False)


def _is_float_tensor(output) -> bool:
    return keras.ops.is_tensor(output) and "float" in keras.backend.standardize_dtype(output.dtype)


def _parts(model: keras.Model, above: str = "") -> Iterator[tuple[str, keras.Operation]]:
    """Every layer and operation of a model with its path; nested models are entered, a custom layer is one part."""
    for part in getattr(model, "operations", model.layers):
        if isinstance(part, keras.Model):
            yield from _parts(part, f"{above}{part.name}/")
        else:
            yield f"{above}{part.name}", part


def _listening(part: keras.Operation, hear: Callable) -> AbstractContextManager:
    """While open, `hear` gets each output of `part` as it is computed; what it returns takes the output's place."""
    call = part.call

    @wraps(call)
    def call_and_tell(*args, **kwargs):
        return hear(call(*args, **kwargs))

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
        {
            measure: mean_with_interval(frame[measure], patients, n_boot, seed, share=measure == "pointing_game")
            for measure in frame.columns
        },
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

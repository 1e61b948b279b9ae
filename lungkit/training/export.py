"""A trained Keras model as the graph that the clinic runs (see lungkit.models.graph), and how well the two agree.

Grad-CAM needs no gradient here. Where feature maps A_k are averaged over their positions and weighted by one dense
layer, the gradient of a class's logit by A_k is the dense weight w_k over the number of positions, so its map is
ReLU(sum over k of w_k A_k) up to a factor which dividing by the maximum takes away (Selvaraju et al., "Grad-CAM", ICCV
2017, section 3.1). It is part of the graph, resized as `gradcam.gradcam` does.
"""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lungkit.backend import keras

import numpy as np

from lungkit.errors import LungkitError
from lungkit.models import ensemble, graph, lungs
from lungkit.models.rule import DecisionRule
from lungkit.training import gradcam

MAX_DIFFERENCE = 0.01  # of a probability, between Keras and the graph
_TIE = 1e-4  # log-odds: an answer this near to the operating point has no class that rounding could not change
_HEAT_IMAGES = 48  # whose maps are compared; each needs a gradient in Keras
_BATCH = 32

ops = keras.ops


class NotExportable(LungkitError):
    """A model whose heat maps have no closed form, or whose graph gives other answers than the model."""


def write(model: keras.Model, folder: Path, temperature: float = 1.0, half: bool = False) -> None:
    """Write graph.xml and graph.bin into `folder`.

    model: functional, one image in, logits out, ending in GlobalAveragePooling2D, any Dropout, one Dense layer without
        activation. The number of images at a time stays free.
    temperature: what the logits are divided by before the softmax.
    half: keep the weights as float16, in half the space; the runtime widens them and computes as before.
    """
    graph.save(converted(_with_heat(model, temperature), (None, *model.input_shape[1:])), folder, half)


def divide_logits(folder: Path, divisor: float, half: bool = False) -> None:
    """Divide the logits of the graph in `folder` once more before its softmax: a new temperature. half: as in write."""
    model = graph.read(folder)
    softmax = model.output("probabilities").get_node().input_value(0).get_node()
    operations = graph.openvino.opset13
    scale = operations.constant(np.array(divisor, np.float32))
    softmax.input(0).replace_source_output(operations.divide(softmax.input_value(0), scale).output(0))
    graph.save(model, folder, half)


def converted(function: Callable, shape: tuple[int | None, ...]) -> Any:
    """A function of images of this shape, or a Keras model, as an OpenVINO model."""
    import tensorflow as tf

    if sys.version_info >= (3, 13):
        # There OpenVINO 2026.4 cannot ask for TensorFlow's version: its exec("del tensorflow") finds no such name.
        from openvino.frontend.tensorflow import utils

        utils.get_environment_setup = lambda _framework: {"tensorflow": tf.__version__}
    call = tf.function(function, input_signature=[tf.TensorSpec(shape, tf.float32, name="image")])
    return graph.openvino.convert_model(call.get_concrete_function())


def _with_heat(model: keras.Model, temperature: float) -> Callable:
    """A function of images that gives the outputs of the graph.

    It computes on tensors and is no Keras model: there, each operation would need a name that no layer has.
    """
    pooling, dense = _ending(model)
    widths = _widths(pooling)
    square = lungs.square_of(model)
    parts = keras.Model(
        model.input, [pooling.input, pooling.output, model.output, *(square.output[1:] if square else ())]
    )

    def explained(image: Any) -> dict[str, Any]:
        features, embedding, logits, *found = parts(image, training=False)
        heat = ops.relu(ops.matmul(features, dense.kernel))
        heat = gradcam.over_image(heat, model.input_shape[1:3], *found[:1])
        peak = ops.max(heat, axis=(1, 2), keepdims=True)
        heat = ops.transpose(heat / ops.where(peak > 0, peak, 1.0), (0, 3, 1, 2))
        if len(widths) > 1:  # side by side they would be too many numbers for the input checks
            each = zip(ops.split(embedding, np.cumsum(widths)[:-1].tolist(), axis=1), widths, strict=True)
            embedding = ops.mean(ops.stack([part for part, width in each if width == widths[0]]), axis=0)
        outputs = {"probabilities": ops.softmax(logits / temperature), "heat": heat, "embedding": embedding}
        return outputs | dict(zip(graph.OF_LUNGS, found[1:], strict=False))

    return explained


def _ending(model: keras.Model) -> tuple[keras.layers.Layer, keras.layers.Layer]:
    """The pooling and the dense layer that a model ends in; refused where it ends otherwise."""
    dense = _maker(model.output) if hasattr(model, "inputs") and len(model.outputs or ()) == 1 else None
    if isinstance(dense, keras.layers.Dense) and dense.activation is keras.activations.linear and dense.units > 1:
        pooling = _maker(dense.input)
        while isinstance(pooling, keras.layers.Dropout):
            pooling = _maker(pooling.input)
        channels_last = getattr(pooling, "data_format", None) == "channels_last"
        if isinstance(pooling, keras.layers.GlobalAveragePooling2D) and channels_last and len(model.inputs) == 1:
            return pooling, dense
    raise NotExportable(
        f"model '{model.name}' cannot be exported: its heat maps have a closed form only where a functional model of "
        "one image ends in GlobalAveragePooling2D, Dropout and one Dense layer that gives the logits of 2 classes or "
        f"more; it ends in {', '.join(type(layer).__name__ for layer in model.layers[-3:])}"
    )


def _widths(pooling: keras.layers.Layer) -> list[int]:
    """How many feature maps of each network are pooled together (see lungkit.models.ensemble)."""
    joined = _maker(pooling.input)
    maps = joined.input if joined.name == ensemble.MEMBERS else [pooling.input]
    return [each.shape[-1] for each in maps]


def _maker(tensor: keras.KerasTensor) -> keras.Operation:
    return tensor._keras_history.operation


def agreement(
    model: keras.Model, exported: graph.Graph, tensors: np.ndarray, probabilities: np.ndarray, rule: DecisionRule
) -> dict[str, Any]:
    """`differences`; NotExportable where they are too large."""
    measured = differences(model, exported, tensors, probabilities, rule)
    difference, same = measured["largest_probability_difference"], measured["same_class"]
    if not difference <= MAX_DIFFERENCE or same < 1:
        raise NotExportable(
            f"the exported graph answers differently from '{model.name}': on {len(tensors)} validation images "
            f"the largest difference of a probability is {difference:.2g} (at most {MAX_DIFFERENCE} is accepted), and "
            f"the class is the same on {same:.2%} (all is accepted)"
        )
    return measured


def differences(
    model: keras.Model, exported: graph.Graph, tensors: np.ndarray, probabilities: np.ndarray, rule: DecisionRule
) -> dict[str, Any]:
    """How far the graph and Keras are apart on validation images, JSON-ready.

    tensors: (n, height, width, 1). probabilities: (n, classes), calibrated, from Keras.
    Heat maps are compared with `gradcam.gradcam` for the likeliest class, on the first images.
    """
    answered = np.concatenate(
        [exported(tensors[start : start + _BATCH])["probabilities"] for start in range(0, len(tensors), _BATCH)]
    )
    same_class = rule.decide(answered) == rule.decide(probabilities)
    same = float(np.mean(same_class | (rule.margin(probabilities) < _TIE)))
    few = tensors[:_HEAT_IMAGES]
    classes = probabilities[: len(few)].argmax(axis=1)
    expected = gradcam.gradcam(model, few, classes)
    heat = np.concatenate([exported(few[i : i + 1])["heat"][0, [cls]] for i, cls in enumerate(classes)])
    return {
        "runtime": f"OpenVINO {graph.openvino.get_version().split('-')[0]}",
        "precision": graph.PRECISION,
        "compared_on": "validation",
        "images": len(tensors),
        "largest_probability_difference": float(np.abs(answered - probabilities).max()),
        "same_class": same,
        "largest_heat_difference": float(np.abs(heat - expected).max()),
        "heat_images": len(few),
    }

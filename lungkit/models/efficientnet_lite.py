"""EfficientNet-Lite0 and its ImageNet weights, which come with lungkit.

EfficientNet-B0 (Tan & Le, ICML 2019) without squeeze-and-excitation and with ReLU6 instead of swish, made for
processors without a graphics card; the stem and the last layers keep their width. The weights are those that the
authors trained (tensorflow/tpu, models/official/efficientnet/lite); weights/README.md says how they were converted.
"""

from collections.abc import Sequence

from lungkit.backend import keras

from lungkit.models import weights_file

layers = keras.layers

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


def features(x: keras.KerasTensor) -> keras.KerasTensor:
    """The last feature maps (N, height/32, width/32, 1280) of x (N, height, width, 3), (0..255 - 127) / 128."""
    x = _normalised(layers.Conv2D(1280, 1, use_bias=False, name="head_conv")(_blocks(x, _BLOCKS)), "head_bn")
    return layers.ReLU(6.0, name="head_relu")(x)


def ct_features(x: keras.KerasTensor) -> keras.KerasTensor:
    """Maps (N, height/16, width/16, 1024) of x, as `features` takes it: what ct_teacher's network would give.

    The blocks down to a 16th of the image, and what brings their 112 channels to the teacher's, standardised.
    """
    x = layers.Conv2D(512, 1, use_bias=False, name="widen_conv")(_blocks(x, _BLOCKS[:5]))
    x = layers.ReLU(6.0, name="widen_relu")(_normalised(x, "widen_bn"))
    return layers.Conv2D(1024, 1, name="taught")(x)


def _blocks(x: keras.KerasTensor, kinds: Sequence[tuple[int, int, int, int, int]]) -> keras.KerasTensor:
    x = _normalised(layers.Conv2D(32, 3, 2, padding="same", use_bias=False, name="stem_conv")(x), "stem_bn")
    x = layers.ReLU(6.0, name="stem_relu")(x)
    number = 0
    for repeats, filters, kernel, stride, expansion in kinds:
        for repeat in range(repeats):
            x = _block(x, f"block{number}", filters, kernel, 1 if repeat else stride, expansion)
            number += 1
    return x


def _block(
    x: keras.KerasTensor, name: str, filters: int, kernel: int, stride: int, expansion: int
) -> keras.KerasTensor:
    """Inverted residual: widen, filter each channel by itself, narrow again (Sandler et al., CVPR 2018)."""
    entering = x
    if expansion > 1:
        x = layers.Conv2D(expansion * x.shape[-1], 1, use_bias=False, name=f"{name}_expand_conv")(x)
        x = layers.ReLU(6.0, name=f"{name}_expand_relu")(_normalised(x, f"{name}_expand_bn"))
    x = layers.DepthwiseConv2D(kernel, stride, padding="same", use_bias=False, name=f"{name}_dwconv")(x)
    x = layers.ReLU(6.0, name=f"{name}_dw_relu")(_normalised(x, f"{name}_dw_bn"))
    x = _normalised(layers.Conv2D(filters, 1, use_bias=False, name=f"{name}_project_conv")(x), f"{name}_project_bn")
    return layers.Add(name=f"{name}_add")([entering, x]) if entering.shape == x.shape else x


def _normalised(x: keras.KerasTensor, name: str) -> keras.KerasTensor:
    # Momentum 0.9, as in lungkit.models.cnn: it matters only where these layers are trained.
    return layers.BatchNormalization(momentum=0.9, epsilon=1e-3, name=name)(x)


def load_imagenet(model: keras.Model) -> None:
    """Put the ImageNet weights into the layers that `features` made, or into those of `ct_features` that it shares.

    Raises LungkitError where the file is missing or is not the one that belongs to this version of lungkit.
    """
    weights_file.load(model, "efficientnet_lite0_imagenet.npz")


def load_ct(model: keras.Model) -> None:
    """Put the weights that lungkit.training.distillation made into the layers of `ct_features`; raises as above."""
    weights_file.load(model, "efficientnet_lite0_ct.npz")

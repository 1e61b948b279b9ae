"""Networks that learned on photographs, or on chest CT, as the start of a classifier of chest images.

Each is a flat functional graph that ends as lungkit.models.cnn does: global average pooling, dropout, one dense layer
of logits, so its heat maps exist in closed form and the clinic's graph can be exported.

A tensor of lungkit is one grey channel, standardised by the training images' mean and deviation. A backbone expects
three channels in the scale that it was trained in. The first two layers turn one into the other: the channel is
repeated three times, and each copy is scaled and shifted. That comes before any zero padding, which therefore means
what it meant in training. (The first kernel could instead be summed over its three inputs. That is exact only where
all channels have one scale, saves under 3 % of the multiplications, and makes published weights files unreadable.)
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from lungkit.backend import keras

from lungkit.data.preprocess import Preprocessing
from lungkit.errors import LungkitError
from lungkit.models import efficientnet_lite, lungs
from lungkit.models.cnn import DROPOUT

layers = keras.layers
applications = keras.applications

MIN_SIDE = 32  # pixels; every backbone divides the resolution by 32

_IMAGENET_MEAN, _IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of RGB in 0..1


@keras.saving.register_keras_serializable("lungkit")
class ChannelScale(keras.layers.Layer):
    """factors · x + offsets, of each channel. (Keras' own Rescaling needs TensorFlow, also on another backend.)"""

    def __init__(self, factors: Sequence[float], offsets: Sequence[float], **options: Any) -> None:
        super().__init__(**options)
        self.factors, self.offsets = tuple(factors), tuple(offsets)

    def call(self, images: keras.KerasTensor) -> keras.KerasTensor:
        """The scaled images (N, height, width, channels)."""
        ops = keras.ops
        return images * ops.cast(self.factors, images.dtype) + ops.cast(self.offsets, images.dtype)

    def get_config(self) -> dict[str, Any]:
        """The arguments that make this layer again."""
        return super().get_config() | {"factors": list(self.factors), "offsets": list(self.offsets)}


@keras.saving.register_keras_serializable("lungkit")
class Equalised(keras.layers.Layer):
    """Histogram equalisation, limited in contrast, of each image (N, height, width, 1) by itself; grey in, grey out.

    Every grey becomes the share of the image's pixels that are darker. In flat regions that would turn noise into
    contrast, so no level counts for more than `limit` times its even share; what is cut off is spread over all (Pizer
    et al., Computer Vision, Graphics, and Image Processing 39, 1987). mean and std: of the preprocessing, by which
    greys 0..1 were normalised, and are again afterwards.
    """

    levels, limit = 64, 4.0

    def __init__(self, mean: float, std: float, **options: Any) -> None:
        super().__init__(**options)
        self.mean, self.std = mean, std

    def call(self, images: keras.KerasTensor) -> keras.KerasTensor:
        """The equalised images (N, height, width, 1)."""
        ops, pixels = keras.ops, images.shape[1] * images.shape[2]
        level = ops.clip(ops.reshape(images, (-1, pixels)) * self.std + self.mean, 0, 1) * (self.levels - 1)
        # Each pixel counts for the two levels that it lies between; otherwise the result would have steps.
        shares = [ops.mean(ops.relu(1 - ops.abs(level - number)), axis=1) for number in range(self.levels)]
        limited = ops.minimum(ops.stack(shares, axis=1), self.limit / self.levels)
        even = (1 - ops.sum(limited, axis=1, keepdims=True)) / self.levels
        darker = ops.cumsum(limited + even, axis=1) - (limited + even) / 2
        below = ops.floor(level)
        at = ops.cast(below, "int32")
        lower = ops.take_along_axis(darker, at, axis=1)
        upper = ops.take_along_axis(darker, ops.minimum(at + 1, self.levels - 1), axis=1)
        grey = lower + (level - below) * (upper - lower)
        return ops.reshape((grey - self.mean) / self.std, ops.shape(images))

    def get_config(self) -> dict[str, Any]:
        """The arguments that make this layer again."""
        return super().get_config() | {"mean": self.mean, "std": self.std}


@dataclass(frozen=True)
class _Scale:
    """What a backbone was trained on, from grey 0..1: factor · grey + offset in each of its three channels."""

    factor: tuple[float, ...]
    offset: tuple[float, ...]


# The scales of keras.applications are those of its preprocess_input ("caffe", "torch", "tf").
_CAFFE = _Scale((255.0,) * 3, (-103.939, -116.779, -123.68))  # BGR
_TORCH = _Scale(
    tuple(1 / std for std in _IMAGENET_STD),
    tuple(-mean / std for mean, std in zip(_IMAGENET_MEAN, _IMAGENET_STD, strict=True)),
)
_TF = _Scale((2.0,) * 3, (-1.0,) * 3)
_BYTES = _Scale((255.0,) * 3, (0.0,) * 3)  # the network scales them itself
_LITE = _Scale((255 / 128,) * 3, (-127 / 128,) * 3)  # efficientnet_lite_builder.py: MEAN_RGB 127, STDDEV_RGB 128


@dataclass(frozen=True)
class _Backbone:
    scale: _Scale
    # The first layer with weights at each resolution, from half the image's down to a 32nd.
    begins: tuple[str, str, str, str, str]
    application: Callable[..., keras.Model] | None = None
    own: tuple[Callable, Callable] | None = None  # lungkit's features of a tensor, and what loads their weights


_BACKBONES = {
    "efficientnet_lite0": _Backbone(
        _LITE,
        ("stem_conv", "block1_expand_conv", "block3_expand_conv", "block5_expand_conv", "block11_expand_conv"),
        own=(efficientnet_lite.features, efficientnet_lite.load_imagenet),
    ),
    "efficientnet_lite0_ct": _Backbone(
        _LITE,
        ("stem_conv", "block1_expand_conv", "block3_expand_conv", "block5_expand_conv", ""),
        own=(efficientnet_lite.ct_features, efficientnet_lite.load_ct),
    ),
    "efficientnet_b0": _Backbone(
        _BYTES,
        ("stem_conv", "block2a_expand_conv", "block3a_expand_conv", "block4a_expand_conv", "block6a_expand_conv"),
        applications.EfficientNetB0,
    ),
    "mobilenet_v2": _Backbone(
        _TF,
        ("Conv1", "block_1_expand", "block_3_expand", "block_6_expand", "block_13_expand"),
        applications.MobileNetV2,
    ),
    "densenet121": _Backbone(
        _TORCH,
        ("conv1_conv", "conv2_block1_0_bn", "conv3_block1_0_bn", "conv4_block1_0_bn", "conv5_block1_0_bn"),
        applications.DenseNet121,
    ),
    "resnet50": _Backbone(
        _CAFFE,
        ("conv1_conv", "conv2_block1_1_conv", "conv3_block1_1_conv", "conv4_block1_1_conv", "conv5_block1_1_conv"),
        applications.ResNet50,
    ),
    "vgg16": _Backbone(
        _CAFFE,
        ("block1_conv1", "block2_conv1", "block3_conv1", "block4_conv1", "block5_conv1"),
        applications.VGG16,
    ),
}

CT_STUDENT = "efficientnet_lite0_ct"  # what lungkit.training.distillation trains
NAMES = tuple(_BACKBONES)
STAGES = ("stage1", "stage2", "stage3", "stage4", "stage5", "head")


# --- building


def build(
    name: str,
    input_shape: tuple[int, int, int],
    n_classes: int,
    *,
    pretrained: bool = True,
    preprocessing: Preprocessing | None = None,
    dropout: float = DROPOUT,
    until: str = "stage5",
    equalised: bool = False,
    shrink: int = 1,
) -> keras.Model:
    """Functional model, named `name`: images (N, height, width, 1 or 2) in, logits (N, n_classes) out.

    name: one of NAMES.
    input_shape: (height, width, 1), each side MIN_SIDE or more; or 2 channels, as lungs.LungSquare gives them: the
        feature maps are then averaged within the lungs.
    pretrained: with the ImageNet weights, otherwise random. Those of efficientnet_lite0 come with lungkit, and those of
        efficientnet_lite0_ct, which learned from chest CT; Keras downloads those of the others once.
    preprocessing: what the tensors were made with; its mean and std lead back to grey 0..1. Default: they are that.
    until: the stage of whose resolution the last feature maps are. Textures, as of a lung on CT, are told apart by what
        comes before the whole objects of photographs; and the heat map becomes finer.
    equalised: the network sees each image with its histogram equalised, see Equalised.
    shrink: the network sees the image so many times smaller, and its feature maps are enlarged as often: it can be
        averaged with one that sees the image as it is.

    Raises LungkitError: an unknown name, a shape that does not fit, weights that cannot be downloaded.
    """
    backbone = _backbone(name)
    if len(input_shape) != 3 or input_shape[2] not in (1, 2) or min(input_shape[:2]) < MIN_SIDE:
        raise LungkitError(
            f"input shape {tuple(input_shape)}: expected (height, width, 1), each side {MIN_SIDE} pixels or more; "
            "or 2 channels, where the second is the probability of lung"
        )
    if n_classes < 2:
        raise LungkitError(f"a classifier needs at least 2 classes, not {n_classes}")
    if until not in STAGES[:-1]:
        raise LungkitError(f"no stage '{until}' with feature maps; there are: {', '.join(STAGES[:-1])}")
    if any(side % shrink or side // shrink < MIN_SIDE for side in input_shape[:2]):
        raise LungkitError(f"{input_shape[0]} x {input_shape[1]} pixels cannot be seen {shrink} times smaller")
    image = keras.Input(input_shape, name="image")
    spec = preprocessing or Preprocessing()
    seen = lungs.Channel(0, name="grey")(image) if input_shape[2] == 2 else image
    seen = layers.AveragePooling2D(shrink, name="smaller")(seen) if shrink > 1 else seen
    seen = Equalised(spec.mean, spec.std, name="equalised")(seen) if equalised else seen
    x = _as_in_training(seen, backbone.scale, spec)
    features = _features(name, backbone, image, x, pretrained)
    if until != STAGES[-2]:
        pooled = layers.GlobalAveragePooling2D(name="embedding")(features)
        features = _last_at(keras.Model(image, pooled, name=name), until)
    if input_shape[2] == 2:
        features = lungs.InLungs(name="in_lungs")([features, image])
    features = layers.UpSampling2D(shrink, name="enlarged")(features) if shrink > 1 else features
    x = layers.GlobalAveragePooling2D(name="embedding")(features)
    x = layers.Dropout(dropout, name="dropout")(x)
    return keras.Model(image, layers.Dense(n_classes, name="logits")(x), name=name)


def _backbone(name: str) -> _Backbone:
    if name not in _BACKBONES:
        raise LungkitError(f"no backbone '{name}'; there are: {', '.join(NAMES)}")
    return _BACKBONES[name]


def _as_in_training(image: keras.KerasTensor, scale: _Scale, preprocessing: Preprocessing) -> keras.KerasTensor:
    """Three channels in the backbone's scale, of one channel (grey 0..1 - mean) / std."""
    factors = [factor * preprocessing.std for factor in scale.factor]
    offsets = [factor * preprocessing.mean + offset for factor, offset in zip(scale.factor, scale.offset, strict=True)]
    x = layers.Concatenate(name="grey_to_rgb")([image] * 3)
    return ChannelScale(factors, offsets, name="pretraining_scale")(x)


def _features(
    name: str, backbone: _Backbone, image: keras.KerasTensor, x: keras.KerasTensor, pretrained: bool
) -> keras.KerasTensor:
    """The last feature maps of `x`, which is made from `image`."""
    if backbone.application:
        weights = "imagenet" if pretrained else None
        try:
            return backbone.application(include_top=False, weights=weights, input_tensor=x).output
        except Exception as error:  # Keras raises a bare Exception where a download fails
            raise LungkitError(
                f"the ImageNet weights of {name} could not be downloaded: {error}. Without a network, download that "
                "file elsewhere and put it into the folder models of KERAS_HOME (by default ~/.keras); "
                "efficientnet_lite0 needs no download"
            ) from error
    features, load = backbone.own or (efficientnet_lite.features, efficientnet_lite.load_imagenet)
    extractor = keras.Model(image, features(x))
    if pretrained:
        load(extractor)
    return extractor.output


def _last_at(model: keras.Model, until: str) -> keras.KerasTensor:
    """The last feature maps of a stage's resolution in a model of `build`."""
    height = next(layer for layer in reversed(stages(model)[until]) if layer.weights).output.shape[1]
    return next(
        layer.output
        for layer in reversed(model.layers)
        if len(layer.output.shape) == 4 and layer.output.shape[1] == height
    )


# --- fine-tuning in stages


def stages(model: keras.Model) -> dict[str, list[keras.layers.Layer]]:
    """The layers of a model of `build` by stage, those nearest to the image first.

    "stage1" works at half the image's resolution, each further one at half of the one before; "head" is the dense
    layer and what leads to it. Without what lies beyond `until`.
    """
    begins = dict(zip((*_backbone(model.name).begins, "embedding"), STAGES, strict=True))
    members: dict[str, list[keras.layers.Layer]] = {}
    for layer in model.layers:
        if layer.name in begins:
            members[begins[layer.name]] = []
        if members:
            list(members.values())[-1].append(layer)
    for layer, stage in begins.items():
        if stage in (STAGES[0], STAGES[-1]) and stage not in members:
            raise LungkitError(f"model '{model.name}' has no layer '{layer}': it was not made by build()")
    return members


def unfreeze(model: keras.Model, stage: str) -> keras.Model:
    """Make this stage (one of STAGES) and those after it trainable, those before it not; returns the same model.

    Compile afterwards: a compiled model continues to train what it was compiled with.
    Batch normalisation stays frozen everywhere, and with it in inference mode: a batch of chest images has other
    statistics than photographs, and following them in small batches undoes what was learned on those
    (keras.io/guides/transfer_learning).
    """
    if stage not in STAGES:
        raise LungkitError(f"no stage '{stage}'; there are: {', '.join(STAGES)}")
    for name, members in stages(model).items():
        for layer in members:
            is_norm = isinstance(layer, layers.BatchNormalization)
            layer.trainable = STAGES.index(name) >= STAGES.index(stage) and not is_norm
    return model


def layer_rates(model: keras.Model, factor: float = 0.4) -> dict[str, float]:
    """Factors on the learning rate by layer, for cnn.compile_classifier: 1 for the head, `factor` for the last stage,
    `factor`² for the one before it, and so on (Howard & Ruder, ACL 2018, use 1/2.6).
    """
    if not 0 < factor <= 1:
        raise LungkitError(f"factor {factor}: expected a number above 0 and at most 1")
    return {
        layer.name: factor ** (len(STAGES) - 1 - STAGES.index(stage))
        for stage, members in stages(model).items()
        for layer in members
        if layer.weights
    }

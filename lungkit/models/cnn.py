"""A compact convolutional network whose knobs are a KerasTuner search space.

The graph is flat and functional and ends in global average pooling, dropout and one dense layer of logits,
so the class activation map exists in closed form (Zhou et al., CVPR 2016) and agrees with Grad-CAM.
"""

from typing import Any

from lungkit.backend import keras

from lungkit.errors import LungkitError
from lungkit.models.layerwise import LayerwiseAdamW

layers = keras.layers

# What the search starts from and a training without search uses.
FILTERS, BLOCKS, DROPOUT = 16, 4, 0.3
OPTIMIZER, LEARNING_RATE, WEIGHT_DECAY = "adamw", 2e-3, 1e-4
FINE, COARSE = 24, 12  # pixels: the narrowest feature map of an image of 96 pixels or more, and of a small one
WIDEST = 64  # channels of a block; the last convolution has twice as many


def _convolution(x: keras.KerasTensor, filters: int, kernel: int, strides: int, name: str) -> keras.KerasTensor:
    # Momentum 0.9: the default 0.99 lags behind in runs of a few hundred steps.
    x = layers.Conv2D(filters, kernel, strides, padding="same", use_bias=False, name=f"{name}_conv")(x)
    x = layers.BatchNormalization(momentum=0.9, name=f"{name}_norm")(x)
    return layers.Activation("relu", name=f"{name}_relu")(x)


def build(
    input_shape: tuple[int, int, int],
    n_classes: int,
    *,
    filters: int = FILTERS,
    blocks: int = BLOCKS,
    dropout: float = DROPOUT,
    name: str = "cnn",
) -> keras.Model:
    """Functional model: images (N, height, width, channels) in, logits (N, n_classes) out.

    A strided stem, then `blocks` blocks of convolution, batch normalisation, ReLU and 2x2 max pooling with
    `filters`, 2·`filters` … channels (at most 64), one more convolution (at most 128 channels), global average
    pooling, dropout, one dense layer. The stem halves the resolution before the first wide layer, which is where a
    CPU spends its time; below 64 pixels it keeps it. Blocks stop pooling before the map gets narrower than 24 pixels,
    or than a quarter of a smaller image: heat maps come from the last one. On phantoms, the hottest point of 24 x 24
    maps lies in the lesion in twice as many images as that of 12 x 12 maps (bench/README.md).
    """
    if n_classes < 2:
        raise LungkitError(f"a classifier needs at least 2 classes, not {n_classes}")
    inputs = keras.Input(input_shape, name="image")
    side = min(input_shape[:2])
    narrowest = min(FINE, max(COARSE, side // 4))
    stem_stride = 2 if side >= 64 else 1
    x = _convolution(inputs, filters, 5, stem_stride, "stem")
    side //= stem_stride
    for block in range(1, blocks + 1):
        x = _convolution(x, min(filters * 2 ** (block - 1), WIDEST), 3, 1, f"block{block}")
        if side // 2 >= narrowest:
            x = layers.MaxPooling2D(name=f"block{block}_pool")(x)
            side //= 2
    x = _convolution(x, min(filters * 2**blocks, 2 * WIDEST), 3, 1, "last")
    x = layers.GlobalAveragePooling2D(name="embedding")(x)
    x = layers.Dropout(dropout, name="dropout")(x)
    return keras.Model(inputs, layers.Dense(n_classes, name="logits")(x), name=name)


def compile_classifier(
    model: keras.Model,
    *,
    optimizer: str = OPTIMIZER,
    learning_rate: float = LEARNING_RATE,
    weight_decay: float = WEIGHT_DECAY,
    decay_steps: int | None = None,
    layer_rates: dict[str, float] | None = None,
    label_smoothing: float | None = None,
    ema: float = 0.0,
) -> keras.Model:
    """Compile with cross-entropy on logits and accuracy; returns the same model.

    Labels are integers; with `label_smoothing` (0 or more, Szegedy et al., CVPR 2016) they are one-hot or blends.

    `optimizer` is "adam" or "adamw" (decoupled `weight_decay`, Loshchilov & Hutter 2019). With `decay_steps`
    the rate warms up over the first 5 % of the steps and falls to 2 % of its peak on a cosine. `layer_rates`
    multiplies it layer by layer (adamw only; see backbones.layer_rates). `ema`: the momentum, below 1, of an
    exponential moving average of the weights, which validation then uses and training ends with (Polyak & Juditsky,
    1992); 0: none.
    """
    rate = learning_rate
    if decay_steps:
        warmup = max(1, decay_steps // 20)
        rate = keras.optimizers.schedules.CosineDecay(
            learning_rate / 10, decay_steps - warmup, alpha=0.02, warmup_target=learning_rate, warmup_steps=warmup
        )
    if layer_rates and optimizer != "adamw":
        raise LungkitError(f"rates by layer need the optimizer adamw, not {optimizer}")
    average = {"use_ema": True, "ema_momentum": ema} if ema else {}
    if optimizer == "adamw" and layer_rates:
        built = LayerwiseAdamW(rate, weight_decay=weight_decay, layer_rates=layer_rates, **average)
    elif optimizer == "adamw":
        built = keras.optimizers.AdamW(rate, weight_decay=weight_decay, **average)
    elif optimizer == "adam":
        built = keras.optimizers.Adam(rate, **average)
    else:
        raise LungkitError(f"no optimizer '{optimizer}'; there are: adam, adamw")
    # Built here: otherwise a saved model could not load its optimizer's state again.
    built.build(model.trainable_variables)
    if label_smoothing is None:
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    else:
        loss = keras.losses.CategoricalCrossentropy(from_logits=True, label_smoothing=label_smoothing)
    model.compile(built, loss, metrics=["accuracy"])
    _build_metrics(model, one_hot=label_smoothing is not None)
    return model


def _build_metrics(model: keras.Model, one_hot: bool) -> None:
    """Create the variables of the model's metrics now: TensorFlow traces a training step that creates some twice."""
    logits = keras.ops.zeros((1, model.output_shape[-1]))
    labels = logits if one_hot else keras.ops.zeros((1,), "int32")
    model.compute_metrics(x=None, y=labels, y_pred=logits, sample_weight=None)
    model.reset_metrics()


def search_space(hp: Any, input_shape: tuple[int, int, int], n_classes: int) -> keras.Model:
    """KerasTuner's view of `build` and `compile_classifier`: a compiled model for the values in `hp`."""
    model = build(
        input_shape,
        n_classes,
        filters=hp.Choice("filters", [12, 16, 24], default=FILTERS),
        blocks=hp.Int("blocks", 2, 4, default=BLOCKS),
        dropout=hp.Float("dropout", 0.1, 0.5, step=0.1, default=DROPOUT),
    )
    return compile_classifier(
        model,
        optimizer=hp.Choice("optimizer", ["adam", "adamw"], default=OPTIMIZER),
        learning_rate=hp.Float("learning_rate", 5e-4, 5e-3, sampling="log", default=LEARNING_RATE),
    )

"""AdamW with a rate for each layer: the factors hold for steps and decay, and come back with a saved model."""

from lungkit.backend import keras

import numpy as np
import pytest

from lungkit.errors import LungkitError
from lungkit.models import cnn
from lungkit.models.layerwise import LayerwiseAdamW

RATE = 1e-2
FACTORS = {"early": 0.1, "late": 0.5}


def _model(optimizer, **how) -> keras.Model:
    """Three dense layers; `how`: of compile. Step by step by default, as tracing takes longer than a few steps."""
    keras.utils.set_random_seed(1)
    inputs = keras.Input((6,))
    x = inputs
    for name in ("early", "late", "head"):
        x = keras.layers.Dense(6, "tanh", name=name)(x)
    model = keras.Model(inputs, x)
    optimizer.build(model.trainable_variables)
    model.compile(optimizer, "mse", **(how or {"run_eagerly": True}))
    return model


def _kernels(model: keras.Model) -> dict[str, np.ndarray]:
    return {layer.name: keras.ops.convert_to_numpy(layer.kernel) for layer in model.layers[1:]}


def _step(model: keras.Model, steps: int = 1) -> None:
    rng = np.random.default_rng(0)
    for _ in range(steps):
        model.train_on_batch(rng.normal(size=(32, 6)), rng.normal(size=(32, 6)))


@pytest.mark.parametrize("jit", [False, True], ids=["graph", "jit"])
def test_the_first_step_of_each_layer_is_its_own_rate(jit):
    model = _model(LayerwiseAdamW(RATE, layer_rates=FACTORS), jit_compile=jit)
    before = _kernels(model)
    _step(model)
    # Adam's first step moves each weight by the rate, whatever the size of its gradient.
    for name, kernel in _kernels(model).items():
        np.testing.assert_allclose(np.abs(kernel - before[name]), RATE * FACTORS.get(name, 1), rtol=0.02)


def test_with_no_layer_named_it_is_adamw():
    plain = _model(keras.optimizers.AdamW(RATE, weight_decay=0.1))
    own = _model(LayerwiseAdamW(RATE, weight_decay=0.1, layer_rates={}))
    _step(plain, 5)
    _step(own, 5)
    for name, kernel in _kernels(plain).items():
        np.testing.assert_allclose(_kernels(own)[name], kernel, rtol=1e-4, atol=1e-6)


def test_the_decay_is_at_the_layers_own_rate():
    decayed = _model(LayerwiseAdamW(RATE, weight_decay=0.5, layer_rates=FACTORS))
    plain = _model(LayerwiseAdamW(RATE, layer_rates=FACTORS))
    before = _kernels(plain)
    _step(plain)
    _step(decayed)
    for name, kernel in _kernels(decayed).items():
        expected = -RATE * FACTORS.get(name, 1) * 0.5 * before[name]
        np.testing.assert_allclose(kernel - _kernels(plain)[name], expected, rtol=1e-2, atol=1e-6)


def test_a_layer_with_the_factor_0_stays_as_it_is():
    model = _model(LayerwiseAdamW(RATE, weight_decay=0.5, layer_rates={"early": 0.0}))
    before = _kernels(model)
    _step(model, 3)
    np.testing.assert_array_equal(_kernels(model)["early"], before["early"])


def test_a_saved_model_goes_on_at_the_same_rates(tmp_path):
    schedule = keras.optimizers.schedules.CosineDecay(RATE, 100)
    model = _model(LayerwiseAdamW(schedule, weight_decay=0.1, layer_rates=FACTORS))
    _step(model, 2)
    model.save(tmp_path / "m.keras")
    again = keras.saving.load_model(tmp_path / "m.keras")
    assert (again.optimizer.decay, again.optimizer.layer_rates) == (0.1, FACTORS)
    _step(model)
    _step(again)
    for name, kernel in _kernels(model).items():
        np.testing.assert_allclose(_kernels(again)[name], kernel, atol=1e-7)


def test_a_classifier_is_compiled_with_rates_by_layer_and_only_with_adamw():
    model = cnn.compile_classifier(cnn.build((32, 32, 1), 2), layer_rates={"stem_conv": 0.1})
    assert isinstance(model.optimizer, LayerwiseAdamW)
    assert model.optimizer.layer_rates == {"stem_conv": 0.1}
    with pytest.raises(LungkitError, match="need the optimizer adamw, not adam"):
        cnn.compile_classifier(model, optimizer="adam", layer_rates={"stem_conv": 0.1})

"""AdamW whose learning rate differs from layer to layer, for fine-tuning what was learned elsewhere."""

from typing import Any

from lungkit.backend import keras


@keras.saving.register_keras_serializable("lungkit")
class LayerwiseAdamW(keras.optimizers.Adam):
    """AdamW (Loshchilov & Hutter 2019) with a factor on the learning rate of each layer named in `layer_rates`.

    Early layers hold edges and textures that serve any picture, late ones what the source's classes needed, so the
    early ones are changed less (discriminative fine-tuning, Howard & Ruder, ACL 2018, section 3.2). The factor
    applies to the decoupled decay too. Gradients are not scaled: Adam divides by their size, so that would change
    nothing. Layers that are not named have the factor 1.

    layer_rates: a layer's name to its factor, 0 or more.
    """

    def __init__(
        self, learning_rate: Any = 1e-3, *, weight_decay: float = 0.0, layer_rates: dict[str, float], **options: Any
    ) -> None:
        super().__init__(learning_rate, **options)
        # Not in the base class's own field: what it does with it knows one rate only.
        self.decay = weight_decay
        self.layer_rates = dict(layer_rates)

    def build(self, variables: list[keras.Variable]) -> None:
        """Make room for the moments of these variables, and look up each one's factor."""
        super().build(variables)
        self._factors = tuple(self.layer_rates.get(variable.path.split("/")[-2], 1.0) for variable in variables)

    def update_step(
        self, gradient: keras.KerasTensor, variable: keras.Variable, learning_rate: keras.KerasTensor
    ) -> None:
        """One step of one variable, at its own rate."""
        rate = learning_rate * self._factors[self._get_variable_index(variable)]
        if self.decay:
            decayed = keras.ops.cast(rate * self.decay, variable.dtype) * variable
            self.assign_sub(variable, decayed)
        super().update_step(gradient, variable, rate)

    def get_config(self) -> dict[str, Any]:
        """The arguments that make this optimizer again."""
        return super().get_config() | {"weight_decay": self.decay, "layer_rates": dict(self.layer_rates)}

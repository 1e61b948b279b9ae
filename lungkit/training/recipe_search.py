"""The search of a recipe's ways of training, judged on its validation patients."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from lungkit.backend import keras

import keras_tuner
import scipy.special
from sklearn.metrics import log_loss
from sklearn.utils.class_weight import compute_sample_weight

from lungkit import resume
from lungkit.data import dataset
from lungkit.errors import LungkitError
from lungkit.models import cnn
from lungkit.training import calibration, cnn_search, finetune, release
from lungkit.training.recipes import Recipe

MIXING = {"none": (0.0, 0.0), "MixUp": (0.2, 0.0), "CutMix": (0.0, 1.0), "both": (0.2, 1.0)}  # mixup, cutmix
VALUES = {  # what may change, besides how images are mixed, and the values to try
    "learning_rate": (1e-4, 3e-4, 1e-3),
    "label_smoothing": (0.0, 0.1),
    "ema": (0.0, 0.98),
    "equalised": (),  # on or off
    "until": ("stage3", "stage4", "stage5"),
    "unfrozen": ("stage2", "stage3", "stage4", "stage5"),
}
USUAL = ("mixing", "learning_rate", "label_smoothing", "ema", "equalised")


class Space(keras_tuner.HyperModel):
    """KerasTuner's view of a recipe: which of its settings change (`vary`), the model for it, how a trial is judged.

    Losses while training depend on label smoothing, and confidence on most of the rest; both are mended afterwards by
    the temperature. Trials are therefore compared by the log loss on validation, calibrated there, classes weighing
    alike, after the last epoch.
    """

    def __init__(self, recipe: Recipe, of: finetune.Material, folder: Path, seed: int, vary: Sequence[str] = USUAL):
        super().__init__()
        if unknown := sorted(set(vary) - {"mixing", *VALUES}):
            raise LungkitError(f"a recipe's {unknown[0]} is not searched; there are: mixing, {', '.join(VALUES)}")
        self.recipe, self.of, self.folder, self.seed, self.vary = recipe, of, folder, seed, tuple(vary)

    def chosen(self, hp: keras_tuner.HyperParameters) -> Recipe:
        """The recipe with the values in `hp`; without any, as it is."""
        own, values = self.recipe, {}
        if "mixing" in self.vary:
            mixing = next((name for name, blends in MIXING.items() if blends == (own.mixup, own.cutmix)), "none")
            values["mixup"], values["cutmix"] = MIXING[hp.Choice("mixing", list(MIXING), default=mixing)]
        for name in self.vary:
            as_it_is = getattr(own, name, None)
            if isinstance(as_it_is, bool):
                values[name] = hp.Boolean(name, default=as_it_is)
            elif name != "mixing":
                values[name] = hp.Choice(name, sorted({*VALUES[name], as_it_is}), default=as_it_is)
        return replace(own, **values)

    def build(self, hp: keras_tuner.HyperParameters) -> keras.Model:
        """The compiled model, with its head solved."""
        recipe = self.chosen(hp)
        self.folder.mkdir(parents=True, exist_ok=True)
        head = self.folder / f"head-{recipe.until}{'-equalised' * recipe.equalised}.npz"
        begun = finetune.start(recipe, self.of, head, self.seed)
        return cnn.compile_classifier(begun.model, **begun.compiled)

    def fit(self, hp: keras_tuner.HyperParameters, model: keras.Model, *_, callbacks, epochs: int, **_options) -> dict:
        """Train the model; the trial's score."""
        train, _ = finetune.streams(self.chosen(hp), self.of, self.seed)
        model.fit(train, epochs=epochs, shuffle=False, callbacks=callbacks, verbose=0)
        labels, raw = self.of.data.labels("val"), release.logits(model, self.of.validation)
        scores = scipy.special.softmax(raw / calibration.temperature(labels, raw), axis=1)
        return {"val_loss": log_loss(labels, scores, sample_weight=compute_sample_weight("balanced", labels))}


def task(
    recipe: Recipe,
    source: str,
    *,
    trials: int = 12,
    epochs: int | None = None,
    limit: int | None = None,
    vary: Sequence[str] = USUAL,
    seed: int = 7,
) -> cnn_search.Task:
    """A bayesian search of `trials` trials of `epochs` epochs (default: the recipe's) on at most `limit` images.

    source: as dataset.prepare takes it; one with other classes or of another modality is refused.
    """
    recipe = replace(recipe, epochs=recipe.epochs if epochs is None else epochs)
    recipe.check(dataset.load(source, label_column=recipe.label_column, limit=limit))
    of = finetune.material(recipe, source, limit)
    settings = recipe.settings() | {"data": of.data.fingerprint, "limit": limit, "vary": list(vary)}
    folder = resume.work_folder(f"{recipe.name}-search", settings | {"trials": trials, "seed": seed})
    return cnn_search.Task(
        build=Space(recipe, of, folder, seed, vary),
        train=None,
        validation=None,
        folder=folder / "search",
        options={"strategy": "bayesian", "seed": seed, "trials": trials, "epochs": recipe.epochs},
        settings=settings,
    )

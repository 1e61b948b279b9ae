"""The searches that lungkit makes: of the compact CNN's settings, and of a recipe's ways of training.

Notebook 03 and `lungkit search` take their search from here, so both continue the same one in the same folder.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from lungkit.backend import keras

import keras_tuner
from sklearn.metrics import log_loss
from sklearn.utils.class_weight import compute_sample_weight

from lungkit import config, resume
from lungkit.data import dataset, preprocess
from lungkit.data import decisions as decided
from lungkit.errors import LungkitError
from lungkit.models import cnn, registry
from lungkit.models.search import Search, check_strategy
from lungkit.training import finetune, fit, pipeline
from lungkit.training.recipes import Recipe


@dataclass(frozen=True, eq=False)
class CnnTask:
    """The search of the compact CNN, with all that notebook 03 needs to train what it gives."""

    search: Search
    data: dataset.Dataset
    how: dict[str, Any]  # the arguments of dataset.load_split that give this split again
    spec: preprocess.Preprocessing
    size: config.Profile
    class_weights: dict[int, float]
    model_name: str
    batches: Callable[..., Any]  # (seed, most): training batches in an order and with variations from the seed alone

    @property
    def work(self) -> Path:
        """The folder of the search and of what follows from it."""
        return self.search.folder.parent


def cnn_task(
    source: str,
    *,
    strategy: str = "hyperband",
    trials: int | None = None,
    epochs: int | None = None,
    label_column: str | None = None,
    profile: str = "quick",
    seed: int = 7,
    overlap: str = "set_aside",
    intensity_window: tuple[float, float] | None = None,
    model_name: str = "",
    decisions: str | None = None,
) -> CnnTask:
    """The search of the compact CNN's settings on a data set.

    source, overlap, decisions: as dataset.load_split takes them. intensity_window: as in Preprocessing. `trials` and
    `epochs` other than the profile's make another search, in another folder.
    """
    check_strategy(strategy)
    size = config.profile(profile)
    keras.utils.set_random_seed(seed)
    how: dict[str, Any] = {"label_column": label_column, "limit": size.limit(source), "seed": seed}
    how |= {"decisions": decided.kept(decisions)} if decisions else {}  # by content: the file may change

    def plain(data: dataset.Dataset) -> preprocess.Preprocessing:
        return preprocess.Preprocessing(size=data.input_size(size.image_size), intensity_window=intensity_window)

    collection = dataset.load_split(source, overlap=overlap, kept_as=plain, **how)
    spec = preprocess.training_statistics(collection.files("train"), plain(collection))
    decoded = pipeline.decoded(collection, "train", spec)

    def batches(start: int, most: int | None = None) -> Any:
        augment = pipeline.augmentation(mean=spec.mean, std=spec.std, seed=start)
        return pipeline.served(decoded, size.batch_size, augment=augment, shuffle=True, most=most, seed=start)

    weights = fit.class_weights(collection.labels("train"), len(collection.classes))
    model_name = model_name or registry.usual_name(collection.name)
    own_sizes = {name: value for name, value in (("trials", trials), ("epochs", epochs)) if value}
    settings = {"data": collection.fingerprint, "profile": profile, "seed": seed, "spec": spec.to_dict()}
    settings |= {"strategy": strategy}
    return CnnTask(
        Search(
            build=partial(cnn.search_space, input_shape=(*spec.size, 1), n_classes=len(collection.classes)),
            train=batches(seed, size.search_batches),
            validation=pipeline.batches(collection, "val", spec, size.batch_size),
            folder=resume.work_folder(model_name, settings | own_sizes) / "search",
            strategy=strategy,
            trials=trials or size.search_trials,
            epochs=epochs or size.search_epochs,
            seed=seed,
            settings=settings,
            fit={"class_weight": weights},
        ),
        data=collection,
        how=how,
        spec=spec,
        size=size,
        class_weights=weights,
        model_name=model_name,
        batches=batches,
    )


# --- a recipe's ways of training

MIXING = {"none": (0.0, 0.0), "MixUp": (0.2, 0.0), "CutMix": (0.0, 1.0), "both": (0.2, 1.0)}  # mixup, cutmix
VALUES: dict[str, tuple[Any, ...]] = {  # what may change, besides how images are mixed, and the values to try
    "learning_rate": (1e-4, 3e-4, 1e-3),
    "label_smoothing": (0.0, 0.1),
    "ema": (0.0, 0.98),
    "equalised": (),  # on or off
    "until": ("stage3", "stage4", "stage5"),
    "unfrozen": ("stage2", "stage3", "stage4", "stage5"),
}
USUAL = ("mixing", "learning_rate", "label_smoothing", "ema", "equalised")


class RecipeSpace(keras_tuner.HyperModel):
    """KerasTuner's view of a recipe: which of its settings change (`vary`), the model for it, how a trial is judged.

    Losses while training depend on label smoothing, and confidence on most of the rest; the temperature corrects both
    afterwards. Trials are therefore compared by the log loss on validation, calibrated there, with classes of equal
    weight, after the last epoch.
    """

    def __init__(
        self, recipe: Recipe, tensors: finetune.RecipeData, folder: Path, seed: int, vary: Sequence[str] = USUAL
    ):
        super().__init__()
        if unknown := sorted(set(vary) - {"mixing", *VALUES}):
            raise LungkitError(f"a recipe's {unknown[0]} is not searched; there are: mixing, {', '.join(VALUES)}")
        self.recipe, self.tensors, self.folder, self.seed, self.vary = recipe, tensors, folder, seed, tuple(vary)

    def recipe_for(self, hp: keras_tuner.HyperParameters) -> Recipe:
        """The recipe with the values in `hp`; without any, as it is."""
        own, values = self.recipe, dict[str, Any]()
        if "mixing" in self.vary:
            mixing = next((name for name, blends in MIXING.items() if blends == (own.mixup, own.cutmix)), "none")
            values["mixup"], values["cutmix"] = MIXING[hp.Choice("mixing", list(MIXING), default=mixing)]
        for name in self.vary:
            as_it_is: Any = getattr(own, name, None)
            if isinstance(as_it_is, bool):
                values[name] = hp.Boolean(name, default=as_it_is)
            elif name != "mixing":
                values[name] = hp.Choice(name, sorted({*VALUES[name], as_it_is}), default=as_it_is)
        return replace(own, **values)

    def build(self, hp: keras_tuner.HyperParameters) -> keras.Model | None:
        """The compiled model, with its head solved; None where KerasTuner only reads the space, before any trial."""
        only_read = bool(self.vary) and not hp.values
        recipe = self.recipe_for(hp)
        if only_read:
            return None
        self.folder.mkdir(parents=True, exist_ok=True)
        head = self.folder / f"head-{recipe.until}{'-equalised' * recipe.equalised}.npz"
        begun = finetune.start(recipe, self.tensors, head, self.seed)
        return cnn.compile_classifier(begun.model, **begun.compiled)

    def fit(
        self, hp: keras_tuner.HyperParameters, model: keras.Model, *_: Any, callbacks: Any, epochs: int, **_options: Any
    ) -> dict:
        """Train the model; the trial's score."""
        train, _ = finetune.streams(self.recipe_for(hp), self.tensors, self.seed)
        model.fit(train, epochs=epochs, shuffle=False, callbacks=callbacks, verbose=0)
        labels, scores = self.tensors.data.labels("val"), finetune.calibrated(model, self.tensors)
        return {"val_loss": log_loss(labels, scores, sample_weight=compute_sample_weight("balanced", labels))}


def recipe_task(
    recipe: Recipe,
    source: str,
    *,
    trials: int = 12,
    epochs: int | None = None,
    limit: int | None = None,
    vary: Sequence[str] = USUAL,
    seed: int = 7,
) -> Search:
    """A bayesian search of `trials` trials of `epochs` epochs (default: the recipe's) on at most `limit` images.

    source: as dataset.load_split takes it; one with other classes or of another modality is refused.
    """
    recipe = replace(recipe, epochs=recipe.epochs if epochs is None else epochs)
    parts: dict[str, Any] = {"max_images": recipe.max_images, "merged": recipe.merged}
    recipe.check(dataset.load(source, label_column=recipe.label_column, limit=limit, **parts))
    tensors = finetune.recipe_data(recipe, source, limit)
    settings = recipe.settings() | {"data": tensors.data.fingerprint, "limit": limit, "vary": list(vary)}
    folder = resume.work_folder(f"{recipe.name}-search", settings | {"trials": trials, "seed": seed})
    return Search(
        build=RecipeSpace(recipe, tensors, folder, seed, vary),
        train=None,
        validation=None,
        folder=folder / "search",
        strategy="bayesian",
        trials=trials,
        epochs=recipe.epochs,
        seed=seed,
        settings=settings,
    )

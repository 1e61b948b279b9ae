"""The search of the compact CNN's settings on a data set: the images, the space and the folder it is kept in."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from lungkit.backend import keras

from lungkit import config, resume
from lungkit.data import dataset, preprocess
from lungkit.errors import LungkitError
from lungkit.models import cnn, search
from lungkit.training import fit, pipeline, release


@dataclass(frozen=True, eq=False)
class Task:
    """What models.search.search takes: build, train and validation, its folder, and by name `options`."""

    build: Callable
    train: object
    validation: object
    folder: Path
    options: dict
    settings: dict  # recorded in the folder

    @property
    def material(self) -> tuple:
        """The positional arguments, in order."""
        return self.build, self.train, self.validation, self.folder


def task(
    source: str,
    *,
    strategy: str = "hyperband",
    trials: int | None = None,
    epochs: int | None = None,
    label_column: str | None = None,
    profile: str = "quick",
    seed: int = 7,
) -> Task:
    """The search that notebook 03 makes with these parameters, in the same folder: what is found here it takes up.

    source: as dataset.prepare takes it. `trials` and `epochs` other than the profile's are a search, and a folder,
    of their own.
    """
    if strategy not in search.STRATEGIES:
        raise LungkitError(f"no search strategy '{strategy}'; there are: {', '.join(search.STRATEGIES)}")
    size = config.profile(profile)
    keras.utils.set_random_seed(seed)
    how = {"label_column": label_column, "limit": size.limit(source), "seed": seed}

    def plain(data: dataset.Dataset) -> preprocess.Preprocessing:
        return preprocess.Preprocessing(size=data.input_size(size.image_size))

    chest = dataset.prepare(source, overlap="set_aside", kept_as=plain, **how)
    spec = preprocess.training_statistics(chest.files("train"), plain(chest))
    train = pipeline.served(
        pipeline.decoded(chest, "train", spec),
        size.batch_size,
        augment=pipeline.augmentation(mean=spec.mean, std=spec.std, seed=seed),
        shuffle=True,
        most=size.search_batches,
        seed=seed,
    )
    weights = fit.class_weights(chest.labels("train"), len(chest.classes))

    sizes = {"trials": trials or size.search_trials, "epochs": epochs or size.search_epochs}
    own = {name: value for name, value in (("trials", trials), ("epochs", epochs)) if value}
    settings = {
        "data": chest.fingerprint,
        "profile": profile,
        "seed": seed,
        "spec": spec.to_dict(),
        "strategy": strategy,
    }
    return Task(
        build=partial(cnn.search_space, input_shape=(*spec.size, 1), n_classes=len(chest.classes)),
        train=train,
        validation=pipeline.batches(chest, "val", spec, size.batch_size),
        folder=resume.work_folder(release.default_name(chest), settings | own) / "search",
        options={"strategy": strategy, "seed": seed, "class_weight": weights} | sizes,
        settings=settings,
    )

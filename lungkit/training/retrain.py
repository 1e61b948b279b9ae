"""A challenger: trained as the version in use was, on its own images and on reviewed ones, and never made active here.

Old images are rehearsed, all of them, because a network that is trained on new ones alone forgets (Ratcliff,
"Connectionist models of recognition memory", Psychological Review 1990). A reviewed image counts for up to MOST_COUNT
old ones, until both groups count alike; a recipe that balances its sources takes the clinic as one more source.
A compact network starts from the weights of the version in use, with a smaller rate. Others start from their published
weights, as their recipe says, because fine-tuned ensembles are kept as one graph.
"""

import json
import math
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from lungkit import config, files, resume, wording
from lungkit.data import dataset, preprocess, splits, tensor_cache
from lungkit.errors import LungkitError
from lungkit.models import cnn, registry, saved
from lungkit.training import finetune, fit, outside, recipes, release, reviewed
from lungkit.training.recipes import Recipe
from lungkit.training.reviewed import DealtReviews

MOST_COUNT = 4  # old images for which a reviewed one counts at most
GENTLER = 1 / 3  # of the recipe's learning rate, from trained weights (docs/learning.md says what was tried)
OLD, NEW = "learned", "reviews"  # the folders of the two sets within the joint one


class DataGone(LungkitError):
    """The images that a version learned from cannot be found."""


@dataclass(frozen=True, eq=False)
class Retrained:
    """version: the challenger. history: of its training, as finetune.Trained has it. reviews: what its card says."""

    version: registry.Version
    history: pd.DataFrame
    reviews: dict[str, Any]


def retrain(
    champion: registry.Version, reviews: Path, *, data: Sequence[str | Path] = (), name: str = "", command: str = ""
) -> Retrained:
    """Train and register a challenger of `champion` that has also learned from a data set of reviews.

    data: where the champion's own images are, as dataset.load takes it; default: where they were when it was trained.
    name: of the model that the challenger becomes a version of; default: the champion's.
    A call with the same arguments continues a training that was interrupted. Raises reviewed.ReviewsRefused, DataGone,
    LungkitError where the card does not say how the champion was trained.
    """
    registry.verify(champion)
    recipe, spec = recipe_of(champion), champion.card.preprocessing
    new = reviewed.read(reviews, champion.card)
    own = own_data(champion, data)
    before = set(outside.digests(own.files(), spec, own.name))
    with tensor_cache.closed():  # the pictures are of the clinic's patients
        new, twins = _without_twins(new, before, spec)
        folder = _joint(champion, own, new)
        how: dict[str, Any] = {"label_column": None, "limit": None, "seed": 7}
        joint = dataset.load_split(folder, **how, overlap="set_aside")
        tensors = finetune.made_ready(recipe, joint, how, spec, None if recipe.balanced_sources else counts(joint))
        work = resume.work_folder(f"{champion.model}-retrained", _settings(champion, joint))
        model, whole, history, start = _trained(champion, recipe, tensors, work)
        record = new.record() | {"seen_before": len(twins)}
        version = release.register(
            whole,
            name or champion.model,
            joint,
            spec,
            architecture={**(champion.card.architecture or {}), "parameters": model.count_params()},
            training=dict(champion.card.training or {})
            | {
                "seconds": round(float(history["seconds"].sum()), 1),
                "champion": str(champion),
                "champion_sha256": registry.fingerprint(champion),
                "started_from": start,
                "reviewed_image_counts": "as its source" if recipe.balanced_sources else round(_count(joint), 2),
                "reviews": record,
            },
            recipe=how,
            modality=champion.card.modality,
            grades=champion.card.rule.grades,
            about=_about(champion, record, command),
            promote=False,
            # What the weights have learned from stays seen, also if later sets of reviews do not have it any more.
            seen=[*twins, *(release.seen_images(champion) if _continues(champion, recipe) else ())],
            compact=not saved.holds_keras(champion),
            int8=bool(champion.card.int8 and champion.card.int8.kept),
        )
    return Retrained(version, history, record)


# --- how the champion was trained


def recipe_of(version: registry.Version) -> Recipe:
    """The recipe of a version that `lungkit train`, a retraining or notebook 03 made, read from its card."""
    card = version.card
    training, architecture = card.training or {}, card.architecture or {}
    own: dict[str, Any] = {"name": version.model, "modality": "" if card.modality == "image" else card.modality}
    own |= {"grades": card.rule.grades, "side": card.preprocessing.size[0]}
    try:
        if architecture.get("name") == "cnn":
            return Recipe(
                **own, backbone="cnn", epochs=int(training["epochs"]), learning_rate=architecture["learning_rate"],
                dropout=architecture["dropout"], weight_decay=cnn.WEIGHT_DECAY, label_smoothing=0.0, mixup=0.0,
                augmentation={}, mirrored=False, seeds=(int(training["seed"]),),
            )  # fmt: skip
        names = {field.name for field in fields(Recipe)} - own.keys() | {"side"}
        settings = {name: value for name, value in training.items() if name in names}
        members = tuple(training.get("members") or [{}])  # older cards are of one member for each seed
        seeds = int(architecture["members"]) // len(members)
        settings |= {"members": members, "seeds": tuple(range(1, seeds + 1)), "backbone": training["backbone"]}
        return Recipe(**own | settings)
    except (KeyError, TypeError, ValueError, ZeroDivisionError) as error:
        raise LungkitError(
            f"the card of {version} does not say how it was trained ({error}), so it cannot be trained again. Train "
            "the model with `lungkit train` or notebook 03 first"
        ) from None


def own_data(version: registry.Version, given: Sequence[str | Path] = ()) -> dataset.Dataset:
    """The images that a version learned from, with its split, but no reviewed ones; DataGone where they are not found.

    given: where they are; of a set that was joined of several, its folder.
    """
    recipe = dict(version.card.data.recipe)
    for source in given or _places(version):
        with suppress(LungkitError, OSError):
            if data := release.as_trained(version, str(source), recipe):
                return _unreviewed(data)
    looked = f" in {', '.join(map(str, given))}" if given else ""
    raise DataGone(
        f"the images that {version} learned from ({version.card.data.name}) were not found{looked}, or are not the "
        "same any more; nothing was trained. Give their folder with --data"
    )


def _places(version: registry.Version) -> list[str | Path]:
    """Where the images may be: where they were prepared, and of a phantom wherever it is drawn."""
    name, places = version.card.data.name, list[str | Path]()
    with suppress(LungkitError):
        places.append(dataset.Dataset.open(config.data_dir() / "manifests" / name).root)
    if version.card.synthetic and name.startswith("phantom"):
        places.append("phantom")
    return [*places, "pneumoniamnist"] if name == "pneumoniamnist" else places


def _unreviewed(data: dataset.Dataset) -> dataset.Dataset:
    """The old part of a joint set, as it was before it was joined; another set as it is."""
    if not (data.root / NEW).exists() or not (data.root / OLD).exists():
        return data
    rows = data.manifest[data.manifest["file"].str.startswith(f"{OLD}/")]
    short = {column: rows[column].str.removeprefix(f"{OLD}/") for column in ("file", "patient_id", "mask")}
    root = (data.root / OLD).resolve()
    return replace(data, name=root.name, root=root, manifest=rows.assign(**short).reset_index(drop=True))


# --- the joint set


def _without_twins(
    new: DealtReviews, before: set[str], spec: preprocess.Preprocessing
) -> tuple[DealtReviews, list[str]]:
    """The reviews without patients who have a picture that is in the champion's own data, and their images' hashes.

    before: the digests of that data. Records keep pixels, not files, so pictures are compared as the network sees them.
    """
    digests = outside.digests([new.folder / file for file in new.rows["file"]], spec, new.name)
    patients = set(new.rows["patient_id"][[digest in before for digest in digests]])
    twin = new.rows["patient_id"].isin(patients)
    hashes, kept = sorted(new.rows["sha256"][twin]), replace(new, rows=new.rows[~twin])
    if missing := [part for part in splits.PARTS if part not in set(kept.rows["split"])]:
        raise reviewed.ReviewsRefused(
            f"{new.name}: no patient is left for {', '.join(missing)}; {len(patients)} have a picture that the model's "
            "own data has. Collect more reviews"
        )
    return kept, hashes


def _joint(champion: registry.Version, own: dataset.Dataset, new: DealtReviews) -> Path:
    """The folder of both sets in one, of links to them; the held-out reviews are in its test part."""
    old_rows = own.manifest[own.manifest["split"].isin(splits.PARTS)]
    parts = [_below(old_rows, OLD), _below(new.rows, NEW)]
    rows = pd.concat(parts, ignore_index=True)
    table = str(rows.to_csv(index=False, lineterminator="\n"))
    place = files.sha256(f"{table}{own.root}{new.folder}".encode())[:12]
    folder = config.data_dir() / "joined" / place / f"{own.name}-and-{new.name}"
    if not folder.is_dir():
        about = {"classes": list(champion.card.classes), "synthetic": own.synthetic}
        with files.new_folder(folder) as draft:
            draft.chmod(0o700)  # it names patients, if only by random identifiers
            (draft / OLD).symlink_to(own.root, target_is_directory=True)
            (draft / NEW).symlink_to(new.folder, target_is_directory=True)
            (draft / "labels.csv").write_text(table, "utf-8")
            (draft / "dataset.json").write_text(json.dumps(about), "utf-8")
    return folder


def _below(rows: pd.DataFrame, name: str) -> pd.DataFrame:
    def moved(column: str) -> pd.Series:
        return (f"{name}/" + rows[column]).where(rows[column] != "", "")

    columns = ["file", "label", "patient_id", "split", "source", "modality", "mask"]
    return rows.assign(**{column: moved(column) for column in ("file", "patient_id", "mask")})[columns]


def counts(joint: dataset.Dataset) -> np.ndarray:
    """For how many images each training image of a joint set counts, (n,)."""
    return np.where(joint.part("train")["file"].str.startswith(f"{NEW}/"), _count(joint), 1.0)


def _count(joint: dataset.Dataset) -> float:
    new = int(joint.part("train")["file"].str.startswith(f"{NEW}/").sum())
    return count(len(joint.part("train")) - new, new)


def count(old: int, new: int) -> float:
    """For how many old images a reviewed one counts: until both groups count alike, and MOST_COUNT at most."""
    return float(np.clip(old / max(1, new), 1, MOST_COUNT))


# --- training


def _settings(champion: registry.Version, joint: dataset.Dataset) -> dict[str, Any]:
    return {"champion": registry.fingerprint(champion), "data": joint.fingerprint}


def _continues(champion: registry.Version, recipe: Recipe) -> bool:
    """Whether training continues from the champion's weights."""
    return recipe.backbone == "cnn" and saved.holds_keras(champion)


def _trained(
    champion: registry.Version, recipe: Recipe, tensors: finetune.RecipeData, work: Path
) -> tuple[Any, Any, pd.DataFrame, str]:
    """The model of what `tensors` holds, the one to register, the history, and in words what it started from."""
    if _continues(champion, recipe):
        model, history = _continued(champion, recipe, tensors, work)
        return model, model, history, f"the weights of {champion}"
    trained = finetune.members_of(recipe, tensors, work)
    return trained.model, trained.of_whole_images, trained.history, "the start that its recipe has"


def _continued(
    champion: registry.Version, recipe: Recipe, tensors: finetune.RecipeData, work: Path
) -> tuple[Any, pd.DataFrame]:
    """The champion's network, trained further."""
    seed = recipe.seeds[0]
    model = saved.load(champion)
    cnn.compile_classifier(
        model,
        optimizer=(champion.card.architecture or {}).get("optimizer", cnn.OPTIMIZER),
        learning_rate=recipe.learning_rate * GENTLER,
        weight_decay=recipe.weight_decay,
        decay_steps=recipe.epochs * math.ceil(len(tensors.train) / recipe.batch_size),
        label_smoothing=recipe.label_smoothing,
        ema=recipe.ema,
    )
    settings = recipe.settings() | {"data": tensors.data.fingerprint, "champion": registry.fingerprint(champion)}
    return fit.fit(
        model, *finetune.streams(recipe, tensors, seed), work / "stages", epochs=recipe.epochs,
        patience=recipe.epochs, settings=settings,
    )  # fmt: skip


def _about(champion: registry.Version, record: dict[str, Any], command: str) -> dict[str, Any]:
    about = champion.card.about.to_dict() if champion.card.about else {}
    learned = record["train"]
    more = f"{wording.count(learned['images'], 'reviewed image')} of {wording.count(learned['patients'], 'patient')}"
    population = about.get("population", recipes.NOT_STATED).partition("; and ")[0]
    return about | {"population": f"{population}; and {more} of this clinic", "command": command}

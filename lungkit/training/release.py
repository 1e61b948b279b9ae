"""What happens to a model once it is trained: registered with its card, and scored on data it has not seen."""

import json
import shutil
import tempfile
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from lungkit.backend import keras

import numpy as np
import pandas as pd

from lungkit import config, files, progress, wording
from lungkit.data import dataset, images, preprocess, splits
from lungkit.data.notes import ColumnMissing, DatasetError, alike
from lungkit.errors import LungkitError
from lungkit.models import graph, input_checks, registry, saved
from lungkit.models.card import (
    About,
    CheckLimits,
    Measured,
    ModelCard,
    Outside,
    Quantization,
    SplitCounts,
    TrainingData,
)
from lungkit.models.grades import Grades
from lungkit.models.rule import DecisionRule
from lungkit.training import (
    activation,
    calibration,
    evaluation,
    export,
    input_statistics,
    looks,
    pipeline,
    quantization,
)

# Names of the images (by content) that a version learned from or was chosen on, one a line, in its folder.
TRAINED_ON = "trained_on.txt"
_BATCH = 8


def logits(model: keras.Model, tensors: np.ndarray) -> np.ndarray:
    """float64 (n, classes), for images (n, height, width, 1)."""
    return model.predict(tensors, batch_size=64, verbose=0).astype(np.float64)


def chosen_rule(
    answer: Callable[[np.ndarray], np.ndarray],
    tensors: np.ndarray,
    labels: np.ndarray,
    spec: preprocess.Preprocessing,
    classes: Sequence[str],
    grades: Grades | None = None,
) -> tuple[DecisionRule, np.ndarray]:
    """The decision rule by the validation images as they are and changed, and the logits of them as they are.

    answer: preprocessed images (n, height, width, 1 or 2) to logits (n, classes).
    """
    raw = answer(tensors)
    changed = np.stack([answer(copy) for copy in pipeline.changed(tensors, spec.mean, spec.std)])
    return calibration.decision_rule(labels, raw, classes, grades, changed), raw


@dataclass(frozen=True, eq=False)
class Candidate:
    """A version before it is registered: what probes may ask of it."""

    card: ModelCard  # as far as it is known
    read: Callable[[np.ndarray], dict[str, np.ndarray]]  # preprocessed images (n, height, width, 1) to the outputs
    flagged: Callable[[list[Path]], np.ndarray]  # files to whether the input checks flag each: bool (n,)


def register(
    model: keras.Model,
    name: str,
    data: dataset.Dataset,
    preprocessing: preprocess.Preprocessing,
    *,
    architecture: dict,
    training: dict,
    recipe: dict,
    modality: str | None = None,
    grades: Grades | None = None,
    about: dict | None = None,
    measured: Mapping[str, Measured] | None = None,
    probes: Callable[[Candidate], dict] | None = None,
    test_too: bool = False,
    scored_before: int = 0,
    outside: tuple[Outside, ...] = (),
    compact: bool = False,
    int8: bool = False,
    report: Path | None = None,
    promote: bool = True,
    seen: Collection[str] = (),
) -> registry.Version:
    """Calibrate, choose the operating point and measure on the validation patients; register a new version.

    It becomes active unless it is measurably worse than the active one, or cannot be compared with it (see
    lungkit.training.activation); the card's "standing" says which.

    architecture, training, about: what people should know of them, JSON-ready, kept in the card.
    recipe: the arguments of dataset.load_split (label_column, limit, seed …) that give this split again.
    modality: "X-ray", "CT" or "MRI"; default: what the data set says of its images.
    grades: what the classes mean, where they are grades.
    measured: further figures for the card's metrics, by where they were measured.
    probes: asked last, when all was chosen; what they answer is the card's "trust".
    test_too: whether the test part is scored, now and once, for the card. scored_before: how often the same test part
        was scored for earlier versions, for the card's "times_scored".
    outside: figures on sources that were left out of a training like this one.
    report: the folder of the run of notebooks, where config.REGISTERED is to name this version for those that follow.
    compact: leave out the model for Keras, and keep the graph's weights as float16 where it then still says what Keras
        says. The clinic and `score` need the graph alone.
    int8: put the graph into 8 bits if its AUC on the validation patients hardly moves (lungkit.training.quantization).
        All that is chosen and measured on them is then chosen and measured with that graph.
    promote: False registers a challenger, which does not become active however good it is.
    seen: SHA-256 of images, besides those of training and validation, that the version counts as having seen.
    Raises export.NotExportable where there is no such graph, or where it does not say what the model says.
    """
    tensors, labels = preprocess.read_batch(data.files("val"), preprocessing), data.labels("val")
    rule, raw = chosen_rule(partial(logits, model), tensors, labels, preprocessing, data.classes, grades)
    scores = rule.calibrate(raw)
    counts = {
        split: SplitCounts(images=len(data.files(split)), patients=len(set(data.patients(split))))
        for split in ("train", "val", "test")
    }
    seen = sorted({*data.part("train")["sha256"], *data.part("val")["sha256"], *seen})
    with tempfile.TemporaryDirectory() as folder:
        made = Path(folder)
        agreement = _exported(model, made, tensors, scores, rule, compact)
        half = agreement["weights"] == "float16"
        tried = _in_8_bits(made, data, preprocessing, tensors, half) if int8 else None
        if tried and tried.kept:
            rule, scores = _recalibrated(made, data, preprocessing, tensors, rule, half)
            differences = export.differences(model, graph.Graph(made), tensors, rule.calibrate(raw), rule)
            agreement = agreement | differences | {"precision": "int8"}
        on_validation = _evaluated(data, "val", scores, rule)
        without_heat = graph.Graph(made, heat=False)
        references, limits = input_statistics.fit(data, preprocessing, lambda batch: without_heat(batch)["embedding"])
        input_checks.save(made, references)
        if not compact:
            saved.save(model, made)
        (made / TRAINED_ON).write_text("".join(f"{sha256}\n" for sha256 in seen))
        metrics = {"val": on_validation.record, **(measured or {})}
        if test_too:
            looks.count(data.part("test")["sha256"], name, data.name, "registration")
            test = _read(without_heat, preprocess.read_batch(data.files("test"), preprocessing))
            metrics["test"] = replace(_test_figures(rule, data, test), times_scored=scored_before + 1)
        card = ModelCard(
            classes=data.classes,
            modality=modality or input_statistics.modality(data),
            preprocessing=preprocessing,
            data=TrainingData(
                name=data.name,
                fingerprint=data.fingerprint,
                counts=counts,
                recipe=recipe,
                sources=tuple(sorted({*data.sources("train"), *data.sources("val")})),
            ),
            metrics=metrics,
            rule=rule,
            checks=limits,
            graph=agreement,
            int8=tried,
            synthetic=data.synthetic,
            architecture=architecture,
            training=training,
            about=About.from_dict(about) if about else None,
            outside=outside or None,
        )
        if probes:
            flagged = partial(_flagged, preprocessing, limits, references, without_heat)
            card = replace(card, trust=probes(Candidate(card, graph.Graph(made), flagged)))
        with registry.registering(name):
            standing = activation.CHALLENGER
            if promote:
                standing = activation.standing(name, card, data, on_validation, _read)
            copied = partial(shutil.copytree, made, dirs_exist_ok=True)
            version = registry.add(name, replace(card, standing=standing), copied, promote=standing.active)
    if report:
        record = {"version": str(version), "says": activation.sentence(version)}
        files.replace(report / config.REGISTERED, json.dumps(record, ensure_ascii=False))
    return version


def _read(runtime: graph.Graph, tensors: np.ndarray) -> np.ndarray:
    """Probabilities float64 (n, classes) of preprocessed images."""
    answers = runtime.stream((None, tensors[i : i + _BATCH]) for i in range(0, len(tensors), _BATCH))
    scores = np.concatenate([outputs["probabilities"] for _, outputs, _ in answers]).astype(np.float64)
    return scores / scores.sum(axis=1, keepdims=True)


def _test_figures(rule: DecisionRule, data: dataset.Dataset, scores: np.ndarray) -> Measured:
    figures = _evaluated(data, "test", scores, rule).record
    sets = calibration.conformal_figures(rule, data.labels("test"), scores, data.patients("test"), data.sources("test"))
    return replace(figures, conformal=sets)


def _evaluated(data: dataset.Dataset, split: str, scores: np.ndarray, rule: DecisionRule) -> evaluation.Evaluation:
    labels, patients, sources = data.labels(split), data.patients(split), data.sources(split)
    return evaluation.evaluate(labels, scores, patients, data.classes, rule, sources=sources)


def _flagged(
    spec: preprocess.Preprocessing, limits: CheckLimits, references: dict, runtime: graph.Graph, files: list[Path]
) -> np.ndarray:
    """Whether the checks of "kind" and "intensity" flag each of these files."""
    tensors = preprocess.read_batch(files, spec)
    embeddings = np.concatenate([runtime(tensor[None])["embedding"] for tensor in tensors])
    kind = references["kind"].distance(input_checks.embedding_features(embeddings))
    intensity = np.stack([input_checks.intensity_features(tensor, spec) for tensor in tensors])
    return (kind > limits.kind) | (references["intensity"].distance(intensity) > limits.intensity)


def _exported(
    model: keras.Model, folder: Path, tensors: np.ndarray, scores: np.ndarray, rule: DecisionRule, half: bool
) -> dict[str, Any]:
    """Write the graph, with half-precision weights if it then still says what Keras says; the card's "graph"."""
    export.write(model, folder, rule.temperature or 1.0, half)
    try:
        agreement = export.agreement(model, graph.Graph(folder), tensors, scores, rule)
    except export.NotExportable:
        if not half:
            raise
        return _exported(model, folder, tensors, scores, rule, half=False)
    return agreement | {"weights": "float16" if half else "float32"}


def _in_8_bits(
    folder: Path, data: dataset.Dataset, spec: preprocess.Preprocessing, tensors: np.ndarray, half: bool
) -> Quantization:
    """The graph in `folder` put into 8 bits, if the AUC on the validation images, `tensors`, hardly moves."""
    files = data.files("train")
    some = np.random.default_rng(0).permutation(len(files))[: quantization.IMAGES]

    def auc(runtime: graph.Graph) -> quantization.Auc:
        return _evaluated(data, "val", _read(runtime, tensors), DecisionRule(kind="argmax")).value("auc")

    return quantization.attempt(folder, preprocess.read_batch([files[i] for i in some], spec), auc, half)


def _recalibrated(
    folder: Path,
    data: dataset.Dataset,
    spec: preprocess.Preprocessing,
    tensors: np.ndarray,
    rule: DecisionRule,
    half: bool,
) -> tuple[DecisionRule, np.ndarray]:
    """The decision rule chosen again on a changed graph's answers to the validation images, and these answers.

    The graph gets the new temperature. Its logits, up to a number for each image that changes nothing, are the
    logarithms of its probabilities.
    """
    runtime, temperature = graph.Graph(folder, heat=False), rule.temperature or 1.0

    def raw(images: np.ndarray) -> np.ndarray:
        return temperature * np.log(np.maximum(_read(runtime, images), np.finfo(np.float32).tiny))

    again, _ = chosen_rule(raw, tensors, data.labels("val"), spec, data.classes, rule.grades)
    export.divide_logits(folder, (again.temperature or 1.0) / temperature, half)
    return again, _read(graph.Graph(folder, heat=False), tensors)


@dataclass(frozen=True)
class Scored:
    """A version's answers on one split of a data set."""

    version: registry.Version
    data: dataset.Dataset
    split: str
    rows: pd.DataFrame  # the manifest's rows of the images below, in their order
    tensors: np.ndarray  # float32 (n, height, width, 1), preprocessed
    labels: np.ndarray  # int (n,), positions in the model's classes
    probabilities: np.ndarray  # float64 (n, classes)
    evaluation: evaluation.Evaluation
    seen_in_training: int  # images of the split that the version was trained or chosen on
    seconds: float  # from file to probabilities, for all images
    unreadable: list[dict]  # file and reason of each image of the split that could not be read
    by_request: bool  # whether the split was asked for, or follows from what the set publishes

    @property
    def files(self) -> list[str]:
        """Names of the images, relative to the data set's root."""
        return self.rows["file"].tolist()

    @property
    def scope(self) -> str:
        """In words: which images these are."""
        n, images = len(self.labels), wording.count(len(self.labels) + len(self.unreadable), "image")
        text = f"{self.split}: {f'{n:,} of ' if self.unreadable else ''}{images}"
        no_test = not self.by_request and self.split == "all"
        return f"{text} (the set has no published test part, so every image is scored)" if no_test else text

    @property
    def remarks(self) -> list[str]:
        """What should be known before these figures are believed; one line each."""
        counts = self.not_scored
        rest = ", ".join(f"{count:,} {name.replace('_', ' ') or 'of no part'}" for name, count in counts.items())
        remarks = [f"not scored: {rest} (--split all scores every image)"] if counts else []
        remarks += [f"no image of {name}: figures that need one are left out (–)" for name in self.absent]
        if len(set(self.patients)) == 1:
            remarks.append("all images are of one patient, so there are no intervals (–)")
        if self.seen_in_training:
            remarks.append(f"{self.seen_in_training} of these images were used to train or choose the model")
        return remarks

    @property
    def not_scored(self) -> dict[str, int]:
        """Images of the set by the part that they are in, where that is not the split scored; unreadable ones apart."""
        rest = self.data.part()
        rest = rest[rest["split"] != self.split] if self.split != "all" else rest[:0]
        return {str(split): int(count) for split, count in rest["split"].value_counts().items()}

    @property
    def absent(self) -> list[str]:
        """Classes of the model of which there is no image."""
        return [name for i, name in enumerate(self.version.card.classes) if i not in self.labels]

    @property
    def review(self) -> dict:
        """What the clinic leaves to a person; see evaluation.review."""
        return evaluation.review(
            self.version.rule, self.labels, self.probabilities, self.patients, self.rows["source"].to_numpy(str)
        )

    @property
    def patients(self) -> np.ndarray:
        """The patient of each image, (n,)."""
        return self.rows["patient_id"].to_numpy(str)

    def to_dict(self) -> dict:
        """JSON-ready: the evaluation's figures and what they were measured on."""
        return self.evaluation.to_dict() | {
            "review": self.review,
            "model": str(self.version),
            "data": self.data.name,
            "split": self.split,
            "synthetic": self.data.synthetic,
            "scope": self.scope,
            "unreadable": self.unreadable,
            "not_scored": {name or "of no part": count for name, count in self.not_scored.items()},
            "absent_classes": self.absent,
            "notes": [note.to_dict() for note in self.data.notes],
            "seen_in_training": self.seen_in_training,
            "seconds": round(self.seconds, 3),
            "images_per_second": round(len(self.labels) / self.seconds, 1),
        }


def data_for(version: registry.Version, source: str, label_column: str | None = None) -> dataset.Dataset:
    """The data set at `source`, with the split that it publishes, if any; nothing else is dealt into parts.

    The very set that this version was trained on (the same images, patients and labels, wherever it lies now) is split
    as it was then: its test part is of patients that the version has not seen. What the training's limit left out is in
    no part.
    label_column: default: the version's own where the set has it, otherwise "label".
    """
    registry.verify(version)
    recipe = dict(version.card.data.recipe) | ({"label_column": label_column} if label_column else {})
    given = _as_given(version, source, recipe, label_column)
    # A version that was trained again has also seen images that are in no set any more.
    unknown = seen_images(version).isdisjoint(given.manifest["sha256"])
    trained = None if unknown else as_trained(version, source, recipe)
    if trained is None:
        return given
    beyond = given.manifest[~given.manifest["file"].isin(trained.manifest["file"])].assign(split="")
    if beyond.empty:
        return trained
    return replace(trained, manifest=pd.concat([trained.manifest, beyond], ignore_index=True))


def _as_given(version: registry.Version, source: str, recipe: dict, label_column: str | None) -> dataset.Dataset:
    made = phantom_of(version, source) | ({"merged": recipe["merged"]} if "merged" in recipe else {})
    try:
        return dataset.as_given(source, label_column=recipe.get("label_column"), **made)
    except ColumnMissing:
        if label_column:
            raise
        return dataset.as_given(source, **made)


def phantom_of(version: registry.Version, source: str) -> dict[str, Any]:
    """Where the source is the phantom and a version learned from it: its number of slices and seed, for dataset."""
    recipe = version.card.data.recipe if version.card.synthetic and source == "phantom" else {}
    return {name: recipe[name] for name in ("limit", "seed") if name in recipe}


def as_trained(version: registry.Version, source: str, recipe: dict) -> dataset.Dataset | None:
    """The set split by the version's recipe; None where that is not what it was trained on."""
    try:
        data = dataset.load_split(source, **recipe | {"overlap": "set_aside", "quiet": True})
    except (DatasetError, splits.SplitError):
        return None
    return data if data.fingerprint == version.card.data.fingerprint else None


def seen_images(version: registry.Version) -> set[str]:
    """SHA-256 of each image that a version was trained or chosen on."""
    return set((version.folder / TRAINED_ON).read_text().split())


def score(version: registry.Version, data: dataset.Dataset, split: str | None = None, by: str = "a notebook") -> Scored:
    """Read the split's files, predict, and evaluate at the version's operating point.

    split: "train", "val", "test", or "all" (every image); default: "test" where the set has such a part, otherwise
    "all". An image that cannot be read is listed with its reason. Classes are matched by name, whatever their case; a
    class that the model does not know is refused.

    by: what scores, for the ledger of lungkit.training.looks. Images that the version was not trained or chosen on are
        a test of it, so reading them is counted, before any figure of them is known.
    """
    by_request, split = split is not None, split or ("test" if len(data.part("test")) else "all")
    rows = _rows(data, split)
    labels = _labels_for(version, data, rows)
    registry.verify(version)
    known = rows["sha256"].isin(seen_images(version))
    looks.count(rows["sha256"][~known], str(version), data.name, by)
    runtime = graph.Graph(version.folder, heat=False, many=True)
    spec = version.card.preprocessing
    started = time.perf_counter()
    tensors, refused = _readable([data.root / file for file in rows["file"]], spec)
    unreadable = [{"file": rows["file"].iloc[i], "reason": reason} for i, reason in refused.items()]
    if len(unreadable) == len(rows):
        first = f"{unreadable[0]['file']}: {unreadable[0]['reason']}"
        raise LungkitError(f"{data.name}: none of {len(rows)} images could be read. The first is {first}")
    kept = [i not in refused for i in range(len(rows))]
    rows, labels = rows[kept], labels[kept]
    scores = _read(runtime, tensors)
    seconds = time.perf_counter() - started
    patients, sources = (rows[name].to_numpy(str) for name in ("patient_id", "source"))
    measured = evaluation.evaluate(labels, scores, patients, version.card.classes, version.rule, sources=sources)
    if split == "all":  # also what was refused when the set was split
        unreadable += dataset.refused(data)
    seen = int(known[kept].sum())
    return Scored(version, data, split, rows, tensors, labels, scores, measured, seen, seconds, unreadable, by_request)


def _readable(files: list[Path], spec: preprocess.Preprocessing) -> tuple[np.ndarray, dict[int, str]]:
    """The tensors of the files that can be read, and for the others, by their place, why not."""

    def tensor(file: Path) -> np.ndarray | str:
        try:
            return preprocess.prepare(file, spec).tensor
        except images.ImageRefused as error:
            return f"{error.rule}. {error.remedy}"

    results = list(progress.parallel(tensor, files))
    refused = {i: reason for i, reason in enumerate(results) if isinstance(reason, str)}
    tensors = [result for result in results if not isinstance(result, str)]
    return np.stack(tensors) if tensors else np.empty((0, *spec.size, 1), np.float32), refused


def heat_maps(version: registry.Version, tensors: np.ndarray, classes: np.ndarray) -> np.ndarray:
    """Grad-CAM of a class for each image, from the version's graph: float32 (n, height, width), 0..1.

    tensors: (n, height, width, 1), preprocessed. classes: (n,), positions in the model's classes.
    """
    registry.verify(version)
    runtime = graph.Graph(version.folder)
    return np.stack([runtime(tensor[None])["heat"][0, cls] for tensor, cls in zip(tensors, classes, strict=True)])


def _rows(data: dataset.Dataset, split: str) -> pd.DataFrame:
    """The split's images; of all, each once. Refused, with what there is, where there are none."""
    if split not in ("all", *dataset.SIDES):
        raise LungkitError(f"no split '{split}'; accepted: train, val, test, all")
    rows = data.part().drop_duplicates("file") if split == "all" else data.part(split)
    if rows.empty:
        counts = data.part()["split"].replace("", "of no part").value_counts()
        there_are = ", ".join(f"{count:,} {name}" for name, count in counts.items()) or "none"
        raise LungkitError(
            f"{data.name} has no image in split '{split}'; there are: {there_are}. --split all scores every image"
        )
    return rows


def _labels_for(version: registry.Version, data: dataset.Dataset, rows: pd.DataFrame) -> np.ndarray:
    classes = version.card.classes
    position = {alike(name): i for i, name in enumerate(classes)}
    if unknown := sorted({label for label in rows["label"] if alike(label) not in position}):
        raise LungkitError(
            f"{version} knows {', '.join(classes)}, but {data.name} is labelled {', '.join(unknown)}; "
            "choose the matching column with --label-column, or name the classes as the model does"
        )
    return rows["label"].map(lambda label: position[alike(label)]).to_numpy(np.int64)

"""Reads one image with a registered version, without TensorFlow: probabilities, decision, heat maps, input checks."""

import time
from collections import OrderedDict
from dataclasses import replace
from threading import Lock

import numpy as np

from lungkit.clinic import decode
from lungkit.data import images
from lungkit.data.image import placed
from lungkit.errors import LungkitError
from lungkit.models import card_text, graph, input_checks, population, prediction, registry
from lungkit.models.prediction import MODALITY, Check, Prediction

REVIEW = prediction.REVIEW
_KEPT = 2  # compiled versions that a kernel keeps; each takes some ten megabytes
_FIRST = "chest-xray-pneumonia"  # what the clinic begins with, where it is there
_ORDER = ("X-ray", "CT", "MRI")  # of modalities, in a list


class NoGraph(LungkitError):
    """A version, or every model there is, that the clinic cannot run."""


class Predictor:
    """A registered version, its files checked against their hashes and its graph compiled.

    heat: False leaves the heat maps out. many: for folders of images, on all processors (see lungkit.clinic.batch), or
    on as many as `threads`. age: in years, of the patient wherever a file states none.
    Raises registry.ModelDamaged where a file is not the registered one, NoGraph where the version holds none.
    """

    def __init__(
        self,
        version: registry.Version,
        heat: bool = True,
        many: bool = False,
        threads: int = 0,
        age: float | None = None,
    ):
        registry.verify(version)
        if not (version.folder / graph.FILE).is_file():
            raise NoGraph(
                f"{version} has no exported graph, so that the clinic cannot run it; train and register it again"
            )
        if version.card.checks is None:
            raise NoGraph(f"{version} has no limits for its image checks; train and register it again")
        self.version, self.card, self.rule, self._limits = version, version.card, version.rule, version.card.checks
        self.classes, self._age = self.card.classes, age
        self.spec = self.card.preprocessing
        self.graph = graph.Graph(version.folder, heat=heat, many=many, threads=threads)
        self._references = input_checks.load(version.folder)

    def read(self, image: images.Image, started: float | None = None, age: float | None = None) -> Prediction:
        """What the version says about an image.

        started: time.perf_counter() when its file arrived, which `milliseconds` counts from; default: now.
        age: of the patient in years at the time of the image by the birth year; that of the file counts as well.
        """
        started = time.perf_counter() if started is None else started
        tensor, facts = decode.prepare(image, self.spec)
        facts = replace(facts, by_year=age)
        outputs = self.graph(tensor[np.newaxis])
        return self.reading(facts, {name: values[0] for name, values in outputs.items()}, started)

    def reading(self, facts: decode.Facts, outputs: dict[str, np.ndarray], started: float) -> Prediction:
        """The reading that the graph's outputs for one image amount to; `started` as in `read`."""
        probabilities = outputs["probabilities"].astype(np.float64)
        probabilities /= probabilities.sum()
        row = probabilities[np.newaxis]
        label = self.classes[int(self.rule.decide(row)[0])]
        checks = self._checks(facts, outputs)
        named = dict(zip(self.classes, probabilities.tolist(), strict=True))
        heat = outputs.get("heat")
        if heat is not None:
            heat = np.ascontiguousarray(heat[:, *placed(facts.shape, self.spec.size)])
        return Prediction(
            model=self.version.model,
            version=self.version.version,
            classes=self.classes,
            probabilities=probabilities,
            label=label,
            decision=prediction.decided(label, named, self.rule, checks),
            rule=self.rule,
            heat=heat,
            checks=checks,
            milliseconds=1000 * (time.perf_counter() - started),
            note=facts.note,
        )

    def distance(self, name: str, features: np.ndarray) -> float:
        """How far features (n,) of an image lie from the training images': "kind" or "intensity"."""
        return float(self._references[name].distance(features[np.newaxis])[0])

    def _checks(self, facts: decode.Facts, outputs: dict[str, np.ndarray]) -> tuple[Check, ...]:
        limits, trained_on = self._limits, f"the {card_text.subject(self.card)} that this model learned from"
        kind = self.distance("kind", input_checks.embedding_features(outputs["embedding"]))
        intensity = self.distance("intensity", facts.intensity)
        usual_units, usual_intensity = limits.units in (None, facts.units), intensity <= limits.intensity
        if not usual_units and facts.units == "HU":
            kind_words = "a CT slice in Hounsfield units; this model learned from pictures without them"
        elif not usual_units:
            kind_words = "not a CT slice in Hounsfield units, and this model learned from nothing else"
        elif kind > limits.kind:
            kind_words = f"does not look like {trained_on}: it may show something else"
        else:
            kind_words = f"looks like {trained_on}"
        intensity_words = (
            f"brightness, contrast and sharpness are {'as' if usual_intensity else 'unlike'} in {trained_on}"
        )
        side, size_words = min(facts.shape), f"{facts.shape[1]} x {facts.shape[0]} pixels"
        if side < limits.size:
            size_words += f"; this model needs {limits.size} on each side"
        checks: tuple[Check, ...] = (
            Check("kind", usual_units and kind <= limits.kind, kind, limits.kind, kind_words),
            Check("intensity", usual_intensity, intensity, limits.intensity, intensity_words),
            Check("size", side >= limits.size, float(side), float(limits.size), size_words),
        )
        stated = replace(facts.stated, age=self._age) if facts.stated.age is None else facts.stated
        outside = population.checks(self.card, stated, facts.by_year)
        of_another_kind = (not usual_units and facts.units == "HU") or any(check.name == MODALITY for check in outside)
        lies = input_checks.orientation(outputs.get("orientation"), facts.stated.orientation, self.card.modality)
        if lies and not of_another_kind:  # what is upright in an X-ray says nothing of a CT
            turned, most, words = lies
            checks = (*checks, Check("orientation", turned <= most, turned, most, words))
        if "lungs" in outputs:
            share, passed, lung_words = input_checks.lungs_seen(outputs["lungs"], facts.shape, self.card.modality)
            checks = (*checks, Check("lungs", passed, share, input_checks.LEAST_LUNG, lung_words))
        return (*checks, *outside)


class ModelPool:
    """The models that the clinic can read with: the active versions that hold a graph.

    A version is compiled when it is first asked for, and another takes its place as soon as the registry's pointer
    moves. Any thread may call.
    """

    def __init__(self) -> None:
        self._lock = Lock()
        self._compiled: OrderedDict[str, Predictor] = OrderedDict()

    def names(self) -> list[str]:
        """Their names, sorted; a model whose card cannot be read is left out."""
        return sorted(version.model for version in _active_versions())

    def choices(self) -> list[tuple[str, str]]:
        """(what it answers, name) of each, those of one modality together; a phantom's comes last and says so."""
        return [(_question(version), version.model) for version in sorted(_active_versions(), key=_place)]

    def fitting(
        self, name: str, by_year: float | None, age: float | None = None, modality: str | None = None
    ) -> str | None:
        """Another model for images like those of `name` that is for patients of this age; None where none is.

        by_year, age: as in `population.suits`. modality: of the images, where `name` is not for such.
        """
        versions = sorted(_active_versions(), key=_place)
        of_name = next((version.card.modality for version in versions if version.model == name), None)
        modality = modality or of_name
        for version in versions:
            same = version.model != name and version.card.modality == modality and not version.card.synthetic
            if same and population.suits(version.card, by_year, age):
                return version.model
        return None

    def default(self) -> str:
        """The one to begin with: for chest X-rays; else trained on patients before on a phantom, then the newest."""
        versions = _active_versions()
        if not versions:
            registered = registry.models()
            for name in registered:
                registry.active(name)  # says what is wrong with it
            raise NoGraph(
                "no model is ready for the clinic yet: train one with `lungkit run`"
                + (f"; without a graph: {', '.join(registered)}" if registered else "")
            )
        if _FIRST in {version.model for version in versions}:
            return _FIRST
        real = [version for version in versions if not version.card.synthetic]
        return max(real or versions, key=lambda version: version.card.created or "").model

    def get(self, name: str) -> Predictor:
        """The active version of a model, ready to read."""
        version = registry.active(name)
        with self._lock:
            if name not in self._compiled or self._compiled[name].version != version:
                self._compiled[name] = Predictor(version)
            self._compiled.move_to_end(name)
            while len(self._compiled) > _KEPT:
                self._compiled.popitem(last=False)
            return self._compiled[name]


def _place(version: registry.Version) -> tuple[bool, int, bool, str]:
    """Where a version stands in a list."""
    modality = version.card.modality
    position = _ORDER.index(modality) if modality in _ORDER else len(_ORDER)
    return version.card.synthetic, position, version.model != _FIRST, version.model


def _question(version: registry.Version) -> str:
    """What a version answers, in a line: "Chest X-ray: normal or pneumonia? (chest-xray-pneumonia)"."""
    return f"{card_text.question(version.card)} ({version.model}{', synthetic' if version.card.synthetic else ''})"


def _active_versions() -> list[registry.Version]:
    """Versions in use that hold a graph; one that is damaged is left out, and `ModelPool.get` says which."""
    return [version for version in registry.in_use() if (version.folder / graph.FILE).is_file()]

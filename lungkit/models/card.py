"""What a version is: the data it learned from, its preprocessing, its decision rule, and how good it was.

`ModelCard` is card.json. It reads every card that was written since the first; a card of a later schema is refused, and
keys that this version of lungkit does not know are kept.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, Self

from lungkit import wording
from lungkit.data.preprocess import Preprocessing
from lungkit.models.rule import DecisionRule
from lungkit.models.schema import Malformed, Part, checked

SCHEMA = 1
OVERALL = ("accuracy", "balanced_accuracy", "macro_f1", "auc", "ece", "brier")
GRADED = ("kappa", "kappa_without_second", "grades_off", "auc_first_third", "auc_first_second", "auc_second_third")
PER_CLASS = ("precision", "recall", "specificity", "f1", "auc", "average_precision")
_RULE = {"band": "uncertainty", "temperature": "temperature", "conformal": "conformal"}  # in the rule, in card.json
Interval = tuple[float | None, float | None]
Ages = tuple[float, float | None]  # years: the youngest and the oldest, who may be of any age


@dataclass(frozen=True)
class Figure:
    """A measured figure with its 95 % interval by patient; None where it is undefined or has none."""

    value: float | None = None
    interval: Interval | None = None

    def __str__(self) -> str:
        return wording.figure(self.value, *(self.interval or (None, None)))


@dataclass(frozen=True, kw_only=True)
class ConformalFigures(Part):
    """How the prediction sets did on a split."""

    level: float  # stated
    coverage: float  # share of images whose set holds the true class
    interval: Interval
    classes_named: float  # on average


@dataclass(frozen=True, kw_only=True)
class Measured(Part):
    """What was measured on one split."""

    n: int | None = None  # images
    patients: int | None = None
    classes: tuple[str, ...] | None = None
    confusion: tuple[tuple[int, ...], ...] | None = None  # images by true class (rows) and predicted class
    largest_class: Mapping[str, Any] | None = None  # "class", and its "share" of the images
    operating_point: DecisionRule | None = None
    at_half: "Measured | None" = None  # the decision's figures at a threshold of 0.5
    conformal: ConformalFigures | None = None
    times_scored: int | None = None  # how often this test part was scored, this time included
    folds: int | None = None  # of a cross-validation, which splits …
    by: str | None = None  # … by "patient" or by "image"
    auc_of_each_fold: tuple[float | None, ...] | None = None
    sources: "Mapping[str, Measured] | None" = None  # the same, of each source's images alone, where there are several
    figures: Mapping[str, Figure] = field(default_factory=dict)  # over all images
    by_class: Mapping[str, Mapping[str, Figure]] = field(default_factory=dict)
    support: Mapping[str, int] = field(default_factory=dict)  # images of each class

    @classmethod
    def from_dict(cls, values: Any, where: str = "") -> Self:
        """As Part.from_dict; the figures lie between the other keys, their intervals in one of their own."""
        given = dict(checked(values, Mapping[str, Any], where))
        intervals = dict(checked(given.pop("intervals", {}), Mapping[str, Any], f"{where}.intervals"))
        of_class = checked(intervals.pop("per_class", {}), Mapping[str, Any], f"{where}.intervals.per_class")
        per_class = checked(given.pop("per_class", {}), Mapping[str, Mapping[str, Any]], f"{where}.per_class")
        known = {part.name for part in fields(cls)}
        names = [name for name in given if name not in known and (name in OVERALL or _is_figure(given[name]))]
        read = super().from_dict({name: value for name, value in given.items() if name not in names}, where)
        return replace(
            read,
            figures=_figures({name: given[name] for name in names}, intervals, where),
            by_class={
                name: _figures(
                    {metric: value for metric, value in scores.items() if metric != "support"},
                    checked(of_class.get(name, {}), Mapping[str, Any], f"{where}.intervals.per_class.{name}"),
                    f"{where}.per_class.{name}",
                )
                for name, scores in per_class.items()
            },
            support={
                name: checked(scores["support"], int, f"{where}.per_class.{name}.support")
                for name, scores in per_class.items()
                if "support" in scores
            },
        )

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        values = super().to_dict()
        for name in ("figures", "by_class", "support"):
            del values[name]
        values |= {name: one.value for name, one in self.figures.items()}
        intervals: dict[str, Any] = _intervals(self.figures)
        if self.by_class:
            support = {name: {"support": n} for name, n in self.support.items()}
            values["per_class"] = {
                name: {metric: one.value for metric, one in of.items()} | support.get(name, {})
                for name, of in self.by_class.items()
            }
            of_class = {name: _intervals(of) for name, of in self.by_class.items()}
            intervals |= {"per_class": of_class} if any(of_class.values()) else {}
        return values | ({"intervals": intervals} if intervals else {})

    def figure(self, metric: str, cls: str = "") -> Figure:
        """A metric over all images, or of one class; an empty Figure where it was not measured."""
        return (self.by_class.get(cls, {}) if cls else self.figures).get(metric, Figure())

    @property
    def counts(self) -> str:
        """What the figures rest on: "200 images of 80 patients"; empty where the card does not say."""
        if self.n is None or self.patients is None:
            return ""
        return f"{self.n} images of {self.patients} patients"


def _is_figure(value: Any) -> bool:
    return value is None or isinstance(value, float)


def _figures(values: Mapping[str, Any], intervals: Mapping[str, Any], where: str) -> dict[str, Figure]:
    return {
        name: Figure(
            checked(value, float | None, f"{where}.{name}"),
            checked(intervals[name], Interval, f"{where}.intervals.{name}") if name in intervals else None,
        )
        for name, value in values.items()
    }


def _intervals(figures: Mapping[str, Figure]) -> dict[str, list[float | None]]:
    return {name: list(one.interval) for name, one in figures.items() if one.interval is not None}


@dataclass(frozen=True, kw_only=True)
class SplitCounts(Part):
    """How many images and patients are in a part of the data."""

    images: int
    patients: int


@dataclass(frozen=True, kw_only=True)
class TrainingData(Part):
    """The data set that a version learned from."""

    name: str
    fingerprint: str = ""
    counts: Mapping[str, SplitCounts] = field(default_factory=dict)  # of "train", "val" and "test"
    recipe: Mapping[str, Any] = field(default_factory=dict)  # the arguments of dataset.load_split that give this split
    sources: tuple[str, ...] | None = None  # hospitals or collections of the images for training and validation


@dataclass(frozen=True, kw_only=True)
class Outside(Part):
    """What was measured on a source, a hospital or a collection, of which the version has not seen an image.

    left_out: the version has, but the model that was measured has not: it was trained likewise without the source.
    """

    source: str
    data: str  # the data set that its images came in
    measured: Measured  # with times_scored: how often the version was scored on this source, this time included
    left_out: bool = False
    labels: Mapping[str, str] = field(default_factory=dict)  # of the source's labels, those that mean another class
    omitted: int = 0  # images left out by their label …
    other_modality: int = 0  # … because they are stated to be of another modality …
    seen: int = 0  # … because the version has seen their content …
    unreadable: int = 0  # … and because they could not be read
    at: str | None = None  # ISO 8601, UTC


@dataclass(frozen=True, kw_only=True)
class CheckLimits(Part):
    """From where on the clinic's input checks flag an image; see lungkit.models.input_checks."""

    kind: float  # a distance
    intensity: float  # a distance
    size: int  # pixels of the shorter side
    units: str | None  # "HU" or "intensity", where all training images came in them
    flagged: float | None = None  # share of the validation images
    chosen_on: str | None = None
    n: int | None = None
    fitted_on: int | None = None  # training images


@dataclass(frozen=True, kw_only=True)
class About(Part):
    """What a person states about a model."""

    question: str | None = None  # "Chest X-ray: normal or pneumonia?"
    population: str | None = None  # whose images it learned from
    licence: str | None = None  # of these images
    ages: Ages | None = None  # of these patients
    views: tuple[str, ...] | None = None  # of the X-rays, as DICOM's ViewPosition has them: "PA", "AP"
    body_part: str | None = None  # "chest"
    command: str | None = None  # that trained it


@dataclass(frozen=True, kw_only=True)
class Standing(Part):
    """Whether a version became active when it was registered, and why; `reason` is the end of a sentence."""

    active: bool
    reason: str
    differences: Mapping[str, tuple[float | None, ...]] = field(default_factory=dict)  # new minus old: value, low, high


@dataclass(frozen=True, kw_only=True)
class GraphFigures(Part):
    """How a graph of one precision did on the validation images."""

    auc: float | None
    interval: Interval
    milliseconds: float  # of processor time for an image without heat maps, on the machine that registered the version


@dataclass(frozen=True, kw_only=True)
class Quantization(Part):
    """What came of putting the graph into integers of 8 bits."""

    kept: bool  # whether the version's graph is the one in 8 bits
    reason: str  # a sentence's part: what moved by how much
    float32: GraphFigures
    int8: GraphFigures
    images: int  # of the training part, which the ranges of the feature maps come from
    in_float32: str  # what was left in float32
    tool: str


@dataclass(frozen=True, kw_only=True)
class FileRecord(Part):
    """A file of the version."""

    sha256: str
    bytes: int


@dataclass(frozen=True, kw_only=True)
class ModelCard(Part):
    """card.json. The registry sets model, version, created, lungkit and files."""

    classes: tuple[str, ...]  # in the order of the model's outputs
    preprocessing: Preprocessing
    data: TrainingData
    metrics: Mapping[str, Measured]  # by split
    rule: DecisionRule
    synthetic: bool  # whether it learned from computer-made images
    modality: str = "image"  # "X-ray", "CT", "MRI" or "image"
    checks: CheckLimits | None = None
    graph: Mapping[str, Any] | None = None  # how far the exported graph agrees with Keras
    int8: Quantization | None = None  # if 8 bits were asked for
    architecture: Mapping[str, Any] | None = None
    training: Mapping[str, Any] | None = None
    about: About | None = None
    trust: Mapping[str, Any] | None = None  # what probes found; "says": in sentences
    outside: tuple[Outside, ...] | None = None  # one for each source; those measured later are kept by the registry
    standing: Standing | None = None
    model: str | None = None
    version: str | None = None
    created: str | None = None  # ISO 8601, UTC
    lungkit: str | None = None  # the version of lungkit that registered it
    files: Mapping[str, FileRecord] = field(default_factory=dict)
    schema: int = SCHEMA

    @classmethod
    def from_dict(cls, values: Any, where: str = "") -> Self:
        """The reverse of to_dict; Malformed names the key that is missing or holds another type."""
        card = dict(checked(values, Mapping[str, Any], where or "card"))
        if checked(card.get("schema", 0), int, "schema") > SCHEMA:
            raise Malformed(f"'schema' is {card['schema']}; this lungkit reads up to {SCHEMA}: install a newer one")
        if "operating_point" not in card:
            raise Malformed("'operating_point' is missing")
        point = checked(card.pop("operating_point"), Mapping[str, Any], "operating_point")
        parts = {part: card.pop(key) for part, key in _RULE.items() if key in card}
        card["rule"] = DecisionRule.from_dict({**point, **parts}, "operating_point")
        read = super().from_dict(card | {"schema": SCHEMA}, where)
        if not read.classes:
            raise Malformed("'classes' is empty; accepted: one name for each output of the model")
        if read.rule.grades and len(read.rule.grades.extents) != len(read.classes):
            raise Malformed(f"'operating_point.grades.extents' is not of {len(read.classes)} classes")
        return read

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready, in the order in which people read it."""
        values = super().to_dict()
        rule = values.pop("rule")
        parts = {key: rule.pop(part) for part, key in _RULE.items() if part in rule}
        first = {
            name: values.pop(name) for name in ("schema", "model", "version", "created", "lungkit") if name in values
        }
        files = values.pop("files")
        return first | values | {"operating_point": rule} | parts | ({"files": files} if files else {})

    @property
    def reported(self) -> tuple[str, Measured]:
        """The split whose figures count, and these: over all folds by patient, else the test, else validation."""
        folds = [split for split, measured in self.metrics.items() if measured.by == "patient"]
        for split in (*folds, "test", "val"):
            if split in self.metrics:
                return split, self.metrics[split]
        return "nothing", Measured()

    @property
    def worst_first(self) -> list[Outside]:
        """The unseen sources, the lowest AUC first; those without one last."""

        def place(one: Outside) -> tuple[bool, float]:
            auc = one.measured.figure("auc").value
            return auc is None, auc or 0.0

        return sorted(self.outside or (), key=place)

"""A study's plan, fixed before its test is read: which figure counts, and what would count as success.

A plan is a small YAML file. `fix` notes its content, its SHA-256 and the time in plan.json of the run's folder, before
notebook 04 reads the test. `settle` then adds the result, how often the test was read, and how the study deviates from
its plan. Deviations are found by comparing the plan with what happened (lungkit.study.deviations); none is declared.

The hash is of the plan's canonical form, not of its file: comments and layout do not count.
"""

import json
import re
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lungkit import files
from lungkit.data.folders import few
from lungkit.errors import LungkitError
from lungkit.models import registry
from lungkit.models.card import GRADED, OVERALL
from lungkit.models.card_text import metric_name
from lungkit.models.schema import Malformed, Part
from lungkit.training import looks
from lungkit.wording import count

if TYPE_CHECKING:
    from lungkit.training.release import Scored

RECORD = "plan.json"
NO_PLAN = "No plan was fixed before the test was read."
LOWER_IS_BETTER = ("ece", "brier", "grades_off")
EXCLUSIONS = {"unreadable": "images that cannot be read", "set_aside": "images of patients on two sides of a split"}
OF_CLASS = {"sensitivity": "recall", "specificity": "specificity"}  # of one class, and as an evaluation calls them
_LARGEST = 64 * 1024  # bytes of a plan's file
_HIGHEST = {"brier": 2.0, "grades_off": 100.0}  # of the other metrics, 1
_LARGEST_MARGIN = 0.5

_TO_FILL_IN = "What the study is to show, in one or two sentences."
TEMPLATE = """\
# A study's plan. Fill it in before the test is read: lungkit run all --data FOLDER --plan THIS_FILE

hypothesis: >
  {hypothesis}

data: mosmed_ct  # name of the data set, as `lungkit data audit FOLDER` shows it
# model: mosmed_ct-cnn@v1  # NAME or NAME@vN; leave it out for a model that this run trains

primary_metric: balanced_accuracy  # {metrics}
# of_class: COVID-19  # with the primary metric {of_class}

# What counts as success. Exactly one of the three: the whole 95 % interval has to lie on the right side.
at_least: 0.90
# at_most: 0.10  # for {lower}
# not_worse_than: NAME@v1  # on the same patients, by less than the margin
# margin: 0.02

subgroups: []  # columns of labels.csv, such as [sex, source]
exclusions: [unreadable]  # of {exclusions}
# planned_n: 100  # patients in the test

# notes: >
#   How the figures are analysed, where that is not said above.
""".format(
    hypothesis=_TO_FILL_IN,
    metrics=", ".join((*OVERALL, *OF_CLASS)),
    of_class=" or ".join(OF_CLASS),
    lower=", ".join(LOWER_IS_BETTER),
    exclusions=" and ".join(EXCLUSIONS),
)


@dataclass(frozen=True, kw_only=True)
class Plan(Part):
    """What a study set out to show. Exactly one of at_least, at_most and not_worse_than is given."""

    hypothesis: str
    data: str  # name of the data set
    primary_metric: str  # of OVERALL, GRADED or OF_CLASS
    model: str | None = None  # "NAME" or "NAME@v2"; None: the one that is tested
    at_least: float | None = None
    at_most: float | None = None
    not_worse_than: str | None = None  # "NAME@v1"
    margin: float | None = None  # by less than this the model may be worse, in the metric's unit
    subgroups: tuple[str, ...] = ()  # columns of labels.csv
    exclusions: tuple[str, ...] = ()  # of EXCLUSIONS
    planned_n: int | None = None  # patients in the test
    of_class: str | None = None  # whose sensitivity or specificity it is; the class as the data set names it
    notes: str | None = None

    @property
    def metric(self) -> str:
        """The primary metric within a sentence: "sensitivity for COVID-19"."""
        return metric_in_words(self.primary_metric, of_class=self.of_class)

    @property
    def measured(self) -> tuple[str, str]:
        """The primary metric and its class ("" for one of all images), as an evaluation calls them."""
        return OF_CLASS.get(self.primary_metric, self.primary_metric), self.of_class or ""

    @property
    def canonical(self) -> str:
        """The plan as JSON with sorted keys and without spaces; keys that are not given are left out."""
        return json.dumps(self.to_dict(), ensure_ascii=False, sort_keys=True, separators=(",", ":"))

    @property
    def sha256(self) -> str:
        """The hash of the canonical form, 64 hexadecimal digits."""
        return files.sha256(self.canonical.encode())

    @property
    def success(self) -> str:
        """What counts as success: "balanced accuracy, at least 0.9"."""
        name = self.metric
        if self.not_worse_than:
            return f"{name}, not worse than {self.not_worse_than} by {_as_given(self.margin)} or more"
        condition, limit = ("least", self.at_least) if self.at_most is None else ("most", self.at_most)
        return f"{name}, at {condition} {_as_given(limit)}"


def _as_given(number: float | None) -> str:
    """A number with every digit that was given: 0.90000001 is another condition than 0.9."""
    return repr(number).removesuffix(".0")


def metric_in_words(metric: str, classes: tuple[str, ...] | None = None, of_class: str | None = None) -> str:
    """A metric's name within a sentence: "balanced accuracy", "AUC", "sensitivity for COVID-19"."""
    name = metric_name(metric, classes)
    short = name if name[1:2].isupper() else name[:1].lower() + name[1:]
    return f"{short} for {of_class}" if of_class else short


# --- the file


def read(path: Path) -> Plan:
    """The plan in a YAML file. LungkitError names the file and the key that is wrong, and what would be accepted."""
    try:
        with path.open("rb") as file:
            content = file.read(_LARGEST + 1)
    except OSError as error:
        raise LungkitError(f"the plan {path} cannot be read ({error.strerror}); give a YAML file") from None
    if len(content) > _LARGEST:
        raise LungkitError(f"the plan {path} is larger than {_LARGEST // 1024} KiB; a plan is a page of text")
    try:
        return parse(content)
    except LungkitError as error:
        raise LungkitError(f"the plan {path}: {error}") from None


def parse(content: bytes) -> Plan:
    """The plan that these bytes of YAML state; LungkitError as in `read`, without the file's name."""
    from lungkit.study import plain_yaml  # a plan that was read is checked where there is no YAML

    values = plain_yaml.read(content)
    if not isinstance(values, dict):
        raise LungkitError("it is not a list of keys such as 'hypothesis: ...'")
    return of(values)


def of(values: Mapping[str, Any]) -> Plan:
    """The plan of these keys, all of them checked."""
    given = Plan.from_dict({key: _tidy(value) for key, value in values.items()})
    if given.extra:
        accepted = ", ".join(name for name in Plan.__dataclass_fields__ if name != "extra")
        raise Malformed(f"unknown key {few([repr(key) for key in given.extra], 5)}; accepted: {accepted}")
    for problem in (*_metric_problems(given), *_other_problems(given)):
        raise Malformed(problem)
    return given


def _tidy(value: Any) -> Any:
    """Texts in one Unicode form and without spaces at their ends, so two ways to write a plan have one hash."""
    if isinstance(value, list):
        return [_tidy(one) for one in value]
    return unicodedata.normalize("NFC", value).strip() if isinstance(value, str) else value


def _metric_problems(plan: Plan) -> list[str]:
    """What is wrong with the metric and the condition for success."""
    metric, found = plan.primary_metric, []
    conditions = ("at_least", "at_most", "not_worse_than")
    given = [name for name in conditions if getattr(plan, name) is not None]
    if metric not in (*OVERALL, *GRADED, *OF_CLASS):
        return [f"'primary_metric' is {metric!r}; accepted: {', '.join((*OVERALL, *GRADED, *OF_CLASS))}"]
    if (metric in OF_CLASS) != bool(plan.of_class):
        needs = f"'{metric}' is of one class; name it with 'of_class'"
        return [
            needs if metric in OF_CLASS else f"'of_class' does not fit {metric}, which is of all classes; leave it out"
        ]
    if len(given) != 1:
        return [f"'{', '.join(given) or 'no condition'}' is given; give exactly one of {', '.join(conditions)}"]
    right = "at_most" if metric in LOWER_IS_BETTER else "at_least"
    if given[0] not in (right, "not_worse_than"):
        found.append(f"'{given[0]}' does not fit {metric}, where a {_better(metric)} figure is better; give '{right}'")
    limit = plan.at_least if plan.at_most is None else plan.at_most
    lowest, highest = (-1.0 if metric.startswith("kappa") else 0.0), _HIGHEST.get(metric, 1.0)
    if limit is not None and not lowest <= limit <= highest:
        found.append(f"'{given[0]}' is {_as_given(limit)}; {metric} lies between {lowest:g} and {highest:g}")
    return found


def _better(metric: str) -> str:
    return "lower" if metric in LOWER_IS_BETTER else "higher"


def _other_problems(plan: Plan) -> list[str]:
    """What else is wrong, key by key."""
    found = [f"'{name}' is empty" for name in ("hypothesis", "data") if not getattr(plan, name)]
    if plan.not_worse_than is not None and not re.fullmatch(r"[^@\s]+@v[1-9][0-9]*", plan.not_worse_than):
        found.append(f"'not_worse_than' is {plan.not_worse_than!r}; name a version that stays the same, as NAME@v1")
    if (plan.margin is not None) != (plan.not_worse_than is not None):
        found.append("'margin' and 'not_worse_than' belong together: give both or neither")
    if plan.margin is not None and not 0 < plan.margin <= _LARGEST_MARGIN:
        found.append(f"'margin' is {_as_given(plan.margin)}; accepted: above 0, at most {_LARGEST_MARGIN:g}")
    if unknown := [name for name in plan.exclusions if name not in EXCLUSIONS]:
        meanings = "; ".join(f"{name} ({meaning})" for name, meaning in EXCLUSIONS.items())
        found.append(f"'exclusions' has {unknown[0]!r}; accepted: {meanings}")
    if plan.hypothesis == _TO_FILL_IN:
        found.append("'hypothesis' is still that of the empty plan; say what the study is to show")
    found += [f"'{name}' names something twice" for name in ("subgroups", "exclusions") if _twice(getattr(plan, name))]
    if plan.planned_n is not None and plan.planned_n < 1:
        found.append(f"'planned_n' is {plan.planned_n}; give the number of patients in the test, 1 or more")
    return found


def _twice(names: tuple[str, ...]) -> bool:
    return len(set(names)) < len(names)


# --- before the test is read, and after


@dataclass(frozen=True)
class Fixed:
    """A plan that was fixed: when, as ISO 8601 in UTC."""

    plan: Plan
    fixed_at: str

    def says(self) -> str:
        """The plan as Markdown: its hypothesis, its condition for success, its hash and when it was fixed."""
        from lungkit.study import plan_text  # which needs this module

        plan, rows = self.plan, [f"**{self.plan.hypothesis}**\n", f"Success: {self.plan.success}"]
        rows += [f"Subgroups: {', '.join(plan.subgroups)}"] if plan.subgroups else []
        rows += [f"Planned: {count(plan.planned_n, 'patient')} in the test"] if plan.planned_n else []
        return "\n- ".join([*rows, f"Fixed on {plan_text.moment(self.fixed_at)}, SHA-256 `{plan.sha256}`"])


def fix(path: str, folder: Path) -> Fixed | None:
    """Note a plan in plan.json of a run's folder, before the test is read. path: "" where the study has none.

    The same plan keeps the time at which it was first fixed in this folder. LungkitError as in `read`, and where the
    version that the plan compares with is not registered.
    """
    record = folder / RECORD
    if not path:
        record.unlink(missing_ok=True)  # an earlier run's
        return None
    plan = read(Path(path).expanduser())
    if plan.not_worse_than:
        registry.find(plan.not_worse_than)
    fixed = Fixed(plan, _fixed_before(record, plan.sha256) or looks.now())
    _write(folder, fixed, {"looks": None, "deviations": [], "result": None})
    return fixed


def _fixed_before(record: Path, sha256: str) -> str:
    """When the same plan was fixed in this folder; empty where it was not."""
    try:
        before = json.loads(record.read_text("utf-8"))
    except (OSError, ValueError):
        return ""
    return str(before["fixed_at"]) if before.get("sha256") == sha256 else ""


def settle(fixed: Fixed | None, scored: "Scored", folder: Path) -> str:
    """What became of the plan, as Markdown; plan.json in the run's folder keeps it too.

    fixed: what `fix` gave before the test was read. scored: the reading of the test.
    """
    from lungkit.study import deviations, outcome

    images = scored.rows["sha256"]
    before = looks.of(images)
    read_times = sum(look.counts for look in before)
    times = f"These test images were read {count(read_times, 'time')} so far, this time included."
    if fixed is None:
        return f"**{NO_PLAN}** {times}"
    found = outcome.of(fixed.plan, scored, folder)
    deviate = [*deviations.of(fixed, scored, before), *found.problems]
    looks.add(images, looks.Look(fixed.fixed_at, str(scored.version), scored.data.name, len(images), "plan",
                                 fixed.plan.sha256, fixed.plan.primary_metric))  # fmt: skip
    _write(folder, fixed, {"looks": read_times, "deviations": deviate, "result": found.to_dict()})
    rows = deviate or ["None was found."]
    return (
        "\n- ".join([f"**{found.sentence}.** {times}\n", *found.subgroups])
        + "\n\nDeviations from the plan:\n\n- "
        + ("\n- ".join(rows))
    )


def _write(folder: Path, fixed: Fixed, more: Mapping[str, Any]) -> None:
    record = {"plan": fixed.plan.to_dict(), "sha256": fixed.plan.sha256, "fixed_at": fixed.fixed_at, **more}
    files.replace(folder / RECORD, json.dumps(record, indent=1, ensure_ascii=False, allow_nan=False) + "\n")

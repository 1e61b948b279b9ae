"""Whether a new version becomes the active one: not where it is measurably worse than the one in use.

Both read the same validation patients, those of the new version, and are compared in pairs. A version that answers
another question, or that learned from another set, is not compared: figures on one set say nothing of the other. It is
registered all the same, and a person can promote it.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from lungkit.data import dataset, preprocess
from lungkit.data.notes import alike
from lungkit.errors import LungkitError
from lungkit.models import graph, registry
from lungkit.training import evaluation

COMPARED = ("balanced_accuracy", "auc")  # lower by more than chance in one of them is worse


@dataclass(frozen=True)
class Standing:
    """What becomes of a new version, and why; `reason` is the end of a sentence."""

    active: bool
    reason: str
    differences: dict[str, list[float]]  # of each figure, new minus old: value, low, high (95 % interval); may be empty

    def to_dict(self) -> dict:
        """JSON-ready, for the card."""
        return {"active": self.active, "reason": self.reason, "differences": self.differences}


def sentence(version: registry.Version) -> str:
    """Whether a version became active when it was registered, why, and what makes it active otherwise."""
    standing = version.card.get("standing", {"active": True, "reason": ""})
    because = f": {standing['reason']}" if standing["reason"] else ""
    if standing["active"]:
        return f"{version} is registered and active{because}"
    return f"{version} is registered, and not active{because}. `lungkit models promote {version}` makes it active"


def standing(
    name: str,
    card: dict,
    data: dataset.Dataset,
    measured: evaluation.Evaluation,
    read: Callable[[graph.Graph, np.ndarray], np.ndarray],
) -> Standing:
    """What becomes of a version of the model `name` with this card.

    data: what it learned from. measured: its answers on the validation patients. read: a graph and preprocessed images
    to probabilities.
    """
    try:
        in_use = registry.active(name)
    except registry.ModelMissing:
        return Standing(True, "no version was active before", {})
    except registry.ModelDamaged as error:
        return Standing(False, f"it cannot be compared with the active one. {error}", {})
    if differs := _difference(in_use.card, card):
        return Standing(False, f"{in_use} stays active, since {differs}", {})
    try:
        before = _evaluated(in_use, data, measured, read)
    except (LungkitError, OSError, RuntimeError, ValueError) as error:
        return Standing(False, f"{in_use} stays active, since it cannot read these images to be compared: {error}", {})
    differences = {metric: list(evaluation.paired_difference(measured, before, metric)) for metric in COMPARED}
    return _judged(in_use, differences, len(measured.true), len(np.unique(measured.patients)))


def _difference(before: dict, now: dict) -> str:
    """How a version differs from the active one in what it is for; empty where it does not."""
    for what, old, new in (
        ("answers with", before["classes"], now["classes"]),
        ("reads", [before.get("modality", "image")], [now.get("modality", "image")]),
        ("answers", _question(before), _question(now)),
    ):
        if {alike(name) for name in old} != {alike(name) for name in new}:
            told = [", ".join(names) or "no stated question" for names in (old, new)]
            return f"that one {what} {told[0]}, this one {told[1]}"
    if before["synthetic"] and now["synthetic"]:
        return ""
    old, new = before["data"]["name"], now["data"]["name"]
    return "" if old == new else f"that one learned from {old}, this one from {new}"


def _question(card: dict) -> list[str]:
    return [question] if (question := card.get("about", {}).get("question")) else []


def _evaluated(
    version: registry.Version, data: dataset.Dataset, like: evaluation.Evaluation, read: Callable
) -> evaluation.Evaluation:
    """A version's answers on the validation images, its classes in the order of `like`."""
    registry.verify(version)
    spec = preprocess.Preprocessing.from_dict(version.card["preprocessing"])
    tensors = preprocess.read_batch(data.files("val"), spec, label=f"{version}, to be compared")
    scores = read(graph.Graph(version.folder, heat=False, many=True), tensors)
    position = [alike(name) for name in version.card["classes"]]
    order = [position.index(alike(name)) for name in like.classes]
    own = evaluation.evaluate(
        np.array(order)[like.true], scores, like.patients, version.card["classes"], version.rule, n_boot=0,
    )  # fmt: skip
    return replace(
        own, classes=like.classes, true=like.true, predicted=np.argsort(order)[own.predicted],
        probabilities=scores[:, order],
    )  # fmt: skip


def _judged(in_use: registry.Version, differences: dict, n: int, patients: int) -> Standing:
    told = ", ".join(
        f"{evaluation.LABELS[metric]} {value:+.3f} ({low:+.3f} to {high:+.3f})"
        for metric, (value, low, high) in differences.items()
    )
    where = f"on the same {n} validation images of {patients} patients: {told}"
    stays = f"{in_use} stays active, since"
    known = [high for _, _, high in differences.values() if not np.isnan(high)]
    kept = {metric: [None if np.isnan(x) else x for x in figures] for metric, figures in differences.items()}
    if not known:
        return Standing(False, f"{stays} {n} validation images of {patients} patients tell no difference", kept)
    if min(known) < 0:
        return Standing(False, f"{stays} this one is measurably worse {where}", kept)
    return Standing(True, f"it is not measurably worse than {in_use}, active before, {where}", kept)

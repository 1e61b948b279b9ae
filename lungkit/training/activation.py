"""Whether a new version becomes the active one: not where it is measurably worse than the one in use.

Both read the same validation patients, those of the new version, and are compared in pairs. A version that answers
another question, or that learned from another set, is not compared: figures on one set say nothing of the other. It is
registered all the same, and a person can promote it.
"""

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from lungkit import wording
from lungkit.data import dataset, preprocess
from lungkit.data.notes import alike
from lungkit.errors import LungkitError
from lungkit.models import graph, registry
from lungkit.models.card import ModelCard, Standing
from lungkit.models.card_text import METRICS
from lungkit.training import evaluation

COMPARED = ("balanced_accuracy", "auc")  # lower by more than chance in one of them is worse
COMPARED_GRADES = ("kappa", "auc")  # the same, where the classes are grades

CHALLENGER = Standing(active=False, reason="it is a challenger, which a trial has to compare with the version in use")


def sentence(version: registry.Version) -> str:
    """Whether a version became active when it was registered, why, and what makes it active otherwise."""
    standing = version.card.standing or Standing(active=True, reason="")
    because = f": {standing.reason}" if standing.reason else ""
    if standing.active:
        return f"{version} is registered and active{because}"
    return f"{version} is registered, and not active{because}. `lungkit models promote {version}` makes it active"


def standing(
    name: str,
    card: ModelCard,
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
        return Standing(active=True, reason="no version was active before")
    except registry.ModelDamaged as error:
        return Standing(active=False, reason=f"it cannot be compared with the active one. {error}")
    if differs := _difference(in_use.card, card):
        return Standing(active=False, reason=f"{in_use} stays active, since {differs}")
    try:
        before = _evaluated(in_use, data, measured, read)
    except (LungkitError, OSError, RuntimeError, ValueError) as error:
        return Standing(
            active=False, reason=f"{in_use} stays active, since it cannot read these images to be compared: {error}"
        )
    compared = COMPARED_GRADES if card.rule.grades else COMPARED
    differences = {metric: evaluation.paired_difference(measured, before, metric) for metric in compared}
    return _judged(in_use, differences, len(measured.true), len(np.unique(measured.patients)))


def _difference(before: ModelCard, now: ModelCard) -> str:
    """How a version differs from the active one in what it is for; empty where it does not."""
    for what, old, new in (
        ("answers with", before.classes, now.classes),
        ("reads", [before.modality], [now.modality]),
        ("answers", _question(before), _question(now)),
    ):
        if {alike(name) for name in old} != {alike(name) for name in new}:
            then, here = (", ".join(names) or "no stated question" for names in (old, new))
            return f"that one {what} {then}, this one {here}"
    if before.synthetic and now.synthetic:
        return ""
    if before.data.name == now.data.name:
        return ""
    return f"that one learned from {before.data.name}, this one from {now.data.name}"


def _question(card: ModelCard) -> list[str]:
    return [card.about.question] if card.about and card.about.question else []


def _evaluated(
    version: registry.Version, data: dataset.Dataset, like: evaluation.Evaluation, read: Callable
) -> evaluation.Evaluation:
    """A version's answers on the validation images, its classes in the order of `like`."""
    registry.verify(version)
    spec = version.card.preprocessing
    tensors = preprocess.read_batch(data.files("val"), spec, label=f"{version}, to be compared")
    scores = read(graph.Graph(version.folder, heat=False, many=True), tensors)
    position = [alike(name) for name in version.card.classes]
    order = [position.index(alike(name)) for name in like.classes]
    own = evaluation.evaluate(
        np.array(order)[like.true], scores, like.patients, version.card.classes, version.rule, 0, sources=like.sources
    )
    predicted, probabilities = np.argsort(order)[own.predicted], scores[:, order]
    return replace(own, classes=like.classes, true=like.true, predicted=predicted, probabilities=probabilities)


def _judged(
    in_use: registry.Version, differences: dict[str, tuple[float, float, float]], n: int, patients: int
) -> Standing:
    in_words = (f"{METRICS[metric]} {wording.figure(*of, signed=True)}" for metric, of in differences.items())
    where = f"on the same {n} validation images of {patients} patients: {', '.join(in_words)}"
    stays = f"{in_use} stays active, since"
    known = [high for _, _, high in differences.values() if not np.isnan(high)]
    active, reason = True, f"it is not measurably worse than {in_use}, active before, {where}"
    if not known:
        active, reason = False, f"{stays} {n} validation images of {patients} patients tell no difference"
    elif min(known) < 0:
        active, reason = False, f"{stays} this one is measurably worse {where}"
    kept = {metric: tuple(None if np.isnan(x) else x for x in figures) for metric, figures in differences.items()}
    return Standing(active=active, reason=reason, differences=kept)

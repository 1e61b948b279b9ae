"""Measures a challenger next to the champion on every set of a trial: figures for lungkit.models.verdict.

Images that either version was trained or chosen on are left out, as in `lungkit compare`. Of sets of reviews, all
images of a patient whom either learned from are left out too, by patient and by pixels, whatever their files are.
"""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd

from lungkit.data import dataset, review_sets, tensor_cache
from lungkit.data.notes import alike
from lungkit.data.relabel import Labels
from lungkit.data.review_sets import ReviewSet
from lungkit.errors import LungkitError
from lungkit.models import registry
from lungkit.models.verdict import Kind, OfSet, OfVersion
from lungkit.training import comparison, evaluation, outside, release
from lungkit.training.evaluation import Evaluation
from lungkit.training.paired import Pair


class NothingLeft(LungkitError):
    """Of a class there are no patients left to measure on."""


_COMPARED = ("auc", "accuracy", "ece", "brier")


@dataclass(frozen=True)
class Plan:
    """A set of a trial before anything is measured on it. kinds, left_out (images): by source."""

    data: dataset.Dataset
    kinds: dict[str, Kind]
    left_out: dict[str, int]
    answer_shown: float | None = None

    @property
    def images(self) -> int:
        """How many are left."""
        return len(self.data.manifest)

    @property
    def files(self) -> list[Path]:
        """Their files."""
        return [self.data.root / file for file in self.data.manifest["file"]]


def of_reviews(
    old: registry.Version,
    new: registry.Version,
    reviews: ReviewSet,
    others: Sequence[ReviewSet] = (),
    elsewhere: Collection[str] = (),
) -> Plan:
    """The images of a set of reviews, locked or not, whose patients neither version learned from.

    others: further sets of reviews, which may be those that they learned from. elsewhere: what `seen_elsewhere` gives;
    patients with one of these pictures are left out too. LungkitError where a version learned
    from this clinic, and none of the sets has an image of it: then its patients are not known.
    """
    data = outside.relabelled(old, str(reviews.folder), [], Labels())
    known_sets = [one for of in (reviews, *others) for one in review_sets.line(of)]
    for version in (old, new):
        _refuse_unnamed(version, {one.content_sha256 for one in known_sets})
    learned = [review_sets.learned(release.seen_images(one), known_sets) for one in (old, new)]
    for version, (of_version, _) in zip((old, new), learned, strict=True):
        own = [str(name) for name in set(data.manifest["source"]) if outside.knows(version, str(name), data.manifest)]
        if own and not of_version:
            raise LungkitError(
                f"{version} learned from {own[0]}, and no set of reviews that was named has an image that it learned "
                "from; name that set with --reviews too, because its patients have to be left out"
            )
    patients, pixels = (set().union(*of) for of in zip(*learned, strict=True))
    patients |= _with_picture(old, reviews, elsewhere)
    of_file = {row["file"]: row["pixels_sha256"] for row in reviews.rows}
    rows = data.manifest
    known = rows["patient_id"].isin(patients) | rows["file"].map(of_file).isin(pixels)
    known |= rows["file"].isin(_labelled_with(new, reviews))
    kind: Kind = "locked" if reviews.locked else "new"
    kinds = dict.fromkeys(map(str, rows["source"]), kind)
    plan = _plan(old, new, replace(data, manifest=rows[~known]), rows, kinds)
    return replace(plan, answer_shown=reviews.answer_shown)


def _refuse_unnamed(version: registry.Version, named: set[str]) -> None:
    """Refuse a version whose weights learned from reviews of which no set was named: its patients are not known."""
    before: registry.Version | None = version
    while before:
        training = before.card.training or {}
        learned = training.get("reviews")
        if learned and learned["content_sha256"] not in named:
            raise LungkitError(
                f"{version} learned from the reviews {learned['name']}, which are not among the sets that were named; "
                "name that set with --reviews too, because its patients have to be left out"
            )
        continued = training.get("started_from") == f"the weights of {training.get('champion')}"
        before = registry.find(training["champion"]) if continued else None


def seen_elsewhere(old: registry.Version, new: registry.Version, given: Sequence[dataset.Dataset]) -> set[str]:
    """The pictures of data sets that either version has seen, as outside.digests of the champion.

    Records keep pixels, not files: a picture of a data set that someone uploaded has another file in a set of reviews.
    """
    seen, found = release.seen_images(old) | release.seen_images(new), set[str]()
    for of in given:
        rows = of.manifest[of.manifest["sha256"].isin(seen)]
        found |= set(outside.digests([of.root / file for file in rows["file"]], old.card.preprocessing, of.name))
    return found


def _with_picture(old: registry.Version, reviews: ReviewSet, pictures: Collection[str]) -> set[str]:
    """The patients of a set of reviews who have one of these pictures."""
    if not pictures:
        return set()
    paths = [reviews.folder / row["file"] for row in reviews.rows]
    with tensor_cache.closed():  # these are the clinic's patients
        digests = outside.digests(paths, old.card.preprocessing, reviews.folder.name)
    found = zip(reviews.rows, digests, strict=True)
    return {row["patient_id"] for row, digest in found if digest in pictures}


def _labelled_with(new: registry.Version, reviews: ReviewSet) -> set[str]:
    """Files whose label was given with the challenger's answer on screen, such as while it was in use: they lean to it.

    Of several readers, the reading is that of the label that counts.
    """
    return {
        row["file"]
        for row in reviews.rows
        if row["answer_shown"] == "yes" and (row.get("model"), row.get("version")) == (new.model, new.version)
    }


def of_data(old: registry.Version, new: registry.Version, data: dataset.Dataset) -> Plan:
    """The images of a data set, as outside.relabelled gives it for `old`, that neither version has seen."""
    rows = data.part()
    kinds: dict[str, Kind] = {
        str(source): "home" if outside.knows(old, str(source), of) else "elsewhere"
        for source, of in rows.groupby("source")
    }
    return _plan(old, new, data, rows, kinds)


def _plan(
    old: registry.Version, new: registry.Version, data: dataset.Dataset, whole: pd.DataFrame, kinds: dict[str, Kind]
) -> Plan:
    """Leave out what either version has seen; refuse, before anything is measured, what cannot be measured on."""
    rows = data.part().drop_duplicates("file")
    rows = rows[(outside.left_out(old, rows) == "") & (outside.left_out(new, rows) == "")]
    for source in kinds:
        patients = rows[rows["source"] == source].groupby("label")["patient_id"].nunique()
        if lacking := [name for name in old.card.classes if patients.get(name, 0) < 2]:
            raise NothingLeft(
                f"{data.name}, {source}: of '{lacking[0]}' there are {patients.get(lacking[0], 0)} patients from whom "
                f"neither {old} nor {new} learned; a trial needs two or more of each class"
            )
    totals, left = (of.drop_duplicates("file")["source"].value_counts() for of in (whole, rows))
    left_out = {str(source): int(total - left.get(source, 0)) for source, total in totals.items()}
    return Plan(replace(data, manifest=rows), kinds, left_out)


def measure(old: registry.Version, new: registry.Version, plans: Sequence[Plan], margin: float) -> list[OfSet]:
    """Both versions on each source of each set."""
    return [_of_set(pair, plan) for plan in plans for pair in comparison.compare([old, new], [plan.data], margin).pairs]


def not_measured(champion: registry.Version, measured: Iterable[OfSet]) -> tuple[str, ...]:
    """The sources that the champion learned from and of which there is no set."""
    there = {alike(of.source) for of in measured}
    return tuple(source for source in champion.card.data.sources or () if alike(source) not in there)


def figures(pair: Pair) -> dict[str, object]:
    """What a pair of evaluations gives an OfSet."""
    differences = evaluation.paired_differences(pair.new, pair.old, [(name, "") for name in _COMPARED])
    owners = [len(np.unique(pair.new.patients[pair.new.true == i])) for i in range(len(pair.new.classes))]
    return {
        "source": pair.source,
        "images": len(pair.new.true),
        "patients": len(np.unique(pair.new.patients)),
        "fewest": min(owners),
        "champion": _of_version(pair.old),
        "challenger": _of_version(pair.new),
        **{name: differences[name, ""] for name in _COMPARED},
        "auc_p": None if np.isnan(pair.auc_p) else pair.auc_p,
        "decision_p": pair.decision_p,
    }


def _of_set(pair: Pair, plan: Plan) -> OfSet:
    return OfSet.from_dict(
        figures(pair)
        | {
            "kind": plan.kinds[pair.source],
            "data": plan.data.name,
            "left_out": plan.left_out[pair.source],
            "answer_shown": plan.answer_shown,
        }
    )


def _of_version(measured: Evaluation) -> OfVersion:
    return OfVersion(
        auc=measured.value("auc"),
        accuracy=measured.value("accuracy"),
        ece=measured.value("ece")[0],
        brier=measured.value("brier")[0],
        left_to_person=float(measured.rule.uncertain(measured.probabilities).mean()),
    )

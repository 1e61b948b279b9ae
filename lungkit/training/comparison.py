"""Models and runs compared on the same images, each with a reference or each with each (`lungkit compare`).

A registered version is scored now, on data that it has not seen. A run has its answers in predictions.csv. Whatever is
compared is compared on the images that all answered for, so every pair is about the same patients.
"""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd

from lungkit import wording
from lungkit.data import dataset
from lungkit.data.notes import alike
from lungkit.errors import LungkitError
from lungkit.models import registry
from lungkit.training import exhibits, forest, outside, paired, predictions, release
from lungkit.training.evaluation import Evaluation
from lungkit.training.paired import MARGIN, Pair
from lungkit.training.predictions import Answers, Contender

COMMON = "the common images"  # of runs, whose sources are not known


@dataclass(frozen=True)
class Comparison:
    """What was compared, and what was found."""

    names: tuple[str, ...]  # the first one is the reference
    pairs: tuple[Pair, ...]
    notes: tuple[str, ...]  # which images were left out
    promotes: bool  # whether these are two registered versions, of which the second may take the first one's place

    @property
    def says(self) -> list[str]:
        """What is left of several tests after Holm's correction, and then the verdict on each pair of models."""
        told = [_after_holm(self.pairs)] if len(self.pairs) > 1 else []
        if self.promotes:
            old, new = self.names
            return [*told, paired.says(old, new, self.pairs)]
        return told + [paired.differs(*names, of) for names, of in _by_models(self.pairs).items()]

    @property
    def remarks(self) -> list[str]:
        """What should be known before the figures are believed: images left out, and what is undefined."""
        return [*self.notes, *(remark for pair in self.pairs for remark in pair.remarks)]

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        record: dict[str, Any] = {
            "reference": self.names[0],
            "models": list(self.names),
            "margin": self.pairs[0].margin,
            "pairs": [pair.to_dict() for pair in self.pairs],
            "notes": list(self.notes),
            "says": " ".join(self.says),
        }
        return record | ({"enough": paired.enough(self.pairs)} if self.promotes else {})

    def table(self) -> pd.DataFrame:
        """For people: a row for each pair on each source."""
        several = len(self.pairs) > 1
        named = len(self.names) > 2
        rows = [({"pair": _title(pair)} if named else {}) | paired.pair_row(pair, several) for pair in self.pairs]
        return pd.DataFrame(rows)

    def classes(self) -> pd.DataFrame:
        """For people, of three classes and more: a row for each class of each pair, with DeLong's test."""
        rows = [
            {
                "pair": _title(pair),
                "source": pair.source,
                "class against the rest": name,
                "AUC, reference": wording.figure(*pair.old.value("auc", name)),
                "AUC": wording.figure(*pair.new.value("auc", name)),
                "difference": wording.figure(*of.auc, signed=True),
                "p (DeLong)": paired.p_text(of.p),
                "p (DeLong, Holm)": paired.p_text(of.adjusted),
            }
            for pair in self.pairs
            if len(pair.by_class) > 1
            for name, of in pair.by_class.items()
        ]
        return pd.DataFrame(rows)


def _title(pair: Pair) -> str:
    return f"{pair.names[1]} against {pair.names[0]}"


def _by_models(pairs: Sequence[Pair]) -> dict[tuple[str, str], list[Pair]]:
    return {names: list(of) for names, of in itertools.groupby(pairs, key=lambda pair: pair.names)}


def _after_holm(pairs: Sequence[Pair]) -> str:
    """How many tests show a difference, counted as so many tests have to be."""
    families = {
        "AUC": [of.adjusted for pair in pairs for of in pair.by_class.values()],
        "decisions": [pair.decision_adjusted for pair in pairs],
    }
    told = [
        f"{sum(p < paired.SIGNIFICANT for p in ps)} of {wording.count(sum(p == p for p in ps), 'test')} of {what}"
        for what, ps in families.items()
    ]
    return (
        f"After Holm's correction {' and '.join(told)} have p < {paired.SIGNIFICANT:g}; each verdict is by its own "
        "interval, without a correction."
    )


# --- what is compared


def compare(
    contenders: Sequence[Contender],
    data: Sequence[dataset.Dataset] = (),
    margin: float = MARGIN,
    all_pairs: bool = False,
) -> Comparison:
    """Compare each of them with the first, or each with each.

    data: as outside.relabelled gives it for the first version; needed where one is a version, and only accepted there.
    Images that a version was trained or chosen on are left out: on a source that one learned from, its test part is
    left. Where one is a run, what is not in its table is left out, too. Every pair is on the same images.
    LungkitError where two have the same name, other classes, other labels, or no image in common.
    """
    names = _named(contenders)
    _refuse_data(contenders, data)
    parts = list(_parts(contenders, data)) if data else [_of_runs(_runs(contenders))]
    chosen = list(itertools.combinations(range(len(names)), 2)) if all_pairs else [(0, i) for i in range(1, len(names))]
    pairs = [part.pair(old, new, names, margin) for old, new in chosen for part in parts if part.measured]
    if not pairs:
        raise LungkitError(f"no image of {', '.join(of.name for of in data)} is left to compare: {parts[0].note}")
    notes = [part.note for part in parts if part.note]
    if len(names) > 2 and not all_pairs:
        notes.append(f"each is compared with {names[0]}, the first one; --all-pairs compares each with each")
    promotes = len(names) == 2 and not _runs(contenders)
    return Comparison(names, tuple(paired.adjusted(pairs)), tuple(notes), promotes)


def _named(contenders: Sequence[Contender]) -> tuple[str, ...]:
    names = tuple(one.name if isinstance(one, Answers) else str(one) for one in contenders)
    if len(names) < 2:
        raise LungkitError("give two or more to compare: the first one is the reference")
    if twice := [name for name in names if names.count(name) > 1]:
        raise LungkitError(f"{twice[0]} is there twice; compare models and runs of different names")
    return names


def _versions(contenders: Sequence[Contender]) -> list[registry.Version]:
    return [one for one in contenders if isinstance(one, registry.Version)]


def _runs(contenders: Sequence[Contender]) -> list[Answers]:
    return [one for one in contenders if isinstance(one, Answers)]


def _refuse_data(contenders: Sequence[Contender], data: Sequence[dataset.Dataset]) -> None:
    versions, runs = _versions(contenders), _runs(contenders)
    if versions and not data:
        raise LungkitError(f"{versions[0]} is a version, which has to be scored: give a data set with --data FOLDER")
    if not versions and data:
        raise LungkitError("these are predictions that runs have made: leave --data out")
    if runs and len(data) > 1:
        raise LungkitError(f"{runs[0].name} is a run, which is of one data set: give one --data")


def count_looks(contenders: Sequence[Contender], found: Comparison) -> None:
    """Count that each version was scored once more on each source whose figures the registry keeps."""
    for source in dict.fromkeys(pair.source for pair in found.pairs):
        for version in _versions(contenders):
            outside.count_look(version, source)


def keep(found: Comparison, folder: Path) -> None:
    """Keep the tables and the forest plot in a folder, as `exhibits` keeps those of a run."""
    what = f"{wording.listed(found.names[1:], 'and')} against {found.names[0]}, on the same images. "
    how = "Differences with 95 % intervals by patient, p of DeLong and of McNemar by patient."
    exhibits.table(found.table(), folder, "compare_table", what + how)
    if len(found.classes()):
        exhibits.table(found.classes(), folder, "compare_classes", f"{what}Each class against the rest.")
    exhibits.figure(forest.forest(found.pairs), folder, "compare_forest")


@dataclass(frozen=True)
class _Part:
    """What all answered for, of one source."""

    source: str
    measured: Sequence[Evaluation]  # one for each contender; empty where no image is left
    knows: Sequence[bool]  # whether each learned from this source
    note: str

    def pair(self, old: int, new: int, names: tuple[str, ...], margin: float) -> Pair:
        between = (names[old], names[new])
        pair = paired.paired(self.measured[old], self.measured[new], self.source, margin, self.knows[old], between)
        return replace(pair, new_knows=self.knows[new])


def _of_runs(runs: Sequence[Answers]) -> _Part:
    same = predictions.lined_up(runs)
    n = len(same[0].files)
    left = [f"{len(of.files) - n:,} of {len(of.files):,} of {of.name}" for of in runs if len(of.files) > n]
    note = f"{wording.count(n, 'image')} in all runs; not compared: {', '.join(left)}" if left else ""
    return _Part(COMMON, [of.evaluated() for of in same], [False] * len(runs), note)


def _parts(contenders: Sequence[Contender], data: Sequence[dataset.Dataset]) -> Iterator[_Part]:
    classes = _classes(contenders[0])
    for one in contenders[1:]:
        if {alike(name) for name in _classes(one)} != {alike(name) for name in classes}:
            first, other = _named([contenders[0], one])
            raise LungkitError(
                f"{first} answers {', '.join(classes)}, and {other} {', '.join(_classes(one))}: they cannot be compared"
            )
    for of in data:
        for source in sorted(set(of.manifest["source"])):
            rows = of.part().drop_duplicates("file")
            yield _part(contenders, of, str(source), rows[rows["source"] == source])


def _classes(one: Contender) -> tuple[str, ...]:
    return one.classes if isinstance(one, Answers) else tuple(one.card.classes)


def _part(contenders: Sequence[Contender], data: dataset.Dataset, source: str, rows: pd.DataFrame) -> _Part:
    why = _left_out(contenders, rows)
    used, left = rows[why == ""], {reason: int((why == reason).sum()) for reason in _REASONS}
    knows = [isinstance(one, registry.Version) and outside.knows(one, source, rows) for one in contenders]
    if used.empty:
        if not left["run"]:
            names = wording.listed(_named(contenders), "and")
            raise LungkitError(f"{source}: no image is left to compare {names}, each trained or chosen on some of it")
        return _Part(source, [], knows, _note(source, len(rows), left))
    unseen = replace(data, manifest=used)
    same = predictions.lined_up([_answers(one, unseen) for one in contenders])
    left["unreadable"] = len(used) - len(same[0].files)
    return _Part(source, [of.evaluated() for of in same], knows, _note(source, len(rows), left))


_REASONS = {
    "seen": "that a version was trained or chosen on",
    "modality": "of another modality",
    "label": "with a label to leave out",
    "run": "that are not in every run's table",
    "unreadable": "that cannot be read",
}


def _left_out(contenders: Sequence[Contender], rows: pd.DataFrame) -> pd.Series:
    """Why each image is not compared, a key of _REASONS; empty where it is."""
    reasons = [outside.left_out(version, rows) for version in _versions(contenders)]
    reasons += [rows["file"].isin(run.files).map({True: "", False: "run"}) for run in _runs(contenders)]
    why = pd.Series("", rows.index, dtype=str)
    for reason in reasons:
        why = why.where(why != "", reason)
    return why


def _note(source: str, images: int, left: Mapping[str, int]) -> str:
    told = [f"{count:,} {_REASONS[reason]}" for reason, count in left.items() if count]
    kept = images - sum(left.values())
    return f"{source}: {kept:,} of {wording.count(images, 'image')}; left out: {', '.join(told)}" if told else ""


def _answers(one: Contender, data: dataset.Dataset) -> Answers:
    """What one says of every image of the data."""
    if isinstance(one, Answers):
        return one
    return predictions.of_scored(release.score(one, data, "all", "lungkit compare"))

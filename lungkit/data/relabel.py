"""The same class under other names: which class of a model, or of a joined set, each label of a data set means.

A person states it as "CLASS=LABEL,LABEL"; a label may be "SET:LABEL", for one set only. A label that is not named means
the class of the same name, whatever its case and blanks. Nothing is guessed: any other label is refused by name.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import pandas as pd

from lungkit.data.folders import few, one_line
from lungkit.data.notes import DatasetError, alike

HOW = "Name the class that a label means with --label 'CLASS=LABEL,LABEL', or leave its images out with --omit LABEL"


@dataclass(frozen=True)
class Labels:
    """What people stated of labels: the class that each means, and which are left out."""

    classes: Mapping[str, tuple[str, ...]] = field(default_factory=dict)  # class to labels
    omitted: tuple[str, ...] = ()

    @classmethod
    def parse(cls, stated: Sequence[str], omitted: Sequence[str] = ()) -> "Labels":
        """Of "CLASS=LABEL,LABEL" each, and "LABEL,LABEL" to leave out. Raises DatasetError."""
        classes: dict[str, tuple[str, ...]] = {}
        for text in stated:
            name, equals, labels = (part.strip() for part in text.partition("="))
            if not (name and equals and _split(labels)):
                raise DatasetError(f"--label {one_line(text)}: give CLASS=LABEL, or CLASS=LABEL,LABEL for several")
            classes[name] = (*classes.get(name, ()), *_split(labels))
        read = cls(classes, tuple(label for text in omitted for label in _split(text)))
        means = pd.Series([alike(name) for name in read.stated], dtype=str)
        if (twice := means[means.duplicated()]).any():
            raise DatasetError(f"the label '{read.stated[int(twice.index[0])]}' is named twice; give it one meaning")
        return read

    @property
    def stated(self) -> list[str]:
        """Every label that is named."""
        return [*(label for labels in self.classes.values() for label in labels), *self.omitted]

    def meanings(self, labels: Iterable[str], known: Iterable[str], of: str) -> dict[str, str | None]:
        """The class of each label of the set `of`, None for one that is left out; `known`: classes that there are.

        Raises DatasetError with the labels that mean none of them.
        """
        by_name = {alike(name): name for name in known}
        means: dict[str, str | None] = {alike(label): None for label in self.omitted}
        means |= {alike(label): name for name, those in self.classes.items() for label in those}
        found: dict[str, str | None] = {}
        unknown = []
        for label in sorted(set(labels)):
            keys = [alike(f"{of}:{label}"), alike(label)]
            if key := next((key for key in keys if key in means), ""):
                found[label] = means[key]
            elif alike(label) in by_name:
                found[label] = by_name[alike(label)]
            else:
                unknown.append(label)
        if unknown:
            classes = ", ".join(dict.fromkeys(by_name.values())) or "none that two sets share"
            raise DatasetError(f"{of} has {few(map(repr, unknown), 10)}, but the classes are {classes}. {HOW}")
        return found

    def refuse_unused(self, sets: Mapping[str, Iterable[str]]) -> None:
        """DatasetError if a label was stated that none of these sets has; sets: name to labels."""
        there = {name: set(labels) for name, labels in sets.items()}
        known = {
            alike(text) for name, labels in there.items() for label in labels for text in (label, f"{name}:{label}")
        }
        if unused := [label for label in self.stated if alike(label) not in known]:
            labels = "; ".join(f"{name}: {few(sorted(labels), 10)}" for name, labels in there.items())
            raise DatasetError(f"no image has the label {few(map(repr, unused))}. The labels are, {labels}")


def _split(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]

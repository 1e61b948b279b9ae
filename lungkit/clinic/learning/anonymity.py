"""k-anonymity of what a data set says of its patients: coarser values, and patients left out, until k are alike.

After Sweeney, "k-anonymity: a model for protecting privacy" (2002). Columns are made coarser for all patients alike
(global recoding): at each step the column and the level that leave the fewest patients alone. Those who are still
alone are left out. The images of one patient count together, because a reader of the data set sees them together.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

MOST_LEFT_OUT = 0.05  # share of the patients; above it a column is made coarser instead
ANY = "any"
OLDEST = 80  # years; older patients are one group at every level

Value = str | int | None
Level = Callable[[Value], str]  # a value to what the data set says instead


def _band(width: int) -> Level:
    def band(age: Value) -> str:
        if not isinstance(age, int):
            return "unknown"
        low = min(age, OLDEST) // width * width
        return f"{low}+" if low + width > OLDEST else f"{low}-{low + width - 1}"

    return band


def _years(width: int) -> Level:
    def years(year: Value) -> str:
        low = int(year or 0) // width * width
        return str(low) if width == 1 else f"{low}-{low + width - 1}"

    return years


def _as_it_is(value: Value) -> str:
    return str(value or "unknown")


def _any(_: Value) -> str:
    return ANY


# From the finest to the coarsest; what an image is (kind) is not hidden, as no one could use the image otherwise.
LEVELS: dict[str, tuple[Level, ...]] = {
    "age": (_band(10), _band(20), _band(40), _any),
    "sex": (_as_it_is, _any),
    "year": (_years(1), _years(5), _any),
    "view": (_as_it_is, _any),
    "kind": (_as_it_is,),
}


@dataclass(frozen=True)
class Anonymous:
    """rows: (place of the row, its columns), of patients who stay. smallest: group of patients who are alike.

    coarser: column to its level, 0 as it is. left_out: patients. groups: how many there are.
    """

    rows: tuple[tuple[int, dict[str, str]], ...]
    coarser: dict[str, int]
    left_out: int
    smallest: int
    groups: int


def anonymous(rows: Sequence[Mapping[str, Value]], patients: Sequence[str], k: int) -> Anonymous:
    """Rows of images, each with the columns of LEVELS, of which no patient is alike with fewer than k - 1 others.

    patients: whose image each row is. Raises ValueError for k below 2.
    """
    if k < 2:
        raise ValueError(f"k = {k}: accepted are 2 or more")
    levels = dict.fromkeys(LEVELS, 0)
    while len(alone := _alone(rows, patients, levels, k)) > MOST_LEFT_OUT * len(set(patients)):
        finer = [column for column, level in levels.items() if level + 1 < len(LEVELS[column])]
        if not finer:
            break
        steps = [levels | {column: levels[column] + 1} for column in finer]
        levels = min(steps, key=lambda step: len(_alone(rows, patients, step, k)))
    kept = tuple(
        (place, _said(row, levels))
        for place, (row, patient) in enumerate(zip(rows, patients, strict=True))
        if patient not in alone
    )
    sizes = Counter(_profiles([row for _, row in kept], [patients[place] for place, _ in kept]).values())
    return Anonymous(kept, levels, len(alone), min(sizes.values(), default=0), len(sizes))


def _said(row: Mapping[str, Value], levels: Mapping[str, int]) -> dict[str, str]:
    return {column: LEVELS[column][level](row[column]) for column, level in levels.items()}


def _profiles(rows: Sequence[Mapping[str, str]], patients: Sequence[str]) -> dict[str, frozenset[tuple[str, ...]]]:
    """All that is said of each patient."""
    said: dict[str, set[tuple[str, ...]]] = {}
    for row, patient in zip(rows, patients, strict=True):
        said.setdefault(patient, set()).add(tuple(row[column] for column in LEVELS))
    return {patient: frozenset(rows_of) for patient, rows_of in said.items()}


def _alone(rows: Sequence[Mapping[str, Value]], patients: Sequence[str], levels: Mapping[str, int], k: int) -> set[str]:
    """The patients who are alike with fewer than k - 1 others."""
    profiles = _profiles([_said(row, levels) for row in rows], patients)
    sizes = Counter(profiles.values())
    return {patient for patient, profile in profiles.items() if sizes[profile] < k}

"""Classes that are grades of one thing, such as how much of the lungs is affected: the answer is a range of them."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lungkit.models.schema import Part

Floats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Grades(Part):
    """That the classes of a model are grades, in the order of its outputs, and what each of them means."""

    extents: tuple[tuple[float, float], ...]  # of each grade: from how many to how many percent …
    of: str  # … of what: "the lungs"
    caution: str  # what a person has to know who sees an answer

    def extent(self, first: int, last: int) -> str:
        """What the grades from `first` to `last` mean: "about 0 to 50 % of the lungs", "no part of the lungs"."""
        (low, _), (_, high) = self.extents[first], self.extents[last]
        return f"about {low:g} to {high:g} % of {self.of}" if high else f"no part of {self.of}"


def range_name(names: Sequence[str]) -> str:
    """ "CT-1 to CT-2" for the grades of a range, and the name itself for one."""
    return names[0] if len(names) == 1 else f"{names[0]} to {names[-1]}"


def middle(probabilities: Floats) -> NDArray[np.int64]:
    """The grade at which half of the probability is reached, of each row (n, grades): int (n,).

    Of all answers it is the one whose error in grades is expected to be smallest.
    """
    below = np.cumsum(probabilities, axis=1)[:, :-1] < 0.5
    return np.asarray(below.sum(axis=1), np.int64)


def sums_before(probabilities: Floats, start: NDArray[np.int64]) -> Floats:
    """What the probabilities of a range sum to before it takes in each grade: float64 (n, grades), 0 for its start.

    probabilities: (n, grades). start: (n,), the grade that each range begins with. It grows by the likelier of its two
    neighbours, as in Lu, Angelopoulos and Pomerantz, "Improving trustworthiness of AI disease severity rating in
    medical imaging with ordinal conformal prediction sets" (MICCAI 2022).
    """
    image = np.arange(len(probabilities))
    beyond = np.pad(probabilities, ((0, 0), (1, 1)), constant_values=-1.0)  # there is no grade, so never the likelier
    before, first, last = np.zeros(beyond.shape), start + 1, start + 1
    total = beyond[image, first]
    for _ in range(probabilities.shape[1] - 1):
        down = beyond[image, first - 1] >= beyond[image, last + 1]
        joins = np.where(down, first - 1, last + 1)
        before[image, joins] = total
        total = total + beyond[image, joins]
        first, last = np.where(down, joins, first), np.where(down, last, joins)
    return before[:, 1:-1]

"""What a trial of two versions says: its evidence, and the one rule by which it says promote, keep or cannot tell.

The version in use is the champion, the one that could take its place the challenger. Differences are challenger minus
champion, on the same images, with 95 % intervals by patient.

- **Worse**: the whole interval of the difference in AUC lies below 0. **Not worse**: all of it lies above minus the
  margin, which is stated before (non-inferiority; Piaggio et al., JAMA 2012).
- **Better** is a claim that chance makes by itself where several sets are asked, or one set again and again. All claims
  on one locked set share a one-sided level of ALPHA: look number l may spend ALPHA / (l (l + 1)), which sums to ALPHA
  over however many looks (Bonferroni's inequality), and the sets of a trial share that in equal parts.
- **How many would tell**: the variance of a difference falls as 1 / patients, so its standard error on n patients says
  how many are needed to show "not worse" with a chance of POWER if there is no difference (Chow, Shao, Wang, "Sample
  size calculations in clinical research", 2008).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Literal

from lungkit.models.schema import Part
from lungkit.wording import count, figure, listed, percent

Word = Literal["promote", "keep", "cannot tell"]
Kind = Literal["locked", "home", "elsewhere", "new"]
BETTER, NOT_WORSE, WORSE, OPEN = "better", "not worse", "worse", "open"
PROMOTE, KEEP, CANNOT_TELL = "promote", "keep", "cannot tell"

ALPHA = 0.05  # chance of ever promoting a challenger that is only as good, by claims on one locked set
POWER = 0.8
MOST_ECE, MOST_BRIER = 0.02, 0.01  # a calibration that is worse by more, with its whole interval, is refused
SLOWEST = 2.0  # times the champion's time for an image
LEAST_PATIENTS = 30  # of each class; with fewer, intervals are too short
_Z = NormalDist().inv_cdf

RULE = (
    "Keep the champion if the challenger is worse on any set (its whole interval of the difference in AUC lies below "
    f"0), if its calibration is worse by more than {MOST_ECE} (ECE) or {MOST_BRIER} (Brier score) with the whole "
    f"interval, or if it takes more than {SLOWEST:g} times as long for an image. Promote if none of this is so, if it "
    "is not worse, by the margin, on the locked set and on every source that the champion learned from, and if it is "
    "better on at least one set. All claims of better on one locked set share a level of "
    f"{percent(ALPHA)}: look number l spends {ALPHA:g}/(l(l+1)), in equal parts for its sets. A set with fewer than "
    f"{LEAST_PATIENTS} patients of a class shows neither. Otherwise these data cannot tell."
)

Figure = tuple[float, float, float]  # value, and the ends of its 95 % interval


@dataclass(frozen=True, kw_only=True)
class OfVersion(Part):
    """What one version does on a set. left_to_person: share of images within its band of uncertainty."""

    auc: Figure
    accuracy: Figure
    ece: float
    brier: float
    left_to_person: float


@dataclass(frozen=True, kw_only=True)
class OfSet(Part):
    """Both versions on one source of a set; auc, accuracy, ece, brier: differences, challenger minus champion."""

    kind: Kind  # home: a source that the champion learned from; new: reviewed cases that neither learned from
    source: str
    data: str
    images: int
    patients: int
    fewest: int  # patients of the class that has the fewest
    left_out: int  # images that either learned from, of patients that it did, or labelled with the challenger's answer
    answer_shown: float | None = None  # share of labels of reviews that were given with an answer on screen
    champion: OfVersion
    challenger: OfVersion
    auc: Figure
    accuracy: Figure
    ece: Figure
    brier: Figure
    auc_p: float | None = None  # DeLong; None for more than two classes
    decision_p: float | None = None  # McNemar

    def __str__(self) -> str:
        return {"locked": f"the locked set {self.data}", "new": f"the new cases {self.data}"}.get(
            self.kind, self.source
        )

    @property
    def error(self) -> float:
        """The standard error of the difference in AUC, from its interval."""
        return (self.auc[2] - self.auc[1]) / (2 * _Z(0.975))

    def patients_needed(self, margin: float, level: float = 0.025) -> int:
        """How many patients like these would show, by a one-sided test at this level, with a chance of POWER:

        that the challenger is not worse by the margin, if there is no difference; or that it is better, if it is so by
        the margin.
        """
        times = ((_Z(1 - level) + _Z(POWER)) * self.error / margin) ** 2
        return max(2 * LEAST_PATIENTS, math.ceil(self.patients * times))

    def images_needed(self, margin: float, level: float = 0.025) -> int:
        """As `patients_needed`, in images, of which a patient has as many as here."""
        return math.ceil(self.patients_needed(margin, level) * self.images / self.patients)


@dataclass(frozen=True, kw_only=True)
class Candidate(Part):
    """A version in a trial. milliseconds: for an image, from file to answer. bytes: of all its files."""

    version: str
    fingerprint: str  # of its files, as registry.fingerprint gives it
    milliseconds: float
    bytes: int


@dataclass(frozen=True, kw_only=True)
class Evidence(Part):
    """All that a trial found. looks: trials on this locked set or the sets that it grew from, this one included."""

    model: str
    champion: Candidate
    challenger: Candidate
    margin: float
    sets: tuple[OfSet, ...]
    not_measured: tuple[str, ...]  # sources that the champion learned from, of which there is no set
    locked_sha256: str | None = None  # of the manifest of the locked set
    looks: int = 0
    times_slower: float  # median over images of the challenger's time to the champion's
    timed_on: int  # images
    measured_at: str  # ISO 8601, UTC
    rule: str = RULE

    def __str__(self) -> str:
        return f"{self.model}: {self.challenger.version} against {self.champion.version}, which is in use"

    @property
    def level(self) -> float:
        """The one-sided level at which this trial may call one set better."""
        look = max(self.looks, 1)
        return ALPHA / (look * (look + 1)) / max(len(self.sets), 1)

    def outcome(self, of: OfSet) -> str:
        """better, not worse, worse or open."""
        value, low, high = of.auc
        if high < 0:
            return WORSE
        if of.fewest < LEAST_PATIENTS:
            return OPEN
        if low > 0 and value >= _Z(1 - self.level) * of.error:
            return BETTER
        return NOT_WORSE if low > -self.margin else OPEN


@dataclass(frozen=True)
class Verdict:
    """word: promote, keep or cannot tell. reasons: why, as sentences. would_tell: what would change "cannot tell"."""

    word: Word
    reasons: tuple[str, ...]
    would_tell: tuple[str, ...] = ()


def judge(evidence: Evidence) -> Verdict:
    """The verdict by RULE, which says the same in words."""
    if against := [*_worse(evidence), *_limits(evidence)]:
        return Verdict("keep", tuple(against))
    by_outcome = {word: [of for of in evidence.sets if evidence.outcome(of) == word] for word in (BETTER, OPEN)}
    lacking, would_tell = _not_shown(evidence, by_outcome[OPEN])
    if not by_outcome[BETTER]:
        lacking.append("The challenger is not shown to be better on any set.")
        would_tell += _gains(evidence)
    if lacking:
        return Verdict("cannot tell", tuple(lacking), tuple(would_tell))
    return Verdict(
        "promote",
        (
            *(f"The challenger is better on {of}: AUC {figure(*of.auc, signed=True)}." for of in by_outcome[BETTER]),
            f"It is not worse, by a margin of {evidence.margin:g}, on the locked set and on every source that the "
            "champion learned from.",
            "Calibration and speed are within their limits.",
        ),
    )


def counts(of: OfSet) -> bool:
    """Whether a promotion needs "not worse" there."""
    return of.kind in ("locked", "home")


def _worse(evidence: Evidence) -> list[str]:
    return [
        f"The challenger is worse on {of}: AUC {figure(*of.auc, signed=True)}."
        for of in evidence.sets
        if evidence.outcome(of) == WORSE
    ]


def _limits(evidence: Evidence) -> list[str]:
    """What is beyond the limits of calibration and speed."""
    beyond = [
        f"Its calibration is worse on {of}: {name} {figure(*value, signed=True)}; accepted is up to {most:g} more."
        for of in evidence.sets
        for name, value, most in (("ECE", of.ece, MOST_ECE), ("Brier score", of.brier, MOST_BRIER))
        if value[1] > most
    ]
    if evidence.times_slower > SLOWEST:
        beyond.append(
            f"It takes {evidence.times_slower:.1f} times as long for an image; accepted is up to {SLOWEST:g} times."
        )
    return beyond


def _not_shown(evidence: Evidence, undecided: Sequence[OfSet]) -> tuple[list[str], list[str]]:
    """What a promotion needs and is not shown, and how many patients would show it."""
    lacking, would_tell = [], []
    if not any(of.kind == "locked" for of in evidence.sets):
        lacking.append("There is no locked set, whose labels were given without the model's answer.")
        would_tell.append("Name a locked set with --locked.")
    if evidence.not_measured:
        named = listed(list(evidence.not_measured), "and")
        lacking.append(f"The champion learned from {named}, of which no images were measured.")
        would_tell.append(f"Name a data set of {named} with --data.")
    for of in filter(counts, undecided):
        open_by_size = of.auc[1] > -evidence.margin
        why = f", of which one class has only {count(of.fewest, 'patient')}" if open_by_size else ""
        lacking.append(f"It is not shown to be not worse on {of}{why}: AUC {figure(*of.auc, signed=True)}.")
        least = f"at least {LEAST_PATIENTS} patients of each class are needed; of one there are {of.fewest:,}."
        would_tell.append(f"{of}: {least if open_by_size else power(of, evidence.margin)}")
    return lacking, would_tell


def power(of: OfSet, margin: float) -> str:
    """In words, how many patients would show "not worse" there, and how many there are."""
    needed = of.patients_needed(margin)
    images = of.images_needed(margin)
    there = f"there are {of.patients:,}"
    if of.fewest < LEAST_PATIENTS:
        there += f", and of one class only {of.fewest:,}, where {LEAST_PATIENTS} are the least"
    return (
        f"{count(needed, 'patient')} ({count(images, 'image')}) would show not worse by {margin:g} with a chance of "
        f"{percent(POWER)} if there is no difference; {there}."
    )


def _gains(evidence: Evidence) -> list[str]:
    """How many patients of each set would show a gain as large as the margin."""
    rows = []
    for of in evidence.sets:
        needed = of.patients_needed(evidence.margin, evidence.level)
        if needed > of.patients:
            rows.append(
                f"{of}: a gain of {evidence.margin:g} would show on {count(needed, 'patient')} with a chance of "
                f"{percent(POWER)}; there are {of.patients:,}."
            )
        else:
            rows.append(f"{of}: has enough patients for a gain of {evidence.margin:g}; if there is one, it is smaller.")
    return rows


def looks_in_words(evidence: Evidence) -> str:
    """What the number of looks at the locked set means for this trial."""
    if evidence.locked_sha256 is None:
        return "No locked set was used."
    if evidence.looks == 1:
        return f"First look at this locked set. Better needs a one-sided p of {evidence.level:.2g} or less."
    return (
        f"Look number {evidence.looks} at this locked set: trials before have chosen among versions by it, so better "
        f"now needs a one-sided p of {evidence.level:.2g} or less. A locked set of new patients starts at one again."
    )


# --- for people

FIGURES = "In brackets: 95 % interval by patient. Differences are challenger minus version in use."


def set_row(evidence: Evidence, of: OfSet) -> dict[str, str]:
    """A set in one row of a table: what a heading names to its text."""
    kinds = {"locked": "locked set", "home": "home", "elsewhere": "elsewhere", "new": "new cases"}
    return {
        "set": f"{of.data if of.kind in ('locked', 'new') else of.source} ({kinds[of.kind]})",
        "AUC in use": figure(*of.champion.auc),
        "AUC challenger": figure(*of.challenger.auc),
        "difference": figure(*of.auc, signed=True),
        "accuracy, difference": figure(*of.accuracy, signed=True),
        "ECE, both": f"{of.champion.ece:.3f}, {of.challenger.ece:.3f}",
        "Brier, both": f"{of.champion.brier:.3f}, {of.challenger.brier:.3f}",
        "left to a person, both": f"{percent(of.champion.left_to_person)}, {percent(of.challenger.left_to_person)}",
        "images": f"{of.images:,} of {count(of.patients, 'patient')}"
        + (f"; {of.left_out:,} left out" if of.left_out else ""),
        "outcome": evidence.outcome(of),
    }


def says(evidence: Evidence) -> list[str]:
    """The verdict with its reasons, what would change it, and what else was measured; one sentence or two each."""
    said = judge(evidence)
    return [
        f"Verdict: {said.word}. {' '.join(said.reasons)}",
        *said.would_tell,
        *(f"{of}: {power(of, evidence.margin)}" for of in evidence.sets if counts(of) and said.word != CANNOT_TELL),
        looks_in_words(evidence),
        *_labels_with_answer(evidence),
        side_by_side(evidence),
    ]


def side_by_side(evidence: Evidence) -> str:
    """Speed and size of both."""
    old, new = evidence.champion, evidence.challenger
    return (
        f"For an image {old.version} takes {old.milliseconds:.0f} ms and {new.version} {new.milliseconds:.0f} ms, "
        f"{evidence.times_slower:.2f} times as long (median of {count(evidence.timed_on, 'image')}, read in turns). "
        f"Size: {old.bytes / 1e6:.1f} MB and {new.bytes / 1e6:.1f} MB."
    )


def _labels_with_answer(evidence: Evidence) -> list[str]:
    """Sets of reviews whose labels lean towards the version in use."""
    return [
        f"{percent(of.answer_shown)} of the labels of {of} were given with an answer on screen, so they lean towards "
        "the version that gave it."
        for of in evidence.sets
        if of.kind == "new" and of.answer_shown
    ]

"""For whom a classifier works: its figures in groups of patients, and whether a group differs from the rest.

A mean hides the group that a model fails (Oakden-Rayner et al., "Hidden stratification", CHIL 2020), and people who are
served worst are often those who were served worst before (Seyyed-Kalantari et al., Nature Medicine 2021). A model is
worth what it reaches in its worst group. Figures are of one class against the rest, at the version's operating point:

- Every figure of a group has the interval by patient of lungkit.training.evaluation.
- A group that has images of one class only, as grades of a disease do, has no AUC of its own. Its images are then
  ranked against *all* images of the other class; `against` says so. A group that has all images of its class would rank
  all there are, and its AUC is left undefined.
- A group's difference to the rest has the percentiles of the same resamples of all patients: a patient with images in
  both stays one patient. Its p is that of the difference over its standard deviation in the resamples, two-sided, from
  the normal distribution; percentiles of 1,000 resamples could not be small enough for many groups. That deviation is
  set to the one where group and rest have a common figure, as in a score test: with few patients, or near 0 and 1, the
  deviation of each side alone is too small, and chance would look like a difference.
- Where that deviation is 0, as where a group is always right and the rest always wrong, p is that of PERMUTATIONS
  random divisions of the patients, within the classes, into a group and a rest of the same sizes.
- p is adjusted for all groups of all attributes together, for each figure (Holm, Scandinavian Journal of Statistics
  1979). Of an attribute with two groups, both differences are one comparison, and it counts once.
- With fewer than FEW patients of a class that a figure needs, the group is *few*: its figure has an interval but no
  test, and it is never named the worst. Nor is a group tested whose rest is few.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import scipy.stats
from numpy.typing import ArrayLike

from lungkit import wording
from lungkit.data import attributes
from lungkit.data.attributes import Groups
from lungkit.errors import LungkitError
from lungkit.training import evaluation, paired
from lungkit.training.evaluation import Evaluation
from lungkit.training.release import Scored

FEW = 10  # patients of a class: with 9 who are all right, the exact interval still reaches down to 0.66
FIGURES = {"auc": "AUC", "recall": "Sensitivity", "specificity": "Specificity"}
CALIBRATION = "calibration"  # mean stated probability less the share of positives; 0 is right
SHOWN = 30  # groups in a figure: more are not readable on 8 inches
BRIGHTNESS = "brightness"
PERMUTATIONS = 9_999  # with the division there is, 10,000: the smallest p is 0.0001

Interval = tuple[float, float, float]
_UNDEFINED: Interval = (np.nan, np.nan, np.nan)


@dataclass(frozen=True, eq=False)
class Subgroups:
    """What `measure` found.

    positive: the class whose AUC, sensitivity and specificity these are. overall: of all images, by figure.
    table: a row a group, with attribute, group, images, patients, positives (images), positive_patients,
        negative_patients and against ("", or whose images of the other class an AUC is taken with); for each figure F
        of FIGURES F, F_low, F_high, F_few (bool), F_gap (to the rest), F_gap_low, F_gap_high, F_p, F_holm; and
        calibration, calibration_low, calibration_high. Undefined figures are NaN.
    """

    positive: str
    overall: dict[str, Interval]
    table: pd.DataFrame

    def value(self, row: "pd.Series[Any]", figure: str) -> Interval:
        """(value, low, high) of a group's figure."""
        return float(row[figure]), float(row[f"{figure}_low"]), float(row[f"{figure}_high"])

    def tested(self, figure: str) -> pd.DataFrame:
        """The groups whose figure is defined and of enough patients, the lowest first."""
        rows = self.table[~self.table[f"{figure}_few"] & self.table[figure].notna()]
        return rows.sort_values(figure, kind="stable")

    def summary(self) -> pd.DataFrame:
        """For people: a row a group; figures of few patients have an asterisk."""
        return pd.DataFrame([self._row(row) for _, row in self.table.iterrows()]).set_index(["attribute", "group"])

    def _row(self, row: "pd.Series[Any]") -> dict[str, str]:
        cells = {"attribute": row["attribute"], "group": row["group"]}
        cells["images (positive)"] = f"{row['images']:,} ({row['positives']:,})"
        cells["patients"] = f"{row['patients']:,}"
        for figure, name in FIGURES.items():
            marks = ("*" if row[f"{figure}_few"] else "") + ("†" if figure == "auc" and row["against"] else "")
            cells[name] = wording.figure(*self.value(row, figure)) + ("" if np.isnan(row[figure]) else marks)
        cells["AUC, less the rest's"] = wording.figure(row["auc_gap"], row["auc_gap_low"], row["auc_gap_high"], True)
        cells["p (Holm)"] = _p(row["auc_holm"])
        cells["Stated less observed"] = wording.figure(*self.value(row, CALIBRATION), signed=True)
        return cells

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready; undefined figures are None."""
        rows = [{str(name): _json(value) for name, value in row.items()} for row in self.table.to_dict("records")]
        overall = {figure: [_json(value) for value in interval] for figure, interval in self.overall.items()}
        return {"positive": self.positive, "overall": overall, "groups": rows}


NOTE = (
    f"* fewer than {FEW} patients of a class that the figure needs: not tested.  "
    "† one class only: ranked against all images of the other class."
)


def of_scored(scored: Scored) -> Groups:
    """The groups of a version's scored images: by what is stated of them, and by how bright the model's picture is.

    Brightness is the mean of the picture, 0 (black) to 1. notes: on columns that form no groups.
    """
    stated = attributes.of(scored.data, scored.rows)
    spec = scored.version.card.preprocessing
    bright = scored.tensors.mean(axis=(1, 2, 3), dtype=float) * spec.std + spec.mean
    table = stated.table.assign(**{BRIGHTNESS: [f"{value:.6f}" for value in bright]})
    groups = attributes.grouped(table, scored.patients)
    return Groups(groups.table, groups.how, (*stated.notes, *groups.notes))


def chance_groups(patients: ArrayLike, how_many: int, seed: int = 7) -> pd.DataFrame:
    """Attributes that mean nothing: each puts a random half of the patients into a group, "drawn" or "rest"."""
    names, patient = np.unique(np.asarray(patients).astype(str), return_inverse=True)
    rng = np.random.default_rng(seed)
    halves = (rng.permutation(len(names)) < len(names) / 2 for _ in range(how_many))
    drawn = {f"chance {number}": np.where(half[patient], "drawn", "rest") for number, half in enumerate(halves, 1)}
    return pd.DataFrame(drawn).astype(pd.CategoricalDtype(["drawn", "rest"], ordered=True))


def measure(measured: Evaluation, groups: pd.DataFrame, positive: str = "") -> Subgroups:
    """The figures of each group, and their differences to the rest.

    groups: a row for each image of the evaluation, in its order; each column an attribute, of categories.
    positive: the class of interest; default: the last, as for the AUC of two classes.
    LungkitError for another number of rows, an unknown class, or no attribute.
    """
    positive = positive or measured.classes[-1]
    if positive not in measured.classes:
        raise LungkitError(f"no class '{positive}'; there are: {', '.join(measured.classes)}")
    if len(groups) != len(measured.true):
        raise LungkitError(f"{len(groups)} rows of attributes for {len(measured.true)} images; give one for each")
    members = _members(groups)
    masks = np.array(list(members.values()))
    table = pd.DataFrame(list(members), columns=["attribute", "group"])
    table = table.join(pd.DataFrame([_figures(measured, mask, positive) for mask in masks]))
    table = _tested(table.join(_gaps(measured, masks, positive)))
    overall = {figure: measured.value(figure, positive) for figure in FIGURES}
    overall[CALIBRATION] = _calibration(measured, np.full(len(measured.true), True), positive)
    return Subgroups(positive, overall, table.drop(columns=[f"{figure}_rest_few" for figure in FIGURES]))


def _members(groups: pd.DataFrame) -> dict[tuple[str, str], np.ndarray]:
    """Which images are of each group that has any (bool, n), by (attribute, group)."""
    members = {
        (str(name), str(value)): mask
        for name in groups
        for value in groups[name].cat.categories
        if (mask := (groups[name] == value).to_numpy()).any()
    }
    if not members:
        raise LungkitError("nothing is stated of these images that would tell groups of patients apart")
    return members


def _tested(table: pd.DataFrame) -> pd.DataFrame:
    """The table with adjusted p; no difference of an undefined figure, and no p where a group or the rest is few."""
    for figure in FIGURES:
        for column in (f"{figure}_gap", f"{figure}_gap_low", f"{figure}_gap_high", f"{figure}_p"):
            table[column] = table[column].where(table[figure].notna())
        few = table[f"{figure}_few"] | table[f"{figure}_rest_few"]
        table[f"{figure}_p"] = table[f"{figure}_p"].where(~few)
        table[f"{figure}_holm"] = _holm_once(table["attribute"], table[f"{figure}_p"])
    return table


# --- the figures of a group


def _figures(measured: Evaluation, mask: np.ndarray, positive: str) -> dict[str, Any]:
    is_positive = measured.true == measured.classes.index(positive)
    sick, well = (len(np.unique(measured.patients[mask & of])) for of in (is_positive, ~is_positive))
    ranked, against = _ranked(mask, is_positive)
    inside = _part(measured, mask)
    row: dict[str, Any] = {
        "images": int(mask.sum()),
        "patients": len(np.unique(inside.patients)),
        "positives": int((mask & is_positive).sum()),
        "positive_patients": sick,
        "negative_patients": well,
        "against": against,
    }
    everything = bool(against) and bool(ranked.all())
    ranking = _part(measured, ranked) if against else inside
    row |= _named("auc", _UNDEFINED if everything else ranking.value("auc", positive))
    for figure in ("recall", "specificity"):
        row |= _named(figure, inside.value(figure, positive))
    # Where one class was chosen, what is stated cannot be right on average.
    row |= _named(CALIBRATION, _UNDEFINED if against else _calibration(measured, mask, positive))
    for where, of in (("few", mask), ("rest_few", ~mask)):
        row |= {f"{figure}_{where}": few for figure, few in _few(measured, of, is_positive).items()}
    return row


def _few(measured: Evaluation, mask: np.ndarray, is_positive: np.ndarray) -> dict[str, bool]:
    """Whether the images of `mask` are of too few patients for each figure."""

    def patients(of: np.ndarray) -> int:
        return len(np.unique(measured.patients[of]))

    ranked, _ = _ranked(mask, is_positive)
    return {
        "auc": min(patients(ranked & is_positive), patients(ranked & ~is_positive)) < FEW,
        "recall": patients(mask & is_positive) < FEW,
        "specificity": patients(mask & ~is_positive) < FEW,
    }


def _ranked(mask: np.ndarray, is_positive: np.ndarray) -> tuple[np.ndarray, str]:
    """The images that a group's AUC ranks, and in words what was added to it."""
    if not (mask & is_positive).any():
        return mask | is_positive, "all positives"
    if not (mask & ~is_positive).any():
        return mask | ~is_positive, "all negatives"
    return mask, ""


def _part(measured: Evaluation, mask: np.ndarray) -> Evaluation:
    return evaluation.evaluate(
        measured.true[mask],
        measured.probabilities[mask],
        measured.patients[mask],
        measured.classes,
        measured.rule,
        measured.n_boot,
        measured.seed,
        measured.sources[mask],
    )


def _calibration(measured: Evaluation, mask: np.ndarray, positive: str) -> Interval:
    index = measured.classes.index(positive)
    excess = measured.probabilities[mask, index] - (measured.true[mask] == index)
    return evaluation.mean_with_interval(
        excess, measured.patients[mask], bounds=(-1, 1), sources=measured.sources[mask]
    )


def _named(figure: str, interval: Interval) -> dict[str, float]:
    return dict(zip((figure, f"{figure}_low", f"{figure}_high"), interval, strict=True))


# --- the differences to the rest


def _gaps(measured: Evaluation, members: np.ndarray, positive: str) -> pd.DataFrame:
    """Each group's figures less those of the rest (G rows): F_gap, F_gap_low, F_gap_high, F_p."""
    index = measured.classes.index(positive)
    contrast = _Contrast(members, measured.true == index, measured.predicted == index, measured.probabilities[:, index])
    value, low, high, resampled = measured.bootstrapped(contrast)
    parts = {}
    for place, figure in enumerate(FIGURES):
        own = slice(place * len(members), (place + 1) * len(members))
        parts[f"{figure}_gap"] = value[own]
        parts[f"{figure}_gap_low"], parts[f"{figure}_gap_high"] = _with_width(
            value[own], low[own], high[own], members, measured.patients
        )
        scale = contrast.common_auc() if figure == "auc" else contrast.common_share(figure)
        p = _p_values(value[own], resampled[:, own], scale)
        for group in np.flatnonzero(np.isinf(p)):
            p[group] = _permuted_p(contrast, figure, members[group], measured.patients, measured.seed)
        parts[f"{figure}_p"] = p
    return pd.DataFrame(parts)


@dataclass(frozen=True, eq=False)
class _Contrast:
    """The figures of groups less those of the rest: call with weights (r, n), get (r, figures × groups)."""

    members: np.ndarray  # bool (G, n)
    positive: np.ndarray  # bool (n,)
    called: np.ndarray  # bool (n,)
    scores: np.ndarray  # (n,)

    def __call__(self, weights: np.ndarray) -> np.ndarray:
        auc = np.stack([self._auc_gap(weights, mask) for mask in self.members], axis=1)
        found = self._share(weights, self.positive, self.called)
        return np.hstack([auc, found, self._share(weights, ~self.positive, ~self.called)])

    def _auc_gap(self, weights: np.ndarray, mask: np.ndarray) -> np.ndarray:
        """Undefined where there is no rest."""
        if mask.all():
            return np.full(len(weights), np.nan)
        inside, outside = (
            evaluation.weighted_auc(self.scores[of], self.positive[of], weights[:, of])
            for of in (_ranked(mask, self.positive)[0], _ranked(~mask, self.positive)[0])
        )
        return inside - outside

    def divided(self, figure: str, inside: np.ndarray) -> np.ndarray:
        """The difference in a figure for each of many divisions (bool, r, n) that have classes as one of `members`."""
        if figure != "auc":
            of, right = self._of(figure)
            own, rest = (self._shares(np.ones((1, len(of))), masks & of, right)[0] for masks in (inside, ~inside))
            return np.asarray(own - rest)
        own, rest = (
            evaluation.weighted_auc(
                self.scores, self.positive, np.array([_ranked(mask, self.positive)[0] for mask in of])
            )
            for of in (inside, ~inside)
        )
        return np.asarray(own - rest)

    def _of(self, figure: str) -> tuple[np.ndarray, np.ndarray]:
        """The images whose share a figure is, and which are right (bool, n)."""
        return (self.positive, self.called) if figure == "recall" else (~self.positive, ~self.called)

    def _share(self, weights: np.ndarray, of: np.ndarray, right: np.ndarray) -> np.ndarray:
        """The share of the images `of` that are right, of each group less the rest."""
        inside, outside = (self._shares(weights, masks & of, right) for masks in (self.members, ~self.members))
        return inside - outside

    def _shares(self, weights: np.ndarray, masks: np.ndarray, right: np.ndarray) -> np.ndarray:
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.asarray((weights @ (masks & right).T) / (weights @ masks.T))

    def common_auc(self) -> np.ndarray:
        """By how much an AUC's deviation grows (G,) where a group and the rest have a common AUC; inf if it had none.

        By the variances of placements of DeLong, DeLong and Clarke-Pearson (Biometrics 1988), of all images against
        those of each side alone. Images that both sides share, as all negatives, are left out of both.
        """
        whole = _placement_variances(self.scores, self.positive)
        return np.array([self._growth(mask, whole) for mask in self.members])

    def _growth(self, mask: np.ndarray, whole: tuple[float, float]) -> float:
        sides = [_ranked(of, self.positive)[0] for of in (mask, ~mask)]
        together = apart = 0.0
        alone = [_placement_variances(self.scores[side], self.positive[side]) for side in sides]
        for place, of in enumerate((self.positive, ~self.positive)):
            if not np.array_equal(sides[0] & of, sides[1] & of):
                for side, own in zip(sides, alone, strict=True):
                    size = max(int((side & of).sum()), 1)
                    together, apart = together + whole[place] / size, apart + own[place] / size
        return float(np.sqrt(together / apart)) if apart > 0 else np.inf

    def common_share(self, figure: str) -> np.ndarray:
        """By how much a share's deviation grows (G,) where both sides have a common share; inf where it had none."""
        of, right = self._of(figure)
        both = [masks & of for masks in (self.members, ~self.members)]
        sizes = [masks.sum(axis=1) for masks in both]
        shares = [self._shares(np.ones((1, len(of))), masks, right)[0] for masks in both]
        together = right[of].mean() if of.any() else np.nan
        with np.errstate(invalid="ignore", divide="ignore"):
            apart = sum(share * (1 - share) / size for share, size in zip(shares, sizes, strict=True))
            return np.asarray(np.sqrt(together * (1 - together) * (1 / sizes[0] + 1 / sizes[1]) / apart))


def _placement_variances(scores: np.ndarray, positive: np.ndarray) -> tuple[float, float]:
    """The variance among positives, and among negatives, of the share of the other class each is ordered rightly with.

    0 where a class has fewer than two images.
    """
    overall = scipy.stats.rankdata(scores)
    return tuple(  # type: ignore[return-value]
        float(np.var((overall[of] - scipy.stats.rankdata(scores[of])) / (~of).sum(), ddof=1))
        if of.sum() > 1 and (~of).any()
        else 0.0
        for of in (positive, ~positive)
    )


def _with_width(
    value: np.ndarray, low: np.ndarray, high: np.ndarray, members: np.ndarray, patients: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Intervals that have a width also where no resample differs, as evaluation.paired_difference has them."""
    least = np.array([len(np.unique(patients[mask])) for mask in members])
    reach = np.array([1 - evaluation.all_right(n) for n in least])
    flat = low == high
    low, high = np.where(flat, value - reach, low), np.where(flat, value + reach, high)
    return np.maximum(low, -1), np.minimum(high, 1)


def _p_values(value: np.ndarray, resampled: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """Two-sided p of each difference (k,), from its deviation in resamples (r, k) times `scale` (k,).

    1 where the difference is 0; infinite where it is not and has no deviation: no p can be had from it.
    """
    p = np.full(len(value), np.nan)
    for place in np.flatnonzero(~np.isnan(value)):
        known = resampled[:, place][~np.isnan(resampled[:, place])]
        if len(known) > 1:
            spread = known.std(ddof=1)
            if abs(value[place]) < 1e-12:
                p[place] = 1.0
            elif spread < 1e-12 or not np.isfinite(scale[place]):
                p[place] = np.inf
            else:
                p[place] = 2 * scipy.stats.norm.sf(abs(value[place]) / (spread * scale[place]))
    return p


def _permuted_p(contrast: _Contrast, figure: str, mask: np.ndarray, patients: np.ndarray, seed: int) -> float:
    """Two-sided p of a group's difference, from divisions of the patients by chance within the classes they have.

    A patient with images on both sides stays there. The division there is counts as one: p is above 0.
    """
    _, patient = np.unique(patients, return_inverse=True)
    size = np.bincount(patient)
    sick, inside = (np.bincount(patient, of) / size for of in (contrast.positive, mask))
    both = (inside > 0) & (inside < 1)
    kinds = np.where(both, 3, np.where(sick == 0, 0, np.where(sick == 1, 1, 2)))
    order, rng = np.argsort(kinds, kind="stable"), np.random.default_rng(seed)
    far, least = 1, abs(contrast.divided(figure, mask[None])[0]) - 1e-12
    step = max(1, 1_000_000 // len(mask))
    for start in range(0, PERMUTATIONS, step):
        drawn = np.argsort(kinds + rng.random((min(step, PERMUTATIONS - start), len(size))), axis=1)
        divided = np.empty(drawn.shape, bool)
        divided[:, order] = inside[drawn] > 0.5
        far += int(
            (np.abs(contrast.divided(figure, np.where(both[patient], mask, divided[:, patient]))) >= least).sum()
        )
    return far / (PERMUTATIONS + 1)


def _holm_once(attribute: "pd.Series[str]", p: "pd.Series[float]") -> np.ndarray:
    """Holm's p, where the two groups of an attribute are one comparison."""
    twin = (attribute.map(attribute.value_counts()) == 2) & attribute.duplicated() & p.notna()
    twin &= p.groupby(attribute).transform("count") == 2
    adjusted = pd.Series(paired.holm(p.mask(twin).tolist()), p.index)
    return adjusted.where(~twin, adjusted.shift()).to_numpy(float)


# --- words


def says(found: Subgroups, plain: bool = False) -> list[str]:
    """The worst group by each of FIGURES, whether chance explains it, and how many groups are too small.

    plain: without Markdown.
    """
    sentences = filter(None, [*(_worst_says(found, figure) for figure in FIGURES), _few_says(found)])
    return [sentence.replace("**", "") if plain else sentence for sentence in sentences]


def _few_says(found: Subgroups) -> str:
    few = int(found.table["auc_few"].sum())
    have = "has" if few == 1 else "have"
    return (
        f"{wording.count(few, 'group')} of {len(found.table)} {have} fewer than {FEW} patients of a class: no AUC was "
        "tested there, and how the model serves these patients is not known."
        if few
        else ""
    )


def drawn_says(synthetic: bool) -> str:
    """What these groups say of patients: nothing where they are drawn; otherwise what they leave open."""
    if synthetic:
        return "These patients are drawn: the figures say that the notebook works, and nothing about people."
    return "A group that nobody wrote down is in no table: what is not stated of patients was not compared."


def worst_title(found: Subgroups, figure: str) -> str:
    """The worst group in one line, without a verdict: the title of a figure."""
    rows = found.tested(figure)
    if rows.empty:
        return f"No group has {FEW} patients of each class that {FIGURES[figure]} needs"
    if len(rows) > 1 and _alike(rows[figure]):
        return f"{FIGURES[figure]} is {rows[figure].iloc[0]:.3f} in every group that has enough patients"
    value = wording.figure(*found.value(rows.iloc[0], figure))
    lowest = f"{FIGURES[figure]} for {found.positive} is lowest where {_name(rows.iloc[0])}: {value}"
    said = f"{lowest}, over all {found.overall[figure][0]:.3f}"
    lower = _lower(found, figure)
    return f"Of the groups that could be tested, {said}; lower, with too few patients: {lower}" if lower else said


def _worst_says(found: Subgroups, figure: str) -> str:
    rows = found.tested(figure)
    name = "AUC" if figure == "auc" else FIGURES[figure].lower()
    if rows.empty:
        return f"No group has {FEW} patients of each class that its {name} needs: none can be compared."
    if len(rows) > 1 and _alike(rows[figure]):
        of = wording.count(len(rows), "group")
        return f"No group is worse by {name}: it is {rows[figure].iloc[0]:.3f} in each of {of} with enough patients."
    row = rows.iloc[0]
    own, all_images = (wording.figure(*of) for of in (found.value(row, figure), found.overall[figure]))
    if np.isnan(row[f"{figure}_gap"]):
        return f"Where **{_name(row)}**, {name} is {own}; there are no others to compare it with."
    lower = _lower(found, figure)
    worst = f"The worst {'of the groups that could be tested' if lower else 'group'} by {name} for {found.positive}"
    reached = f"{worst} is the one where **{_name(row)}**: {own}, against {all_images} over all."
    if figure == "auc" and row["auc_high"] < 0.5:
        reached += " It ranks these patients the wrong way round."
    few = f" Lower, but with fewer than {FEW} patients of a class: {lower}." if lower else ""
    gap = wording.figure(row[f"{figure}_gap"], row[f"{figure}_gap_low"], row[f"{figure}_gap_high"], signed=True)
    tests = _tests(found.table, figure)
    if np.isnan(row[f"{figure}_holm"]):
        return f"{reached} The others are too few to be compared with it.{few}"
    if row[f"{figure}_holm"] < 0.05:
        verdict = "more than chance explains"
    else:
        verdict = "which chance can explain: the lowest of many groups is low even where all are alike"
    adjusted = _p(row[f"{figure}_holm"])
    return f"{reached} Its difference to the rest is {gap}, p {adjusted} after {tests} (Holm), {verdict}.{few}"


def _lower(found: Subgroups, figure: str) -> str:
    """The groups whose figure is below that of the worst tested one, but of too few patients to be tested."""
    rows = found.table[found.table[f"{figure}_few"] & (found.table[figure] < found.tested(figure)[figure].min())]
    rows = rows.sort_values(figure, kind="stable")
    told = [f"{_name(row)} ({row[figure]:.3f})" for _, row in rows.iterrows()]
    return "; ".join([*told[:3], *([f"and {len(told) - 3} more"] if len(told) > 3 else [])])


def _alike(values: "pd.Series[float]") -> bool:
    return bool(values.max() - values.min() < 0.0005)


def _tests(table: pd.DataFrame, figure: str) -> str:
    tested = table[table[f"{figure}_p"].notna()]
    counts = tested["attribute"].map(table["attribute"].value_counts())
    both = tested.groupby("attribute").size()
    twins = sum(1 for name, size in both.items() if size == 2 and (counts[tested["attribute"] == name] == 2).all())
    return wording.count(len(tested) - twins, "comparison")


def _name(row: "pd.Series[Any]") -> str:
    return f"{row['attribute'].replace('_', ' ')} is {row['group']}"


def _p(value: float) -> str:
    return "–" if np.isnan(value) else "< .001" if value < 0.001 else f"{value:.3f}"


def _json(value: Any) -> Any:
    """A number or text for JSON; None for NaN."""
    plain = value.item() if isinstance(value, np.generic) else value
    return None if isinstance(plain, float) and np.isnan(plain) else plain


def names(rows: pd.DataFrame) -> Sequence[str]:
    """A line for each group: its name, and of how many patients it is."""
    return [f"{row['attribute'].replace('_', ' ')}: {row['group']} ({row['patients']:,})" for _, row in rows.iterrows()]

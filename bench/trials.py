"""How often a trial promotes a challenger that is no better, and how often it stops one that is worse.

    python -m bench.trials

The scores of two networks that were trained twice on the same images are simulated: normal within each class, with an
AUC of 0.95, and correlated between the two as strongly as makes the half width of a paired 95 % interval on 200 images
0.011 to 0.021, the range measured on retrained networks. Every figure then goes the way of a real trial: paired
intervals by patient, and lungkit.models.verdict. Chance makes the tables, and --seed draws others.
"""

import argparse
import os
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import partial
from itertools import chain
from statistics import NormalDist

import numpy as np

from lungkit import terminal
from lungkit.models import verdict
from lungkit.models.rule import DecisionRule
from lungkit.models.verdict import Candidate, Evidence, OfSet
from lungkit.training import trials
from lungkit.training.evaluation import Evaluation, evaluate
from lungkit.training.paired import Pair

AUC = 0.95  # of the champion
CORRELATION = 0.9  # of the two networks' scores within a class
MARGIN = 0.02
RESAMPLES = 300
LOOKS = 5
WORDS = (verdict.PROMOTE, verdict.KEEP, verdict.CANNOT_TELL)
SIZES = ({"locked": 100, "home": 100, "new": 60}, {"locked": 400, "home": 600, "new": 150})  # patients
CHALLENGERS = {"as good": 0.0, "worse by 0.05": -0.05, "better by 0.03": 0.03}
RULE = DecisionRule(kind="threshold", positive="sick", threshold=0.5)


def apart(auc: float) -> float:
    """How many standard deviations lie between two normal classes with this AUC."""
    return float(np.sqrt(2) * NormalDist().inv_cdf(auc))


def of_set(rng: np.random.Generator, kind: str, patients: int, gain: float) -> OfSet:
    """Both networks on one set: an image of each patient, half of them sick."""
    sick = np.arange(patients) % 2
    shared = rng.normal(size=patients)
    old, new = (_scored(rng, sick, shared, apart(AUC + more)) for more in (0.0, gain))
    # Without the intervals that a trial does not use, which take most of the time.
    unused = (0.0,) * 3
    pair = Pair(kind, True, old, new, unused, unused, unused, by_class={}, decision_p=1.0, margin=MARGIN)
    return OfSet.from_dict(trials.figures(pair) | {"kind": kind, "data": kind, "left_out": 0})


def _scored(rng: np.random.Generator, sick: np.ndarray, shared: np.ndarray, distance: float) -> Evaluation:
    noise = np.sqrt(CORRELATION) * shared + np.sqrt(1 - CORRELATION) * rng.normal(size=len(sick))
    log_odds = distance * (distance * (sick - 0.5) + noise)  # calibrated
    p = 1 / (1 + np.exp(-log_odds))
    given = sick, np.column_stack([1 - p, p]), np.arange(len(sick)), ("well", "sick"), RULE
    return replace(evaluate(*given, n_boot=1, seed=int(rng.integers(2**31))), n_boot=RESAMPLES)


def trial(rng: np.random.Generator, sizes: dict[str, int], gain: float, look: int = 1) -> Evidence:
    """The evidence of one trial."""
    candidates = [Candidate(version=name, fingerprint="", milliseconds=100, bytes=1) for name in ("v1", "v2")]
    return Evidence(
        model="simulated",
        champion=candidates[0],
        challenger=candidates[1],
        margin=MARGIN,
        sets=tuple(of_set(rng, kind, patients, gain) for kind, patients in sizes.items()),
        not_measured=(),
        locked_sha256="0",
        looks=look,
        times_slower=1.0,
        timed_on=1,
        measured_at="",
    )


def _words(seed: int, count: int, sizes: dict[str, int], gain: float) -> list[str]:
    rng = np.random.default_rng(seed)
    return [verdict.judge(trial(rng, sizes, gain)).word for _ in range(count)]


def _any_promoted(seed: int, lines: int, looks: int, counted: bool, sizes: dict[str, int]) -> int:
    """In how many lines of challengers that are only as good one was promoted: one trial each on one locked set.

    counted: whether the trials count their looks.
    """
    rng = np.random.default_rng(seed)
    return sum(
        any(
            verdict.judge(trial(rng, sizes, 0.0, look if counted else 1)).word == verdict.PROMOTE
            for look in range(1, looks + 1)
        )
        for _ in range(lines)
    )


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--trials", type=int, default=200, help="of each kind of challenger and size")
    parser.add_argument("--seed", type=int, default=7)
    asked = parser.parse_args()
    workers = os.cpu_count() or 1
    share = -(-asked.trials // workers)
    with ProcessPoolExecutor(workers) as pool:
        rows = []
        for sizes in SIZES:
            for name, gain in CHALLENGERS.items():
                run = partial(_words, count=share, sizes=sizes, gain=gain)
                words = Counter(chain.from_iterable(pool.map(run, range(asked.seed, asked.seed + workers))))
                shares = [f"{words[word] / words.total():.1%}" for word in WORDS]
                rows.append((" + ".join(map(str, sizes.values())), name, words.total(), *shares))
    columns = ("patients of the three sets", "challenger", "trials", *WORDS)
    terminal.table(columns, rows, f"AUC {AUC}, margin {MARGIN}")
    with ProcessPoolExecutor(workers) as pool:
        rows = []
        for counted in (True, False):
            run = partial(_any_promoted, lines=share // 4, looks=LOOKS, counted=counted, sizes=SIZES[1])
            promoted = sum(pool.map(run, range(asked.seed, asked.seed + workers)))
            lines = share // 4 * workers
            rows.append(("yes" if counted else "no", lines, f"{promoted / lines:.1%}"))
    title = f"{LOOKS} challengers that are as good, one after the other on one locked set"
    terminal.table(("looks counted", "lines", "any promoted"), rows, title)


if __name__ == "__main__":
    main()

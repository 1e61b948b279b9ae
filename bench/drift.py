"""How soon the nightly look at drift sees a change, and how often it raises an alarm without one.

    python -m bench.drift [--periods 200] [--images 15]

Simulated days of one model and one source, with the statistics of phantoms: pictures of two scanners (those of
`lungkit.data.phantom.scanners`), described as the records' pictures are. Days have something in common: their share of
the second scanner, their brightness and their agreement vary. Every night looks at the last 90 days as the gateway
does. Each period begins with 90 quiet days.
"""

import argparse
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from lungkit import progress
from lungkit.clinic.learning import measures, nightly, sequential
from lungkit.data.phantom import scanners
from lungkit.data.phantom.patient import SyntheticPatient

PATIENTS = 120  # of the phantoms
WATCHED = 100  # days after the quiet ones
MOST_NIGHTS = 60  # that a change is waited for
REVIEWED = 0.5  # share of the images
SIDE = 96  # pixels


@dataclass(frozen=True)
class Days:
    """Of all days: the share of the second scanner, gamma of the pictures, the share of answers that are right."""

    second: float = 0.1
    gamma: float = 1.0
    right: float = 0.9


QUIET = Days()
CHANGES = {
    "brighter: greys to the power 0.97": Days(gamma=0.97),
    "brighter: greys to the power 0.9": Days(gamma=0.9),
    "second scanner: from 10 % to 25 % of the images": Days(second=0.25),
    "second scanner: from 10 % to 50 % of the images": Days(second=0.5),
    "agreement: from 90 % to 80 %": Days(right=0.8),
    "agreement: from 90 % to 60 %": Days(right=0.6),
}


Measures = dict[str, tuple[np.ndarray, np.ndarray]]  # of each: values (images, features), and the day of each image
Pool = dict[tuple[bool, float], np.ndarray]


def pools(gammas: set[float]) -> Pool:
    """Features (pictures, 9) of the pictures of the first and the second scanner, at each gamma."""
    views = {name: scanners.VIEWS[name] for name in (scanners.PLAIN, scanners.OTHER)}
    found: dict[tuple[bool, float], list[np.ndarray]] = {}
    for number in progress.bar(range(PATIENTS), label="phantoms", unit="patient"):
        patient = SyntheticPatient(f"P{number}", ["Normal", "Pneumonia"][number % 2], number, SIDE)
        for shown in scanners.pictures(patient, views, 3, number):
            for name, picture in shown.items():
                for gamma in gammas:
                    features = measures.describe((picture / 255) ** gamma, "intensity")
                    found.setdefault((name == scanners.OTHER, gamma), []).append(features)
    return {key: np.array(features) for key, features in found.items()}


def period(rng: np.random.Generator, images: float, pool: Pool, after: Days, days: int) -> Measures:
    """So many days; after the first nightly.DAYS, they are as `after` says."""
    rows: dict[str, list[np.ndarray]] = {}
    for day in range(days):
        of = QUIET if day < nightly.DAYS else after
        n = rng.poisson(images) + 1
        second = rng.random(n) < rng.beta(20 * of.second, 20 * (1 - of.second))
        pixels = np.stack([rng.choice(pool[bool(which), of.gamma]) for which in second])
        pixels[:, :7] += rng.normal(0, 0.01)  # the day's own brightness
        right = rng.random(n) < rng.beta(50 * of.right, 50 * (1 - of.right))
        seen = rng.random(n) < REVIEWED
        made = {
            "brightness": pixels[:, [0]],
            "contrast": pixels[:, [1]],
            "pixels": pixels,
            "distance": rng.normal(1, 0.15, n) + 0.1 * second,
            "device": second,
            "classes": rng.random(n) < 0.4,
            "left to a person": rng.random(n) < 0.1,
            "reviews agree": right[seen],
            "calibration": (rng.uniform(0.8, 1.0, n) - right)[seen],
        }
        for name, values in made.items():
            rows.setdefault(name, []).append(np.column_stack([np.full(len(values), day), values]))
    tables = {name: np.concatenate(some) for name, some in rows.items()}
    return {name: (table[:, 1:], table[:, 0].astype(int)) for name, table in tables.items()}


def nights(of: Measures, several: int) -> Iterator[bool]:
    """Whether each night has an alarm; the first one is that after the first day that is not quiet."""
    run_length = nightly.EVERY * sum(sequential.sums_of(values.shape[1]) for values, _ in of.values())
    for night in range(nightly.DAYS + 1, nightly.DAYS + 1 + several):
        windows = [((days >= night - nightly.DAYS) & (days < night), values, days) for values, days in of.values()]
        yield any(_alarm(values[kept], days[kept], run_length) for kept, values, days in windows)


def _alarm(values: np.ndarray, days: np.ndarray, run_length: float) -> bool:
    return sequential.course(values, np.unique(days, return_inverse=True)[1], run_length).alarm


def days_to_alarm(periods: int, make: Callable[[np.random.Generator], Measures]) -> str:
    """Nights until the first alarm of each period after the change, as a row: median, quartiles, never."""
    waited = []
    for seed in range(periods):
        alarms = enumerate(nights(make(np.random.default_rng(seed)), MOST_NIGHTS), 1)
        waited.append(next((night for night, alarm in alarms if alarm), MOST_NIGHTS + 1))
    low, median, high = np.percentile(waited, [25, 50, 75])
    never = sum(one > MOST_NIGHTS for one in waited)
    return f"{median:.0f} | {low:.0f} to {high:.0f} | {never} of {periods}"


def main() -> None:
    given = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    given.add_argument("--periods", type=int, default=200)
    given.add_argument("--images", type=float, default=15, help="a day, on average")
    options = given.parse_args()
    pool = pools({1.0, *(after.gamma for after in CHANGES.values())})
    quiet = nightly.DAYS

    episodes, with_any, share = 0, 0, []
    for seed in progress.bar(range(options.periods), label="quiet periods", unit="period"):
        of = period(np.random.default_rng(seed), options.images, pool, QUIET, quiet + WATCHED)
        alarms = np.array([*nights(of, WATCHED)])
        episodes += int(np.diff(alarms.astype(int), prepend=0).clip(0).sum())
        with_any += bool(alarms.any())
        share.append(alarms.mean())
    print(
        f"\nquiet periods of {WATCHED} days, {options.images:g} images a day: {episodes / options.periods:.2f} "
        f"false alarms each; {with_any} of {options.periods} periods have any; {np.mean(share):.1%} of nights\n"
    )
    print("| change | nights to alarm, median | quartiles | none in 60 nights |\n|---|--:|--:|--:|")
    for name, after in CHANGES.items():
        row = days_to_alarm(
            options.periods, lambda rng, after=after: period(rng, options.images, pool, after, quiet + MOST_NIGHTS)
        )
        print(f"| {name} | {row} |", flush=True)


if __name__ == "__main__":
    main()

"""Evidence of trials, for tests of what is done with it."""

import shutil
from pathlib import Path

from lungkit.models import registry
from lungkit.models.verdict import Evidence, OfSet
from tests.cards import model_card

_VERSION = {"auc": (0.95, 0.9, 0.97), "accuracy": (0.9, 0.8, 0.95), "ece": 0.02, "brier": 0.08, "left_to_person": 0.1}
GAIN, SAME, LOSS = (0.02, 0.01, 0.03), (0.0, -0.01, 0.01), (-0.03, -0.04, -0.02)


def of_set(kind: str = "locked", auc=GAIN, **changes) -> OfSet:
    """A set with this difference in AUC."""
    values = {
        "kind": kind, "source": f"{kind} source", "data": f"{kind}-v1", "images": 400, "patients": 200, "fewest": 90,
        "left_out": 3, "champion": _VERSION, "challenger": _VERSION, "auc": auc, "accuracy": SAME, "ece": SAME,
        "brier": SAME,
    }  # fmt: skip
    return OfSet.from_dict(values | changes)


def versions(count: int = 2, model: str = "lung") -> None:
    """So many versions of a model in the registry, v1 in use."""
    for number in range(count):
        registry.add(model, model_card(), lambda at, n=number: (at / "weights").write_text(str(n)), promote=not number)


def evidence(*sets: OfSet, model: str = "lung", old: str = "v1", new: str = "v2", **changes) -> Evidence:
    """Of a version against the one in use, both in the registry; by default it says promote."""
    candidates = [
        {"version": name, "fingerprint": registry.fingerprint(registry.find(f"{model}@{name}")),
         "milliseconds": 100.0, "bytes": 1_500_000} for name in (old, new)
    ]  # fmt: skip
    values = {
        "model": model, "champion": candidates[0], "challenger": candidates[1], "margin": 0.02,
        "sets": sets or (of_set(), of_set("home", SAME)), "not_measured": (), "locked_sha256": "ab" * 32, "looks": 1,
        "times_slower": 1.1, "timed_on": 30, "measured_at": "2026-11-29T20:00:00+00:00",
    }  # fmt: skip
    return Evidence.from_dict(values | changes)


ROLLBACK = {
    "reviews": 50, "agreement_below": 0.8, "readings": 100, "left_to_person_above": 0.25, "false_alarm": 0.01,
    "derived_from": "lung@v1: 92 % agreed (400 reviews)",
}  # fmt: skip


def once_more(*more_seen: str) -> registry.Version:
    """The version in use once more, which has also learned from the files with these hashes."""
    old = registry.active("tiny-cnn")

    def write(folder: Path) -> None:
        for name in old.card.files:
            shutil.copy(old.folder / name, folder / name)
        with (folder / "trained_on.txt").open("a") as seen:
            seen.writelines(f"{sha256}\n" for sha256 in more_seen)

    return registry.add("tiny-cnn", old.card, write, promote=False)

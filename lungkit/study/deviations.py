"""How a study deviates from its plan, found by comparing the plan with what happened: a sentence for each deviation."""

from collections.abc import Sequence
from datetime import datetime
from typing import TYPE_CHECKING

from lungkit.data import splits
from lungkit.study.plan import EXCLUSIONS, Fixed, Plan, metric_in_words
from lungkit.study.plan_text import moment
from lungkit.training.looks import Look
from lungkit.wording import count

if TYPE_CHECKING:
    from lungkit.training.release import Scored


def of(fixed: Fixed, scored: "Scored", lines: Sequence[Look]) -> list[str]:
    """Every deviation that can be found. lines: the ledger of the images scored, this reading included."""
    return [
        *another_study(fixed.plan, scored.data.name, scored.data.synthetic, scored.version.model, str(scored.version)),
        *_another_part(scored),
        *_read_before(fixed, lines),
        *_another_plan(fixed, lines),
        *_later_model(fixed, scored, lines),
        *too_few(fixed.plan, len(set(scored.patients))),
        *_exclusions(fixed.plan, scored),
    ]


def another_study(plan: Plan, data: str, synthetic: bool, model: str, version: str) -> list[str]:
    """Another data set or model than the plan names."""
    found = []
    if plan.data != data and not (plan.data == "phantom" and synthetic):
        found.append(f"The plan names the data set {plan.data}; {data} was read.")
    if plan.model and plan.model not in (model, version):
        found.append(f"The plan names the model {plan.model}; {version} was tested.")
    return found


def _another_part(scored: "Scored") -> list[str]:
    if scored.split in ("train", "val") or (scored.split == "all" and scored.by_request):
        return [f"The part scored is '{scored.split}', not the test part alone."]
    return []


def _read_before(fixed: Fixed, lines: Sequence[Look]) -> list[str]:
    first = _first_fixed(fixed, lines)
    earlier = [look for look in lines if look.counts and look.at < first]
    if not earlier:
        return []
    last = earlier[-1]
    times = count(len(earlier), "time")
    return [
        f"Test images were read {times} before the plan was fixed, the last time on {_when(last.at)} by {last.by} "
        f"({last.model})."
    ]


def _another_plan(fixed: Fixed, lines: Sequence[Look]) -> list[str]:
    """A plan that was changed after the test was read with it."""
    others = {look.plan: look for look in lines if look.plan and look.plan != fixed.plan.sha256}
    return [
        f"The plan changed after a reading of these test images: it was {sha256} (primary metric "
        f"{metric_in_words(look.metric)}), and is {fixed.plan.sha256}."
        for sha256, look in others.items()
    ]


def _later_model(fixed: Fixed, scored: "Scored", lines: Sequence[Look]) -> list[str]:
    """A model that was registered after the test was first read under this plan: it may have been chosen by it."""
    first = _first_fixed(fixed, lines)
    created = scored.version.card.created
    if not created or datetime.fromisoformat(created) <= datetime.fromisoformat(first):
        return []
    return [
        f"{scored.version} was registered on {_when(created)}, after the plan was fixed on {_when(first)}: the test "
        "may have been read with another model in between."
    ]


def _first_fixed(fixed: Fixed, lines: Sequence[Look]) -> str:
    """When this very plan was first fixed for these images: an earlier run may have had it too."""
    return min([fixed.fixed_at, *(look.at for look in lines if look.plan == fixed.plan.sha256)])


def too_few(plan: Plan, patients: int) -> list[str]:
    """Fewer patients than were planned."""
    if plan.planned_n is None or patients >= plan.planned_n:
        return []
    return [f"The test has {count(patients, 'patient')}; {plan.planned_n:,} were planned."]


def _exclusions(plan: Plan, scored: "Scored") -> list[str]:
    """Images that were left out for a reason that the plan does not list."""
    unreadable = len(scored.unreadable) + (0 if scored.split == "all" else len(scored.data.part(splits.REFUSED)))
    left_out = {"unreadable": unreadable, "set_aside": len(scored.data.part(splits.SET_ASIDE))}
    return [
        f"{count(images, 'image')} left out for a reason that the plan does not list: {EXCLUSIONS[reason]}."
        for reason, images in left_out.items()
        if images and reason not in plan.exclusions
    ]


def _when(at: str) -> str:
    """A time to the second; a damaged line of the ledger has none."""
    return moment(at, seconds=True) if at else "a day that is not known"

"""What an administrator does with trials: sign, use the challenger or reject it, and name one for the shadow."""

from sqlalchemy import orm

from lungkit.clinic.records import audit_trail, trials
from lungkit.clinic.records.accounts import Access
from lungkit.clinic.records.tables import Challenger, now
from lungkit.clinic.records.trials import TrialRefused, TrialRow
from lungkit.models import registry
from lungkit.models.verdict import PROMOTE


class TrialActions:
    """Each action raises SignedOut or Forbidden before anything is read or written."""

    access: Access

    def trials(self) -> list[TrialRow]:
        """Every trial, newest first."""
        with self.access.reads("admin") as (db, _):
            return trials.list_trials(db)

    def sign_trial(self, trial_id: str, sha256: str) -> None:
        """Sign the evidence with this hash, which was on screen. Raises TrialRefused."""
        with self.access.writes("admin") as (db, actor):
            trials.sign(db, actor, trial_id, sha256)

    def use_challenger(self, trial_id: str) -> str:
        """Read with the challenger from the next image on. Raises TrialRefused, and the registry's errors."""
        with self.access.writes("admin") as (db, actor):
            return trials.use(db, actor, trial_id)

    def reject_challenger(self, trial_id: str) -> None:
        """End a trial without a promotion. Raises TrialRefused."""
        with self.access.writes("admin") as (db, actor):
            trials.reject(db, actor, trial_id)

    def without_trial(self, model: str, version: str) -> str:
        """Why promoting a version past the trials needs a thought, in words; empty if a signed trial says promote."""
        last = next((row for row in self.trials() if (row.model, row.challenger) == (model, version)), None)
        if last is None:
            return f"No trial has measured {version} next to the version in use."
        if last.verdict.word != PROMOTE:
            return f"The last trial of {version} says {last.verdict.word}."
        if last.problem or len(last.signatures) < trials.SIGNATURES:
            return f"{trials.SIGNATURES} administrators have not signed the trial of {version}, which says promote."
        return ""

    # --- shadow

    def set_challenger(self, model: str, version: str | None) -> None:
        """Name the version that reads in the shadow of the one in use, from now on; None: no version does.

        Its shadow readings so far stay. Raises TrialRefused, and the registry's errors.
        """
        with self.access.writes("admin") as (db, actor):
            set_challenger(db, actor.user_id, model, version)


def set_challenger(db: orm.Session, user_id: int | None, model: str, version: str | None) -> None:
    """As `TrialActions.set_challenger`. user_id: None for the command line."""
    present = db.get(Challenger, model)
    if version is None:
        if present is None:
            raise TrialRefused(f"no version reads in the shadow of {model}")
        db.delete(present)
    else:
        found = registry.find(f"{model}@{version}")
        registry.verify(found)
        if registry.active_name(model) == version:
            raise TrialRefused(f"{found} is in use; only another version can read in its shadow")
        if present is None:
            db.add(Challenger(model=model, version=version))
        elif present.version != version:
            present.version, present.since = version, now()
    audit_trail.append(db, user_id, "shadow.set", f"model:{model}", version=version)

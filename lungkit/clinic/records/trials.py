"""Trials in the records: looks at locked sets, evidence that is signed by two administrators, promotion, rejection.

What is signed is the hash over the versions, the evidence and the rule for going back. The audit trail has that hash
from the moment when the trial was opened, so evidence that was changed later in the database is refused.
The caller has the transaction, and has checked the role.
"""

import json
from dataclasses import dataclass
from datetime import datetime

import sqlalchemy as sa
from sqlalchemy import orm

from lungkit import files
from lungkit.clinic.records import audit_trail
from lungkit.clinic.records.accounts import Actor
from lungkit.clinic.records.tables import (
    OPEN,
    PROMOTED,
    REJECTED,
    ROLLED_BACK,
    AuditEvent,
    Challenger,
    Json,
    LockedLook,
    Trial,
    TrialSignature,
    User,
    now,
)
from lungkit.errors import LungkitError
from lungkit.models import registry, verdict
from lungkit.models.schema import Part
from lungkit.models.verdict import Evidence, Verdict
from lungkit.wording import percent

SIGNATURES = 2  # of different administrators
_SETS_UP = ("user.add", "user.role", "user.password")  # who has done this to an account may be able to use it


class TrialRefused(LungkitError):
    """What was asked of a trial is not possible; nothing was changed."""


@dataclass(frozen=True, kw_only=True)
class RollbackRule(Part):
    """When the champion should come back, written before the challenger reads.

    Of each `reviews` reviews in turn the share that agrees, and of each `readings` readings in turn the share that is
    left to a person, are held against a limit, which a challenger like the champion crosses with a chance of
    false_alarm each.
    """

    reviews: int
    agreement_below: float
    readings: int
    left_to_person_above: float
    false_alarm: float
    derived_from: str  # in words

    def __str__(self) -> str:
        return (
            f"Go back if fewer than {percent(self.agreement_below)} of {self.reviews} reviews in a row agree, or if "
            f"more than {percent(self.left_to_person_above)} of {self.readings} readings in a row are left to a person."
        )


@dataclass(frozen=True)
class Signature:
    """Who signed, and when."""

    user_id: int
    full_name: str
    at: datetime


@dataclass(frozen=True)
class TrialRow:
    """A trial. sha256: of what is signed. signatures: those that count, of administrators whose account is active."""

    id: str
    model: str
    champion: str
    challenger: str
    state: str
    evidence: Evidence
    verdict: Verdict
    rollback: RollbackRule
    sha256: str
    opened_at: datetime
    ended_at: datetime | None
    signatures: tuple[Signature, ...]
    problem: str = ""  # why it can be neither signed nor used; empty if nothing is known

    def __str__(self) -> str:
        return f"{self.model}: {self.challenger} against {self.champion}"


# --- looks


def refuse_unknown_set(db: orm.Session, content_sha256: str, name: str) -> None:
    """Raises TrialRefused for a locked set that these records did not collect, or that has other content since."""
    collected = db.scalars(sa.select(AuditEvent.detail).where(AuditEvent.action == "learn.collect"))
    if not any(detail.get("content") == content_sha256 and detail.get("locked") is True for detail in collected):
        raise TrialRefused(
            f"{name} is not on the audit trail as a locked set of this clinic, or was changed since; collect it again "
            "with `lungkit learn collect --locked`"
        )


def look(
    db: orm.Session, sets: list[str], version: str, images: int, oldest: datetime | None = None
) -> tuple[int, int]:
    """Count a look at a locked set, before any figure of it is known: (number of the row, looks with this one).

    sets: hashes of the manifests of the sets that it grew from, and its own, which is the last. version: the
    challenger, as "MODEL@v2". oldest: when the first of its labels was given. Every look with this model since then
    counts too, whatever folder that set was in: the image can have been in it.
    """
    row = LockedLook(set_sha256=sets[-1], version=version, images=images)
    db.add(row)
    db.flush()
    same: sa.ColumnElement[bool] = LockedLook.set_sha256.in_(sets)
    if oldest is not None:
        of_model = LockedLook.version.startswith(f"{version.partition('@')[0]}@", autoescape=True)
        same |= of_model & (LockedLook.looked_at >= oldest)
    looks = db.scalar(sa.select(sa.func.count()).where(same)) or 0
    audit_trail.append(db, None, "trial.look", f"set:{sets[-1]}", version=version, images=images, looks=looks)
    return row.id, looks


# --- trials


def open_trial(db: orm.Session, evidence: Evidence, rollback: RollbackRule, look_id: int | None = None) -> str:
    """Keep the evidence of a trial, to be signed; returns its id. look_id: of the look at the locked set."""
    row = Trial(
        model=evidence.model,
        champion=evidence.champion.version,
        challenger=evidence.challenger.version,
        verdict=verdict.judge(evidence).word,
        evidence=evidence.to_dict(),
        rollback=rollback.to_dict(),
    )
    row.evidence_sha256 = _hash(row)
    db.add(row)
    db.flush()
    if look_id is not None:
        db.execute(sa.update(LockedLook).where(LockedLook.id == look_id).values(trial_id=row.id))
    audit_trail.append(db, None, "trial.open", f"trial:{row.id}", **_named(row))
    return row.id


def list_trials(db: orm.Session) -> list[TrialRow]:
    """All trials, newest first."""
    return [_row(db, row) for row in db.scalars(sa.select(Trial).order_by(Trial.opened_at.desc(), Trial.id))]


def sign(db: orm.Session, actor: Actor, trial_id: str, sha256: str) -> None:
    """Sign the evidence with this hash, which was on screen. Raises TrialRefused."""
    row = _open(db, trial_id)
    if sha256 != row.evidence_sha256:
        raise TrialRefused("the trial is not the one that was on screen; look at it again before you sign")
    if any(one.user_id == actor.user_id for one in row.signatures):
        raise TrialRefused("you have signed this trial already; the other signature is another administrator's")
    _refuse_one_person(db, actor, row)
    db.add(TrialSignature(trial_id=row.id, user_id=actor.user_id, evidence_sha256=sha256))
    audit_trail.append(db, actor.user_id, "trial.sign", f"trial:{row.id}", **_named(row))


def use(db: orm.Session, actor: Actor, trial_id: str) -> str:
    """Make the challenger the version in use, as "MODEL@v2". Raises TrialRefused, and the registry's errors."""
    row = _open(db, trial_id)
    said = verdict.judge(_evidence(row))
    if said.word != verdict.PROMOTE:
        raise TrialRefused(f"the trial says {said.word}, so {row.challenger} is not used: {' '.join(said.reasons)}")
    if (signed := len(_signatures(db, row))) < SIGNATURES:
        raise TrialRefused(
            f"{signed} of {SIGNATURES} signatures are there; {SIGNATURES} different administrators have to sign first"
        )
    row.state, row.ended_at = PROMOTED, now()
    # It reads for all now, and no longer in the shadow.
    of = (Challenger.model == row.model) & (Challenger.version == row.challenger)
    db.execute(sa.delete(Challenger).where(of))
    used = f"{row.model}@{row.challenger}"
    audit_trail.append(db, actor.user_id, "model.promote", f"model:{used}", trial=row.id, **_named(row))
    db.flush()
    # Last, because it cannot be undone with the transaction, and still inside it: no other promotion can come between
    # the check of the champion and this one.
    registry.promote(row.model, row.challenger)
    return used


def reject(db: orm.Session, actor: Actor, trial_id: str) -> None:
    """End a trial without a promotion. Raises TrialRefused."""
    row = _find(db, trial_id)
    if row.state != OPEN:
        raise TrialRefused(f"this trial is {row.state}")
    row.state, row.ended_at = REJECTED, now()
    audit_trail.append(db, actor.user_id, "trial.reject", f"trial:{row.id}", **_named(row))


def gone_back(db: orm.Session, actor: Actor, model: str, before: str | None, after: str) -> None:
    """Note on its trial that a challenger was taken back, where the version in use went from it to its champion."""
    of = (Trial.model == model) & (Trial.challenger == before) & (Trial.champion == after) & (Trial.state == PROMOTED)
    for row in db.scalars(sa.select(Trial).where(of)):
        row.state = ROLLED_BACK
        audit_trail.append(db, actor.user_id, "trial.roll_back", f"trial:{row.id}", **_named(row))


# --- what may be signed and used


def _find(db: orm.Session, trial_id: str) -> Trial:
    row = db.get(Trial, trial_id) if isinstance(trial_id, str) else None
    if row is None:
        raise TrialRefused("that trial is not in the records")
    return row


def _open(db: orm.Session, trial_id: str) -> Trial:
    """A trial that can be signed and used. Raises TrialRefused, and the registry's errors."""
    row = _find(db, trial_id)
    if row.state != OPEN:
        raise TrialRefused(f"this trial is {row.state}")
    if problem := _problem(db, row):
        raise TrialRefused(problem)
    for candidate in (_evidence(row).champion, _evidence(row).challenger):
        found = registry.find(f"{row.model}@{candidate.version}")
        if registry.fingerprint(found) != candidate.fingerprint:
            raise TrialRefused(f"{found} has other files than when it was measured; make a new trial")
    return row


def _problem(db: orm.Session, row: Trial) -> str:
    """Why a trial can be neither signed nor used, as far as the records and the pointer say; empty if nothing is."""
    opened = db.scalar(
        sa.select(AuditEvent.detail).where(AuditEvent.object == f"trial:{row.id}", AuditEvent.action == "trial.open")
    )
    noted = (opened or {}).get("evidence")
    if not noted == row.evidence_sha256 == _hash(row):
        return "the evidence of this trial was changed after it was measured; make a new trial"
    in_use = registry.active_name(row.model)
    if in_use != row.champion:
        return f"{row.model}@{in_use} is in use now, and this trial measured against {row.champion}; make a new trial"
    return ""


def _hash(row: Trial) -> str:
    """SHA-256 over what is signed, as canonical JSON."""
    content = {name: getattr(row, name) for name in ("model", "champion", "challenger", "evidence", "rollback")}
    return files.sha256(json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False).encode())


def _named(row: Trial) -> Json:
    """What the audit trail says of a trial."""
    names = {name: getattr(row, name) for name in ("model", "champion", "challenger", "verdict")}
    return names | {"evidence": row.evidence_sha256}


def _evidence(row: Trial) -> Evidence:
    return Evidence.from_dict(row.evidence, "evidence")


def _signatures(db: orm.Session, row: Trial) -> tuple[Signature, ...]:
    """Those that count: of this evidence, on the audit trail, by people who are administrators still."""
    return tuple(
        Signature(one.user_id, one.user.full_name, one.signed_at)
        for one in row.signatures
        if one.evidence_sha256 == row.evidence_sha256
        and _is_administrator(one.user)
        and audit_trail.noted(db, "trial.sign", f"trial:{row.id}", one.user_id)
    )


def _refuse_one_person(db: orm.Session, actor: Actor, row: Trial) -> None:
    """Refuse a second signature where one of both accounts was set up by the other, since the trial was opened.

    Who sets up an account sees its password. The trail shows accounts that were set up before.
    """
    for one in row.signatures:
        if _set_up(db, actor.user_id, one.user_id, row.opened_at, now()) or _set_up(
            db, one.user_id, actor.user_id, row.opened_at, one.signed_at
        ):
            raise TrialRefused(
                f"since this trial was opened, one of the accounts of {one.user.full_name} and {actor.full_name} was "
                "made, or got a role or a password, by the other one; another administrator has to sign"
            )


def _set_up(db: orm.Session, user_id: int, by: int, since: datetime, until: datetime) -> bool:
    of = (AuditEvent.object == f"user:{user_id}") & (AuditEvent.user_id == by) & AuditEvent.action.in_(_SETS_UP)
    within = (AuditEvent.at >= since) & (AuditEvent.at <= until)
    return db.scalar(sa.select(AuditEvent.number).where(of, within).limit(1)) is not None


def _is_administrator(user: User) -> bool:
    return user.active and user.role == "admin"


def _row(db: orm.Session, row: Trial) -> TrialRow:
    evidence = _evidence(row)
    return TrialRow(
        id=row.id,
        model=row.model,
        champion=row.champion,
        challenger=row.challenger,
        state=row.state,
        evidence=evidence,
        verdict=verdict.judge(evidence),
        rollback=RollbackRule.from_dict(row.rollback, "rollback"),
        sha256=row.evidence_sha256,
        opened_at=row.opened_at,
        ended_at=row.ended_at,
        signatures=_signatures(db, row),
        problem=_problem(db, row) if row.state == OPEN else "",
    )

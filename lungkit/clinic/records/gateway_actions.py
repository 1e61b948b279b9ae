"""What an administrator does with the gateway: programs, systems that send, rules, destinations, and what failed."""

from collections.abc import Iterable
from typing import Any

from lungkit.clinic.records import dispatches, jobs, keys, received, routing
from lungkit.clinic.records.accounts import Access
from lungkit.clinic.records.dispatches import DispatchRow
from lungkit.clinic.records.jobs import FailedJob
from lungkit.clinic.records.keys import KeyRow
from lungkit.clinic.records.received import ReceivedRow, SeriesOfStudy
from lungkit.clinic.records.routing import CallerRow, DestinationRow, RouteRow, Rule
from lungkit.clinic.records.tables import Job


class GatewayActions:
    """Each action raises SignedOut or Forbidden before anything is read or written."""

    def __init__(self, access: Access):
        self.access = access

    # --- programs

    def keys(self) -> list[KeyRow]:
        """Every API key, by program."""
        with self.access.reads("admin") as (db, _):
            return keys.list_keys(db)

    def add_key(self, program: str, scopes: list[str], days: float, per_minute: int) -> str:
        """Make an API key; it is shown only once."""
        with self.access.writes("admin") as (db, actor):
            return keys.add_key(db, program, scopes, days, per_minute, by=actor.user_id)

    def revoke_key(self, key_id: str) -> None:
        """Refuse a key from the next request on."""
        with self.access.writes("admin") as (db, actor):
            keys.revoke_key(db, key_id, by=actor.user_id)

    # --- systems that send

    def callers(self) -> list[CallerRow]:
        """Every DICOM system that was entered."""
        with self.access.reads("admin") as (db, _):
            return routing.list_callers(db)

    def add_caller(self, ae_title: str, networks: Iterable[str]) -> CallerRow:
        """Let a system send."""
        with self.access.writes("admin") as (db, actor):
            return routing.add_caller(db, ae_title, networks, by=actor.user_id)

    def set_caller(self, caller_id: int, active: bool) -> None:
        """Take or refuse what a system sends."""
        with self.access.writes("admin") as (db, actor):
            routing.set_caller(db, caller_id, active, by=actor.user_id)

    # --- rules

    def routes(self) -> list[RouteRow]:
        """Every rule, in the order in which they are tried."""
        with self.access.reads("admin") as (db, _):
            return routing.list_routes(db)

    def save_route(self, rule: Rule, route_id: int | None = None) -> RouteRow:
        """Keep a new rule, or change one; it is switched off until it was tried."""
        with self.access.writes("admin") as (db, actor):
            if route_id is None:
                return routing.add_route(db, rule, by=actor.user_id)
            return routing.change_route(db, route_id, rule, by=actor.user_id)

    def try_route(self, route_id: int, received_id: str) -> list[tuple[SeriesOfStudy, bool]]:
        """Each series of a study that was received, and whether the rule fits it; the trial counts if it fits one."""
        with self.access.writes("admin") as (db, actor):
            series = received.series_of(db, received_id)
            rule = routing.route(db, route_id).rule
            found = [(one, one.files > 0 and rule.fits(one.facts)) for one in series]
            if any(fits for _, fits in found):
                routing.note_trial(db, route_id, by=actor.user_id)
            return found

    def set_route(self, route_id: int, active: bool) -> None:
        """Switch a rule on or off."""
        with self.access.writes("admin") as (db, actor):
            routing.set_route(db, route_id, active, by=actor.user_id)

    def remove_route(self, route_id: int) -> None:
        """Forget a rule."""
        with self.access.writes("admin") as (db, actor):
            routing.remove_route(db, route_id, by=actor.user_id)

    # --- destinations

    def destinations(self) -> list[DestinationRow]:
        """Every system that results are sent to."""
        with self.access.reads("admin") as (db, _):
            return routing.list_destinations(db)

    def add_destination(
        self, name: str, kind: str, address: dict[str, Any], objects: Iterable[str] = ()
    ) -> DestinationRow:
        """Enter a system that results are sent to."""
        with self.access.writes("admin") as (db, actor):
            return routing.add_destination(db, name, kind, address, objects, by=actor.user_id)

    def set_destination(self, destination_id: int, active: bool) -> None:
        """Send results there, or not."""
        with self.access.writes("admin") as (db, actor):
            routing.set_destination(db, destination_id, active, by=actor.user_id)

    def remove_destination(self, destination_id: int) -> None:
        """Forget a destination that nothing was sent to."""
        with self.access.writes("admin") as (db, actor):
            routing.remove_destination(db, destination_id, by=actor.user_id)

    # --- what came, and what failed

    def received(self, limit: int = 100) -> list[ReceivedRow]:
        """Studies that came as DICOM and are still kept, newest first."""
        with self.access.reads("admin") as (db, _):
            return received.latest(db, limit)

    def failed_jobs(self) -> list[FailedJob]:
        """Images and series that could not be read, newest first."""
        with self.access.reads("admin") as (db, _):
            return jobs.failed(db)

    def read_again(self, job_id: str) -> None:
        """Queue a failed job again; a gateway takes it within seconds."""
        with self.access.writes("admin") as (db, actor):
            jobs.read_again(db, db.get(Job, job_id), actor.user_id)

    def unsent(self) -> list[DispatchRow]:
        """Results that were not sent, or not yet, newest first."""
        with self.access.reads("admin") as (db, _):
            return [row for state in ("failed", "queued", "running") for row in dispatches.latest(db, state)]

    def send_again(self, dispatch_id: str) -> None:
        """Send a result again, at once."""
        with self.access.writes("admin") as (db, actor):
            dispatches.again(db, dispatch_id, by=actor.user_id)

    def give_up(self, dispatch_id: str) -> None:
        """Stop trying to send a result."""
        with self.access.writes("admin") as (db, actor):
            dispatches.give_up(db, dispatch_id, by=actor.user_id)

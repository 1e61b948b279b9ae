"""Which DICOM systems may send, which model reads what they send, and where results go; as administrators set it.

The caller of each function has the transaction, and has checked that `by` is an administrator; None: the command line.
"""

import ipaddress
import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, fields
from datetime import datetime
from typing import Any
from urllib.parse import urlsplit

import sqlalchemy as sa
from sqlalchemy import orm

from lungkit.clinic.records import audit_trail, keys
from lungkit.clinic.records.store import Store
from lungkit.clinic.records.tables import (
    DESTINATIONS,
    OBJECTS,
    Caller,
    Destination,
    Dispatch,
    Route,
    User,
    now,
)
from lungkit.errors import LungkitError

PRIORITIES = ("batch", "routine", "urgent")  # that a rule may give
_AE_TITLE = re.compile(r"(?=.*[^ ])[ -\[\]-~]{1,16}")  # PS3.5, 6.2: no backslash, no control character, not only blanks
_SENT_TO = {  # kind to what it can be sent
    "dicom": ("report", "capture", "segmentation"),
    "stow": ("report", "capture", "segmentation"),
    "fhir": ("bundle",),
    "hl7": ("message",),
}
_ADDRESS = {  # kind to what its address must have, and may have
    "dicom": (("host", "port", "ae_title"), ("tls_ca", "tls_cert", "tls_key")),
    "stow": (("url",), ("token_file", "tls_ca")),
    "fhir": (("url",), ("token_file", "tls_ca", "patient_numbers")),
    "hl7": (("host", "port"), ("tls_ca", "application", "facility", "authority")),
}


class CallerRefused(LungkitError):
    """A system that may not send; nothing was taken."""


@dataclass(frozen=True)
class CallerRow:
    """A DICOM system that may send."""

    id: int
    ae_title: str
    networks: tuple[str, ...]  # in CIDR; none: any address
    active: bool
    created_at: datetime


@dataclass(frozen=True)
class DestinationRow:
    """A system that gets results."""

    id: int
    name: str
    kind: str  # one of tables.DESTINATIONS
    address: dict[str, Any] = field(repr=False)
    objects: tuple[str, ...]
    active: bool


@dataclass(frozen=True, kw_only=True)
class Rule:
    """When a rule fits a series, and what it then asks for. Raises LungkitError for what cannot be.

    An empty condition fits everything. Text is compared without case; a description by any part of it.
    """

    name: str
    model: str
    caller: str = ""
    modality: str = ""
    body_part: str = ""
    description: str = ""
    priority: str = "routine"
    destinations: tuple[int, ...] = ()
    rank: int = 100

    def __post_init__(self) -> None:
        longest = {"name": 64, "model": 100, "caller": 16, "modality": 16, "body_part": 64, "description": 64}
        for what, most in longest.items():
            text = " ".join(str(getattr(self, what)).split())
            object.__setattr__(self, what, text)
            if len(text) > most or not text.isprintable():
                raise LungkitError(
                    f"{what} of a rule: accepted are at most {most} characters, without control characters"
                )
        if not self.name or not self.model:
            raise LungkitError("a rule needs a name and a model")
        if self.priority not in PRIORITIES:
            raise LungkitError(f"priority {self.priority!r}: accepted are {', '.join(PRIORITIES)}")
        if not 0 <= self.rank <= 9999:
            raise LungkitError(f"rank {self.rank}: accepted are 0 to 9999; the lowest is tried first")

    def fits(self, series: "Facts") -> bool:
        """Whether a series fulfils all its conditions."""
        described = " ".join(series.descriptions).casefold()
        return (
            _same(self.caller, series.caller)
            and _same(self.modality, series.modality)
            and _same(self.body_part, series.body_part)
            and self.description.casefold() in described
        )


@dataclass(frozen=True)
class Facts:
    """What rules ask of a series."""

    caller: str  # AE title; empty: it came over the web
    modality: str
    body_part: str
    descriptions: tuple[str, ...]


@dataclass(frozen=True)
class RouteRow:
    """A rule as it is kept."""

    id: int
    rule: Rule
    active: bool
    tried_at: datetime | None


def _same(wanted: str, given: str) -> bool:
    return not wanted or wanted.casefold() == given.strip().casefold()


# --- systems that send


def add_caller(db: orm.Session, ae_title: str, networks: Iterable[str] = (), by: int | None = None) -> CallerRow:
    """Let a system send, from these addresses or networks (all if there are none); its account is made with it."""
    title = accepted_ae_title(ae_title)
    given = sorted({_network(text) for text in networks})
    if db.scalar(sa.select(Caller.id).where(Caller.ae_title == title)) is not None:
        raise LungkitError(f"the AE title '{title}' is entered already")
    account = keys.program_account(db, _account_name(db, title))
    row = Caller(ae_title=title, user_id=account.id, networks=given)
    db.add(row)
    db.flush()
    audit_trail.append(db, by, "caller.add", f"caller:{row.id}", ae_title=title, networks=given)
    return _caller_row(row)


def _account_name(db: orm.Session, title: str) -> str:
    """The name of an account that no one has yet: titles that differ in signs only are different systems."""
    plain = f"dicom-{re.sub('[^a-z0-9]+', '-', title.lower()).strip('-') or 'system'}"
    taken = set(db.scalars(sa.select(User.name).where(User.name.startswith(plain, autoescape=True))))
    names = (plain, *(f"{plain}-{number}" for number in range(2, len(taken) + 3)))
    return next(name for name in names if name not in taken)


def set_caller(db: orm.Session, caller_id: int, active: bool, by: int | None = None) -> None:
    """Take or refuse what a system sends from now on; what it sent stays."""
    row = _found(db, Caller, caller_id)
    row.active = active
    audit_trail.append(db, by, "caller.set", f"caller:{row.id}", active=active)


def list_callers(db: orm.Session) -> list[CallerRow]:
    """Every system that may send or might, by AE title."""
    return [_caller_row(row) for row in db.scalars(sa.select(Caller).order_by(Caller.ae_title))]


def admitted(db: orm.Session, ae_title: str, address: str) -> tuple[int, str]:
    """The account of a system that calls, and its AE title. Raises CallerRefused."""
    row = db.scalar(sa.select(Caller).where(Caller.ae_title == ae_title.strip()))
    if row is None or not row.active:
        raise CallerRefused(f"the AE title '{ae_title.strip()[:16]}' may not send; an administrator has to enter it")
    if row.networks and not any(_inside(address, network) for network in row.networks):
        raise CallerRefused(f"'{row.ae_title}' may not send from this address")
    return row.user_id, row.ae_title


def note_refused(store: Store, ae_title: str, address: str, why: str) -> None:
    """Put a refused system on the trail, each at most once in keys.NOTED, and unknown ones together."""
    with store.write() as db:
        known = db.scalar(sa.select(Caller.id).where(Caller.ae_title == ae_title.strip()))
        caller = f"caller:{known or 'unknown'}"
        if not audit_trail.noted(db, "caller.refused", caller, since=now() - keys.NOTED):
            stated = "".join(letter for letter in ae_title[:16] if letter.isprintable())
            audit_trail.append(db, None, "caller.refused", caller, ae_title=stated, address=address, why=why)


def accepted_ae_title(text: str) -> str:
    """An AE title without blanks around it. Raises LungkitError."""
    if not _AE_TITLE.fullmatch(text) or len(text.strip()) > 16:
        raise LungkitError(f"AE title {text[:40]!r}: accepted are 1 to 16 characters of ASCII, without a backslash")
    return text.strip()


def _network(text: str) -> str:
    try:
        return str(ipaddress.ip_network(text.strip(), strict=False))
    except ValueError:
        raise LungkitError(f"{text[:60]!r} is no address or network, such as 10.1.2.3 or 10.1.0.0/16") from None


def _inside(address: str, network: str) -> bool:
    try:
        given = ipaddress.ip_address(address)
    except ValueError:
        return False
    given = getattr(given, "ipv4_mapped", None) or given
    return given in ipaddress.ip_network(network)


def _caller_row(row: Caller) -> CallerRow:
    return CallerRow(row.id, row.ae_title, tuple(row.networks), row.active, row.created_at)


# --- systems that get results


def add_destination(
    db: orm.Session, name: str, kind: str, address: dict[str, Any], objects: Iterable[str] = (), by: int | None = None
) -> DestinationRow:
    """Enter a system that results can be sent to.

    address: of "dicom" host, port and ae_title; of "stow" and "fhir" url; of "hl7" host and port. Secrets are not kept:
    token_file, tls_ca, tls_cert and tls_key name files on the gateway's machine. objects: what it gets; default: of
    "dicom" and "stow" report and capture, of the others all that they can get.
    """
    name = " ".join(name.split())
    if not 1 <= len(name) <= 64 or not name.isprintable():
        raise LungkitError("a destination needs a name of at most 64 characters")
    if kind not in DESTINATIONS:
        raise LungkitError(f"kind {kind!r}: accepted are {', '.join(DESTINATIONS)}")
    accepted = _accepted_address(kind, address)
    chosen = tuple(objects) or _SENT_TO[kind][:2]
    if unknown := sorted(set(chosen) - set(_SENT_TO[kind])):
        raise LungkitError(f"a {kind} destination cannot get {unknown[0]!r}; there are: {', '.join(_SENT_TO[kind])}")
    if db.scalar(sa.select(Destination.id).where(Destination.name == name)) is not None:
        raise LungkitError(f"a destination is called '{name}' already")
    ordered = [one for one in OBJECTS if one in chosen]
    row = Destination(name=name, kind=kind, address=accepted, objects=ordered)
    db.add(row)
    db.flush()
    audit_trail.append(db, by, "destination.add", f"destination:{row.id}", kind=kind, objects=ordered)
    return _destination_row(row)


def set_destination(db: orm.Session, destination_id: int, active: bool, by: int | None = None) -> None:
    """Send results there or not, from now on; what waits to be sent is sent or held accordingly."""
    row = _found(db, Destination, destination_id)
    row.active = active
    audit_trail.append(db, by, "destination.set", f"destination:{row.id}", active=active)


def remove_destination(db: orm.Session, destination_id: int, by: int | None = None) -> None:
    """Forget a system that nothing was sent to; one that something was sent to is only switched off."""
    row = _found(db, Destination, destination_id)
    if db.scalar(sa.select(Dispatch.id).where(Dispatch.destination_id == row.id).limit(1)) is not None:
        raise LungkitError(f"'{row.name}' was sent results, which stay on record; switch it off instead")
    if using := [route.name for route in db.scalars(sa.select(Route)) if row.id in route.destinations]:
        raise LungkitError(f"'{row.name}' is used by the rule '{using[0]}'; change that rule first")
    audit_trail.append(db, by, "destination.remove", f"destination:{row.id}")
    db.delete(row)


def list_destinations(db: orm.Session) -> list[DestinationRow]:
    """Every destination, by name."""
    return [_destination_row(row) for row in db.scalars(sa.select(Destination).order_by(Destination.name))]


def destination(db: orm.Session, destination_id: int) -> DestinationRow:
    """One destination. Raises LungkitError if there is none."""
    return _destination_row(_found(db, Destination, destination_id))


def _accepted_address(kind: str, address: dict[str, Any]) -> dict[str, Any]:
    needed, possible = _ADDRESS[kind]
    given = {name: value for name, value in address.items() if value not in ("", None)}
    if missing := [name for name in needed if name not in given]:
        raise LungkitError(f"the address of a {kind} destination needs {', '.join(missing)}")
    if unknown := sorted(set(given) - {*needed, *possible}):
        raise LungkitError(
            f"the address of a {kind} destination has no {unknown[0]!r}; it has {', '.join(needed + possible)}"
        )
    if "port" in given and (type(given["port"]) is not int or not 0 < given["port"] < 2**16):
        raise LungkitError(f"port {given['port']!r}: accepted are 1 to 65535")
    if "ae_title" in given:
        given["ae_title"] = accepted_ae_title(str(given["ae_title"]))
    if "url" in given and not (_is_url(str(given["url"]))):
        raise LungkitError(
            f"{str(given['url'])[:80]!r} is no address of a web server, such as https://pacs.example/dicom-web"
        )
    return given


def _is_url(text: str) -> bool:
    try:
        parts = urlsplit(text)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and not (parts.username or parts.password)
    except ValueError:
        return False


def _destination_row(row: Destination) -> DestinationRow:
    return DestinationRow(row.id, row.name, row.kind, dict(row.address), tuple(row.objects), row.active)


# --- rules


def add_route(db: orm.Session, rule: Rule, by: int | None = None) -> RouteRow:
    """Keep a rule, switched off until it has been tried on a study."""
    _require_destinations(db, rule)
    if db.scalar(sa.select(Route.id).where(Route.name == rule.name)) is not None:
        raise LungkitError(f"a rule is called '{rule.name}' already")
    row = Route(**_columns(rule))
    db.add(row)
    db.flush()
    audit_trail.append(db, by, "route.add", f"route:{row.id}", model=rule.model)
    return _route_row(row)


def change_route(db: orm.Session, route_id: int, rule: Rule, by: int | None = None) -> RouteRow:
    """Give a rule other conditions or another model; it is switched off until it has been tried again."""
    _require_destinations(db, rule)
    row = _found(db, Route, route_id)
    if db.scalar(sa.select(Route.id).where(Route.name == rule.name, Route.id != row.id)) is not None:
        raise LungkitError(f"a rule is called '{rule.name}' already")
    for name, value in _columns(rule).items():
        setattr(row, name, value)
    row.active, row.tried_at = False, None
    audit_trail.append(db, by, "route.change", f"route:{row.id}", model=rule.model)
    return _route_row(row)


def note_trial(db: orm.Session, route_id: int, by: int | None = None) -> None:
    """A rule was tried on a study; now it may be switched on."""
    row = _found(db, Route, route_id)
    row.tried_at = now()
    audit_trail.append(db, by, "route.try", f"route:{row.id}")


def set_route(db: orm.Session, route_id: int, active: bool, by: int | None = None) -> None:
    """Switch a rule on or off. Raises LungkitError for one that was not tried since its last change."""
    row = _found(db, Route, route_id)
    if active and row.tried_at is None:
        raise LungkitError(f"try the rule '{row.name}' on a study that was received before it is switched on")
    row.active = active
    audit_trail.append(db, by, "route.set", f"route:{row.id}", active=active)


def remove_route(db: orm.Session, route_id: int, by: int | None = None) -> None:
    """Forget a rule; readings that it led to stay."""
    row = _found(db, Route, route_id)
    audit_trail.append(db, by, "route.remove", f"route:{row.id}")
    db.delete(row)


def list_routes(db: orm.Session) -> list[RouteRow]:
    """Every rule, in the order in which they are tried."""
    return [_route_row(row) for row in db.scalars(sa.select(Route).order_by(Route.rank, Route.id))]


def route(db: orm.Session, route_id: int) -> RouteRow:
    """One rule. Raises LungkitError if there is none."""
    return _route_row(_found(db, Route, route_id))


def route_for(routes: Iterable[RouteRow], series: Facts) -> RouteRow | None:
    """The first active rule that fits a series."""
    return next((route for route in routes if route.active and route.rule.fits(series)), None)


def _require_destinations(db: orm.Session, rule: Rule) -> None:
    known = set(db.scalars(sa.select(Destination.id)))
    if unknown := sorted(set(rule.destinations) - known):
        raise LungkitError(f"there is no destination {unknown[0]}")


def _columns(rule: Rule) -> dict[str, Any]:
    return asdict(rule) | {"destinations": list(rule.destinations)}


def _route_row(row: Route) -> RouteRow:
    said = {one.name: getattr(row, one.name) for one in fields(Rule)}
    return RouteRow(row.id, Rule(**said | {"destinations": tuple(row.destinations)}), row.active, row.tried_at)


def _found(db: orm.Session, table: type[Any], number: int) -> Any:
    row = db.get(table, number)
    if row is None:
        raise LungkitError(f"there is no {table.__name__.lower()} {number}")
    return row

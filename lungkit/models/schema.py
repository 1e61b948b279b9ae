"""Frozen dataclasses as JSON objects and back: a value of another type is refused with its key.

The types of the fields are the schema. A key that no field has is kept in `extra` and written again, because a later
version of lungkit may have written it.
"""

import math
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields
from functools import cache
from types import UnionType
from typing import Any, Literal, Self, get_args, get_origin, get_type_hints

from lungkit.errors import LungkitError


class Malformed(LungkitError):
    """A JSON object that is not what its type says; the message names the key."""


@dataclass(frozen=True, kw_only=True)
class Part:
    """A JSON object with the subclass's fields as keys; a field that is None by default is left out where it is."""

    extra: Mapping[str, Any] = field(default_factory=dict)  # keys that this version does not know

    @classmethod
    def from_dict(cls, values: Any, where: str = "") -> Self:
        """The reverse of to_dict. where: the key of this object, for the message of Malformed."""
        if not isinstance(values, Mapping):
            raise Malformed(f"'{where}' is {_shortened(values)}; accepted: a JSON object")
        kind: type = cls
        hints, given = _hints(kind), dict(values)
        known = {}
        for part in fields(cls):
            if part.name == "extra":
                continue
            if part.name in given:
                known[part.name] = checked(given.pop(part.name), hints[part.name], _key(where, part.name))
            elif part.default is MISSING and part.default_factory is MISSING:
                raise Malformed(f"'{_key(where, part.name)}' is missing")
        return cls(**known, extra=given)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        values = {
            part.name: _plain(getattr(self, part.name))
            for part in fields(self)
            if part.name != "extra" and not (getattr(self, part.name) is None and part.default is None)
        }
        return values | dict(self.extra)


@cache
def _hints(cls: type) -> dict[str, Any]:
    return get_type_hints(cls)


def _key(where: str, name: str) -> str:
    return f"{where}.{name}" if where else name


def _shortened(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:59]}…"


def _plain(value: Any) -> Any:
    match value:
        case Part():
            return value.to_dict()
        case object(to_dict=to_dict):
            return to_dict()
        case tuple() | list():
            return [_plain(one) for one in value]
        case Mapping():
            return {key: _plain(one) for key, one in value.items()}
    return value


def checked(value: Any, hint: Any, where: str) -> Any:
    """The value as its type; Malformed where it is another."""
    origin, arguments = get_origin(hint), get_args(hint)
    if hint is Any:
        return value
    if origin is UnionType:
        return None if value is None else checked(value, arguments[0], where)
    if origin is None and hasattr(hint, "from_dict") and not issubclass(hint, Part):
        return _read(value, hint, where)
    if origin is Literal:
        return _accepted(value, value in arguments, where, " or ".join(f'"{one}"' for one in arguments))
    if origin is tuple:
        values = _accepted(value, isinstance(value, list | tuple), where, "a list")
        kinds = [arguments[0]] * len(values) if arguments[-1] is Ellipsis else list(arguments)
        _accepted(value, len(kinds) == len(values), where, f"a list of {len(kinds)}")
        return tuple(
            checked(one, kind, f"{where}[{i}]") for i, (one, kind) in enumerate(zip(values, kinds, strict=True))
        )
    if origin is not None and issubclass(origin, Mapping):
        _accepted(value, isinstance(value, Mapping), where, "a JSON object")
        return {name: checked(one, arguments[1], _key(where, name)) for name, one in value.items()}
    if issubclass(hint, Part):
        return value if isinstance(value, hint) else hint.from_dict(value, where)
    if hint is float:
        number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        return float(_accepted(value, number, where, "a number"))
    if hint is int:
        return _accepted(value, isinstance(value, int) and not isinstance(value, bool), where, "a whole number")
    return _accepted(value, isinstance(value, hint), where, {str: "a text", bool: "true or false"}[hint])


def _read(value: Any, hint: Any, where: str) -> Any:
    """An object of a class that checks its own values."""
    try:
        return hint.from_dict(dict(checked(value, Mapping[str, Any], where)))
    except Malformed:
        raise
    except LungkitError as error:
        raise Malformed(f"'{where}' cannot be used: {error}") from None


def _accepted(value: Any, fits: bool, where: str, accepted: str) -> Any:
    if not fits:
        raise Malformed(f"'{where}' is {_shortened(value)}; accepted: {accepted}")
    return value

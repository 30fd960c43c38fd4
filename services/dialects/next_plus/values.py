"""The declared types of parameters, and values as JSON shows them.

A `string` parameter accepts anything: its values keep their own JSON types (42 stays 42), so its
samples are of any kind and the type is not locked. The other types are.
"""

from __future__ import annotations

from typing import Any

from msgspec import Raw

from schemas.catalogue import Point
from schemas.samples import Kind, Value
from services.dialects import _times

TYPES = {"string": Kind.STRING, "number": Kind.DOUBLE, "boolean": Kind.BOOL, "date": Kind.DATE}
"""Declared type to the kind of its samples."""
PRECISIONS = range(11)
KEEP_MINUTES = (60, 180, 360, 720, 1440, 2880, 4320, 10080, 20160, 43200)
"""Allowed values of `maxLogPeriod`; 720 and 1440 are published, the others are ours."""
KEEP_MINUTES_DEFAULT, PRECISION_DEFAULT = 720, 2
KEY_CHARACTERS_MAX = 255

_NAMES = {kind: name for name, kind in TYPES.items()}
_WHOLE_MAX = 2**53


def declared(type_name: str, precision: int | None, keep_minutes: int) -> dict[str, Any]:
    """What a point must be declared with so that it is a parameter of this type."""
    kind = TYPES[type_name]
    number = kind is Kind.DOUBLE
    if precision is None:
        precision = PRECISION_DEFAULT
    return {
        "kind": kind,
        "locked": kind is not Kind.STRING,
        "precision": precision if number else None,
        # A change of exactly 10^-precision counts.
        "band": float(f"1e-{precision}") if number else 0.0,
        "on_change": True,
        "keep_minutes": keep_minutes,
    }


def type_of(point: Point) -> str:
    """The declared type of a parameter."""
    return "string" if point.declared is None else _NAMES.get(point.declared, "string")


def json_type(value: object) -> str:
    """What JSON calls the type of a decoded value."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "boolean"
    if isinstance(value, int | float):
        return "number"
    if isinstance(value, str):
        return "string"
    return "array" if isinstance(value, list) else "object"


def json_of(kind: int, value: Value) -> Any:
    """A stored value as JSON shows it: whole doubles without a point, dates as ISO-8601."""
    if kind == Kind.JSON:
        return Raw(str(value).encode())
    if kind == Kind.DATE:
        return _times.text_of(int(value))
    if isinstance(value, float) and value.is_integer() and abs(value) < _WHOLE_MAX:
        return int(value)
    return value

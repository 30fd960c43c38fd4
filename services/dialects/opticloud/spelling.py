"""How ThingsBoard spells a value: text by default, as Java's `toString` gives it, or JSON types.

https://docs.oracle.com/en/java/javase/21/docs/api/java.base/java/lang/Double.html#toString(double)
"""

from __future__ import annotations

from decimal import Decimal
from math import isfinite, isnan
from typing import Any

from msgspec import Raw

from schemas.samples import Kind, Value


def java_double(value: float) -> str:
    """A double as Java spells it: the shortest digits that give it back, at least one behind the
    point, with an exponent below 10^-3 and from 10^7 on.
    """
    if not isfinite(value):
        return "NaN" if isnan(value) else ("Infinity" if value > 0 else "-Infinity")
    # In this range Python and Java agree to the letter.
    if value == 0 or 1e-3 <= abs(value) < 1e7:
        return repr(value)
    two_digits = f"{value:.1e}"
    # Where two digits are enough Java takes the nearest of them: 4.9E-324, not 5.0E-324.
    text = two_digits if float(two_digits) == value else repr(value)
    sign, digits, exponent = Decimal(text).as_tuple()
    plain = "".join(map(str, digits))
    tail = plain[1:].rstrip("0") or "0"
    return f"{'-' if sign else ''}{plain[0]}.{tail}E{len(digits) - 1 + int(exponent)}"


def text_of_value(kind: int, value: Value) -> str:
    """A stored value as the text that readers get by default."""
    if kind == Kind.DOUBLE:
        return java_double(float(value))
    if kind == Kind.BOOL:
        return "true" if value else "false"
    return str(value)


def json_of_value(kind: int, value: Value) -> Any:
    """A stored value as the JSON type that readers get with `useStrictDataTypes`."""
    if kind == Kind.JSON:
        return Raw(str(value).encode())
    if kind == Kind.DOUBLE:
        # Neither infinity nor "not a number" exists in JSON; Java writes them as text.
        text = java_double(float(value))
        return Raw(text.encode()) if isfinite(float(value)) else text
    return value

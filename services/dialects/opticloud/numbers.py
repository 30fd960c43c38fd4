"""Which type a number of a telemetry message becomes: ThingsBoard looks at how it is written.

| written | becomes |
| --- | --- |
| `42`, `1e3`, `1.5e1` | long |
| `42.0`, `4.2`, `1e-3` | double |
| integral beyond 64 bits, more than 16 decimals, beyond a double | text, in full |

Upstream: JsonConverter.buildNumericKeyValueProto.
"""

from __future__ import annotations

import re
from decimal import Decimal
from math import isinf

LONG_MIN, LONG_MAX = -(2**63), 2**63 - 1
DECIMALS_MAX = 16
EXPONENT_MAX = 1000
"""Numbers beyond it would be written out in full as text: refused instead."""

_SHORT = len("0.") + DECIMALS_MAX
_PARSABLE = re.compile(r"-?(?:[0-9]+(?:\.[0-9]+)?|\.[0-9]+)")
_FIRST = frozenset("-.0123456789")


class InFull(str):
    """A number that is kept as text, since no number type of ours holds it."""

    __slots__ = ()


def of_literal(text: str) -> float | int | InFull:
    """The value of a JSON number that has a fraction or an exponent. Raises ValueError beyond
    EXPONENT_MAX.
    """
    if "e" in text or "E" in text:
        return _scientific(text)
    if len(text) > _SHORT:
        return _long_fraction(text)
    return float(text)


def of_text(text: str) -> float | int | str:
    """The number that a string holds, or the string where it holds none: senders quote numbers."""
    if text[:1] not in _FIRST or not _PARSABLE.fullmatch(text):
        return text
    if "." in text:
        return of_literal(text)
    # Python refuses to read integers of more than some thousand digits; they are text in any case.
    if len(text.lstrip("-0")) > len(str(LONG_MAX)):
        return InFull(text)
    number = int(text)
    return number if LONG_MIN <= number <= LONG_MAX else InFull(text)


def _long_fraction(text: str) -> float | InFull:
    number = float(text)
    if isinf(number) or len(text) - text.index(".") - 1 > DECIMALS_MAX:
        return InFull(text)
    return number


def _scientific(text: str) -> float | int | InFull:
    # The exponent's digits are bounded first: Decimal would take exponents of any length.
    exponent_text = text.lower().partition("e")[2].lstrip("+-").lstrip("0")
    if len(exponent_text) > len(str(EXPONENT_MAX)) or int(exponent_text or "0") > EXPONENT_MAX:
        raise ValueError(f"exponents beyond {EXPONENT_MAX} are not taken in")
    number = Decimal(text)
    exponent = number.as_tuple().exponent
    decimals = -exponent if isinstance(exponent, int) else 0
    if number == number.to_integral_value():
        whole = int(number)
        return whole if LONG_MIN <= whole <= LONG_MAX else InFull(f"{number:f}")
    if decimals > DECIMALS_MAX:
        return InFull(f"{number:f}")
    double = float(number)
    return InFull(f"{number:f}") if isinf(double) else double

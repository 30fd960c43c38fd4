"""The usual push from bytes to columns, compiled: no Python object an item.

What is scanned is the plain form of it: a list, perhaps alone under `parameters`, of objects with
`key` (without escapes), `value` (a number or a boolean) and perhaps `timestamp` (whole
milliseconds, or ISO-8601 as JavaScript writes it), each at most once and nothing else. Numbers must
be ones whose double one multiplication or division gives exactly rounded (W. Clinger, "How to read
floating point numbers accurately", 1990): up to 2^53 in digits, up to 22 in the exponent.
Everything else, also what is wrong, is left to the decoder (`_items.items_of`), which says what; a
property test holds both equal.
"""

from __future__ import annotations

from array import array
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from numba import njit

from schemas.samples import TS_MS_MAX, Kind

_compiled = njit(cache=True, nogil=True, error_model="numpy", _nrt=False)
"""Nothing here makes an array. Without counting references to those that are handed on, and without
looking for divisions by zero, it takes two fifths of the time.
"""
ABSENT = -1
"""In `Scanned.times`: no timestamp came."""

_POWERS = np.array([10.0**power for power in range(23)])
_MONTH_DAYS = np.array([31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31])
_EXACT_MAX = 2**53
_ISO = b"dddd-dd-ddTdd:dd:dd.dddZ"
_PATTERN = np.frombuffer(_ISO, np.uint8)
_QUOTE, _COMMA, _COLON, _ZERO, _NINE = (ord(sign) for sign in '",:09')
_OPEN, _CLOSE, _BEGIN, _END, _BACKSLASH = (ord(sign) for sign in "[]{}\\")
_MINUS, _PLUS, _POINT, _LARGE_E, _D = (ord(sign) for sign in "-+.Ed")
_K, _E, _Y, _V, _A, _L, _T, _I, _M = (ord(letter) for letter in "keyvaltim")
_KEY, _VALUE, _TIMESTAMP = 1, 2, 4
_VALUE_REST, _TIMESTAMP_REST, _TRUE, _FALSE, _WRAP = (
    np.frombuffer(text, np.uint8)
    for text in (b'ue"', b'estamp"', b"true", b"false", b'"parameters"')
)
_DOUBLE, _BOOL = int(Kind.DOUBLE), int(Kind.BOOL)


class Scanned(NamedTuple):
    """The items of a push: their keys, joined by NUL (which no key has in it), their kinds (a byte
    each), the bits of their values as in a block, and times.
    """

    items: int
    keys: bytes
    kinds: bytes
    bits: array[int]
    times: array[int]
    oldest_ms: int
    """The earliest of the times; ABSENT where none came at all."""
    mixed: bool
    """Whether some have a timestamp and others not."""


def scan(body: bytes, items_max: int) -> Scanned | None:
    """The items of a plain push; None where the body is anything else."""
    raw = np.frombuffer(body, np.uint8)
    keys = np.empty(len(body) + 1, np.uint8)
    kinds, bits = np.empty(items_max, np.uint8), np.empty(items_max, np.int64)
    times = np.empty(items_max, np.int64)
    count, used = _scan(raw, keys, kinds, bits, bits.view(np.float64), times)
    if count < 1:
        return None
    lowest, highest = int(times[:count].min()), int(times[:count].max())
    return Scanned(
        count,
        keys[: used - 1].tobytes(),
        kinds[:count].tobytes(),
        array("q", bits[:count].tobytes()),
        array("q", times[:count].tobytes()),
        lowest,
        lowest == ABSENT != highest,
    )


@lru_cache(maxsize=1)
def warm() -> None:
    """Have the scanner compiled, or loaded."""
    scan(b'[{"key":"k","value":-1.5e1,"timestamp":1},{"key":"k","value":true}]', 2)


@_compiled
def _scan(body: Any, keys: Any, kinds: Any, bits: Any, doubles: Any, times: Any) -> Any:
    """(items, bytes of keys); (-1, 0) where the body is not of the plain form. `doubles` is `bits`,
    seen otherwise.
    """
    size, count, used = body.size, 0, 0
    at, wrapped = _list(body)
    if at < 0:
        return -1, 0
    at, more = _space(body, at + 1), True
    while more and at < size and count < bits.size and body[at] == _BEGIN:
        seen, times[count] = 0, ABSENT
        while True:
            at = _space(body, at + 1)
            name, at = _name(body, at)
            if name == 0 or seen & name:
                return -1, 0
            seen |= name
            if name == _KEY:
                used, at = _text(body, at, keys, used)
            elif name == _VALUE:
                at, kinds[count] = _value(body, at, bits, doubles, count)
            else:
                at, times[count] = _moment(body, at)
            if at < 0:
                return -1, 0
            at = _space(body, at)
            if at == size or body[at] != _COMMA:
                break
        if at == size or body[at] != _END or seen & _KEY == 0 or seen & _VALUE == 0:
            return -1, 0
        keys[used] = 0
        used += 1
        count += 1
        at = _space(body, at + 1)
        more = at < size and body[at] == _COMMA
        if more:
            at = _space(body, at + 1)
    if more or at == size or body[at] != _CLOSE:
        return -1, 0
    at = _space(body, at + 1)
    if wrapped and at < size and body[at] == _END:
        at, wrapped = _space(body, at + 1), False
    return (count, used) if at == size and not wrapped else (-1, 0)


@_compiled
def _list(body: Any) -> Any:
    """(the place where the list begins, whether it is the one member of an object); the place is -1
    where there is none.
    """
    at = _space(body, 0)
    if at == body.size or body[at] != _BEGIN:
        return at if at < body.size and body[at] == _OPEN else -1, False
    at = _space(body, at + 1)
    if not _ends(body, at, _WRAP):
        return -1, False
    at = _space(body, at + _WRAP.size)
    if at == body.size or body[at] != _COLON:
        return -1, False
    at = _space(body, at + 1)
    return at if at < body.size and body[at] == _OPEN else -1, True


@_compiled
def _space(body: Any, at: int) -> Any:
    """The next place that is not white space."""
    while at < body.size and (body[at] == 32 or body[at] == 10 or body[at] == 13 or body[at] == 9):
        at += 1
    return at


@_compiled
def _name(body: Any, at: int) -> Any:
    """(which member, the place of its value); (0, -1) for any other."""
    if at + 5 > body.size or body[at] != _QUOTE:
        return 0, -1
    first, second, third, fourth = body[at + 1], body[at + 2], body[at + 3], body[at + 4]
    if first == _K and second == _E and third == _Y and fourth == _QUOTE:
        name, at = _KEY, at + 5
    elif first == _V and second == _A and third == _L and _ends(body, at + 4, _VALUE_REST):
        name, at = _VALUE, at + 7
    elif first == _T and second == _I and third == _M and _ends(body, at + 4, _TIMESTAMP_REST):
        name, at = _TIMESTAMP, at + 11
    else:
        return 0, -1
    at = _space(body, at)
    if at == body.size or body[at] != _COLON:
        return 0, -1
    at = _space(body, at + 1)
    return (name, at) if at < body.size else (0, -1)


@_compiled
def _ends(body: Any, at: int, rest: Any) -> Any:
    if at + len(rest) > body.size:
        return False
    for place in range(len(rest)):  # noqa: SIM110 (compiled: a generator would be an object)
        if body[at + place] != rest[place]:
            return False
    return True


@_compiled
def _text(body: Any, at: int, keys: Any, used: int) -> Any:
    """Copy the text that begins here behind `keys`: (how many bytes those are then, the place
    behind its closing quote); the place is -1 where there is an escape or a control character.
    """
    if body[at] != _QUOTE:
        return used, -1
    for place in range(at + 1, body.size):
        sign = body[place]
        if sign == _QUOTE:
            return used, place + 1
        if sign < 32 or sign == _BACKSLASH:
            break
        keys[used] = sign
        used += 1
    return used, -1


@_compiled
def _digits(body: Any, at: Any, number: Any) -> Any:
    """(the place behind the digits, `number` with them behind it); the place is -1 where they are
    too many for an exact double.
    """
    stop = min(at + 17, body.size)
    while at < stop:
        digit = np.int64(body[at]) - _ZERO
        if digit < 0 or digit > 9:
            break
        number = number * 10 + digit
        if number > _EXACT_MAX:
            return -1, 0
        at += 1
    return at, number


@_compiled
def _value(body: Any, at: int, bits: Any, doubles: Any, row: int) -> Any:
    """(the place behind a number or a boolean, its kind); the place is -1 where it is neither."""
    if _ends(body, at, _TRUE):
        bits[row] = 1
        return at + _TRUE.size, _BOOL
    if _ends(body, at, _FALSE):
        bits[row] = 0
        return at + _FALSE.size, _BOOL
    at, doubles[row] = _number(body, at)
    return at, _DOUBLE


@_compiled
def _number(body: Any, at: int) -> Any:
    """(the place behind a JSON number, its double); the place is -1 where it is none, or not an
    easy one.
    """
    negative = body[at] == _MINUS
    first = at + 1 if negative else at
    at, number = _digits(body, first, 0)
    if at <= first or (body[first] == _ZERO and at > first + 1):
        return -1, 0.0
    power, whole = 0, True
    if at < body.size and body[at] == _POINT:
        first, whole = at + 1, False
        at, number = _digits(body, first, number)
        if at <= first:
            return -1, 0.0
        power = first - at
    if at < body.size and (body[at] == _E or body[at] == _LARGE_E):
        at, whole = at + 1, False
        down = at < body.size and body[at] == _MINUS
        if at < body.size and (body[at] == _MINUS or body[at] == _PLUS):
            at += 1
        first = at
        at, exponent = _digits(body, first, 0)
        if at <= first or exponent > 400:
            return -1, 0.0
        power += -exponent if down else exponent
    if power < -22 or power > 22:
        return -1, 0.0
    double = number / _POWERS[-power] if power < 0 else number * _POWERS[power]
    # A whole number has no negative zero.
    return at, -double if negative and not (whole and number == 0) else double


@_compiled
def _moment(body: Any, at: int) -> Any:
    """(the place behind a timestamp, its UTC ms); the place is -1 where it is none, or not a plain
    one.
    """
    if body[at] == _QUOTE:
        return (at + 26, _iso(body, at + 1)) if _is_iso(body, at) else (-1, 0)
    first = at
    at, number = _digits(body, first, 0)
    if at <= first or (body[first] == _ZERO and at > first + 1) or number >= TS_MS_MAX:
        return -1, 0
    if at < body.size and (body[at] == _POINT or body[at] == _E or body[at] == _LARGE_E):
        return -1, 0
    return at, number


@_compiled
def _is_iso(body: Any, at: int) -> Any:
    """Whether a quoted `2026-05-19T08:14:02.000Z` stands here, of 1970 to 2261 and in range."""
    if at + 26 > body.size or body[at + 25] != _QUOTE:
        return False
    for place in range(_PATTERN.size):
        sign, found = _PATTERN[place], body[at + 1 + place]
        if sign == _D and not _ZERO <= found <= _NINE:
            return False
        if sign != _D and sign != found:
            return False
    year, month, day = _two(body, at + 1) * 100 + _two(body, at + 3), _two(body, at + 6), 0
    day = _two(body, at + 9)
    if year < 1970 or year > 2261 or month < 1 or month > 12 or day < 1:
        return False
    leap = month == 2 and year % 4 == 0 and (year % 100 != 0 or year % 400 == 0)
    if day > _MONTH_DAYS[month - 1] + leap:
        return False
    return _two(body, at + 12) < 24 and _two(body, at + 15) < 60 and _two(body, at + 18) < 60


@_compiled
def _two(body: Any, at: int) -> Any:
    return np.int64(body[at] - _ZERO) * 10 + np.int64(body[at + 1] - _ZERO)


@_compiled
def _iso(body: Any, at: int) -> Any:
    """UTC ms of the text that begins here. Days by H. Hinnant's `days_from_civil`."""
    year, month, day = (
        _two(body, at) * 100 + _two(body, at + 2),
        _two(body, at + 5),
        _two(body, at + 8),
    )
    year -= month <= 2
    era = year // 400
    of_era = year - era * 400
    of_year = (153 * (month + (-3 if month > 2 else 9)) + 2) // 5 + day - 1
    days = era * 146097 + of_era * 365 + of_era // 4 - of_era // 100 + of_year - 719468
    seconds = (_two(body, at + 11) * 60 + _two(body, at + 14)) * 60 + _two(body, at + 17)
    millis = _two(body, at + 20) * 10 + np.int64(body[at + 22] - _ZERO)
    return (days * 86400 + seconds) * 1000 + millis

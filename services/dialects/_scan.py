"""Bodies with a list of equal items, from bytes to columns, compiled: no Python object an item.

What is scanned is the plain form of a body (`Form`): a list of objects with the members that the
form names, in any order and each at most once, nothing else. Texts are those without escapes, times
whole milliseconds or ISO-8601 as JavaScript writes it. Numbers must be ones whose double one
multiplication or division gives exactly rounded (W. Clinger, "How to read floating point numbers
accurately", 1990): up to 2^53 in digits, up to 22 in the exponent. Everything else, also what is
wrong, is left to the dialect's decoder, which says what; property tests hold both equal.

Numba looks for changes in the file of what it has compiled, not in those of what that calls: all of
it is in this one.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from enum import IntEnum
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
"""In a column of `Scanned`: the member did not come."""

_POWERS = np.array([10.0**power for power in range(23)])
_MONTH_DAYS = np.array([31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31])
_EXACT_MAX = 2**53
_ISO = b"dddd-dd-ddTdd:dd:dd.dddZ"
_PATTERN = np.frombuffer(_ISO, np.uint8)
_QUOTE, _COMMA, _COLON, _ZERO, _NINE = (ord(sign) for sign in '",:09')
_OPEN, _CLOSE, _BEGIN, _END, _BACKSLASH = (ord(sign) for sign in "[]{}\\")
_MINUS, _PLUS, _POINT, _SMALL_E, _LARGE_E, _D, _T, _F = (ord(sign) for sign in "-+.eEdtf")
_TRUE, _FALSE = np.frombuffer(b"true", np.uint8), np.frombuffer(b"false", np.uint8)
_DOUBLE, _BOOL = int(Kind.DOUBLE), int(Kind.BOOL)
_NAME_BYTES_MAX = 24
_BITS, _TIMES, _MARKS, _KINDS, _COLUMNS = range(5)
_WRAP_ROW, _WORD_ROW = 0, 1


class Role(IntEnum):
    """What a member is to the columns."""

    TEXT = 0
    """A text; goes to `Scanned.texts`."""
    VALUE = 1
    """A number or a boolean; goes to `kinds` and `bits`."""
    QUOTED = 2
    """A number written as text; goes to `kinds` and `bits`."""
    STAMP = 3
    """A time as a number or a text; goes to `times`."""
    ISO = 4
    """A time as a text; goes to `times`."""
    MARK = 5
    """A number from 0 to 3; goes to `marks`."""
    WORD = 6
    """Always the same text: `Form.word`."""
    OBJECT = 7
    """An object. Its members are those of the form that say so."""


_TEXT, _VALUE, _QUOTED, _STAMP, _ISO_TEXT, _MARK, _WORD, _OBJECT = map(int, Role)


class Member(NamedTuple):
    """A member of an item, or of the object in it (`inner`)."""

    name: str
    role: Role
    required: bool = True
    inner: bool = False


class Scanned(NamedTuple):
    """The items of a body, a row each."""

    items: int
    texts: bytes
    """Joined by NUL (which no text has in it)."""
    kinds: bytes
    bits: array[int]
    """Of the values, as in a block."""
    times: array[int]
    marks: array[int]
    oldest_ms: int
    """The earliest of the times; ABSENT where one or all did not come."""
    mixed: bool
    """Whether some have a time and others not."""


class Form:
    """A list of items under the one member `wrap` of an object, or alone where it may be `bare`.
    At most 62 members. Threads may share it: a body leaves nothing behind in it.
    """

    def __init__(
        self, wrap: str, members: Sequence[Member], *, bare: bool = False, word: str = ""
    ) -> None:
        self._bare, self._texts = bare, any(member.role is Role.TEXT for member in members)
        self._required = sum(1 << at for at, member in enumerate(members, 2) if member.required)
        rows = [Member(wrap, Role.WORD), Member(word, Role.WORD), *members]
        self._rows = np.array([_row(member) for member in rows])

    def scan(self, body: bytes, items_max: int) -> Scanned | None:
        """The items of a plain body, at least one; None where it is anything else."""
        raw, order = np.frombuffer(body, np.uint8), np.full(len(self._rows), 2)
        texts = np.empty(len(body) + 1 if self._texts else 0, np.uint8)
        columns = np.empty((_COLUMNS, items_max), np.int64)
        count, used, oldest_ms, newest_ms = _scan(
            *(raw, self._rows, self._bare, self._required, order),
            *(texts, columns, columns.view(np.float64)),
        )
        if count < 1:
            return None
        return Scanned(
            count,
            texts[: max(used - 1, 0)].tobytes(),
            columns[_KINDS, :count].astype(np.uint8).tobytes(),
            array("q", columns[_BITS, :count].tobytes()),
            array("q", columns[_TIMES, :count].tobytes()),
            array("i", columns[_MARKS, :count].astype(np.int32).tobytes()),
            oldest_ms,
            oldest_ms == ABSENT != newest_ms,
        )


def _row(member: Member) -> list[int]:
    """A member as the scanner wants it: bytes of its name with quotes, role, place, the name."""
    name = f'"{member.name}"'.encode()
    return [len(name), member.role, member.inner, *name.ljust(_NAME_BYTES_MAX)]


@lru_cache(maxsize=1)
def warm() -> None:
    """Have the scanner compiled, or loaded."""
    Form("items", [Member("value", Role.VALUE)], bare=True).scan(b'[{"value":-1.5e1}]', 1)


@_compiled
def _scan(
    body: Any,
    rows: Any,
    bare: bool,
    required: int,
    order: Any,
    texts: Any,
    columns: Any,
    doubles: Any,
) -> Any:
    """(items, bytes of texts, earliest and latest time); the first is -1 where the body is not of
    the form. `doubles` is `columns`, seen otherwise; `order` is room to work in.
    """
    at, wrapped = _list(body, rows, bare)
    if at < 0:
        return -1, 0, 0, 0
    at, count, used = _items(body, at, rows, required, order, texts, columns, doubles)
    if at < 0:
        return -1, 0, 0, 0
    at = _space(body, at)
    if wrapped and at < body.size and body[at] == _END:
        at, wrapped = _space(body, at + 1), False
    if at < body.size or wrapped:
        return -1, 0, 0, 0
    oldest_ms, newest_ms = TS_MS_MAX, ABSENT
    for row in range(count):
        oldest_ms = min(oldest_ms, columns[_TIMES, row])
        newest_ms = max(newest_ms, columns[_TIMES, row])
    return count, used, oldest_ms, newest_ms


@_compiled
def _list(body: Any, rows: Any, bare: bool) -> Any:
    """(the place where the list begins, whether it is the one member of an object); the place is -1
    where there is none.
    """
    at = _space(body, 0)
    if at == body.size or body[at] != _BEGIN:
        return at if bare and at < body.size and body[at] == _OPEN else -1, False
    at = _space(body, at + 1)
    if not _stands(body, at, rows, _WRAP_ROW):
        return -1, False
    at = _behind_colon(body, at + rows[_WRAP_ROW, 0])
    return at if at >= 0 and body[at] == _OPEN else -1, True


@_compiled
def _items(
    body: Any,
    at: int,
    rows: Any,
    required: int,
    order: Any,
    texts: Any,
    columns: Any,
    doubles: Any,
) -> Any:
    """(the place behind the list that begins here, its items, bytes of texts); the place is -1
    where it is not of the form. Members are looked for in the order of the last item's.
    """
    size, count, used = body.size, 0, 0
    at = _space(body, at + 1)
    while count < columns.shape[1] and at < size and body[at] == _BEGIN:
        columns[_TIMES, count] = columns[_MARKS, count] = ABSENT
        seen, inner, turn = 0, 0, 0
        while True:
            at = _space(body, at + 1)
            member = _member(body, at, rows, order[turn], inner)
            if member < 0 or seen >> member & 1:
                return -1, 0, 0
            seen |= 1 << member
            order[turn] = member
            turn += 1
            at = _behind_colon(body, at + rows[member, 0])
            if at < 0:
                return -1, 0, 0
            role = rows[member, 1]
            if role == _OBJECT and body[at] == _BEGIN and not inner:
                inner = 1
                continue
            if role == _TEXT:
                used, at = _text(body, at, texts, used)
            elif role in (_VALUE, _QUOTED):
                at = _value(body, at, role == _QUOTED, columns, doubles, count)
            elif role in (_STAMP, _ISO_TEXT):
                at, columns[_TIMES, count] = _moment(body, at, role == _STAMP)
            elif role == _MARK:
                at, columns[_MARKS, count] = _mark(body, at)
            elif role == _WORD and _stands(body, at, rows, _WORD_ROW):
                at += rows[_WORD_ROW, 0]
            else:
                return -1, 0, 0
            if at < 0:
                return -1, 0, 0
            at = _space(body, at)
            if inner and at < size and body[at] == _END:
                at, inner = _space(body, at + 1), 0
            if at == size or body[at] != _COMMA:
                break
        if at == size or body[at] != _END or inner or seen & required != required:
            return -1, 0, 0
        count += 1
        at = _space(body, at + 1)
        if at == size or body[at] != _COMMA:
            return (at + 1, count, used) if at < size and body[at] == _CLOSE else (-1, 0, 0)
        at = _space(body, at + 1)
    return -1, 0, 0


@_compiled
def _member(body: Any, at: int, rows: Any, likely: int, inner: int) -> Any:
    """Which member's name stands here, `likely` this one; -1 for any other."""
    if rows[likely, 2] == inner and _stands(body, at, rows, likely):
        return likely
    for member in range(2, len(rows)):
        if rows[member, 2] == inner and _stands(body, at, rows, member):
            return member
    return -1


@_compiled
def _stands(body: Any, at: int, rows: Any, row: int) -> Any:
    """Whether the name in a row stands here, with its quotes."""
    size = rows[row, 0]
    if at + size > body.size:
        return False
    for place in range(size):  # noqa: SIM110 (compiled: a generator would be an object)
        if body[at + place] != rows[row, 3 + place]:
            return False
    return True


@_compiled
def _behind_colon(body: Any, at: int) -> Any:
    """The place of the value behind a colon, with white space around it; -1 where there is none."""
    at = _space(body, at)
    if at == body.size or body[at] != _COLON:
        return -1
    at = _space(body, at + 1)
    return at if at < body.size else -1


@_compiled
def _space(body: Any, at: int) -> Any:
    """The next place that is not white space."""
    while at < body.size and (body[at] == 32 or body[at] == 10 or body[at] == 13 or body[at] == 9):
        at += 1
    return at


@_compiled
def _text(body: Any, at: int, texts: Any, used: int) -> Any:
    """Copy the text that begins here behind `texts`, and a NUL: (how many bytes those are then, the
    place behind its closing quote); the place is -1 where there is an escape or a control
    character.
    """
    if body[at] != _QUOTE:
        return used, -1
    for place in range(at + 1, body.size):
        sign = body[place]
        if sign == _QUOTE:
            texts[used] = 0
            return used + 1, place + 1
        if sign < 32 or sign == _BACKSLASH:
            break
        texts[used] = sign
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
def _value(body: Any, at: int, quoted: bool, columns: Any, doubles: Any, row: int) -> Any:
    """The place behind a number or a boolean, -1 where it is neither. A quoted one is a number, and
    none of those that mean another one as a text: "-0" is below zero.
    """
    columns[_KINDS, row] = _DOUBLE
    if quoted:
        if body[at] != _QUOTE or at + 1 == body.size:
            return -1
        below = body[at + 1] == _MINUS
        at, doubles[_BITS, row] = _number(body, at + 1)
        closed = 0 < at < body.size and body[at] == _QUOTE
        return at + 1 if closed and not (below and columns[_BITS, row] == 0) else -1
    if body[at] == _T or body[at] == _F:
        columns[_KINDS, row], columns[_BITS, row] = _BOOL, body[at] == _T
        return _literal(body, at)
    at, doubles[_BITS, row] = _number(body, at)
    return at


@_compiled
def _literal(body: Any, at: int) -> Any:
    """The place behind `true` or `false`; -1 where neither is here."""
    literal = _TRUE if body[at] == _T else _FALSE
    if at + literal.size > body.size:
        return -1
    for place in range(literal.size):
        if body[at + place] != literal[place]:
            return -1
    return at + literal.size


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
    if at < body.size and (body[at] == _SMALL_E or body[at] == _LARGE_E):
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
def _mark(body: Any, at: int) -> Any:
    """(the place behind a digit from 0 to 3, what it is); the place is -1 for anything else."""
    mark = np.int64(body[at]) - _ZERO
    if mark < 0 or mark > 3 or at + 1 == body.size:
        return -1, 0
    behind = body[at + 1]
    if _ZERO <= behind <= _NINE or behind in (_POINT, _SMALL_E, _LARGE_E):
        return -1, 0
    return at + 1, mark


@_compiled
def _moment(body: Any, at: int, numbers: bool) -> Any:
    """(the place behind a timestamp, its UTC ms); the place is -1 where it is none, or not a plain
    one, or a number where those are none.
    """
    if body[at] == _QUOTE:
        return (at + 26, _iso(body, at + 1)) if _is_iso(body, at) else (-1, 0)
    first = at
    at, number = _digits(body, first, 0)
    if not numbers or at <= first or (body[first] == _ZERO and at > first + 1):
        return -1, 0
    if number >= TS_MS_MAX:
        return -1, 0
    if at < body.size and (body[at] == _POINT or body[at] == _SMALL_E or body[at] == _LARGE_E):
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

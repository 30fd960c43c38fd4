"""RFC 3339 times at the doors: to UTC milliseconds and back.

A hundred values arrive at once and their times differ in few characters: the minute and what
follows it are remembered, so that the usual time costs a look-up and a sum.
https://www.rfc-editor.org/rfc/rfc3339#section-5.6
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import UTC, datetime

from schemas.samples import TS_MS_MAX

_REMEMBERED_MAX, _REMEMBERED_CHARACTERS_MAX = 4096, 40
"""Longer tails, fractions of some thirty digits, are looked at each time: what is remembered is
small.
"""
_MOMENTS_MAX = 1 << 16
"""Every millisecond of a minute, and some more."""
_DAY_MS = 86_400_000

_MINUTE = re.compile(r"([0-9]{4})-([0-9]{2})-([0-9]{2})[Tt]([0-9]{2}):([0-9]{2}):")
_TAIL = re.compile(r"(?:\.([0-9]+))?(?:[Zz]|([+-])([0-9]{2}):([0-9]{2}))")
_BEYOND = re.compile(r"\.[0-9]{3}[0-9]*[1-9]")
"""Something is behind the millisecond."""
_SECONDS = {f"{second:02}": second * 1000 for second in range(60)}
_minutes: dict[str, int] = {}
_tails: dict[str, int] = {}
_moments: dict[str, int] = {}
"""What follows the minute, `30.333Z`, to ms."""


class OutOfRange(ValueError):
    """A time that is well written and cannot be stored."""


def all_ms_of(texts: Sequence[str]) -> list[int]:
    """UTC ms of each time. Raises as `ms_of` does."""
    minutes, moments = _minutes, _moments
    try:
        # What lies between the first and the last text begins as both of them do.
        if (minute := min(texts)[:17]) == max(texts)[:17]:
            minute_ms = minutes[minute]
            return [minute_ms + moments[text[17:]] for text in texts]
        return [minutes[text[:17]] + moments[text[17:]] for text in texts]
    except KeyError:
        return [_remembered_ms_of(text) for text in texts]


def _remembered_ms_of(text: str) -> int:
    ts_ms = ms_of(text)
    minute_ms = _minutes.get(text[:17])
    # What is not remembered of minutes lies at the border of the range and is looked at each time.
    if minute_ms is not None and len(text) <= 17 + _REMEMBERED_CHARACTERS_MAX:
        if len(_moments) >= _MOMENTS_MAX:
            _moments.clear()
        _moments[text[17:]] = ts_ms - minute_ms
    return ts_ms


def ms_of(text: str) -> int:
    """UTC ms of a time; digits beyond the millisecond are cut off.

    Raises ValueError where `text` is no RFC 3339 time with an offset, OutOfRange where it is not
    between 1970 and 2261.
    """
    ts_ms = _any_ms_of(text)
    if not 0 <= ts_ms < TS_MS_MAX:
        raise OutOfRange(text)
    return ts_ms


def bound_ms_of(text: str) -> int:
    """The first storable millisecond (UTC) that is not before a time, for a border of a range: 0
    for one before 1970, TS_MS_MAX for one behind 2261.

    Raises ValueError where `text` is no RFC 3339 time with an offset.
    """
    ts_ms = _any_ms_of(text) + (_BEYOND.search(text) is not None)
    return min(max(ts_ms, 0), TS_MS_MAX)


def _any_ms_of(text: str) -> int:
    second_ms = _SECONDS.get(text[17:19])
    if second_ms is None:
        raise ValueError(text)
    return _minute_ms(text[:17]) + second_ms + _tail_ms(text[19:])


def text_of(ts_ms: int) -> str:
    """RFC 3339 in UTC with three digits of fraction."""
    moment = datetime.fromtimestamp(ts_ms // 1000, UTC)
    return f"{moment:%Y-%m-%dT%H:%M:%S}.{ts_ms % 1000:03}Z"


def why_not(text: str) -> str:
    """What is wrong with a time, for a person; empty where nothing is."""
    try:
        ms_of(text)
    except OutOfRange:
        return "not between 1970 and 2261"
    except ValueError:
        return "not an RFC 3339 time with an offset, such as 2022-07-11T11:11:30.333Z"
    return ""


def _minute_ms(text: str) -> int:
    known = _minutes.get(text)
    if known is not None:
        return known
    found = _MINUTE.fullmatch(text)
    if found is None:
        raise ValueError(text)
    year, month, day, hour, minute = map(int, found.groups())
    ms = int(datetime(year, month, day, hour, minute, tzinfo=UTC).timestamp()) * 1000
    # What is remembered needs no look at the range, whatever the offset.
    inside = _DAY_MS <= ms < TS_MS_MAX - 2 * _DAY_MS
    return _remember(_minutes, text, ms) if inside else ms


def _tail_ms(text: str) -> int:
    known = _tails.get(text)
    if known is not None:
        return known
    found = _TAIL.fullmatch(text)
    if found is None:
        raise ValueError(text)
    fraction, sign, hours, minutes = found.groups()
    ms = int(fraction[:3].ljust(3, "0")) if fraction else 0
    if sign is not None:
        if hours > "23" or minutes > "59":
            raise ValueError(text)
        offset_ms = (int(hours) * 60 + int(minutes)) * 60_000
        ms = ms - offset_ms if sign == "+" else ms + offset_ms
    return _remember(_tails, text, ms) if len(text) <= _REMEMBERED_CHARACTERS_MAX else ms


def _remember(known: dict[str, int], text: str, ms: int) -> int:
    if len(known) >= _REMEMBERED_MAX:
        known.clear()
    known[text] = ms
    return ms

"""The compiled scanner of pushes: what it takes is what the decoder takes, to the last bit."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from msgspec import UNSET

from schemas.blocks import bits_of
from schemas.samples import TS_MS_MAX, Kind
from services.dialects import _times
from services.dialects._scan import ABSENT, warm
from services.dialects.next_plus._items import items_of
from services.dialects.next_plus.errors import Invalid
from services.dialects.next_plus.push import PLAIN

warm()
scan = PLAIN.scan
NUMBERS = st.one_of(
    st.floats(allow_nan=False, allow_infinity=False).map(repr),
    st.integers(-(2**60), 2**60).map(str),
    st.decimals(-(10**6), 10**6, places=2).map(str),
    st.from_regex(r"\A-?(0|[1-9][0-9]{0,18})(\.[0-9]{1,18})?([eE][-+]?[0-9]{1,3})?\Z"),
    st.sampled_from(
        ("-0", "0", "-0.0", "1E22", "1e-22", "1e23", "9007199254740993", "0.1", "1e400")
    ),
)
BAD_NUMBERS = ("01", "1.", ".5", "+1", "1e", "-", "1e+", "0x1", "True", '"1"', "null", "[1]", "NaN")
BOOLEANS = st.sampled_from(("true", "false"))
ISO = st.datetimes().map(lambda moment: moment.isoformat(timespec="milliseconds") + "Z")
STAMPS = st.one_of(
    st.integers(-5, TS_MS_MAX + 5).map(str),
    ISO.map(json.dumps),
    st.sampled_from(
        (
            '"2024-02-29T00:00:00.000Z"',
            '"2023-02-29T00:00:00.000Z"',
            '"2100-02-29T00:00:00.000Z"',
            '"2023-13-01T00:00:00.000Z"',
            '"2023-12-31T24:00:00.000Z"',
            '"1969-12-31T23:59:59.999Z"',
            '"2262-01-01T00:00:00.000Z"',
            '"2023-12-31T23:59:60.000Z"',
            '"soon"',
            "1.5",
            "1e3",
            "true",
            "007",
            "null",
        )
    ),
)
KEYS = st.text(st.characters(exclude_characters="\0"), min_size=1, max_size=8).map(
    lambda key: json.dumps(key, ensure_ascii=len(key) % 2 == 0)
)
SPACE = st.sampled_from(("", " ", "\n", "\t \r\n"))


@st.composite
def bodies(draw: Any) -> bytes:
    """A list of items, most of them plain."""
    items = []
    for _ in range(draw(st.integers(1, 4))):
        members = [
            ("key", draw(KEYS)),
            ("value", draw(NUMBERS | BOOLEANS | st.sampled_from(BAD_NUMBERS))),
        ]
        if draw(st.booleans()):
            members.append(("timestamp", draw(STAMPS)))
        if draw(st.integers(0, 9)) == 0:
            extra = ("unit", "key", "paramId", "values", "timestamps")
            members.append((draw(st.sampled_from(extra)), draw(KEYS)))
        pairs = [
            f'{draw(SPACE)}"{name}"{draw(SPACE)}:{draw(SPACE)}{text}{draw(SPACE)}'
            for name, text in draw(st.permutations(members))
        ]
        items.append(draw(SPACE) + "{" + ",".join(pairs) + "}" + draw(SPACE))
    body = draw(SPACE) + "[" + ",".join(items) + "]" + draw(SPACE)
    if draw(st.booleans()):
        name = draw(st.sampled_from(("parameters", "parameters", "parameter", "items")))
        body = f'{draw(SPACE)}{{{draw(SPACE)}"{name}"{draw(SPACE)}:{body}}}{draw(SPACE)}'
    return body.encode("utf-8", "surrogatepass")


def agrees(body: bytes) -> bool:
    """Whether the scanner took the body; then it found what the decoder finds."""
    found = scan(body, 1_000)
    if found is None:
        return False
    items = items_of(body)
    assert found.items == len(items)
    assert found.texts.decode().split("\0") == [item.key for item in items]
    kinds = [Kind.BOOL if isinstance(item.value, bool) else Kind.DOUBLE for item in items]
    assert list(found.kinds) == kinds
    values = [
        item.value if kind is Kind.BOOL else float(item.value)
        for kind, item in zip(kinds, items, strict=True)
    ]
    assert list(found.bits) == list(map(bits_of, kinds, values))
    assert all(map(math.isfinite, values))
    stamps = [item.timestamp for item in items]
    times = [
        ABSENT if stamp is UNSET else _times.ms_of(stamp) if isinstance(stamp, str) else stamp
        for stamp in stamps
    ]
    assert list(found.times) == times
    assert not any(isinstance(stamp, bool | float) for stamp in stamps)
    assert found.oldest_ms == min(times)
    assert found.mixed == (len({stamp is UNSET for stamp in stamps}) == 2)
    assert all(ms == ABSENT or 0 <= ms < TS_MS_MAX for ms in found.times)
    return True


@given(bodies())
@example(b'[{"key":"a","value":-0},{"key":"b","value":-0.0}]')
@example(b'[{"key":"a","value":1,"timestamp":9214646400000}]')
@example(b'[{"key":"a","value":1}]x')
@example(b'[{"key":"a","value":1},]')
@example(b'[{"key":"a","value":1,}]')
@example(b'[{"key":"a","key":"b","value":1}]')
@example(b'[{"key":"a","value":truefalse}]')
@example(b'{"parameters":[{"key":"a","value":1}],"parameters":[]}')
@example(b'{"parameters":[{"key":"a","value":1}]')
@example(b'[{"key":"a","value":1}]}')
def test_what_is_scanned_is_what_is_decoded(body: bytes) -> None:
    agrees(body)


@given(bodies(), st.data())
def test_a_body_with_a_wrong_byte_is_never_scanned_otherwise(body: bytes, data: Any) -> None:
    at = data.draw(st.integers(0, len(body) - 1))
    wrong = data.draw(st.binary(max_size=1))
    broken = body[:at] + wrong + body[at + 1 :]
    try:
        items_of(broken)
    except Invalid:
        # A key that is no UTF-8 is found when the keys are looked up.
        found = scan(broken, 1_000)
        if found is not None:
            with pytest.raises(UnicodeDecodeError):
                found.texts.decode()
    else:
        agrees(broken)


@pytest.mark.parametrize(
    "body",
    [
        b'[{"key":"temperature","value":23.5},{"key":"count","value":-1284}]',
        b'[{"key":"running","value":true},{"key":"open","value":false,"timestamp":5}]',
        b' { "parameters" : [ {"key":"a","value":1} ] } ',
        b' [ { "value" : 1e3 , "timestamp" : "2026-05-19T08:14:02.000Z" , "key" : "a b" } ] ',
        '[{"key":"Öl °C","value":0.1,"timestamp":1747642442000}]'.encode(),
    ],
)
def test_plain_pushes_are_scanned(body: bytes) -> None:
    assert agrees(body)


def test_a_list_that_is_too_long_is_left_to_the_decoder() -> None:
    item = b'{"key":"a","value":1}'
    assert scan(b"[" + b",".join([item] * 3) + b"]", 3) is not None
    assert scan(b"[" + b",".join([item] * 4) + b"]", 3) is None


@pytest.mark.parametrize(
    "body", [b"", b"[", b"[]", b"[{", b'[{"', b'[{"key"', b'[{"key":', b'[{"key":"', b'[{"key":"a']
)
def test_what_is_cut_short_is_left_to_the_decoder(body: bytes) -> None:
    assert scan(body, 10) is None


def test_every_beginning_of_a_push_is_left_to_the_decoder() -> None:
    body = (
        b'[{"key":"a","value":-1.5e1,"timestamp":"2026-05-19T08:14:02.000Z"},'
        b'{"key":"b","value":false}]'
    )
    for whole in (body, b'{"parameters":' + body + b"}"):
        assert agrees(whole)
        assert all(scan(whole[:size], 10) is None for size in range(len(whole)))

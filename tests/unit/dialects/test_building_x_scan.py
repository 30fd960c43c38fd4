"""The compiled scanner of requests of numbers: what it takes is what the decoder takes."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from schemas.samples import TS_MS_MAX, Kind
from services.dialects._scan import warm
from services.dialects.building_x.ingest import VALUES_MAX, decoded, scanned
from services.errors import Malformed

warm()
NUMBERS = st.one_of(
    st.floats(allow_nan=False, allow_infinity=False).map(repr),
    st.decimals(-(10**6), 10**6, places=2).map(str),
    st.from_regex(r"\A[-+]?[0-9]{0,18}(\.[0-9]{0,18})?([eE][-+]?[0-9]{0,3})?\Z"),
    st.sampled_from(("-0", "0", "-0.0", "1E22", "1e-22", "1e23", "9007199254740993", "1e400")),
    st.sampled_from(("", " 1", "1 ", "1_0", "nan", "inf", "true", "0x1", "\\u0031", "\uff11")),
)
TIMES = st.one_of(
    st.datetimes().map(lambda moment: moment.isoformat(timespec="milliseconds") + "Z"),
    st.sampled_from(
        (
            "2024-02-29T00:00:00.000Z",
            "2023-02-29T00:00:00.000Z",
            "2022-07-11T11:11:30Z",
            "2022-07-11t11:11:30.333z",
            "2022-07-11T11:11:30.3339Z",
            "2022-07-11T11:11:30.333+02:00",
            "2022-07-11 11:11:30.333Z",
            "2022-07-11T11:11:60.000Z",
            "1969-12-31T23:59:59.999Z",
            "2262-01-01T00:00:00.000Z",
            "soon",
        )
    ),
)
MARKS = st.sampled_from(("0", "1", "2", "3", "4", "-1", "1.0", "2e0", "03", "null", '"1"', "true"))
SPACE = st.sampled_from(("", "", " ", "\n", "\t \r\n"))


@st.composite
def objects(draw: Any, pairs: list[tuple[str, str]]) -> str:
    """One object with these members in any order, now and then with one too many or one less."""
    pairs = draw(st.permutations(pairs))
    odd = draw(st.integers(0, 19))
    if odd == 0:
        pairs.append((draw(st.sampled_from(("unit", "value", "timestamp", "type"))), '"1"'))
    if odd == 1:
        pairs.pop()
    texts = [
        f'{draw(SPACE)}"{name}"{draw(SPACE)}:{draw(SPACE)}{text}{draw(SPACE)}'
        for name, text in pairs
    ]
    return "{" + ",".join(texts) + "}"


@st.composite
def bodies(draw: Any) -> bytes:
    """A request, plain for the most part."""
    items = []
    for _ in range(draw(st.integers(1, 4))):
        attributes = [
            ("timestamp", f'"{draw(TIMES)}"'),
            ("value", f'"{draw(NUMBERS)}"'),
        ]
        if draw(st.integers(0, 9)) == 0:
            attributes[1] = ("value", draw(st.sampled_from(("1.5", "null", "true", "[]"))))
        if draw(st.booleans()):
            attributes.append(("qualityOfValue", draw(MARKS)))
        word = draw(st.sampled_from(("PointValue",) * 9 + ("pointValue", "PointValues", "")))
        inner = draw(objects(attributes))
        items.append(draw(objects([("type", f'"{word}"'), ("attributes", inner)])))
    listed = draw(SPACE) + "[" + f"{draw(SPACE)},".join(items) + "]" + draw(SPACE)
    body = listed if draw(st.integers(0, 19)) == 0 else f'{{{draw(SPACE)}"data":{listed}}}'
    return (draw(SPACE) + body + draw(SPACE)).encode()


def agrees(body: bytes) -> bool:
    """Whether the scanner took the body; then it found what the decoder finds."""
    found = scanned(body)
    if found is None:
        return False
    assert found == decoded(body, Kind.DOUBLE)
    assert all(0 <= ts_ms < TS_MS_MAX for ts_ms in found.ts_ms)
    return True


def request(*attributes: dict[str, Any]) -> bytes:
    """A request as a generic client writes it."""
    return json.dumps(
        {"data": [{"type": "PointValue", "attributes": each} for each in attributes]}
    ).encode()


MOMENT = "2022-07-11T11:11:30.333Z"


@given(bodies())
@example(request({"timestamp": MOMENT, "value": "-0"}))
@example(request({"timestamp": MOMENT, "value": "-0.0"}))
@example(b'{"data":[]}')
@example(request({"timestamp": MOMENT, "value": "1"})[:-1] + b',"data":[]}')
@example(request({"timestamp": MOMENT, "value": "1"}) + b"}")
@example(b'{"data":[{"type":"PointValue","attributes":{},"timestamp":"","value":"1"}]}')
@example(
    b'{"data":[{"type":"PointValue","timestamp":"2022-07-11T11:11:30.333Z","attributes":'
    b'{"timestamp":"2022-07-11T11:11:30.333Z","value":"1"}}]}'
)
def test_what_is_scanned_is_what_is_decoded(body: bytes) -> None:
    agrees(body)


@given(bodies(), st.data())
def test_a_body_with_a_wrong_byte_is_never_scanned_otherwise(body: bytes, data: Any) -> None:
    at = data.draw(st.integers(0, len(body) - 1))
    wrong = data.draw(st.binary(max_size=1))
    broken = body[:at] + wrong + body[at + 1 :]
    try:
        decoded(broken, Kind.DOUBLE)
    except Malformed:
        assert scanned(broken) is None
    else:
        agrees(broken)


@pytest.mark.parametrize(
    "body",
    [
        request({"timestamp": MOMENT, "value": "12.66", "qualityOfValue": 0}),
        request({"timestamp": MOMENT, "value": "0"}, {"timestamp": MOMENT, "value": "-0.0"}),
        request({"value": "1e3", "timestamp": MOMENT}, {"timestamp": MOMENT, "value": "-7"}),
        b' {\n "data" : [ { "attributes" : { "value" : "1" , "qualityOfValue" : 3 ,'
        b' "timestamp" : "2022-07-11T11:11:30.333Z" } , "type" : "PointValue" } ] } ',
    ],
)
def test_plain_requests_are_scanned(body: bytes) -> None:
    assert agrees(body)


def test_a_hundred_values_are_scanned_and_no_more() -> None:
    value = {"timestamp": MOMENT, "value": "1"}
    assert agrees(request(*[value] * VALUES_MAX))
    assert scanned(request(*[value] * (VALUES_MAX + 1))) is None


def test_every_beginning_of_a_request_is_left_to_the_decoder() -> None:
    body = request({"timestamp": MOMENT, "value": "-1.5e1", "qualityOfValue": 1})
    assert agrees(body)
    assert all(scanned(body[:size]) is None for size in range(len(body)))

"""optiCLOUD's numbers, spelling and errors, beyond what the golden examples show."""

from __future__ import annotations

import json
import re
import struct
from decimal import Decimal

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from msgspec import Raw

from schemas.catalogue import Device, Point
from schemas.samples import Kind
from services.dialects import Inbound
from services.dialects.opticloud import spelling, telemetry
from services.dialects.opticloud.errors import EXPIRED, refused
from services.errors import Broken, Malformed, OverQuota, Unauthorized, Unavailable
from tests.support.lookup import ListedLookup, a_principal

DEVICE = "6f0d4a52-3c2e-4b39-8a53-0f6b6a3c1d10"
NOW_MS = 1_700_000_000_000

finite = st.floats(allow_nan=False, allow_infinity=False)
any_json = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | finite | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=8,
)


def decoded(body: bytes) -> list[tuple[str, Kind, object]]:
    lookup = ListedLookup([Device(DEVICE, tenant="acme")])
    inbound = Inbound(body, NOW_MS, a_principal(device=DEVICE))
    block = telemetry.decode(inbound, lookup).block
    keys = {series: key for series, (_, key) in lookup.places("acme").items()}
    return [(keys[sample.series], sample.kind, sample.value) for sample in block.samples()]


def for_a_point(declared: Kind, text: str) -> tuple[Kind, object]:
    """What a value becomes that is sent for a point of a declared type, behind another key."""
    point = Point("p", tenant="acme", device=DEVICE, key="key", kind=declared, locked=True)
    lookup = ListedLookup([Device(DEVICE, tenant="acme"), point])
    body = f'{{"other": "a text", "key": {text}, "another": 7}}'.encode()
    block = telemetry.decode(Inbound(body, NOW_MS, a_principal(device=DEVICE)), lookup).block
    first, sample, last = block.samples()
    assert (first.value, last.value) == ("a text", 7)
    return sample.kind, sample.value


# -- what values become


@pytest.mark.parametrize(
    ("declared", "text", "value"),
    [
        (Kind.DOUBLE, "42", 42.0),
        (Kind.DOUBLE, '"42"', 42.0),
        (Kind.DOUBLE, "1e3", 1000.0),
        (Kind.DOUBLE, "5e-324", 5e-324),
        (Kind.DOUBLE, "1.7976931348623157e308", 1.7976931348623157e308),
        (Kind.DOUBLE, "0.12345678901234567890", 0.12345678901234568),
        (Kind.DOUBLE, '"0.12345678901234567890"', 0.12345678901234568),
        (Kind.DOUBLE, "123456789012345678901234567890", 1.2345678901234568e29),
        (Kind.STRING, '"42"', "42"),
        (Kind.STRING, '"-4.50"', "-4.50"),
        (Kind.STRING, '"99999999999999999999"', "99999999999999999999"),
        (Kind.STRING, '""', ""),
        (Kind.JSON, "true", "true"),
        (Kind.JSON, "2.50", "2.50"),
        (Kind.JSON, '"text"', '"text"'),
        (Kind.JSON, '"42"', '"42"'),
        (Kind.JSON, "12345678901234567890", "12345678901234567890"),
        (Kind.JSON, '{"a": [1.0]}', '{"a":[1.0]}'),
        (Kind.DATE, "1767225600123", 1_767_225_600_123),
        (Kind.DATE, "0", 0),
    ],
)
def test_what_fits_the_declared_type_is_of_it(declared: Kind, text: str, value: object) -> None:
    found = for_a_point(declared, text)
    assert (found, type(found[1])) == ((declared, value), type(value))


@pytest.mark.parametrize(
    ("declared", "text", "kind"),
    [
        (Kind.DOUBLE, "true", Kind.BOOL),
        (Kind.DOUBLE, '"warm"', Kind.STRING),
        (Kind.DOUBLE, "1e400", Kind.STRING),
        (Kind.DOUBLE, "{}", Kind.JSON),
        (Kind.LONG, "42.0", Kind.DOUBLE),
        (Kind.LONG, "9223372036854775808", Kind.STRING),
        (Kind.BOOL, "1", Kind.LONG),
        (Kind.BOOL, '"true"', Kind.STRING),
        (Kind.STRING, "42", Kind.LONG),
        (Kind.STRING, "[]", Kind.JSON),
        (Kind.DATE, "-1", Kind.LONG),
        (Kind.DATE, "9214646400000", Kind.LONG),
        (Kind.DATE, '"2026-01-01T00:00:00Z"', Kind.STRING),
    ],
)
def test_what_does_not_fit_stays_what_it_is_and_the_judge_refuses_it(
    declared: Kind, text: str, kind: Kind
) -> None:
    assert for_a_point(declared, text)[0] == kind


def decided(text: str) -> tuple[Kind, object]:
    """ThingsBoard's rule for a number's text, said once more with exact decimals."""
    number = Decimal(text)
    exponent = number.as_tuple().exponent
    assert isinstance(exponent, int)
    plain_point = "." in text and "e" not in text.lower()
    if number == int(number) and not plain_point:
        if -(2**63) <= number < 2**63:
            return Kind.LONG, int(number)
        return Kind.STRING, f"{number:f}"
    if -exponent > 16:
        return Kind.STRING, f"{number:f}"
    return Kind.DOUBLE, float(number)


@given(
    st.from_regex(r"-?(0|[1-9][0-9]{0,21})(\.[0-9]{1,20})?([eE][+-]?[0-9]{1,2})?", fullmatch=True)
)
@example("1e3")
@example("10E-1")
@example("0e-20")
@example("9223372036854775808e0")
@example("0.00000000000000001")
@example("123456789012345678.5")
def test_a_number_becomes_what_its_writing_says(text: str) -> None:
    ((_, kind, value),) = decoded(f'{{"key": {text}}}'.encode())
    wanted_kind, wanted = decided(text)
    assert kind == wanted_kind
    if kind == Kind.STRING:
        assert isinstance(value, str)
        assert Decimal(value) == Decimal(str(wanted))
        assert "e" not in value.lower()
    else:
        assert value == wanted


@given(st.text(max_size=12) | st.from_regex(r"-?[0-9]{0,3}\.?[0-9]{0,3}", fullmatch=True))
@example("\N{ARABIC-INDIC DIGIT ONE}")
@example("42\n")
@example("1_000")
@example("NaN")
@example("9" * 5000)
@example("0" * 30 + "42")
@example("-" + "0" * 30)
def test_a_text_is_a_number_only_in_plain_digits(text: str) -> None:
    ((_, kind, value),) = decoded(json.dumps({"key": text}).encode())
    if re.fullmatch(r"-?([0-9]+(\.[0-9]+)?|\.[0-9]+)", text, re.ASCII) and text[-1] != "\n":
        wanted_kind, _ = decided(text) if text.strip("-") else (Kind.STRING, text)
        assert kind == wanted_kind
    else:
        assert (kind, value) == (Kind.STRING, text)


@given(st.dictionaries(st.text('abc."\\é', min_size=1, max_size=4), any_json, max_size=5))
def test_every_json_object_is_taken_in_member_by_member(message: dict[str, object]) -> None:
    found = decoded(json.dumps(message).encode())
    assert [key for key, _, _ in found] == [k for k, value in message.items() if value is not None]
    for key, kind, value in found:
        sent = message[key]
        if isinstance(sent, dict | list):
            assert kind == Kind.JSON
            assert json.loads(str(value)) == sent
        elif isinstance(sent, bool):
            assert (kind, value) == (Kind.BOOL, sent)
        elif isinstance(sent, int):
            assert (kind, value) == (Kind.LONG, sent)


@given(st.lists(st.dictionaries(st.sampled_from("ab"), any_json), max_size=4), st.booleans())
def test_a_list_is_its_objects_one_after_the_other(
    objects: list[dict[str, object]], timed: bool
) -> None:
    message = [{"ts": 1, "values": values} if timed else values for values in objects]
    alone = [row for values in message for row in decoded(json.dumps(values).encode())]
    assert decoded(json.dumps(message).encode()) == alone


@pytest.mark.parametrize(
    "body",
    [
        b'{"a":' * 100_000,
        b"[" * 100_000,
        b'{"a":1e' + b"9" * 5_000 + b"}",
        b'{"a":1e-' + b"9" * 5_000 + b"}",
        b'{"a":"\\ud800"}',
    ],
    ids=["objects", "lists", "exponent", "negative exponent", "half a surrogate pair"],
)
def test_a_body_beyond_reason_is_refused(body: bytes) -> None:
    with pytest.raises(Malformed):
        decoded(body)


def test_a_number_of_thousands_of_digits_is_kept_as_text_or_refused() -> None:
    digits = "9" * 4_000
    for text in (digits, f"{digits}.5"):
        assert decoded(f'{{"a":{text}}}'.encode()) == [("a", Kind.STRING, text)]
    with pytest.raises(Malformed):
        decoded(b'{"a":' + b"9" * 60_000 + b"}")


def test_a_message_is_read_once_more_for_its_nested_values_and_no_oftener() -> None:
    body = b'[{"ts": 1, "values": {"a": [1.0], "b": {"c": 2e3}}}, {"a": [ ]}]'
    raw: list[dict[str, Raw]] = []
    assert telemetry._written("a", 0, body, raw) == "[1.0]"
    before = [*raw]
    assert telemetry._written("b", 0, b"not looked at again", raw) == '{"c":2e3}'
    assert telemetry._written("a", 1, b"not looked at again", raw) == "[]"
    assert all(now is then for now, then in zip(raw, before, strict=True))


# -- how values are spelled


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0.0"),
        (-0.0, "-0.0"),
        (42.0, "42.0"),
        (0.1, "0.1"),
        (0.001, "0.001"),
        (0.0009999, "9.999E-4"),
        (9999999.0, "9999999.0"),
        (9999999.999999998, "9999999.999999998"),
        (1e7, "1.0E7"),
        (12345678.9, "1.23456789E7"),
        (-1.5e300, "-1.5E300"),
        (1e23, "1.0E23"),
        (2e-3, "0.002"),
        (100.0, "100.0"),
        (123456789012345680.0, "1.2345678901234568E17"),
        (1.7976931348623157e308, "1.7976931348623157E308"),
        (2.2250738585072014e-308, "2.2250738585072014E-308"),
        (5e-324, "4.9E-324"),
        (1e-323, "9.9E-324"),
        (float("nan"), "NaN"),
        (float("inf"), "Infinity"),
        (float("-inf"), "-Infinity"),
    ],
)
def test_doubles_are_spelled_as_java_does(value: float, text: str) -> None:
    assert spelling.java_double(value) == text


_JAVA = re.compile(
    r"-?(?:(0|[1-9][0-9]{0,6})\.([0-9]|[0-9]*[1-9])|[1-9]\.([0-9]|[0-9]*[1-9])E(-?[1-9][0-9]*))"
)


@given(
    finite | st.integers(0, 2**64 - 1).map(lambda n: struct.unpack("<d", struct.pack("<Q", n))[0])
)
def test_a_spelled_double_is_the_shortest_that_gives_it_back(value: float) -> None:
    text = spelling.java_double(value)
    if value != value or abs(value) == float("inf"):
        return
    found = _JAVA.fullmatch(text)
    assert found, text
    assert struct.pack("<d", float(text)) == struct.pack("<d", value)
    plain = value == 0 or 1e-3 <= abs(value) < 1e7
    assert (found[4] is None) == plain
    if not plain:
        assert not -3 <= int(found[4]) < 7
    shortest = len(Decimal(repr(value)).normalize().as_tuple().digits)
    spelled = Decimal(text).normalize().as_tuple().digits
    assert len(spelled) == shortest or (shortest == 1 and len(spelled) == 2)


def test_strict_values_have_their_json_types() -> None:
    assert spelling.json_of_value(Kind.LONG, 7) == 7
    assert spelling.json_of_value(Kind.BOOL, True) is True
    assert bytes(spelling.json_of_value(Kind.JSON, '{"a":1}')) == b'{"a":1}'
    assert bytes(spelling.json_of_value(Kind.DOUBLE, 1e7)) == b"1.0E7"
    assert spelling.json_of_value(Kind.DOUBLE, float("nan")) == "NaN"


@given(st.integers(-(2**63), 2**63 - 1) | st.integers(-(10**9), 10**9).map(lambda n: n / 1000))
def test_a_number_read_as_text_is_written_again_as_the_same(value: float | int) -> None:
    kind = Kind.DOUBLE if isinstance(value, float) else Kind.LONG
    text = spelling.text_of_value(kind, value)
    ((_, found_kind, found),) = decoded(json.dumps({"key": text}).encode())
    if "E" not in text:
        assert (found_kind, found) == (kind, value)


# -- errors


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (Unauthorized("who?"), 401, 10),
        (Unauthorized("late", code=EXPIRED), 401, 11),
        (OverQuota("slower", retry_after_ms=2500), 429, 33),
        (Unavailable("later"), 503, 2),
        (Broken("we did it"), 500, 2),
    ],
)
def test_errors_carry_their_number_and_the_time(error: Exception, status: int, code: int) -> None:
    assert isinstance(error, Unauthorized | Unavailable | Broken)
    reply = refused(error, NOW_MS)
    body = json.loads(reply.body)
    assert (reply.status, body["status"], body["errorCode"]) == (status, status, code)
    assert body["timestamp"] == NOW_MS
    assert dict(reply.headers).get("Retry-After") == {429: "3", 503: "1"}.get(status)
    assert "who" not in body["message"]

"""Building X's times, texts and errors, beyond what the golden examples show."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from schemas.catalogue import Device, Point, Tenant
from schemas.samples import TS_MS_MAX, Kind
from services.dialects import Inbound, Page
from services.dialects import _times as times
from services.dialects.building_x import errors, ingest, lists, points, texts, tokens, values
from services.errors import Broken, Malformed, OverQuota, Unauthorized, Unavailable
from tests.support.lookup import ListedActions, ListedLookup, a_principal

PARTITION = "0c1f3f62-6a0e-4f0b-9a4d-5b1f1a2b3c4d"
NOW_MS = 1_700_000_000_000

moments = st.datetimes(datetime(1970, 1, 2), datetime(2261, 12, 30), timezones=st.just(UTC))
offsets = st.integers(-23 * 60 - 59, 23 * 60 + 59).map(
    lambda minutes: timezone(timedelta(minutes=minutes))
)


def a_lookup(kind: Kind | None = Kind.DOUBLE) -> ListedLookup:
    point = Point("point", tenant="acme", device="device", key="key", kind=kind, locked=True)
    return ListedLookup([Tenant("acme", uuid=PARTITION), Device("device", tenant="acme"), point])


def an_inbound(body: bytes = b"", query: Mapping[str, str] | None = None) -> Inbound:
    path = {"partitionId": PARTITION, "pointId": "point"}
    headers = {"content-type": errors.JSON_API}
    return Inbound(body, NOW_MS, a_principal(), path, query or {}, headers)


def a_body(*pairs: tuple[str, str]) -> bytes:
    data = [
        {"type": "PointValue", "attributes": {"timestamp": time, "value": value}}
        for time, value in pairs
    ]
    return json.dumps({"data": data}).encode()


# -- times


@given(moments, offsets)
def test_a_time_is_its_milliseconds_whatever_its_offset(moment: datetime, offset: timezone) -> None:
    local = moment.astimezone(offset)
    since = moment - datetime(1970, 1, 1, tzinfo=UTC)
    wanted = since // timedelta(milliseconds=1)
    long = local.isoformat(timespec="microseconds").replace("T", "t")
    long = f"{long[:26]}{'5' * 200}{long[26:]}"
    for text in (local.isoformat(timespec="microseconds"), local.isoformat("t"), long):
        assert times.ms_of(text) == wanted
        assert times.all_ms_of([text, text]) == [wanted, wanted]


@given(st.integers(0, TS_MS_MAX - 1))
def test_what_is_written_is_read_back(ts_ms: int) -> None:
    assert times.ms_of(times.text_of(ts_ms)) == ts_ms


@given(st.text(alphabet="0123456789-+:.TtZz ", max_size=32) | st.text(max_size=32))
@example("2022-07-11T11:11:30.333Z ")
@example("2022-07-11T11:11:30.333Z\n")
@example("2022-07-11 11:11:30.333Z")
@example("2022-07-11T11:11:30.Z")
@example("2022-07-11T11:11:30.333z+00:00")
@example("2022-07-11T11:11:+1.333Z")
@example("2022-07-11T24:00:00Z")
@example("2022-07-11T11:11:30+24:00")
@example("2022-07-11T11:11:30." + "3" * 100 + "Z")
def test_a_time_is_taken_only_where_the_grammar_has_it(text: str) -> None:
    try:
        ts_ms = times.ms_of(text)
    except ValueError:
        assert times.why_not(text)
        with pytest.raises(ValueError):
            times.all_ms_of([text])
    else:
        assert not times.why_not(text)
        assert len(text) >= 20
        assert text[10] in "Tt"
        assert datetime.fromisoformat(text.upper()).timestamp() == pytest.approx(
            ts_ms / 1000, abs=1
        )


def test_remembered_times_do_not_grow_without_end() -> None:
    for microsecond in range(3 * times._REMEMBERED_MAX):
        text = f"2022-07-11T11:11:30.{microsecond:06}Z"
        assert times.ms_of(text) % 1000 == microsecond // 1000
        text = f"2022-07-11T11:11:30.{'0' * 300}{microsecond:06}Z"
        assert times.all_ms_of([text]) == [times.ms_of("2022-07-11T11:11:30Z")]
    assert len(times._tails) <= times._REMEMBERED_MAX
    assert max(map(len, times._moments)) < 60


@pytest.mark.parametrize(
    ("text", "ms"),
    [
        ("1970-01-01T00:00:00.000Z", 0),
        ("1970-01-01T00:00:00.0001Z", 1),
        ("1970-01-01T00:00:00.0010000Z", 1),
        ("1970-01-01T00:00:00.001000000000000000000000000000000000000000001Z", 2),
        ("1970-01-01T00:00:00.5+00:01", 0),
        ("0001-01-01T00:00:00Z", 0),
        ("2261-12-31T23:59:59.999Z", TS_MS_MAX - 1),
        ("2261-12-31T23:59:59.9991Z", TS_MS_MAX),
        ("9999-12-31T23:59:59Z", TS_MS_MAX),
    ],
)
def test_a_border_is_the_first_millisecond_that_is_not_before_it(text: str, ms: int) -> None:
    assert times.bound_ms_of(text) == ms


# -- values


@given(st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=1))
def test_a_double_is_the_one_that_was_written(numbers: list[float]) -> None:
    bits, kept = texts.columns(Kind.DOUBLE, [repr(number) for number in numbers])
    assert [repr(number) for number in numbers] == [
        texts.text_of_value(Kind.DOUBLE, number) for number in memoryview(bits).cast("B").cast("d")
    ]
    assert kept == {}


@given(st.lists(st.integers(), min_size=1))
def test_a_long_is_exact_or_refused(numbers: list[int]) -> None:
    written = [str(number) for number in numbers]
    if all(-(2**63) <= number < 2**63 for number in numbers):
        assert list(texts.columns(Kind.LONG, written)[0]) == numbers
    else:
        with pytest.raises((ValueError, OverflowError)):
            texts.columns(Kind.LONG, written)


@given(st.sampled_from([Kind.DOUBLE, Kind.LONG]), st.text(max_size=8))
@example(Kind.DOUBLE, "\N{ARABIC-INDIC DIGIT ONE}")
@example(Kind.LONG, "--1")
@example(Kind.LONG, "\ud800")
@example(Kind.DOUBLE, "e5")
def test_what_is_no_number_is_refused(kind: Kind, text: str) -> None:
    try:
        bits, _ = texts.columns(kind, [text])
    except ValueError:
        return
    assert len(bits) == 1
    assert text.isascii()
    assert not any(letter.isspace() or letter in "_nN" for letter in text)


@given(st.lists(st.tuples(moments, st.text(max_size=5)), min_size=1, max_size=100))
def test_every_text_of_an_undeclared_point_comes_through(
    pairs: list[tuple[datetime, str]],
) -> None:
    lookup = a_lookup(None)
    wanted = [(moment.isoformat(), value) for moment, value in pairs]
    body = a_body(*wanted)
    if any("\ud800" <= letter <= "\udfff" for _, value in wanted for letter in value):
        with pytest.raises(Malformed):
            ingest.decode(an_inbound(body), lookup)
        return
    block = ingest.decode(an_inbound(body), lookup).block
    assert [sample.value for sample in block.samples()] == [value for _, value in wanted]
    assert [sample.ts_ms for sample in block.samples()] == [times.ms_of(t) for t, _ in wanted]


def test_a_body_nested_beyond_reason_is_refused() -> None:
    with pytest.raises(Malformed):
        ingest.decode(an_inbound(b'{"x":' + b"[" * 100_000), a_lookup())
    with pytest.raises(Malformed) as caught:
        body = a_body(("2022-07-11T11:11:30Z", "[" * 4000))
        ingest.decode(an_inbound(body), a_lookup(Kind.JSON))
    assert caught.value.where == "/data/0/attributes/value"


def test_a_value_of_4096_bytes_is_taken_and_one_more_is_not() -> None:
    for text in ("x" * 4096, "é" * 2048):
        body = a_body(("2022-07-11T11:11:30Z", text))
        assert ingest.decode(an_inbound(body), a_lookup(None)).block.texts == {0: text}
    for text in ("x" * 4097, "é" * 2049):
        with pytest.raises(Malformed):
            ingest.decode(an_inbound(a_body(("2022-07-11T11:11:30Z", text))), a_lookup(None))


# -- errors


@pytest.mark.parametrize(
    "error",
    [
        Unauthorized("no token"),
        Unavailable("the log is away", retry_after_ms=1500),
        OverQuota("slower", retry_after_ms=1),
        Malformed("", where="/data"),
        Broken("we did it"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_every_error_is_json_api_with_strings_only(error: Exception) -> None:
    assert isinstance(error, Unauthorized | Unavailable | Malformed | Broken)
    reply = errors.refused(error, NOW_MS)
    (item,) = json.loads(reply.body)["errors"]
    assert reply.media_type == "application/vnd.api+json"
    assert {"id", "code", "status", "title", "detail"} <= item.keys()
    assert all(isinstance(item[name], str) and item[name] for name in item if name != "source")
    assert item["status"] == str(reply.status)
    headers = dict(reply.headers)
    assert headers.get("Retry-After") == {503: "2", 429: "1"}.get(reply.status)
    assert ("WWW-Authenticate" in headers) == (reply.status == 401)


def test_the_token_endpoint_says_when_to_come_again() -> None:
    reply = errors.token_refused(Unavailable("later", retry_after_ms=3000), NOW_MS)
    headers = {"Cache-Control": "no-store", "Retry-After": "3"}
    assert (reply.status, dict(reply.headers)) == (503, headers)
    assert json.loads(reply.body)["error"] == "temporarily_unavailable"


def test_the_token_endpoint_reads_no_form_of_thousands_of_fields() -> None:
    headers = {"content-type": "application/x-www-form-urlencoded"}
    inbound = Inbound(b"a=1&" * 1000, NOW_MS, None, {}, {}, headers)
    with pytest.raises(Malformed):
        tokens.token(inbound, a_lookup(), ListedActions())


# -- pages


def test_a_full_page_leads_to_the_next_and_pins_the_end() -> None:
    lookup = a_lookup()
    inbound = an_inbound(query={values.FROM: "2022-07-11T11:00:00Z"})
    question = values.parse(inbound, lookup)
    start_ms = times.ms_of("2022-07-11T11:00:00Z")
    rows = [(times.text_of(start_ms + row), str(row)) for row in range(lists.PAGE_MAX + 1)]
    block = ingest.decode(an_inbound(a_body(*rows[:1])), lookup).block
    for start in range(1, len(rows), 100):
        block.extend(ingest.decode(an_inbound(a_body(*rows[start : start + 100])), lookup).block)
    reply = values.render(inbound, question, Page(block, question.names, ()))
    answer = json.loads(reply.body)
    assert len(answer["data"]) == lists.PAGE_MAX
    assert answer["links"]["next"].startswith(f"/partitions/{PARTITION}/points/point/values?")
    assert f"page[cursor]={start_ms + lists.PAGE_MAX}" in answer["links"]["next"]

    members = answer["links"]["next"].partition("?")[2].split("&")
    following = values.parse(
        an_inbound(query=dict(member.split("=", 1) for member in members)), lookup
    ).query
    assert (following.start_ms, following.end_ms) == (start_ms + lists.PAGE_MAX, NOW_MS)  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("where", "source"),
    [
        ("/data/3", {"pointer": "/data/3"}),
        ("?overwrite", {"parameter": "overwrite"}),
        ("Idempotency-Key", {"header": "Idempotency-Key"}),
    ],
)
def test_the_source_of_an_error_says_what_kind_of_place_it_is(
    where: str, source: dict[str, str]
) -> None:
    reply = errors.refused(Malformed("wrong", where=where), NOW_MS)
    (error,) = json.loads(reply.body)["errors"]
    assert error["source"] == source


# -- what is said about the doors


def test_the_docs_name_the_headers_and_what_is_required() -> None:
    [change] = [each for each in points.CALLS if each.handle is points.change]
    taken = {"Idempotency-Key", "Prefer"}
    for door, headers in ((ingest.INGEST, taken), (change, {"Idempotency-Key"})):
        assert {each["name"] for each in door.docs["parameters"] if each["in"] == "header"} == (
            headers
        )
    required = {
        each["name"] for each in values.READ_VALUES.docs["parameters"] if "required" in each
    }
    assert required == {values.FROM}


def test_what_is_malformed_at_no_place_is_the_document() -> None:
    said = {
        Malformed("no JSON"): {"source": {"pointer": ""}},
        Malformed("too many parameters", where="?"): {},
        Unavailable("later"): {},
    }
    for error, source in said.items():
        [item] = json.loads(errors.refused(error, NOW_MS).body)["errors"]
        assert {name: item[name] for name in item if name == "source"} == source

"""Building X's point value ingest: one to a hundred values of one point, answered by the verdict.

The contract's value is always text; the point's declared type says what it means. A point without
one keeps the text. 204 where everything was kept, 202 with the places of what was dropped. Who does
not want to wait for that (`Prefer: respond-async`) is told at once where it can be read later.

A hot door: the usual request, of numbers, becomes columns by a compiled scanner; any other by the
decoder, which says what is wrong with it.
https://developer.siemens.com/building-x-openness/api/point-value-ingest-api/quickstart.html
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from typing import Annotated, Any, Literal, NamedTuple
from urllib.parse import quote

from msgspec import Meta, Struct
from msgspec.json import Decoder

from schemas.blocks import Block, bytes_of
from schemas.samples import NO_QUALITY, Conflict, Kind, Verdict
from services.dialects import _json
from services.dialects._contract import Answer, Auth, Inbound, Intake, Push, Reply, described
from services.dialects._ports import Lookup
from services.dialects._scan import ABSENT, Form, Member, Role
from services.dialects._times import all_ms_of, why_not
from services.dialects.building_x.errors import JSON_API, check_media_type, errors, refused
from services.dialects.building_x.paths import PARTITION, VALUES, below, own_point, prefix_of
from services.dialects.building_x.texts import columns, why_not_value
from services.errors import Forbidden, Malformed

RECEIPT = PARTITION + "/receipts/{receiptId}"
VALUES_MAX = 100
VALUE_BYTES_MAX = 4096
BODY_BYTES_MAX = 1024 * 1024

_NOTHING_DROPPED = Reply(204, media_type=JSON_API)
_OVERWRITE = {"true": True, "false": False}


class _Attributes(Struct, gc=False):
    timestamp: str
    value: Annotated[str, Meta(max_length=VALUE_BYTES_MAX)]
    qualityOfValue: Annotated[int, Meta(ge=0, le=3)] | None = None


class _Item(Struct, gc=False):
    type: Literal["PointValue"]
    attributes: _Attributes


class _Body(Struct, gc=False):
    data: Annotated[list[_Item], Meta(min_length=1, max_length=VALUES_MAX)]


_DECODER = Decoder(_Body)
_PLAIN = Form(
    "data",
    [
        Member("type", Role.WORD),
        Member("attributes", Role.OBJECT),
        Member("timestamp", Role.ISO, inner=True),
        Member("value", Role.QUOTED, inner=True),
        Member("qualityOfValue", Role.MARK, inner=True, required=False),
    ],
    word="PointValue",
)
"""The usual request to a point of numbers."""


class Columns(NamedTuple):
    """What a request brings of a block; of its values, also the texts to keep, by row."""

    ts_ms: array[int]
    bits: array[int]
    quality: array[int]
    texts: dict[int, str]


def decode(inbound: Inbound, lookup: Lookup) -> Intake:
    """The request as one block of the point's series, rows in the request's order."""
    point = own_point(inbound, lookup)
    if not point.ingestable:
        raise Forbidden("the point does not take values in")
    check_media_type(inbound.headers.get("content-type", ""))
    rule = Conflict.LAST if _overwrites(inbound) else Conflict.FIRST
    kind = Kind.STRING if point.declared is None else point.declared
    given = scanned(inbound.body) if kind is Kind.DOUBLE else None
    if given is None:
        given = decoded(inbound.body, kind)
    count = len(given.ts_ms)
    block = Block(
        policies=[lookup.policy(point)],
        series=array("Q", (point.series,)) * count,
        ts_ms=given.ts_ms,
        kind=array("B", (kind,)) * count,
        bits=given.bits,
        quality=given.quality,
        rule=array("B", (rule,)) * count,
        policy=array("H", (0,)) * count,
        texts=given.texts,
        text_bytes=sum(map(bytes_of, given.texts.values())),
    )
    return Intake(block, note=rule)


def scanned(body: bytes) -> Columns | None:
    """The usual body of numbers; None where it is anything else, and where it is wrong."""
    found = _PLAIN.scan(body, VALUES_MAX)
    if found is None:
        return None
    quality = found.marks
    if ABSENT in quality:
        quality = array("i", [NO_QUALITY if mark == ABSENT else mark for mark in quality])
    return Columns(found.times, found.bits, quality, {})


def decoded(body: bytes, kind: Kind) -> Columns:
    """Any body. Raises Malformed with the place of the first thing that is wrong."""
    attributes = [item.attributes for item in _json.read(_DECODER, body).data]
    try:
        ts_ms = all_ms_of([item.timestamp for item in attributes])
    except ValueError:
        raise _bad_time(attributes) from None
    texts = [item.value for item in attributes]
    try:
        bits, kept = columns(kind, texts)
    except (ValueError, OverflowError):
        raise _bad_value(kind, texts) from None
    # The decoder has counted characters; numbers have no others than those of one byte.
    if kept and max(map(len, texts)) > VALUE_BYTES_MAX // 4:
        _check_bytes(texts)
    marks = [item.qualityOfValue for item in attributes]
    quality = array("i", [NO_QUALITY if mark is None else mark for mark in marks])
    return Columns(array("q", ts_ms), bits, quality, kept)


def accepted(inbound: Inbound, intake: Intake, verdicts: Sequence[Verdict]) -> Reply:
    """204, or 202 with the indices of the values that were dropped.

    A repetition and a conflict are both dropped; a value that the deadband suppressed was taken. An
    overwriting request drops nothing: a value that is there already has been "overwritten" by
    itself. A value that the judge refused had another type than the point got in this moment: 400.
    """
    if faults := faults_of(verdicts):
        return errors(Malformed(""), faults, inbound.received_ms)
    dropped = dropped_of(verdicts, Conflict(intake.note))
    if not dropped:
        return _NOTHING_DROPPED
    return Reply(202, _json.write({"meta": {"droppedIndices": dropped}}), JSON_API)


def promised(inbound: Inbound, receipt: str) -> Reply:
    """202 with the place of the receipt, below the prefix that the request came by. There is no
    `meta` yet: that is what tells it from the 202 with dropped values.
    """
    partition = quote(inbound.path["partitionId"], safe="")
    place = prefix_of(inbound) + RECEIPT.format(partitionId=partition, receiptId=receipt)
    headers = (("Preference-Applied", "respond-async"), ("Location", inbound.base + place))
    return Reply(202, _json.write({"data": receipt_data(receipt, "pending")}), JSON_API, headers)


def receipt_data(receipt: str, status: str) -> dict[str, Any]:
    """A receipt as a resource of JSON:API."""
    return {"type": "Receipt", "id": receipt, "attributes": {"status": status}}


def dropped_of(verdicts: Sequence[Verdict], rule: Conflict) -> list[int]:
    """The rows that were dropped; see `accepted`."""
    dropped = (Verdict.DUPLICATE, Verdict.CONFLICT)
    if rule == Conflict.LAST or not any(verdict in verdicts for verdict in dropped):
        return []
    return [row for row, verdict in enumerate(verdicts) if verdict in dropped]


def faults_of(verdicts: Sequence[Verdict]) -> list[tuple[str, str]]:
    """(detail, pointer) of the rows that the judge refused."""
    if Verdict.REFUSED not in verdicts:
        return []
    detail = "not of the point's type; the other values of the request were taken in"
    return [
        (detail, f"/data/{row}/attributes/value")
        for row, verdict in enumerate(verdicts)
        if verdict == Verdict.REFUSED
    ]


def _overwrites(inbound: Inbound) -> bool:
    text = inbound.query.get("overwrite")
    if text is None:
        return False
    overwrite = _OVERWRITE.get(text.lower())
    if overwrite is None:
        raise Malformed("overwrite is true or false", where="?overwrite")
    return overwrite


def _check_bytes(texts: Sequence[str]) -> None:
    for row, text in enumerate(texts):
        if len(text.encode()) > VALUE_BYTES_MAX:
            raise Malformed(
                f"longer than {VALUE_BYTES_MAX} bytes", where=f"/data/{row}/attributes/value"
            )


def _bad_time(attributes: Sequence[_Attributes]) -> Malformed:
    for row, item in enumerate(attributes):
        if reason := why_not(item.timestamp):
            return Malformed(reason, where=f"/data/{row}/attributes/timestamp")
    raise AssertionError("a time was refused that has no fault")


def _bad_value(kind: Kind, texts: Sequence[str]) -> Malformed:
    for row, text in enumerate(texts):
        if reason := why_not_value(kind, text):
            return Malformed(reason, where=f"/data/{row}/attributes/value")
    raise AssertionError("a value was refused that has no fault")


INGEST = Push(
    "POST",
    below(VALUES),
    Auth.BEARER,
    decode,
    accepted,
    refused,
    answer=Answer.VERDICT,
    promised=promised,
    bulk=True,
    body_bytes_max=BODY_BYTES_MAX,
    docs=described(
        "Add 1 to 100 values of a point; one value per millisecond is stored",
        {
            202: "some values were dropped: meta.droppedIndices has their 0-based places; or, with "
            "Prefer: respond-async, all are on the log: Location says where the receipt will be",
            204: "all values were taken in",
            400: "the body or a parameter cannot be used; source says where",
            401: "no token, or not a valid one",
            403: "another's partition, or a point that takes no values in",
            404: "unknown partition or point",
            413: "the body is too large",
            415: "another content type than the two of JSON, or a content coding",
            429: "too many requests",
            503: "outcome unknown or not done: try again",
        },
        media_type=JSON_API,
        example={
            "data": [
                {
                    "type": "PointValue",
                    "attributes": {
                        "timestamp": "2000-05-11T10:32:54.964Z",
                        "value": "12.66",
                        "qualityOfValue": 0,
                    },
                }
            ]
        },
        parameters={"overwrite": "true replaces what is there; false (default) drops the newcomer"},
        headers={
            "Idempotency-Key": "the same request under the same key gets the first answer",
            "Prefer": "respond-async: an answer as soon as the values are on the log",
        },
    ),
)

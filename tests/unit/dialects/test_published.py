"""What the vendors' own pages show, taken from the pages at test time."""

from __future__ import annotations

import json
import re
from typing import Any

from schemas.catalogue import Device, Point, Tenant
from schemas.samples import Kind, Verdict
from services.dialects import Inbound
from services.dialects.building_x import ingest, tokens
from services.dialects.opticloud import telemetry
from tests.support.lookup import ListedActions, ListedLookup, a_principal
from tests.support.published import needs_documents, page

pytestmark = needs_documents
PARTITION = "0c1f3f62-6a0e-4f0b-9a4d-5b1f1a2b3c4d"
NOW_MS = 1_700_000_000_000


# -- Building X


def point_values(*pairs: tuple[str, str]) -> tuple[Inbound, ListedLookup]:
    data = [
        {"type": "PointValue", "attributes": {"timestamp": time, "value": value}}
        for time, value in pairs
    ]
    point = Point("point", tenant="acme", device="d", key="k", kind=Kind.DOUBLE, locked=True)
    inbound = Inbound(
        json.dumps({"data": data}).encode(),
        NOW_MS,
        a_principal(),
        {"partitionId": PARTITION, "pointId": "point"},
        {},
        {"content-type": "application/vnd.api+json"},
    )
    return inbound, ListedLookup([Tenant("acme", uuid=PARTITION), point])


def test_the_conflict_of_the_page_is_answered_with_its_index() -> None:
    text = page("building-x-point-value-ingest.txt")
    stamps = re.findall(r"•\s+(\d{4}-\d\d-\d\dT[\d:.]+)", text)
    (dropped,) = re.findall(r'conflict with index "(\d)"', text)
    assert len(stamps) == 4

    inbound, lookup = point_values(*((stamp + "Z", "1") for stamp in stamps))
    intake = ingest.decode(inbound, lookup)
    times = list(intake.block.ts_ms)
    verdicts = [
        Verdict.CONFLICT if time in times[:row] else Verdict.KEPT for row, time in enumerate(times)
    ]
    reply = ingest.accepted(inbound, intake, verdicts)
    assert reply.status == 202
    assert json.loads(reply.body) == {"meta": {"droppedIndices": [int(dropped)]}}
    assert ingest.accepted(inbound, intake, [Verdict.KEPT] * 4).status == 204


def test_the_value_of_the_page_is_taken_in() -> None:
    text = page("building-x-point-value-ingest.txt").replace("\\", "")
    (time,) = re.findall(r'"timestamp": "([^"]+)"', text)
    (value,) = re.findall(r'"value": "([^"]+)"', text)
    (media_type,) = set(re.findall(r"Content-Type: (application/vnd[^\"\s]+)", text))
    inbound, lookup = point_values((time, value))
    assert inbound.headers["content-type"] == media_type
    (sample,) = ingest.decode(inbound, lookup).block.samples()
    assert (sample.kind, sample.value) == (Kind.DOUBLE, float(value))


def test_the_tokens_answer_has_the_members_of_the_page() -> None:
    text = page("building-x-point-value-ingest.txt")
    members = re.findall(r'^\s+"(access_token|token_type|expires_in)": (.+?),?$', text, re.M)
    body = {
        "client_id": "client",
        "client_secret": "secret",
        "audience": tokens.AUDIENCE,
        "grant_type": tokens.GRANT_TYPE,
    }
    headers = {"content-type": "application/json"}
    inbound = Inbound(json.dumps(body).encode(), NOW_MS, None, {}, {}, headers)
    answer = json.loads(tokens.token(inbound, ListedLookup(), ListedActions()).body)
    assert list(answer) == [name for name, _ in members]
    assert {name: type(value) for name, value in answer.items()} == {
        name: type(json.loads(value)) for name, value in members
    }


# -- optiCLOUD


def telemetry_samples() -> list[Any]:
    """Every JSON text of the page's part on telemetry, also those within a command line."""
    text = page("opticloud-api.txt")
    part = text.partition("Supported JSON Format")[2].partition("Sending Attributes via MQTT")[0]
    found, at = [], 0
    decoder = json.JSONDecoder()
    while (start := re.compile(r"(?m)(?:^|')(?=[{\[])").search(part, at)) is not None:
        value, at = decoder.raw_decode(part, start.end())
        found.append(value)
    return found


def test_every_telemetry_sample_of_the_page_is_taken_in() -> None:
    samples = telemetry_samples()
    assert len(samples) == 5
    for message in samples:
        lookup = ListedLookup([Device("device", tenant="acme")])
        inbound = Inbound(json.dumps(message).encode(), NOW_MS, a_principal(device="device"))
        rows = list(telemetry.decode(inbound, lookup).block.samples())
        objects = message if isinstance(message, list) else [message]
        wanted = [
            (values_of.get("ts", NOW_MS), value)
            for values_of in objects
            for value in values_of.get("values", values_of).values()
        ]
        assert [row.ts_ms for row in rows] == [ts_ms for ts_ms, _ in wanted]
        for row, (_, value) in zip(rows, wanted, strict=True):
            assert row.kind == kind_of(value)
            assert (json.loads(str(row.value)) if row.kind == Kind.JSON else row.value) == value


def kind_of(value: object) -> Kind:
    """The type that the page says a value has."""
    kinds = {
        str: Kind.STRING,
        bool: Kind.BOOL,
        float: Kind.DOUBLE,
        int: Kind.LONG,
        dict: Kind.JSON,
    }
    return kinds[type(value)]


def test_the_topic_is_the_one_of_the_page() -> None:
    assert f'-t "{telemetry.TELEMETRY.topic}"' in page("opticloud-api.txt")

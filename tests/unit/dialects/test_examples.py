"""Every golden example of every dialect, through the doors that the dialect declares."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import pytest

import services.dialects
from schemas.blocks import Block
from schemas.catalogue import Tenant
from schemas.queries import LatestQuery
from services import registry
from services.dialects import Call, Dialect, Intake, Page, Publish, Push, Question, Read, Reply
from services.errors import PipelineError, Refused
from tests.support.examples import Example, block_of, differences, examples, records_of
from tests.support.lookup import ListedActions, ListedLookup

Door = Push | Publish | Read | Call

DIALECTS: dict[str, Dialect] = registry.discover(services.dialects, "DIALECT")
EXAMPLES = list(examples())


@pytest.mark.parametrize("example", EXAMPLES, ids=str)
def test_the_dialect_does_what_the_example_says(example: Example) -> None:
    request = example.json("request")
    door = doors(DIALECTS[example.dialect])[request["door"]]
    _WALKS[type(door)](example, door, request, ListedLookup(example.things(), example.commands()))


@pytest.mark.parametrize(
    "example", [each for each in EXAMPLES if "status" in (each.json("reply") or {})], ids=str
)
def test_what_is_answered_is_in_the_docs_of_the_door(example: Example) -> None:
    door = doors(DIALECTS[example.dialect])[example.json("request")["door"]]
    assert not isinstance(door, Publish)
    assert str(example.json("reply")["status"]) in door.docs["responses"]


@pytest.mark.parametrize("name", DIALECTS)
def test_a_dialect_has_examples_of_every_door_and_of_refusals(name: str) -> None:
    own = [example for example in EXAMPLES if example.dialect == name]
    used = {example.json("request")["door"] for example in own}
    dialect = DIALECTS[name]
    for door in every_door(dialect):
        assert used & set(names(door)), f"no example of {names(door)[0]}"
    assert len(own) >= 12
    assert any(example.folder.name.startswith("refuse") for example in own)


def names(door: Door) -> list[str]:
    """What examples call a door."""
    if isinstance(door, Publish):
        return [f"PUBLISH {door.topic}"]
    return [f"{door.method} {path}" for path in door.paths]


def every_door(dialect: Dialect) -> list[Door]:
    """All doors of a dialect."""
    return [*dialect.pushes, *dialect.publishes, *dialect.reads, *dialect.calls]


def doors(dialect: Dialect) -> dict[str, Door]:
    """All doors of a dialect by name."""
    return {name: door for door in every_door(dialect) for name in names(door)}


def walk_push(example: Example, door: Push, request: Any, lookup: ListedLookup) -> None:
    inbound = example.inbound(request)
    try:
        intake = door.decode(inbound, lookup)
    except PipelineError as error:
        assert_reply(example, door.refused(error, inbound.received_ms))
        return
    assert_records(example, lookup, intake.block, inbound.caller.tenant)
    assert_new_keys(example, intake)
    if "promised" in request:
        assert door.promised is not None
        assert_reply(example, door.promised(inbound, request["promised"]))
    elif "verdicts" in request:
        assert_reply(example, door.accepted(inbound, intake, example.verdicts(request)))
    else:
        assert example.json("reply") is None, "taken in, though an answer was expected"


def assert_new_keys(example: Example, intake: Intake) -> None:
    """The keys that are made, where the example says which."""
    keys = [change.body["key"] for change in intake.changes if change.body]
    assert keys == (example.json("records") or {}).get("new_keys", keys)


def walk_publish(example: Example, door: Publish, request: Any, lookup: ListedLookup) -> None:
    inbound = example.inbound(request)
    wanted = example.json("reply")
    if wanted is not None:
        with pytest.raises(Refused) as caught:
            door.decode(inbound, lookup)
        found = {"refused": type(caught.value).__name__, "where": caught.value.where}
        assert found == wanted
        assert not lookup.creations, "a refused message has made points"
        return
    intake = door.decode(inbound, lookup)
    assert_records(example, lookup, intake.block, inbound.caller.tenant)
    assert_new_keys(example, intake)


def walk_read(example: Example, door: Read, request: Any, lookup: ListedLookup) -> None:
    inbound = example.inbound(request)
    try:
        question = door.parse(inbound, lookup)
    except PipelineError as error:
        assert_reply(example, door.refused(error, inbound.received_ms))
        return
    assert differences(example.json("question"), readable(question)) == []
    if (rows := example.json("page")) is not None:
        block = block_of(rows, lookup, inbound.caller.tenant)
        known = request.get("connected", {})
        connected = {each: known[each] for each in question.devices if each in known}
        page = Page(block, question.names, question.query.series or (), connected)
        assert_reply(example, door.render(inbound, question, page))


def walk_call(example: Example, door: Call, request: Any, lookup: ListedLookup) -> None:
    inbound = example.inbound(request)
    tenants = [lookup.tenant(name) or Tenant(name) for name in request.get("tenants", ["acme"])]
    actions = ListedActions(tenants, example.things(), inbound.received_ms)
    try:
        handled = door.handle(inbound, lookup, actions)
        reply = handled if isinstance(handled, Reply) else asyncio.run(_awaited(handled))
    except PipelineError as error:
        reply = door.refused(error, inbound.received_ms)
    assert_reply(example, reply)


async def _awaited(handled: Awaitable[Reply]) -> Reply:
    return await handled


_WALKS: dict[type[Any], Callable[..., None]] = {
    Push: walk_push,
    Publish: walk_publish,
    Read: walk_read,
    Call: walk_call,
}


def readable(question: Question) -> dict[str, Any]:
    """A question as it stands in `question.json`."""
    query = question.query
    keys = [question.names[series] for series in query.series or ()]
    found: dict[str, Any] = {"query": type(query).__name__, "tenant": query.tenant, "keys": keys}
    if not isinstance(query, LatestQuery):
        found |= {"start_ms": query.start_ms, "end_ms": query.end_ms, "limit": query.limit}
        found["descending"] = query.descending
    return found


def assert_records(example: Example, lookup: ListedLookup, block: Block, tenant: str) -> None:
    """The block holds what `records.json` lists, with all columns of one length."""
    wanted = example.json("records")
    columns = (block.series, block.ts_ms, block.kind, block.bits, block.quality, block.rule)
    assert {len(column) for column in (*columns, block.policy)} == {len(block)}
    assert block.text_bytes == sum(map(len, block.texts.values()))
    if len(block):
        assert list(Block.decode(block.encode()).samples()) == list(block.samples())
    if wanted is not None:
        found = records_of(block, lookup, tenant)
        assert differences(wanted["records"], found) == []


def assert_reply(example: Example, reply: Reply) -> None:
    """The reply is as `reply.json` says."""
    wanted = dict(example.json("reply") or pytest.fail(f"refused: {reply}"))
    exactly = wanted.pop("exactly", False)
    body = json.loads(reply.body) if reply.body else None
    found = {
        "status": reply.status,
        "media_type": reply.media_type,
        "headers": dict(reply.headers),
        "body": body,
    }
    assert differences(wanted, found) == []
    if exactly:
        assert body == wanted["body"]
        assert list(flat(body)) == list(flat(wanted["body"])), "another order"


def flat(value: Any) -> Iterator[Any]:
    """All names and values in their order, with their types."""
    if isinstance(value, dict):
        for name, member in value.items():
            yield name
            yield from flat(member)
    elif isinstance(value, list):
        for member in value:
            yield from flat(member)
    else:
        yield type(value), value

"""The watch over the lanes: samples.accepted -> alerts.raised.

Each rule that travels with a series' policy is followed by `services.domain.triggers`; when its
condition begins or ends, an `Alert` goes out under an id made of the place in the log and the rule:
reading again gives the same id. A delay that passes without a sample is found by a tick, which this
agent asks for (`due`) and reads from its own lane.

A lane that has lost its state knows of no condition: the first sample of a series at which one
holds raises it, perhaps for the second time and under another id, and the end of one that had been
raised before the loss is not told.
"""

from __future__ import annotations

import json
import zlib
from dataclasses import astuple
from typing import Any

from schemas.blocks import Block
from schemas.envelope import Alert, Envelope, Outgoing, Position, Tick, Undecodable
from schemas.points import Rule, lane_of
from schemas.samples import Value
from schemas.topics import ALERTS_RAISED, SAMPLES_ACCEPTED
from services.agents._contract import Agent, Asked, Outcome
from services.domain import triggers
from services.domain.triggers import Finding, Found, Series, Watch

NAME = "triggers"
TEXT_CHARACTERS_MAX = 1_000
_FORMAT = 1


class State:
    """A lane's series with rules, and when the time alone would show something of them. `judged` is
    how far the lane had been judged at the newest block.
    """

    def __init__(
        self, series: dict[int, Series] | None = None, judged: Position = Position(0, -1)
    ) -> None:
        self.series: dict[int, Series] = {}
        self.due_ms: dict[int, int] = {}
        self.judged = judged
        for name, state in (series or {}).items():
            self.put(name, state)

    def put(self, name: int, state: Series | None) -> None:
        """Let this be the state of a series; None: it has no rules."""
        due_ms = None
        if state is None:
            self.series.pop(name, None)
        else:
            self.series[name] = state
            due_ms = triggers.due(state)
        if due_ms is None:
            self.due_ms.pop(name, None)
        else:
            self.due_ms[name] = due_ms

    def pack(self) -> bytes:
        """The state as bytes."""
        plain = [
            [name, state.tenant, state.revision, state.newest, [*map(_plain, state.watches)]]
            for name, state in self.series.items()
        ]
        return bytes([_FORMAT]) + zlib.compress(json.dumps([self.judged, plain]).encode(), 1)

    @classmethod
    def unpack(cls, data: bytes) -> State:
        """The inverse of `pack`. Raises ValueError where the bytes are of another format."""
        if data[0] != _FORMAT:
            raise ValueError(f"a state of format {data[0]}; this is {_FORMAT}")
        judged, plain = json.loads(zlib.decompress(data[1:]))
        series = {
            name: Series(tenant, revision, (newest[0], newest[1]), tuple(map(_watch, watches)))
            for name, tenant, revision, newest, watches in plain
        }
        return cls(series, Position(*judged))


def _plain(watch: Watch) -> list[Any]:
    return [astuple(watch.rule), watch.since_ms, watch.value, watch.raised]


def _watch(plain: list[Any]) -> Watch:
    return Watch(Rule(*plain[0]), *plain[1:])


def due(state: State) -> int | None:
    """The next moment at which a condition will have held for its delay."""
    return min(state.due_ms.values(), default=None)


def tick(state: State, now_ms: int) -> Envelope:
    """The time, as a record of the lane. It says how far the lane is judged, as the block before it
    does: who begins to follow at the last record of the lane must learn that.
    """
    judged = state.judged
    return Envelope(Tick(now_ms, NAME), received=judged.offset, epoch=judged.epoch)


def step(
    state: State, position: Position, record: Envelope | Undecodable, _: Asked, lanes: int
) -> Outcome:
    """Apply one record of the lane. What is no judged block is passed over: the sink of the samples
    sets it aside.
    """
    content = None if isinstance(record, Undecodable) else record.record
    if isinstance(content, Tick) and content.key == NAME:
        return _time(state, position, content, lanes)
    if isinstance(content, Block) and len(content.version) == len(content):
        assert isinstance(record, Envelope)
        if record.received >= 0:
            state.judged = Position(record.epoch, record.received)
        return _block(state, position, content, lanes)
    return Outcome()


def _time(state: State, position: Position, tick: Tick, lanes: int) -> Outcome:
    out: list[Outgoing] = []
    ripe = [name for name, due_ms in state.due_ms.items() if due_ms <= tick.now_ms]
    # A tick has no rows; what it shows is numbered as if it had one for each series.
    for row, name in enumerate(sorted(ripe)):
        after, found = triggers.tick(state.series[name], tick.now_ms)
        out += _alerts(position, row, name, after.tenant, found, lanes)
        state.put(name, after)
    return _outcome(out)


def _block(state: State, position: Position, block: Block, lanes: int) -> Outcome:
    out: list[Outgoing] = []
    for row in _rows(state, block):
        name, policy = block.series[row], block.policies[block.policy[row]]
        before = state.series.get(name)
        after, found = triggers.step(before, block.sample(row), block.version[row], policy)
        if found:
            out += _alerts(position, row, name, policy.tenant, found, lanes)
        if after is not before:
            state.put(name, after)
    return _outcome(out)


def _rows(state: State, block: Block) -> list[int]:
    """The rows of series that have rules, or had some. Most blocks have none: then it is not looked
    at row by row.
    """
    ruled = {number for number, policy in enumerate(block.policies) if policy.rules}
    held = state.series.keys()
    if not ruled and (not held or held.isdisjoint(block.series)):
        return []
    pairs = enumerate(zip(block.series, block.policy, strict=True))
    return [row for row, (name, number) in pairs if number in ruled or name in held]


def _alerts(
    position: Position, row: int, series: int, tenant: str, found: Found, lanes: int
) -> list[Outgoing]:
    lane = lane_of(series, lanes)
    place = f"{SAMPLES_ACCEPTED.name}/{lane}/{position.epoch}.{position.offset}.{row}"
    return [
        (ALERTS_RAISED, 0, Envelope(_alert(f"{place}/{finding.rule}", series, tenant, finding)))
        for finding in found
    ]


def _alert(id: str, series: int, tenant: str, finding: Finding) -> Alert:
    return Alert(
        id=id,
        tenant=tenant,
        rule=finding.rule,
        series=series,
        raised=finding.raised,
        ts_ms=finding.ts_ms,
        at_ms=finding.at_ms,
        value=_short(finding.value),
    )


def _short(value: Value) -> Value:
    """A text is told by its beginning: an alert is a notice, the value itself is in the store."""
    return value[:TEXT_CHARACTERS_MAX] if isinstance(value, str) else value


def _outcome(out: list[Outgoing]) -> Outcome:
    if not out:
        return Outcome()
    states = [
        "raised" if record.raised else "cleared"
        for _, _, envelope in out
        if isinstance(record := envelope.record, Alert)
    ]
    return Outcome(out, {state: states.count(state) for state in set(states)})


AGENT = Agent(
    name=NAME,
    source=SAMPLES_ACCEPTED,
    fresh=lambda whole: State(),
    ask=None,
    step=step,
    pack=State.pack,
    unpack=State.unpack,
    stored=lambda state, offset: None,
    due=due,
    tick=tick,
)

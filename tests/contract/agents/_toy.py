"""An agent whose every output depends on every record before it: whatever is left out, repeated or
reordered shows.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from schemas.envelope import Envelope, Letter, Position, Tick, Undecodable
from schemas.queries import LatestQuery
from schemas.topics import RECORDS_REFUSED, SAMPLES_ACCEPTED, SAMPLES_RECEIVED
from services.agents import Agent, Outcome
from services.agents._contract import Asked

_PACKED_NUMBERS = 125_000
"""A packed state of 1 MB: two pieces of a checkpoint."""


def record(lane: int, number: int) -> Envelope:
    """What is fed: a number, and the lane that it is for."""
    return Envelope(Tick(now_ms=number, key=str(lane)))


def chain(state: int, number: int) -> int:
    """The state behind the next number."""
    return (state * 31 + number + 1) % 1_000_003


def expected(numbers: Sequence[int]) -> dict[str, set[int]]:
    """What a lane puts out for these records: offset (as text) to the only state behind it."""
    state, out = 0, {}
    for offset, number in enumerate(numbers):
        state = chain(state, number)
        out[str(offset)] = {state}
    return out


def agent(*, raises: Path, raise_at: int = 20) -> Agent:
    """The agent. It asks the store about lane 0, and has a bug at an offset of lane 1 while the
    file `raises` exists.
    """

    def ask(_: list[int], position: Position, envelope: Envelope) -> Sequence[LatestQuery]:
        tick = envelope.record
        return [LatestQuery(series=(1,))] if isinstance(tick, Tick) and tick.key == "0" else []

    def step(
        state: list[int], position: Position, envelope: Envelope | Undecodable, _: Asked, lanes: int
    ) -> Outcome:
        if isinstance(envelope, Undecodable):
            letter = Letter("undecodable", envelope.reason, "toy", offset=position.offset)
            return Outcome([(RECORDS_REFUSED, 0, Envelope(letter))])
        tick = envelope.record
        assert isinstance(tick, Tick)
        if tick.key == "1" and position.offset == raise_at and raises.exists():
            raise ValueError("a bug")
        state[0] = chain(state[0], tick.now_ms)
        made = Tick(now_ms=state[0], key=str(position.offset))
        return Outcome([(SAMPLES_ACCEPTED, int(tick.key), Envelope(made, epoch=position.epoch))])

    return Agent(
        name="toy",
        source=SAMPLES_RECEIVED,
        fresh=lambda whole: [0],
        ask=ask,
        step=step,
        pack=lambda state: state[0].to_bytes(8, "big") * _PACKED_NUMBERS,
        unpack=lambda data: [int.from_bytes(data[:8], "big")],
        stored=lambda state, offset: None,
    )

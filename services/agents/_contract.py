"""What an agent is: a source topic, a pure step, and how its lane state becomes bytes. Runners and
lane keeper do the rest.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from schemas.blocks import Block
from schemas.envelope import Envelope, Outgoing, Position, Undecodable
from schemas.queries import LatestQuery, TakenQuery
from schemas.topics import Topic

Asked = Sequence[Block]
"""What the store answered, one block for each query, in their order."""


OWN_LANE = -1
"""Stands in an outcome for the lane that was read, where the record does not say which."""


@dataclass(slots=True)
class Outcome:
    """What a step puts out: (topic, lane, record) triples, and what to count (name to number of
    rows). The lane may be OWN_LANE, also that of a letter.
    """

    out: Sequence[Outgoing] = ()
    tally: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Agent:
    """A declaration. `State` is a lane's state, changed in place by `step` alone.

    `fresh(whole)` makes the state of a lane without a checkpoint; `whole` says that the log it
    starts reading holds everything that was ever judged, so that what the state does not know does
    not exist. `ask` gives the queries that a record's step needs answered by the store (none:
    empty). `step(state, position, record, answers, lanes)` applies one record; the same state,
    position, record and answers give the same outcome. `stored(state, offset)` tells the state that
    the store has every row of the lane up to and including `offset`; it may then forget them.

    An agent whose `ask` is None never asks, so its lanes need not wait for the store. `due(state)`
    is the next moment (UTC ms) at which the time alone would change something, None where there is
    none: then `tick(state, now_ms)`, a record with a `Tick` whose key is the agent's name, is
    appended to the lane, and `step` applies it when it is read, like any record.
    """

    name: str
    source: Topic
    fresh: Callable[[bool], Any]
    ask: Callable[[Any, Position, Envelope], Sequence[TakenQuery | LatestQuery]] | None
    step: Callable[[Any, Position, Envelope | Undecodable, Asked, int], Outcome]
    pack: Callable[[Any], bytes]
    unpack: Callable[[bytes], Any]
    stored: Callable[[Any, int], None]
    due: Callable[[Any], int | None] | None = None
    tick: Callable[[Any, int], Envelope] | None = None

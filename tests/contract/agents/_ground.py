"""A log, and processes that drive lanes on it.

One writing process per SQLite file: there the test opens the log only while no process runs.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from schemas.envelope import Envelope, Letter, Logged, Tick
from schemas.topics import RECORDS_REFUSED, SAMPLES_ACCEPTED, SAMPLES_RECEIVED, SINK_GROUP
from tests.contract.agents import _toy
from tests.contract.agents._child import Orders
from tests.contract.eventlog._places import LANES, Place, opened
from tests.contract.eventlog._records import read_all
from tests.support.processes import ROOT, Process, wait_for

WAIT_SECONDS = 60


class Member:
    """A process that drives lanes."""

    def __init__(self, orders: Orders, output: Path) -> None:
        self._argv = [sys.executable, "-m", "tests.contract.agents._child"]
        self._argv.append(json.dumps(asdict(orders)))
        self.process = Process(self._argv, output=output, env=dict(os.environ), cwd=ROOT)

    @property
    def positions(self) -> dict[int, int]:
        """The lanes that it holds, each with the last offset whose outputs are durable."""
        told = [line for line in self.process.output().splitlines() if line.startswith("{")]
        return {int(lane): at for lane, at in json.loads(told[-1]).items()} if told else {}

    @property
    def watched(self) -> dict[str, int]:
        """The lanes that the watch over rules holds in it, likewise."""
        told = [line for line in self.process.output().splitlines() if line.startswith("[")]
        return dict(json.loads(told[-1])[1]) if told else {}

    @property
    def seen(self) -> list[int]:
        """The records that a bare agent has seen."""
        return [int(line) for line in self.process.output().splitlines() if line.isdigit()]


class Ground:
    """See the module's text."""

    def __init__(self, place: Place, runner: str, folder: Path) -> None:
        self.place, self.runner, self.folder = place, runner, folder
        self.fed: dict[int, list[int]] = {lane: [] for lane in range(LANES)}
        self._members: list[Member] = []

    async def create(self) -> None:
        """Make the topics."""
        async with opened(self.place):
            pass

    def start(self, **orders: Any) -> Member:
        """A process on the log."""
        fixed = (self.runner, self.place.url, self.place.prefix, LANES, str(self.folder))
        output = self.folder / f"member-{len(self._members)}.txt"
        self._members.append(Member(Orders(*fixed, **orders), output))
        return self._members[-1]

    def end(self) -> None:
        """Kill what is left."""
        for member in self._members:
            member.process.kill()

    def flag(self, name: str) -> Path:
        """The file that is a flag for the processes."""
        return self.folder / name

    # -- what goes in, what comes out

    async def feed(self, count: int, lanes: Sequence[int] = range(LANES)) -> None:
        """So many more records for the toy agent into each of the lanes."""
        async with opened(self.place) as log:
            for _ in range(count):
                out = []
                for lane in lanes:
                    number = len(self.fed[lane]) * 7
                    self.fed[lane].append(number)
                    out.append((SAMPLES_RECEIVED, lane, _toy.record(lane, number)))
                await log.append(out)

    async def outputs(self) -> dict[int, dict[str, set[int]]]:
        """By lane: offset (as text) to every state that was put out for it."""
        async with opened(self.place) as log:
            lanes = await read_all(log, SAMPLES_ACCEPTED)
        found: dict[int, dict[str, set[int]]] = {lane: {} for lane in range(LANES)}
        for lane, records in lanes.items():
            for logged in records:
                assert isinstance(logged.envelope, Envelope)
                tick = logged.envelope.record
                assert isinstance(tick, Tick)
                found[lane].setdefault(tick.key, set()).add(tick.now_ms)
        return found

    async def store(self) -> None:
        """Commit all that was accepted, as the sinks do when they have stored it."""
        async with (
            opened(self.place) as log,
            log.reader([SAMPLES_ACCEPTED], group=SINK_GROUP) as reader,
        ):
            spans = await log.spans(SAMPLES_ACCEPTED)
            left = {lane: span.end for lane, span in spans.items() if span.end > span.begin}
            while left:
                if batch := await reader.batch():
                    await reader.commit(SAMPLES_ACCEPTED, batch.lane, batch.next_offset)
                    if batch.next_offset >= left[batch.lane]:
                        del left[batch.lane]

    def expected(self) -> dict[int, dict[str, set[int]]]:
        """What `outputs` must be."""
        return {lane: _toy.expected(numbers) for lane, numbers in self.fed.items()}

    async def letters(self) -> list[Letter]:
        """The dead letters."""
        async with opened(self.place) as log:
            records = (await read_all(log, RECORDS_REFUSED)).get(0, [])
        found = [logged.envelope for logged in records]
        letters = [e.record for e in found if isinstance(e, Envelope)]
        return [letter for letter in letters if isinstance(letter, Letter)]

    async def logged(self) -> dict[int, list[Logged]]:
        """What lies on `samples.accepted`, by lane."""
        async with opened(self.place) as log:
            return await read_all(log, SAMPLES_ACCEPTED)

    def wait(
        self, *members: Member, ends: Mapping[int, int] | None = None, seconds: float = WAIT_SECONDS
    ) -> None:
        """Until the members have reached these offsets (default: the last that were fed)."""
        wanted = ends if ends is not None else {n: len(fed) - 1 for n, fed in self.fed.items()}

        def reached() -> bool:
            positions: dict[int, int] = {}
            for member in members:
                positions |= member.positions
                ended = member.process.returncode
                assert ended is None, f"ended with {ended}:\n{member.process.output()[-3000:]}"
            return all(positions.get(lane, -1) >= end for lane, end in wanted.items())

        wait_for(reached, seconds=seconds, what=f"positions {wanted}")

    def wait_rest(self, member: Member, seconds: float = 2) -> None:
        """Until the member holds all lanes and none of them has moved for some time."""
        since, last = time.monotonic(), member.positions

        def rests() -> bool:
            nonlocal since, last
            now = member.positions
            if now != last or len(now) < LANES or min(now.values()) < 0:
                since, last = time.monotonic(), now
            return time.monotonic() - since > seconds

        wait_for(rests, seconds=WAIT_SECONDS, what="rest")

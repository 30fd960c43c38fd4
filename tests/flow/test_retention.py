"""How long values are kept, on the whole road: what reads show, what lies in the store, and what
stays of both when a period changes and when everything is killed.
"""

from __future__ import annotations

import asyncio
from array import array
from bisect import bisect_left
from collections.abc import Awaitable, Callable, Iterable, Sequence
from pathlib import Path
from typing import TypeVar

from schemas.blocks import Block
from schemas.catalogue import Point
from schemas.points import PointPolicy
from schemas.queries import LatestQuery
from schemas.rows import month_batches, sample_rows
from schemas.samples import NO_QUALITY, Kind
from services.catalogue import new_point
from services.clock import SystemClock
from services.store import Store, open_store
from tests.support.configured import ConfiguredPlant, configured
from tests.support.plant import Client, moment
from tests.support.processes import wait_for
from tests.support.rounds import rounds

T = TypeVar("T")

SECOND_MS, MINUTE_MS = 1_000, 60_000
WEEK_MINUTES = 10_080
PERIODS = (60, 720, 1_440, 2_880, WEEK_MINUTES, 0)
"""Minutes; the last stands for: for ever."""
PARAMETERS = min(100, 12 * rounds(1))
STEP_MS = max(1, 600 // rounds(1) ** 2) * SECOND_MS
"""With ROUNDS=20 a hundred parameters at 1 Hz."""
DOOR_STEP_MS = 600 * SECOND_MS
IDLE_MS = 90 * MINUTE_MS
"""So long ago the last value came: longer than the shortest period."""

_clock = SystemClock()


class Parameter:
    """A point with the times of its values; each value is its time in seconds."""

    def __init__(self, plant: ConfiguredPlant, key: str, minutes: int) -> None:
        self.device = plant.facts["building_x"]["device_id"]
        self.key, self.minutes = key, minutes
        self.times = range(0)
        self.gone_ms = 0
        """Values before it were deleted; what was not checkpointed may come again from the log."""

    @property
    def point(self) -> Point:
        """The point with its present period."""
        return new_point(
            "demo", self.device, self.key, kind=int(Kind.DOUBLE), keep_minutes=self.minutes
        )

    def since(self, start_ms: int, stop_ms: int = 2**63) -> range:
        """The times from start on, up to stop."""
        return self.times[bisect_left(self.times, start_ms) : bisect_left(self.times, stop_ms)]

    def border(self, now_ms: int, minutes: int | None = None) -> int:
        """Where that what is shown begins."""
        kept = self.minutes if minutes is None else minutes
        return now_ms // SECOND_MS * SECOND_MS - kept * MINUTE_MS if kept else 0

    def post(self, client: Client) -> None:
        """Send all values through a door."""
        for at in range(0, len(self.times), 100):
            cut = self.times[at : at + 100]
            values = [(moment(ts_ms), str(ts_ms // SECOND_MS)) for ts_ms in cut]
            assert client.post(values, point=self.point.id)[0] == 204

    def block(self) -> Block:
        """All values, judged."""
        count = len(self.times)
        doubles = array("d", [ts_ms // SECOND_MS for ts_ms in self.times])
        return Block(
            policies=[PointPolicy("demo", keep_ms=self.minutes * MINUTE_MS)],
            series=array("Q", (self.point.series,)) * count,
            ts_ms=array("q", self.times),
            kind=array("B", bytes(count)),
            bits=array("q", doubles.tobytes()),
            quality=array("i", (NO_QUALITY,)) * count,
            rule=array("B", bytes(count)),
            policy=array("H", bytes(2 * count)),
            version=array("Q", range(1, count + 1)),
        )


def a_week(step_ms: int) -> range:
    """Times of the past week, the last one a while ago."""
    last_ms = (_clock.now_ms() - IDLE_MS) // step_ms * step_ms
    return range(last_ms - WEEK_MINUTES * MINUTE_MS, last_ms + 1, step_ms)


def check_shown(client: Client, parameter: Parameter) -> None:
    """What a range read shows, around every border and at both ends; the border moves meanwhile."""
    times, now_ms = parameter.times, _clock.now_ms()
    places = [times[0], times[-1], *(now_ms - minutes * MINUTE_MS for minutes in PERIODS)]
    width = 50 * times.step + 10 * SECOND_MS
    for place in places:
        start_ms, stop_ms = place - width, place + width
        before = parameter.border(_clock.now_ms())
        rows = client.range(start_ms, stop_ms, device=parameter.device, key=parameter.key)
        after = max(parameter.border(_clock.now_ms()), parameter.gone_ms)
        shown = [ts_ms for ts_ms, _ in rows]
        assert shown == sorted(set(shown))
        assert set(parameter.since(max(start_ms, after), stop_ms)) <= set(shown)
        assert set(shown) <= set(parameter.since(max(start_ms, before), stop_ms))
        assert all(float(text) == ts_ms // SECOND_MS for ts_ms, text in rows)


def check_latest(client: Client, parameters: Iterable[Parameter]) -> None:
    """The newest value of each, expired or not."""
    latest = client.latest(client.facts["building_x"]["device_id"])
    for each in parameters:
        [newest] = latest[each.key]
        assert newest == {"ts": each.times[-1], "value": newest["value"]}
        assert float(newest["value"]) == each.times[-1] // SECOND_MS


def in_store(plant: ConfiguredPlant, work: Callable[[Store], Awaitable[T]]) -> T:
    """What `work` finds in the store of a plant that does not run."""

    async def body() -> T:
        async with open_store(f"chdb:///{plant.data_dir / 'store'}") as store:
            return await work(store)

    return asyncio.run(body())


async def check_stored(store: Store, parameters: Sequence[Parameter]) -> None:
    """After everything has been rewritten and merged nothing lies there that has expired,
    everything else does, once; and the newest of each.
    """
    async with asyncio.timeout(600):
        while await store.retaining():
            await asyncio.sleep(0.05)
    before_ms = _clock.now_ms()
    await store.rows("OPTIMIZE TABLE samples FINAL")
    rows = await store.rows(
        "SELECT series, count(), uniqExact(ts), toUnixTimestamp64Milli(min(ts)) FROM samples"
        " GROUP BY series"
    )
    found = {series: (int(count), int(times), int(first)) for series, count, times, first in rows}
    after_ms = _clock.now_ms()
    for each in parameters:
        count, times, first_ms = found.get(each.point.series, (0, 0, 2**63))
        # As they begin in between, are as many as there are, and are of the times that were sent.
        assert first_ms >= each.border(before_ms)
        certain = each.since(max(each.border(after_ms), each.gone_ms))
        assert not certain or first_ms <= certain[0]
        assert count == times == len(each.since(first_ms))
    newest = await store.fetch(LatestQuery("demo", tuple(each.point.series for each in parameters)))
    expected = {each.point.series: each.times[-1] for each in parameters}
    assert dict(zip(newest.series, newest.ts_ms, strict=True)) == expected


def stored_rows(plant: ConfiguredPlant, rows: int) -> None:
    """Wait until so many rows have been stored since the start."""
    wait_for(
        lambda: plant.metric('sink_rows_total{sink="samples"}') >= rows, what="stored", seconds=60
    )


def test_of_a_past_week_there_is_what_the_periods_say_and_the_newest_values(
    tmp_path: Path,
) -> None:
    """One parameter of each period comes through a door, the others are put into the store."""
    with configured(tmp_path) as plant:
        parameters = [
            Parameter(plant, f"parameter-{number}", PERIODS[number % len(PERIODS)])
            for number in range(PARAMETERS)
        ]
        plant.put(*(each.point for each in parameters))
        sent, laid = parameters[: len(PERIODS)], parameters[len(PERIODS) :]
        client = plant.client()
        for each in sent:
            each.times = a_week(DOOR_STEP_MS)
            each.post(client)
            check_shown(client, each)
        stored_rows(plant, sum(len(each.times) for each in sent))
        plant.kill()

        async def lay(store: Store) -> None:
            for each in laid:
                each.times = a_week(STEP_MS)
                for piece in month_batches(sample_rows(each.block()), 64):
                    await store.insert("samples", piece)

        in_store(plant, lay)
        for _ in range(2):
            plant.start()
            client = plant.client()
            for each in parameters:
                check_shown(client, each)
            check_latest(client, parameters)
            plant.kill()
            in_store(plant, lambda store: check_stored(store, parameters))
        # The shortest period was over for all, the longest is for ever.
        assert not sent[0].since(sent[0].border(_clock.now_ms()))
        assert sent[-1].since(sent[-1].border(_clock.now_ms())) == sent[-1].times


def rewritten(plant: ConfiguredPlant, rows: int) -> None:
    """Wait until so many stored rows have been brought to another period since the start."""
    wait_for(lambda: plant.metric("retention_rows_total") >= rows, what="rewritten", seconds=60)


def test_a_changed_period_holds_for_what_is_stored(tmp_path: Path) -> None:
    """Also where everything is killed as soon as the change is made."""
    with configured(tmp_path) as plant:
        shorter = Parameter(plant, "shorter", 1_440)
        first = Parameter(plant, "first", 0)
        longer = Parameter(plant, "longer", 60)
        every = (shorter, first, longer)
        plant.put(*(each.point for each in every))
        client, now_ms = plant.client(), _clock.now_ms() // SECOND_MS * SECOND_MS
        shorter.times = first.times = range(now_ms - 1_200 * MINUTE_MS, now_ms, 10 * MINUTE_MS)
        # These are about to expire.
        soon_ms = now_ms - 60 * MINUTE_MS + 8 * SECOND_MS
        longer.times = range(soon_ms, soon_ms + 4_000, 100)
        for each in every:
            each.post(client)
        rows = sum(len(each.times) for each in every)
        stored_rows(plant, rows)

        shorter.minutes, first.minutes, longer.minutes = 60, 60, WEEK_MINUTES
        plant.put(*(each.point for each in every))
        for each in every:
            check_shown(client, each)
        rewritten(plant, rows)
        wait_for(
            lambda: not longer.since(longer.border(_clock.now_ms(), 60)), what="the old moment"
        )
        check_shown(client, longer)
        plant.kill()
        in_store(plant, lambda store: check_stored(store, every))

        # What is gone is gone; what is left is kept for longer.
        plant.start()
        for each in (shorter, first):
            each.gone_ms = _clock.now_ms() - 60 * MINUTE_MS
        shorter.minutes, first.minutes, longer.minutes = WEEK_MINUTES, 0, 60
        plant.put(*(each.point for each in every))
        plant.kill()
        plant.start()
        rewritten(plant, len(longer.times))
        client = plant.client()
        for each in every:
            check_shown(client, each)
        check_latest(client, every)
        plant.kill()
        in_store(plant, lambda store: check_stored(store, every))

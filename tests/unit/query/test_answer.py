"""The one path of a read: whose samples, how many, from where, and what is said when it fails."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterable, Mapping
from pathlib import Path
from typing import Any

import pytest

from schemas.blocks import Block
from schemas.envelope import Envelope
from schemas.queries import LatestQuery, RangeQuery
from schemas.topics import SAMPLES_ACCEPTED, TOPICS
from services.clock import Clock, ManualClock
from services.dialects import Auth, Inbound, Page, Principal, Question, Read, Reply
from services.errors import Malformed, Unavailable
from services.eventlog import open_eventlog
from services.presence import PresenceView
from services.query.answer import Answer
from services.query.coalesce import Coalescer
from services.query.live import LiveView
from services.runtime import until
from services.settings import Settings
from tests.support.lookup import ListedLookup
from tests.support.stores import MemoryStore, a_block, rows_of

NAMES = {1: "one", 2: "two"}
PRINCIPAL = Principal("acme", "tester", frozenset({"read"}))


def a_read(query: RangeQuery | LatestQuery) -> Read:
    """A door that asks this, and answers with how many rows it got and who asked."""

    def render(inbound: Inbound, question: Question, page: Page) -> Reply:
        return Reply(200, f"{question.query.tenant}: {len(page.block)}".encode())

    return Read(
        "GET",
        ("/x",),
        Auth.BEARER,
        lambda inbound, lookup: Question(query, NAMES),
        render,
        lambda error, now_ms: Reply(503),
    )


def with_answer(
    tmp_path: Path,
    stored: Block,
    live: Block,
    body: Callable[[Answer, MemoryStore], Coroutine[Any, Any, None]],
    settings: Settings | None = None,
    *,
    lookup: ListedLookup | None = None,
    clock: Clock | None = None,
    presence: PresenceView | None = None,
) -> None:
    """Run `body` with some samples in the store and some on the log."""
    chosen = settings or Settings()

    async def flow() -> None:
        async with open_eventlog(f"sqlite:///{tmp_path / 'log.sqlite'}", lanes=1) as log:
            await log.create(TOPICS)
            if len(live):
                await log.append([(SAMPLES_ACCEPTED, 0, Envelope(live))])
            store = MemoryStore()
            store.put(stored)
            view = LiveView(log, store, chosen)
            following = asyncio.create_task(view.run())
            await until(view.ready, seconds=10)
            ranges = Coalescer(store, rows_max=chosen.range_rows_max)
            answer = Answer(
                *(view, ranges, lookup or ListedLookup()),
                settings=chosen,
                clock=clock or ManualClock(),
                presence=presence or PresenceView(ManualClock()),
            )
            await body(answer, store)
            await ranges.close()
            following.cancel()
            await asyncio.gather(following, return_exceptions=True)

    asyncio.run(flow())


def test_a_range_joins_the_store_and_the_tail(tmp_path: Path) -> None:
    query = RangeQuery("acme", (2, 1, 1), 0, 100, 3, descending=True)

    async def body(answer: Answer, store: MemoryStore) -> None:
        page = await answer.page(Question(query, NAMES))
        assert rows_of(page.block) == [(1, 9, 9), (1, 3, 7), (1, 2, 2), (2, 1, 1)]
        assert page.asked == (2, 1, 1) and page.names == NAMES

    stored = a_block([(1, 1, 1), (1, 2, 2), (1, 3, 3), (2, 1, 1)])
    with_answer(tmp_path, stored, a_block([(1, 3, 7), (1, 9, 9)]), body)


def test_latest_values_do_not_ask_the_store(tmp_path: Path) -> None:
    async def body(answer: Answer, store: MemoryStore) -> None:
        asked = list(store.asked)
        store.away = True
        page = await answer.page(Question(LatestQuery("acme", (2, 1)), NAMES))
        assert rows_of(page.block) == [(2, 1, 1), (1, 9, 9)]
        assert store.asked == asked

    with_answer(tmp_path, a_block([(1, 3, 3), (2, 1, 1)]), a_block([(1, 9, 9)]), body)


@pytest.mark.parametrize(
    "query", [RangeQuery("other", (1,), 0, 100, 10), LatestQuery("other", (1,)), LatestQuery()]
)
def test_only_the_credential_says_whose_samples(
    tmp_path: Path, query: RangeQuery | LatestQuery
) -> None:
    both = a_block([(1, 1, 1)], tenant="acme")
    both.extend(a_block([(2, 1, 1), (3, 1, 1)], tenant="other"))

    async def body(answer: Answer, store: MemoryStore) -> None:
        reply = await answer.reply(a_read(query), Inbound(b"", 0, PRINCIPAL))
        assert reply.body == b"acme: 1"

    with_answer(tmp_path, both, Block(), body)


def test_an_answer_that_would_be_cut_is_refused_and_one_that_fits_is_whole(tmp_path: Path) -> None:
    async def body(answer: Answer, store: MemoryStore) -> None:
        fits = RangeQuery("acme", (1, 2), 0, 50, 2**31 - 1)
        assert len((await answer.page(Question(fits, NAMES))).block) == 100
        with pytest.raises(Malformed) as refused:
            wide = RangeQuery("acme", (1, 2), 0, 51, 2**31 - 1)
            await answer.page(Question(wide, NAMES))
        assert refused.value.where == "?limit"
        # Cut because the sender said so.
        asked = RangeQuery("acme", (1, 2), 0, 80, 50)
        assert len((await answer.page(Question(asked, NAMES))).block) == 100

    stored = a_block([(series, ts, 1) for series in (1, 2) for ts in range(80)])
    with_answer(tmp_path, stored, Block(), body, Settings(range_rows_max=100))


def test_the_tail_counts_where_an_answer_would_be_cut(tmp_path: Path) -> None:
    async def body(answer: Answer, store: MemoryStore) -> None:
        with pytest.raises(Malformed):
            await answer.page(Question(RangeQuery("acme", (1,), 0, 999, 10**9), NAMES))

    stored = a_block([(1, ts, 1) for ts in range(100)])
    with_answer(tmp_path, stored, a_block([(1, 500, 1)]), body, Settings(range_rows_max=100))


@pytest.mark.parametrize(
    "query",
    [
        RangeQuery("acme", (), 0, 100, 10),
        RangeQuery("acme", (1,), 5, 5, 10),
        RangeQuery("acme", (1,), 9, 1, 10),
        RangeQuery("acme", (1,), 0, 100, 0),
    ],
)
def test_nothing_asked_for_is_nothing_found(tmp_path: Path, query: RangeQuery) -> None:
    async def body(answer: Answer, store: MemoryStore) -> None:
        store.away = True
        assert not len((await answer.page(Question(query, NAMES))).block)

    with_answer(tmp_path, a_block([(1, 5, 1)]), a_block([(1, 5, 2)]), body)


def test_a_store_that_is_slow_or_away_is_unavailable(tmp_path: Path) -> None:
    query = RangeQuery("acme", (1,), 0, 100, 10)

    async def body(answer: Answer, store: MemoryStore) -> None:
        store.hold()
        with pytest.raises(Unavailable, match="in time"):
            await answer.page(Question(query, NAMES))
        store.release()
        store.away = True
        with pytest.raises(Unavailable, match="away"):
            await answer.page(Question(query, NAMES))
        store.away = False
        assert len((await answer.page(Question(query, NAMES))).block) == 1

    with_answer(tmp_path, a_block([(1, 5, 1)]), Block(), body, Settings(read_wait_ms=100))


def test_of_the_devices_of_a_question_is_said_which_are_connected(tmp_path: Path) -> None:
    class Said(PresenceView):
        """Knows one device of one tenant."""

        def connected(self, tenant: str, devices: Iterable[str]) -> Mapping[str, bool]:
            return {"d": True} if (tenant, [*devices]) == ("acme", ["d", "e"]) else {}

    async def body(answer: Answer, store: MemoryStore) -> None:
        latest = LatestQuery("acme", ())
        assert (await answer.page(Question(latest, {}, devices=("d", "e")))).connected == {
            "d": True
        }
        assert (await answer.page(Question(latest, {}))).connected == {}

    with_answer(tmp_path, Block(), Block(), body, presence=Said(ManualClock()))


NOW_MS = 1_700_000_000_700
"""In the middle of a second."""
SECOND_MS, MINUTE_MS = 1_700_000_000_000, 60_000


class Kept(ListedLookup):
    """Series are kept for as many minutes as their numbers are mapped to."""

    def __init__(self, minutes: Mapping[int, int]) -> None:
        super().__init__()
        self._minutes = minutes

    def kept_minutes(self, series: int) -> int:
        return self._minutes.get(series, 0)


def ask(
    answer: Answer, *series: int, end_ms: int = 2**43, limit: int = 100
) -> Coroutine[Any, Any, Page]:
    """A range from the beginning of time."""
    return answer.page(Question(RangeQuery("acme", series, 0, end_ms, limit), NAMES))


@pytest.mark.parametrize("live", [False, True], ids=["stored", "tail"])
def test_what_is_older_than_its_period_is_not_shown(tmp_path: Path, live: bool) -> None:
    border = SECOND_MS - 2 * MINUTE_MS
    rows = [(s, ts, s) for s in (1, 2, 3) for ts in (0, border - 1, border, SECOND_MS, NOW_MS)]

    async def body(answer: Answer, store: MemoryStore) -> None:
        page = await ask(answer, 3, 2, 1)
        assert rows_of(page.block) == [row for row in rows if row[0] == 3 or row[1] >= border]
        assert page.asked == (3, 2, 1)

    blocks = (a_block([(9, 0, 1)]), a_block(rows)) if live else (a_block(rows), Block())
    lookup = Kept({1: 2, 2: 2, 3: 0})
    with_answer(tmp_path, *blocks, body, lookup=lookup, clock=ManualClock(NOW_MS))


def test_series_of_one_period_share_a_query_and_those_without_one_are_asked_as_before(
    tmp_path: Path,
) -> None:
    async def body(answer: Answer, store: MemoryStore) -> None:
        del store.asked[:]
        await ask(answer, 1, 2, 3, 4)
        ranges = [query for query in store.asked if isinstance(query, RangeQuery)]
        assert {query.series: query.start_ms for query in ranges} == {
            (1, 3): SECOND_MS - 5 * MINUTE_MS,
            (2,): SECOND_MS - MINUTE_MS,
            (4,): 0,
        }

    lookup = Kept({1: 5, 2: 1, 3: 5})
    with_answer(tmp_path, Block(), Block(), body, lookup=lookup, clock=ManualClock(NOW_MS))


def test_questions_of_one_second_have_one_border(tmp_path: Path) -> None:
    clock = ManualClock(SECOND_MS)

    async def body(answer: Answer, store: MemoryStore) -> None:
        del store.asked[:]
        for ms in (0, 999, 1):
            clock.advance(ms)
            await ask(answer, 1)
        starts = [query.start_ms for query in store.asked if isinstance(query, RangeQuery)]
        assert starts == [SECOND_MS - MINUTE_MS] * 2 + [SECOND_MS - MINUTE_MS + 1_000]

    with_answer(tmp_path, Block(), Block(), body, lookup=Kept({1: 1}), clock=clock)


def test_where_everything_asked_for_has_expired_the_store_is_not_asked(tmp_path: Path) -> None:
    async def body(answer: Answer, store: MemoryStore) -> None:
        store.away = True
        assert not len((await ask(answer, 1, end_ms=SECOND_MS - MINUTE_MS)).block)

    lookup = Kept({1: 1})
    with_answer(
        tmp_path, a_block([(1, 5, 1)]), Block(), body, lookup=lookup, clock=ManualClock(NOW_MS)
    )


def test_the_limit_is_of_what_is_shown(tmp_path: Path) -> None:
    times = [SECOND_MS - MINUTE_MS + step * 1_000 for step in range(-3, 3)]

    async def body(answer: Answer, store: MemoryStore) -> None:
        page = await ask(answer, 1, 2, limit=2)
        assert rows_of(page.block) == [
            *((1, ts_ms, 1) for ts_ms in times[3:5]),
            *((2, ts_ms, 1) for ts_ms in times[:2]),
        ]

    stored = a_block([(series, ts_ms, 1) for series in (1, 2) for ts_ms in times])
    lookup = Kept({1: 1, 2: 5})
    with_answer(tmp_path, stored, Block(), body, lookup=lookup, clock=ManualClock(NOW_MS))


def test_the_latest_value_outlives_its_period(tmp_path: Path) -> None:
    async def body(answer: Answer, store: MemoryStore) -> None:
        page = await answer.page(Question(LatestQuery("acme", (1,)), NAMES))
        assert rows_of(page.block) == [(1, 5, 1)]

    lookup = Kept({1: 1})
    with_answer(
        tmp_path, a_block([(1, 5, 1)]), Block(), body, lookup=lookup, clock=ManualClock(NOW_MS)
    )

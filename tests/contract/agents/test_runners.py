"""What every runner must do to lanes, whatever it is made of: each record applied once, in order.

The toy agent's outputs are a chain over all records of a lane, so equal outputs say that nothing
was left out, repeated or reordered. The controls show that the suite would notice.
"""

from __future__ import annotations

import asyncio

from schemas.blocks import Block
from schemas.envelope import Envelope
from schemas.points import LANE_SHIFT
from schemas.topics import SAMPLES_RECEIVED
from tests.contract.agents import _toy
from tests.contract.agents._ground import Ground
from tests.contract.eventlog._places import LANES, KafkaPlace, opened
from tests.support.builders import a_sample, an_envelope
from tests.support.kafka import delete_topics
from tests.support.processes import wait_for

EXIT_CODE = 70
LANE_NUMBERS = range(LANES)


def test_every_record_is_applied_once_and_in_order(ground: Ground) -> None:
    asyncio.run(ground.feed(100))
    member = ground.start()
    ground.wait(member)
    assert member.process.stop() == 0
    assert asyncio.run(ground.outputs()) == ground.expected()


def test_a_member_goes_on_from_the_checkpoints_of_the_one_before(ground: Ground) -> None:
    asyncio.run(ground.feed(60))
    first = ground.start()
    ground.wait(first)
    assert first.process.stop() == 0
    before = {lane: len(found) for lane, found in asyncio.run(ground.logged()).items()}
    asyncio.run(ground.feed(40))
    second = ground.start()
    ground.wait(second)
    assert second.process.stop() == 0
    after = {lane: len(found) for lane, found in asyncio.run(ground.logged()).items()}
    assert {lane: after[lane] - before[lane] for lane in after} == dict.fromkeys(range(LANES), 40)
    assert asyncio.run(ground.outputs()) == ground.expected()


def test_kills_between_outputs_and_the_pieces_of_a_checkpoint_change_nothing(
    ground: Ground,
) -> None:
    for crash_at in (1, 2, 5):
        asyncio.run(ground.feed(30))
        crashing = ground.start(crash_at=crash_at)
        assert crashing.process.wait() == -9
    member = ground.start()
    ground.wait(member)
    assert member.process.stop() == 0
    assert asyncio.run(ground.outputs()) == ground.expected()
    records = sum(len(found) for found in asyncio.run(ground.logged()).values())
    assert records > LANES * 90, "nothing was repeated, so nothing was shown"


def test_an_agent_that_raises_ends_its_process_and_loses_nothing(ground: Ground) -> None:
    asyncio.run(ground.feed(50))
    ground.flag("raises").touch()
    raising = ground.start()
    assert raising.process.wait() == EXIT_CODE
    ground.flag("raises").unlink()
    member = ground.start()
    ground.wait(member)
    assert member.process.stop() == 0
    assert asyncio.run(ground.outputs()) == ground.expected()


def test_a_lane_whose_store_is_away_waits_and_the_others_go_on(ground: Ground) -> None:
    asyncio.run(ground.feed(50))
    ground.flag("away").touch()
    member = ground.start()
    ground.wait(member, ends=dict.fromkeys(range(1, LANES), 49))
    assert member.positions.get(0, -1) == -1
    ground.flag("away").unlink()
    ground.wait(member)
    assert member.process.stop() == 0
    assert asyncio.run(ground.outputs()) == ground.expected()


def test_poison_becomes_a_letter_and_its_neighbours_are_applied(ground: Ground) -> None:
    asyncio.run(ground.feed(10))
    asyncio.run(ground.place.poison(SAMPLES_RECEIVED, 2, b"\x00 none of ours", [("v", b"99")]))
    numbers = list(ground.fed[2])
    asyncio.run(ground.feed(10, lanes=[2]))
    member = ground.start()
    ground.wait(member, ends={0: 9, 1: 9, 2: 20, 3: 9})
    assert member.process.stop() == 0
    assert [letter.offset for letter in asyncio.run(ground.letters())] == [10]
    lane = asyncio.run(ground.outputs())[2]
    states = [state for offset in sorted(lane, key=int) for state in lane[offset]]
    assert states == [*_states(numbers + ground.fed[2][10:])]


def _states(numbers: list[int]) -> list[int]:
    return [state for states in _toy.expected(numbers).values() for state in states]


def test_faults_between_runner_and_lane_change_nothing(ground: Ground) -> None:
    asyncio.run(ground.feed(80))
    member = ground.start(garble=5)
    ground.wait(member)
    assert member.process.stop() == 0
    assert asyncio.run(ground.outputs()) == ground.expected()


def test_without_the_keepers_check_the_same_faults_do_harm(ground: Ground) -> None:
    asyncio.run(ground.feed(80))
    member = ground.start(garble=5, unchecked=True)
    ground.wait_rest(member)
    member.process.kill()
    outputs = asyncio.run(ground.outputs())
    assert all(outputs[lane] != expected for lane, expected in ground.expected().items())


def test_the_judge_gives_every_time_one_version_across_a_crash(ground: Ground) -> None:
    async def feed() -> None:
        async with opened(ground.place) as log:
            for n in range(1, 31):
                await log.append(
                    [(SAMPLES_RECEIVED, lane, _block(lane, n)) for lane in LANE_NUMBERS]
                )

    asyncio.run(feed())
    assert ground.start(agent="samples", crash_at=3).process.wait() == -9
    member = ground.start(agent="samples")
    ground.wait(member, ends=dict.fromkeys(LANE_NUMBERS, 29))
    assert member.process.stop() == 0
    for lane, records in asyncio.run(ground.logged()).items():
        stored = set()
        for logged in records:
            assert isinstance(logged.envelope, Envelope)
            block = logged.envelope.record
            assert isinstance(block, Block)
            values = [block.value(row) for row in range(len(block))]
            stored |= set(zip(block.series, block.ts_ms, values, block.version, strict=True))
        first = [(lane << LANE_SHIFT, n, float(n)) for n in range(1, 31)]
        assert sorted(row[:3] for row in stored) == first


def _block(lane: int, n: int) -> Envelope:
    """A new time, the same again with another value, and the time before with another value."""
    series = lane << LANE_SHIFT
    rows = [(float(n), n), (n + 0.5, n), (n + 0.25, max(1, n - 1))]
    return an_envelope(*(a_sample(value, ts_ms, series=series) for value, ts_ms in rows))


def test_members_that_come_and_go_change_nothing(kafka_ground: Ground) -> None:
    ground = kafka_ground
    asyncio.run(ground.feed(30))
    first = ground.start()
    ground.wait(first)
    for last in ("killed", "stopped"):
        second = ground.start()
        wait_for(lambda: 0 < len(second.positions) < LANES, seconds=30, what="a share of lanes")  # noqa: B023
        asyncio.run(ground.feed(30))
        ground.wait(first, second)
        if last == "killed":
            second.process.kill()
        else:
            assert second.process.stop() == 0
        asyncio.run(ground.feed(30))
        ground.wait(first)
    assert first.process.stop() == 0
    assert asyncio.run(ground.outputs()) == ground.expected()


def test_a_topic_that_was_made_anew_ends_the_process(kafka_ground: Ground) -> None:
    ground = kafka_ground
    assert isinstance(ground.place, KafkaPlace)
    asyncio.run(ground.feed(30))
    first = ground.start()
    ground.wait(first)
    name = ground.place.prefix + SAMPLES_RECEIVED.name
    asyncio.run(delete_topics(ground.place.address, name))
    old = {lane: len(found) for lane, found in asyncio.run(ground.logged()).items()}
    ground.fed = {lane: [] for lane in range(LANES)}
    asyncio.run(ground.feed(20))
    assert first.process.wait(seconds=30) == EXIT_CODE
    assert "was made anew" in first.process.output()

    asyncio.run(ground.store())
    second = ground.start(epoch=2)
    ground.wait(second)
    assert second.process.stop() == 0
    logged = asyncio.run(ground.logged())
    for lane, records in logged.items():
        epochs = [
            record.envelope.epoch for record in records if isinstance(record.envelope, Envelope)
        ]
        assert epochs == [1] * old[lane] + [2] * 20


def test_a_bare_body_that_raises_loses_the_record_on_faust(faust_ground: Ground) -> None:
    seen = _bare(faust_ground, "unguarded")
    assert seen == set(range(25)) - {13}


def test_a_guarded_body_that_raises_loses_nothing_on_faust(faust_ground: Ground) -> None:
    assert _bare(faust_ground, "guarded") == set(range(25))


def _bare(ground: Ground, bare: str) -> set[int]:
    """The records that two lives of a bare agent saw, after the group has committed them all."""
    asyncio.run(ground.feed(25, lanes=[0]))
    first = ground.start(bare=bare)
    if bare == "guarded":
        assert first.process.wait() == EXIT_CODE
        second = ground.start(bare=bare)
        wait_for(lambda: 24 in second.seen, seconds=60, what="the last record")
        return {*first.seen, *second.seen}
    wait_for(lambda: 24 in first.seen, seconds=60, what="the last record")

    async def committed() -> int:
        async with opened(ground.place) as log:
            return (await log.committed("agents.toy.faust", SAMPLES_RECEIVED)).get(0, 0)

    wait_for(lambda: asyncio.run(committed()) == 25, seconds=30, what="a commit of all")
    first.process.kill()
    second = ground.start(bare=bare)
    asyncio.run(ground.feed(1, lanes=[0]))
    wait_for(lambda: 25 in second.seen, seconds=60, what="a record behind them")
    return {*first.seen, *second.seen} - {25}

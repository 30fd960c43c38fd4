"""The lives of Kafka's topics, on a cluster that is a dictionary."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager

import pytest

from services.errors import Broken, Unavailable
from services.eventlog._kafka_admin import Described
from services.eventlog._kafka_lives import Lives


class Cluster:
    """Topics by name with their ids; `failure` is raised instead of an answer."""

    def __init__(self) -> None:
        self.ids = {"a": "a1", "b": "b1"}
        self.asked: list[list[str]] = []
        self.failure: Exception | None = None

    async def describe(self, names: Sequence[str]) -> Mapping[str, Described]:
        self.asked.append(list(names))
        if self.failure is not None:
            raise self.failure
        return {name: Described(self.ids[name], 4) for name in names if name in self.ids}

    async def asked_again(self, times: int = 2) -> None:
        """Wait for questions that began after this call, and their answers."""
        wanted = len(self.asked) + times
        async with asyncio.timeout(5):
            while len(self.asked) < wanted:
                await asyncio.sleep(0)


@asynccontextmanager
async def watched(cluster: Cluster) -> AsyncIterator[Lives]:
    """Lives that are watched without a pause."""
    lives = Lives(cluster.describe, every_seconds=0)
    lives.start()
    try:
        yield lives
    finally:
        lives.close()


def test_a_topic_that_is_made_anew_is_noticed_and_the_others_go_on() -> None:
    async def body() -> None:
        cluster = Cluster()
        async with watched(cluster) as lives:
            await lives.meet(["a", "b"])
            del cluster.ids["a"]
            await cluster.asked_again()
            lives.check(["a", "b"])
            cluster.ids["a"] = "a2"
            await cluster.asked_again()
            lives.check(["b"])
            for _ in range(2):
                with pytest.raises(Broken, match=r"a was made anew \(a1 is now a2\)"):
                    lives.check(["a", "b"])
            with pytest.raises(Broken, match="made anew"):
                await lives.meet(["a"])
            assert lives.of("a") == "a1"

    asyncio.run(body())


def test_a_cluster_that_is_away_says_nothing_of_its_topics() -> None:
    async def body() -> None:
        cluster = Cluster()
        async with watched(cluster) as lives:
            await lives.meet(["a"])
            cluster.failure = Unavailable("away")
            await cluster.asked_again()
            lives.check(["a"])
            with pytest.raises(Unavailable):
                await lives.meet(["a", "b"])
            cluster.failure, cluster.ids["a"] = None, "a2"
            await cluster.asked_again()
            with pytest.raises(Broken):
                lives.check(["a"])

    asyncio.run(body())


def test_a_topic_that_is_not_there_is_met_later_and_one_that_was_met_is_not_asked_for() -> None:
    async def body() -> None:
        cluster = Cluster()
        lives = Lives(cluster.describe)
        await lives.meet(["a", "c"])
        assert (lives.of("a"), lives.of("c")) == ("a1", "")
        cluster.ids["c"] = "c1"
        await lives.meet(["a", "c"])
        assert lives.of("c") == "c1"
        await lives.meet(["a", "c"])
        assert cluster.asked == [["a", "c"], ["c"]]

    asyncio.run(body())


def test_a_commit_counts_in_the_life_that_it_names_and_one_of_a_tool_in_any() -> None:
    async def body() -> None:
        lives = Lives(Cluster().describe)
        await lives.meet(["a"])
        assert [lives.counts("a", said) for said in ("a1", "", None)] == [True] * 3
        assert not lives.counts("a", "a0")

    asyncio.run(body())


def test_where_nobody_watches_any_more_nothing_is_read_on() -> None:
    async def body() -> None:
        cluster = Cluster()
        async with watched(cluster) as lives:
            await lives.meet(["a"])
            cluster.failure = Broken("this Kafka is too old")
            await cluster.asked_again(1)
            await asyncio.sleep(0)
            with pytest.raises(Broken, match="not watched"):
                lives.check(["a"])

    asyncio.run(body())

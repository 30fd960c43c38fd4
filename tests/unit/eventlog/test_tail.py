"""The newest records in memory: found by offset, the oldest of all lanes forgotten first."""

from __future__ import annotations

from schemas.envelope import Envelope, Tick
from services.eventlog._tail import Tail

A, B = ("topic", 0), ("topic", 1)


def _offsets(tail: Tail, key: tuple[str, int], offset: int, records_max: int = 100) -> list[int]:
    return [logged.offset for logged in tail.read(key, offset, records_max)]


def test_it_gives_consecutive_records_from_an_offset_on() -> None:
    tail = Tail(1 << 20)
    for offset in (3, 4, 5, 7):
        tail.add(A, offset, Envelope(Tick(offset)), 10)
    assert _offsets(tail, A, 3) == [3, 4, 5]
    assert _offsets(tail, A, 4, records_max=1) == [4]
    assert _offsets(tail, A, 7) == [7]
    assert _offsets(tail, A, 2) == _offsets(tail, A, 6) == _offsets(tail, B, 3) == []


def test_it_forgets_the_oldest_of_all_lanes_when_the_bytes_are_used_up() -> None:
    tail = Tail(100_000)
    for offset in range(50):
        tail.add(A if offset % 2 else B, offset, Envelope(Tick(offset)), 8_000)
    kept = [offset for offset in range(50) for key in (A, B) if _offsets(tail, key, offset)]
    assert kept == [*range(50 - len(kept), 50)]
    assert 5 <= len(kept) <= 12

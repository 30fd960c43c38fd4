"""Who may speak how often and how much at the MQTT door: the devices with their sessions and rates,
and the addresses with their failed logins. State in bounded memory, no I/O; time is handed in.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

_WINDOW_MS = 60_000
_ADDRESSES_MAX = 65_536
_DELAY_MS, _DELAY_MS_MAX = 1_000, 5_000

SessionT = TypeVar("SessionT")


class Bucket:
    """Tokens that come back at `per_second` (0: no limit) up to `burst`; charging may run into
    debt, which is waited for.
    """

    __slots__ = ("_at_ms", "_burst", "_per_ms", "_tokens")

    def __init__(self, per_second: int, burst: int, now_ms: float) -> None:
        self._per_ms, self._burst = per_second / 1000, float(burst)
        self._tokens, self._at_ms = float(burst), now_ms

    def charge(self, count: int, now_ms: float) -> float:
        """Take `count` tokens; how many ms to wait before more may be read (0: none)."""
        if not self._per_ms:
            return 0.0
        self._refill(now_ms)
        self._tokens -= count
        return max(0.0, -self._tokens / self._per_ms)

    def full(self, now_ms: float) -> bool:
        """Whether nothing would be forgotten by forgetting the bucket."""
        self._refill(now_ms)
        return not self._per_ms or self._tokens >= self._burst

    def _refill(self, now_ms: float) -> None:
        gained = (now_ms - self._at_ms) * self._per_ms
        self._tokens = min(self._burst, self._tokens + gained)
        self._at_ms = now_ms


class Rate:
    """What a device may send: messages and bytes, each from a bucket of its own."""

    __slots__ = ("_messages", "_volume")

    def __init__(self, messages: Bucket, volume: Bucket) -> None:
        self._messages, self._volume = messages, volume

    def charge(self, messages: int, size: int, now_ms: float) -> float:
        """Take from both; how many ms to wait before more may be read (0: none)."""
        return max(self._messages.charge(messages, now_ms), self._volume.charge(size, now_ms))

    def full(self, now_ms: float) -> bool:
        """Whether nothing would be forgotten by forgetting the rate."""
        return self._messages.full(now_ms) and self._volume.full(now_ms)


class Member(Generic[SessionT]):
    """A device (or another credential) that has or had sessions: client id to session, oldest
    first, and the rate they share.
    """

    __slots__ = ("rate", "sessions")

    def __init__(self, rate: Rate) -> None:
        self.rate = rate
        self.sessions: dict[str, SessionT] = {}


class Members(Generic[SessionT]):
    """All devices that have sessions, and those that had some until their rate has recovered;
    `fresh` makes the rate of a new one at a moment (ms).
    """

    def __init__(self, fresh: Callable[[float], Rate]) -> None:
        self._fresh = fresh
        self._members: dict[tuple[str, str], Member[SessionT]] = {}

    def member(self, device: tuple[str, str], now_ms: float) -> Member[SessionT]:
        """The device by tenant and id."""
        member = self._members.get(device)
        if member is None:
            member = self._members[device] = Member[SessionT](self._fresh(now_ms))
        return member

    def __iter__(self) -> Iterator[Member[SessionT]]:
        return iter(self._members.values())

    def forget_idle(self, now_ms: float) -> None:
        """Drop the devices without a session whose rate has recovered."""
        idle = [
            device
            for device, member in self._members.items()
            if not member.sessions and member.rate.full(now_ms)
        ]
        for device in idle:
            del self._members[device]


class Failures:
    """Failed logins by address, in windows of a minute; beyond the allowed number, answers are
    delayed.
    """

    def __init__(self, per_minute: int) -> None:
        self._per_minute = per_minute
        self._windows: dict[str, tuple[float, int]] = {}

    def failed(self, address: str, now_ms: float) -> float:
        """Count a failure; how many ms its answer is to be held back."""
        since_ms, count = self._windows.pop(address, (now_ms, 0))
        if now_ms - since_ms >= _WINDOW_MS:
            since_ms, count = now_ms, 0
        count += 1
        self._windows[address] = (since_ms, count)
        if len(self._windows) > _ADDRESSES_MAX:
            del self._windows[next(iter(self._windows))]
        if count <= self._per_minute:
            return 0.0
        return min(_DELAY_MS_MAX, _DELAY_MS * (1 + (count - self._per_minute) // 10))

    def forget_old(self, now_ms: float) -> None:
        """Drop the windows that are over."""
        old = [a for a, (since, _) in self._windows.items() if now_ms - since >= _WINDOW_MS]
        for address in old:
            del self._windows[address]

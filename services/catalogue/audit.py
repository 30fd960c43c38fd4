"""Who had what done: every control action leaves a record on the log, whichever way it is asked
for.

The record is written before the action, its outcome unknown, and again when it has ended: nothing
is done that is not written down, also where the process dies in between. Where the first cannot be
written nothing is done; where the second cannot, the answer is that nobody knows.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial, wraps
from inspect import iscoroutinefunction
from threading import Lock
from typing import Any, Protocol, TypeVar
from urllib.parse import urlsplit
from uuid import uuid4

from schemas.catalogue import SCOPES, Thing
from schemas.envelope import Audit, Envelope
from schemas.topics import CALLS_AUDITED
from services.clock import Clock
from services.errors import Forbidden, OverQuota, Refused, Unavailable
from services.eventlog import EventLog

_SECRETS = frozenset({"password"})
_TEXT_CHARACTERS_MAX, _MEMBERS_MAX = 256, 50
_TARGETS = ("id", "name", "key")


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks, by which way ("http", "socket", "command", "process"). Who has a `tenant` can do
    nothing outside of it, and give nobody more than their own `scopes`.
    """

    subject: str
    via: str
    tenant: str = ""
    scopes: frozenset[str] = frozenset(SCOPES)


PROCESS = Caller("lineshaft", "process")
"""What a process does by itself."""


class Journal:
    """Writes audit records."""

    def __init__(self, log: EventLog, clock: Clock, commit_seconds: float) -> None:
        self._log, self._clock, self._commit_seconds = log, clock, commit_seconds
        self._under_way: set[asyncio.Task[Any]] = set()

    def record(
        self,
        caller: Caller,
        action: str,
        target: str,
        outcome: str,
        *,
        arguments: Mapping[str, Any] | None = None,
        tenant: str = "",
        detail: str = "",
    ) -> Audit:
        """A record of a call at this moment."""
        return Audit(
            call=uuid4().hex,
            at_ms=self._clock.now_ms(),
            tenant=_cut(caller.tenant or tenant),
            subject=_cut(caller.subject),
            via=caller.via,
            action=action,
            target=_cut(target),
            arguments=arguments or {},
            outcome=outcome,
            detail=_cut(detail),
        )

    async def write(self, record: Audit) -> None:
        """Have the record on the log. Raises Unavailable."""
        try:
            async with asyncio.timeout(self._commit_seconds):
                await self._log.append([(CALLS_AUDITED, 0, Envelope(record))])
        except TimeoutError:
            raise Unavailable("the call cannot be written down; try again") from None

    async def kept(
        self,
        caller: Caller,
        action: str,
        arguments: Mapping[str, Any],
        do: Callable[[], Awaitable[Any]],
    ) -> Any:
        """The result of `do`, once the call is written down. It goes on when nobody waits for it
        any more.
        """
        doing = asyncio.create_task(self._kept(caller, action, arguments, do), name=action)
        self._under_way.add(doing)
        doing.add_done_callback(self._ended)
        return await asyncio.shield(doing)

    async def _kept(
        self,
        caller: Caller,
        action: str,
        arguments: Mapping[str, Any],
        do: Callable[[], Awaitable[Any]],
    ) -> Any:
        named = (arguments[name] for name in _TARGETS if isinstance(arguments.get(name), str))
        record = self.record(
            caller,
            action,
            next(named, ""),
            "unknown",
            arguments={name: _said(name, value) for name, value in arguments.items()},
            tenant=_tenant_of(arguments),
        )
        await self.write(record)
        try:
            _check_tenant(caller, action, arguments)
            result = await do()
        except (Refused, OverQuota) as error:
            await self.write(replace(record, outcome="refused", detail=_cut(str(error))))
            raise
        made = result[0] if isinstance(result, tuple) else result
        target = f"{made.KIND}/{made.id}" if isinstance(made, Thing) else record.target
        await self.write(replace(record, outcome="done", target=_cut(target)))
        return result

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._under_way.discard(task)
        if not task.cancelled():
            task.exception()


class Audible(Protocol):
    """What has actions to be audited."""

    caller: Caller
    journal: Journal


C = TypeVar("C", bound=Audible)


def audited(cls: type[C]) -> type[C]:
    """Have every public coroutine of the class written down."""
    for name, method in inspect.getmembers(cls, iscoroutinefunction):
        if not name.startswith("_"):
            setattr(cls, name, _audited(name, method))
    return cls


def _audited(action: str, method: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
    takes = inspect.signature(method)

    @wraps(method)
    async def act(self: Audible, *given: Any, **named: Any) -> Any:
        arguments = dict(takes.bind(self, *given, **named).arguments)
        del arguments["self"]
        return await self.journal.kept(
            self.caller, action, arguments, partial(method, self, *given, **named)
        )

    return act


def _tenant_of(arguments: Mapping[str, Any]) -> str:
    """The one tenant that a call is about, where it is about one."""
    tenants = arguments.get("tenants") or [arguments.get("tenant")]
    return str(next(iter(tenants)) or "") if len(tenants) == 1 else ""


def _check_tenant(caller: Caller, action: str, arguments: Mapping[str, Any]) -> None:
    """Who belongs to a tenant acts in that one. Raises Forbidden."""
    named: Iterable[Any] = arguments.get("tenants") or [arguments.get("tenant")]
    if caller.tenant and set(named) != {caller.tenant}:
        raise Forbidden(f"{action} is not for a caller of {caller.tenant}")


def _said(name: str, value: Any) -> Any:
    """An argument as it is written down: bounded, and without secrets."""
    if name in _SECRETS:
        return None if value is None else "***"
    if name == "url" and isinstance(value, str):
        return _origin(value)
    if isinstance(value, str):
        return _cut(value)
    if isinstance(value, Mapping):
        members = [*value.items()][:_MEMBERS_MAX]
        return {_cut(str(key)): _said(str(key), member) for key, member in members}
    if isinstance(value, list | tuple | set | frozenset):
        return [_said("", member) for member in [*value][:_MEMBERS_MAX]]
    return value if isinstance(value, int | float | bool | None) else _cut(str(value))


def _origin(url: str) -> str:
    """Scheme and host: the path of a webhook is often its password."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return "…"
    return _cut(f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}/…")


def _cut(text: str) -> str:
    return text[:_TEXT_CHARACTERS_MAX]


class Ration:
    """How many records strangers can cause: `burst` at once, and one more every `every_ms`. The
    others are counted. May be used by several threads.
    """

    def __init__(self, clock: Clock, *, burst: int = 100, every_ms: int = 10_000) -> None:
        self._clock, self._burst, self._every_ms = clock, burst, every_ms
        self._left, self._since_ms = burst, clock.now_ms()
        self._passed_over = 0
        self._lock = Lock()

    def take(self) -> int | None:
        """None where this one is not to be written; else how many before it were not."""
        with self._lock:
            grown = max(0, self._clock.now_ms() - self._since_ms) // self._every_ms
            self._since_ms += grown * self._every_ms
            self._left = min(self._burst, self._left + grown)
            if not self._left:
                self._passed_over += 1
                return None
            self._left -= 1
            passed_over, self._passed_over = self._passed_over, 0
            return passed_over

"""The MQTT door: listens, keeps the table of sessions, and stops reading when the log is full.

An endpoint for devices, not a broker: the session's identity says who `me` is, and a publish is
acknowledged when the log has its data. `_mqtt_session` holds the protocol, `_mqtt_gather` the way
into the log. One task sweeps over all sessions once a second; there is no timer per connection.

MQTT 3.1.1 and 5.0; topics and reason codes follow the dialects' vendors.
"""

from __future__ import annotations

import asyncio
import logging
import resource
import ssl
from collections import Counter
from collections.abc import Callable, Mapping
from typing import cast

from services import metrics
from services.clock import Clock
from services.dialects import Lookup, Principal, Publish
from services.eventlog import EventLog
from services.ingress._mqtt_gather import Gather
from services.ingress._mqtt_limits import Bucket, Failures, Members, Rate
from services.ingress._mqtt_session import BUDGET, WRITING, Session, Transport
from services.ingress._mqtt_wire import Reason
from services.settings import Settings

_SWEEP_MS = 1_000
_DRAIN_MS = 5_000
_POLL_MS = 10
_WRITE_BYTES_MAX = 256 * 1024
_BACKLOG = 1_024
_OTHER_DESCRIPTORS = 512
"""Files and sockets of the process beside MQTT connections."""

_log = logging.getLogger(__name__)


class MqttListener:
    """All MQTT connections of a process. Belongs to one event loop.

    `authenticate` turns a user name (the token) into a principal or raises Unauthorized; it must
    not block. `publishes` maps a topic to its dialect's name and door. `told` is called with tenant
    and device when the first session of a device begins (True) and when its last one ends.
    """

    def __init__(
        self,
        *,
        log: EventLog,
        authenticate: Callable[[str], Principal],
        lookup: Lookup,
        publishes: Mapping[bytes, tuple[str, Publish]],
        clock: Clock,
        settings: Settings,
        told: Callable[[str, str, bool], None],
    ) -> None:
        self._told = told
        self.settings, self.clock, self.lookup, self.publishes = settings, clock, lookup, publishes
        self._log, self._authenticate = log, authenticate
        self.gather = Gather(log, schedule=self._schedule_flush, moved=self._moved)
        self._connections: set[Session] = set()
        self._addresses: Counter[str] = Counter()
        self._members = Members[Session](self._fresh_rate)
        self._failures = Failures(settings.mqtt_auth_failures_per_minute)
        self._behind: dict[Session, float] = {}
        self._full = False
        self._stopping = False
        self._servers: list[asyncio.Server] = []
        self._sweeper: asyncio.Task[None] | None = None

    # -- life --------------------------------------------------------------------------------------

    async def start(self, host: str, port: int, ssl_context: ssl.SSLContext | None = None) -> int:
        """Listen on one more address, in plain or over TLS; the port (`port` 0 picks one). Raises
        OSError.
        """
        loop = asyncio.get_running_loop()
        if self._sweeper is None:
            _raise_descriptor_limit(self.settings.mqtt_connections_max + _OTHER_DESCRIPTORS)
            self._sweeper = loop.create_task(self._sweep_on(), name="mqtt sweeper")
            self._sweeper.add_done_callback(_tell_failure)
        server = await loop.create_server(
            lambda: _Connection(self),
            host,
            port,
            ssl=ssl_context,
            backlog=_BACKLOG,
            ssl_handshake_timeout=self.settings.mqtt_connect_seconds_max if ssl_context else None,
        )
        self._servers.append(server)
        return int(server.sockets[0].getsockname()[1])

    async def stop(self) -> None:
        """Accept and read nothing more, answer what the log takes within 5 s, say goodbye."""
        self._stopping = True
        for server in self._servers:
            server.close()
        for session in list(self._connections):
            session.pause(BUDGET)
        self.gather.flush()
        ends_ms = self.clock.monotonic_ms() + _DRAIN_MS
        while self.gather.busy or any(session.unanswered for session in self._connections):
            if self.clock.monotonic_ms() > ends_ms:
                _log.warning("publishes without an answer are left to be sent again")
                break
            await asyncio.sleep(_POLL_MS / 1000)
        for session in list(self._connections):
            session.end(Reason.SHUTTING_DOWN)
        if self._sweeper is not None:
            self._sweeper.cancel()
            await asyncio.gather(self._sweeper, return_exceptions=True)
        while self._connections and self.clock.monotonic_ms() <= ends_ms:
            await asyncio.sleep(_POLL_MS / 1000)
        for session in list(self._connections):
            session.abort()

    def revoke(self, predicate: Callable[[Principal], bool]) -> None:
        """Close the sessions whose principal is not welcome any more."""
        for session in list(self._connections):
            if session.connected and predicate(session.principal):
                session.end(Reason.NOT_AUTHORIZED)

    @property
    def paused_ms(self) -> float:
        """How long the connection that has waited longest has not been read because something
        behind it is full; 0 where all are read.
        """
        if not self._behind:
            return 0.0
        return self.clock.monotonic_ms() - next(iter(self._behind.values()))

    # -- connections -------------------------------------------------------------------------------

    def accept(self, transport: Transport, address: str) -> Session | None:
        """The session of a new connection; None, and the connection is cut off, where there are too
        many.
        """
        limits = self.settings
        if (
            self._stopping
            or len(self._connections) >= limits.mqtt_connections_max
            or self._addresses[address] >= limits.mqtt_connections_per_address_max
        ):
            transport.abort()
            return None
        session = Session(transport, self, address)
        self._connections.add(session)
        self._addresses[address] += 1
        metrics.MQTT_CONNECTIONS.inc()
        if self._full:
            session.pause(BUDGET)
        return session

    def lost(self, session: Session) -> None:
        """The connection is gone."""
        session.closed()
        self._connections.discard(session)
        self._addresses[session.address] -= 1
        if not self._addresses[session.address]:
            del self._addresses[session.address]
        metrics.MQTT_CONNECTIONS.dec()

    # -- what sessions ask (`Host`) ----------------------------------------------------------------

    def enter(self, session: Session, username: str, client_id: str) -> tuple[Principal, Rate]:
        """See `Host`. A client id belongs to its device: nobody can take over another's session."""
        principal = self._authenticate(username)
        device = principal.tenant, principal.device or principal.subject
        member = self._members.member(device, self.clock.monotonic_ms())
        older = member.sessions.get(client_id)
        if older is not None:
            older.end(Reason.TAKEN_OVER)
        while len(member.sessions) >= self.settings.mqtt_sessions_per_device_max:
            next(iter(member.sessions.values())).end(Reason.QUOTA_EXCEEDED)
        member.sessions[client_id] = session
        if principal.device and len(member.sessions) == 1:
            self._told(principal.tenant, principal.device, True)
        return principal, member.rate

    def refused(self, session: Session) -> float:
        """See `Host`."""
        metrics.AUTH_FAILURES.labels("mqtt").inc()
        return self._failures.failed(session.address, self.clock.monotonic_ms())

    def left(self, session: Session) -> None:
        """See `Host`."""
        if not session.connected:
            return
        sessions = self._members.member(session.device, self.clock.monotonic_ms()).sessions
        if sessions.get(session.client_id) is session:
            del sessions[session.client_id]
            if session.principal.device and not sessions:
                self._told(session.principal.tenant, session.principal.device, False)

    def behind(self, session: Session, held_up: bool) -> None:
        """See `Host`."""
        if held_up:
            self._behind[session] = self.clock.monotonic_ms()
        else:
            self._behind.pop(session, None)
        metrics.MQTT_PAUSED.set(len(self._behind))

    def later(self, delay_ms: float, action: Callable[[], None]) -> Callable[[], None]:
        """See `Host`."""
        return asyncio.get_running_loop().call_later(delay_ms / 1000, action).cancel

    def delivered(self) -> None:
        """See `Host`. Above the budget, nobody is read until half of it is free."""
        over = self.gather.held or self._queued_bytes >= self._log.queued_bytes_max
        if over and not self._full:
            self._stop_reading()

    def _fresh_rate(self, now_ms: float) -> Rate:
        limits = self.settings
        return Rate(
            Bucket(limits.mqtt_messages_per_second, limits.mqtt_messages_burst, now_ms),
            Bucket(limits.mqtt_bytes_per_second, limits.mqtt_bytes_burst, now_ms),
        )

    # -- the budget --------------------------------------------------------------------------------

    @property
    def _queued_bytes(self) -> int:
        return self._log.queued_bytes + self.gather.queued_bytes

    def _stop_reading(self) -> None:
        self._full = True
        for session in self._connections:
            session.pause(BUDGET)

    def _moved(self) -> None:
        """The log has taken or failed something: there may be room again."""
        if self.gather.held:
            self.gather.retry()
        if self._full:
            if not self.gather.held and self._queued_bytes <= self._log.queued_bytes_max // 2:
                self._full = False
                if not self._stopping:
                    for session in list(self._connections):
                        session.resume(BUDGET)
        elif self.gather.held:
            self._stop_reading()

    def _schedule_flush(self) -> None:
        # Once a turn of the loop: what all connections delivered in this turn becomes one record.
        asyncio.get_running_loop().call_soon(self._flush)

    def _flush(self) -> None:
        self.gather.flush()
        self._moved()

    async def _sweep_on(self) -> None:
        while True:
            await asyncio.sleep(_SWEEP_MS / 1000)
            self.sweep()

    def sweep(self) -> None:
        """Once a second: end what has been silent or stuck for too long, forget what is over."""
        now_ms = self.clock.monotonic_ms()
        for session in list(self._connections):
            session.sweep(now_ms)
        self._members.forget_idle(now_ms)
        self._failures.forget_old(now_ms)
        # The log may have got room without us, when other doors had filled it.
        self._moved()


class _Connection(asyncio.Protocol):
    """Between asyncio's transport and the session."""

    def __init__(self, listener: MqttListener) -> None:
        self._listener = listener
        self._session: Session | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        transport = cast(asyncio.Transport, transport)
        peer = transport.get_extra_info("peername")
        transport.set_write_buffer_limits(_WRITE_BYTES_MAX)
        self._session = self._listener.accept(transport, str(peer[0]) if peer else "")

    def data_received(self, data: bytes) -> None:
        if self._session is not None:
            self._session.data_received(data)

    def pause_writing(self) -> None:
        if self._session is not None:
            self._session.pause(WRITING)

    def resume_writing(self) -> None:
        if self._session is not None:
            self._session.resume(WRITING)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._session is not None:
            self._listener.lost(self._session)


def _tell_failure(sweeper: asyncio.Task[None]) -> None:
    """Without its sweeper the listener keeps no time limit: that must not go unseen."""
    if not sweeper.cancelled() and sweeper.exception() is not None:
        _log.critical("the sweeper of MQTT sessions has stopped", exc_info=sweeper.exception())


def _raise_descriptor_limit(needed: int) -> None:
    """Allow the process as many descriptors as the connections need."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < needed:
        wanted = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
        if wanted < needed:
            _log.warning(
                "%d file descriptors are allowed, %d may be needed: raise the hard limit of "
                "RLIMIT_NOFILE or lower LINESHAFT_MQTT_CONNECTIONS_MAX",
                wanted,
                needed,
            )

"""The durable, partitioned log: `open_eventlog(url)` picks the driver by the URL's scheme."""

from __future__ import annotations

from services.errors import Broken
from services.eventlog._port import Batch, Done, EventLog, LanesChanged, Reader, Span, Start

__all__ = [
    "Batch",
    "Done",
    "EventLog",
    "LanesChanged",
    "Reader",
    "Span",
    "Start",
    "open_eventlog",
]


def open_eventlog(
    url: str, *, lanes: int, prefix: str = "", queued_bytes_max: int = 64 * 1024 * 1024
) -> EventLog:
    """The log behind `url`, not yet opened: `async with open_eventlog(...) as log`.

    `sqlite:///path/to/file` (four slashes for an absolute path) or `kafka://host:port,host:port`.
    `prefix` begins the names of topics and groups.
    """
    scheme, _, rest = url.partition("://")
    if scheme == "sqlite":
        from services.eventlog.sqlite import SqliteLog

        return SqliteLog(rest[1:], lanes=lanes, prefix=prefix, queued_bytes_max=queued_bytes_max)
    if scheme == "kafka":
        from services.eventlog.kafka import KafkaLog

        return KafkaLog(rest, lanes=lanes, prefix=prefix, queued_bytes_max=queued_bytes_max)
    raise Broken(f"no event log for {scheme}://; known are sqlite:/// and kafka://")

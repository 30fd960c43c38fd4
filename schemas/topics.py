"""Every topic: what lies on it, in how many lanes, how long. The only place where topics are named.

A noun and a past participle; the participle says the stage. The settings' topic prefix is put in
front by the drivers.
"""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import blake2b

DAY_MS = 86_400_000


@dataclass(frozen=True, slots=True)
class Topic:
    """A named log. `lanes` None means: as many as the installation has; `compacted` keeps the last
    record of each key.
    """

    name: str
    what: str
    lanes: int | None = None
    compacted: bool = False
    retention_ms: int = 7 * DAY_MS

    def lane_count(self, lanes: int) -> int:
        """The number of lanes in an installation that has `lanes` of them."""
        return self.lanes or lanes


SAMPLES_RECEIVED = Topic(
    "samples.received", "blocks as the doors took them in; a lane has one judge"
)
SAMPLES_ACCEPTED = Topic(
    "samples.accepted",
    "blocks of kept and overwriting samples, with versions; of every judged record, if only empty",
)
SAMPLES_SUPPRESSED = Topic(
    "samples.suppressed",
    "of a series and minute: how many changes were too small, and the last one",
)
ALERTS_RAISED = Topic("alerts.raised", "what a rule's webhook is to be told", lanes=1)
CALLS_AUDITED = Topic(
    "calls.audited", "control calls: who had what done", lanes=1, retention_ms=365 * DAY_MS
)
COMMANDS_CHANGED = Topic(
    "commands.changed", "values that shall be written to points, and how far that has come"
)
RECEIPTS_ISSUED = Topic(
    "receipts.issued", "verdicts, for the door process that waits", retention_ms=DAY_MS
)
RECORDS_REFUSED = Topic(
    "records.refused", "dead letters, with reason and position", lanes=1, retention_ms=30 * DAY_MS
)
CATALOGUE_CHANGED = Topic("catalogue.changed", "what is configured", lanes=1, compacted=True)
LANES_STORED = Topic("lanes.stored", "how far each lane is in the store", lanes=1, compacted=True)
DEVICES_CONNECTED = Topic(
    "devices.connected",
    "which door process has sessions of a device, and that the process is there",
    lanes=1,
    compacted=True,
)
CHECKPOINTS = Topic("checkpoints", "the agents' lane states with their positions", compacted=True)

TOPICS = (
    SAMPLES_RECEIVED,
    SAMPLES_ACCEPTED,
    SAMPLES_SUPPRESSED,
    ALERTS_RAISED,
    CALLS_AUDITED,
    COMMANDS_CHANGED,
    RECEIPTS_ISSUED,
    RECORDS_REFUSED,
    CATALOGUE_CHANGED,
    LANES_STORED,
    DEVICES_CONNECTED,
    CHECKPOINTS,
)

SINK_GROUP = "sinks.samples"
"""The group that takes `samples.accepted` into the store: what it has committed is there."""


def receipts_lane(reply_to: bytes, lanes: int) -> int:
    """The lane of `receipts.issued` that the door process `reply_to` follows."""
    return int.from_bytes(blake2b(reply_to, digest_size=4).digest(), "big") % lanes

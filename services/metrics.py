"""Every metric: kind, unit, meaning, labels. Labels are bounded: never a device, a point or a
tenant.

The flow's counters share one shape and satisfy
received = kept + duplicate + conflict + overwrite + suppressed + refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache

from prometheus_client import REGISTRY, Counter, Gauge, Histogram, generate_latest

from schemas.samples import Verdict

_SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10)

# -- doors
HTTP_REQUESTS = Counter(
    "lineshaft_http_requests_total", "HTTP requests answered", ["dialect", "door", "status"]
)
HTTP_SECONDS = Histogram(
    "lineshaft_http_seconds",
    "Time from a request's head to its answer, seconds",
    ["dialect", "door"],
    buckets=_SECONDS,
)
HTTP_IN_FLIGHT = Gauge("lineshaft_http_in_flight", "HTTP requests under way")
DOOR_SAMPLES = Counter(
    "lineshaft_door_samples_total", "Samples that a door put on the log", ["dialect"]
)
RECEIPT_SECONDS = Histogram(
    "lineshaft_receipt_seconds",
    "Time that a door waited for the judge's receipt, seconds",
    buckets=_SECONDS,
)
RECEIPTS_LATE = Counter(
    "lineshaft_receipts_late_total", "Requests answered 503 because no receipt came in time"
)
RECEIPTS_PROMISED = Counter(
    "lineshaft_receipts_promised_total",
    "Requests answered before the verdict because their sender asked for that",
)
MQTT_CONNECTIONS = Gauge("lineshaft_mqtt_connections", "MQTT connections")
MQTT_PUBLISHES = Counter("lineshaft_mqtt_publishes_total", "MQTT publishes by outcome", ["outcome"])
MQTT_PAUSED = Gauge(
    "lineshaft_mqtt_paused",
    "MQTT connections that are not read because something behind them is full",
)
AUTH_FAILURES = Counter("lineshaft_auth_failures_total", "Credentials refused", ["door"])

# -- event log
LOG_APPENDS = Counter("lineshaft_log_appends_total", "Records appended", ["topic"])
LOG_BYTES = Counter("lineshaft_log_bytes_total", "Bytes of values appended", ["topic"])
LOG_SECONDS = Histogram(
    "lineshaft_log_append_seconds",
    "Time from handing a record over until it is durable, seconds",
    buckets=_SECONDS,
)
LOG_QUEUED_BYTES = Gauge("lineshaft_log_queued_bytes", "Bytes that wait for the log")
LOG_ERRORS = Counter("lineshaft_log_errors_total", "Appends that failed or timed out")

# -- agents
SAMPLES_RECEIVED = Counter("lineshaft_samples_received_total", "Samples that the judge read")
SAMPLES_JUDGED = Counter("lineshaft_samples_judged_total", "Samples by verdict", ["verdict"])
LANE_POSITION = Gauge(
    "lineshaft_lane_position", "Next offset that an agent will apply in a lane", ["agent", "lane"]
)
LANE_LAG = Gauge(
    "lineshaft_lane_lag", "Records between an agent in a lane and the lane's end", ["agent", "lane"]
)
LANE_GAPS = Counter(
    "lineshaft_lane_gaps_total", "Times that a lane was sought back because records were missing"
)
LANE_SKIPPED = Counter(
    "lineshaft_lane_skipped_total", "Records passed over because the lane's state covers them"
)
LANE_MISSING = Counter(
    "lineshaft_lane_missing_total", "Records that retention took before they were judged"
)
CHECKPOINTS = Counter("lineshaft_checkpoints_total", "Checkpoints written")
CHECKPOINT_BYTES = Counter("lineshaft_checkpoint_bytes_total", "Bytes of checkpoints written")
STORE_QUESTIONS = Counter(
    "lineshaft_store_questions_total",
    "Questions of a judge to the store about times it does not remember",
)
ALERTS = Counter(
    "lineshaft_alerts_total", "Rules that began (raised) or ended (cleared) to hold", ["state"]
)

# -- sinks
SINK_ROWS = Counter("lineshaft_sink_rows_total", "Rows stored", ["sink"])
SINK_INSERTS = Counter("lineshaft_sink_inserts_total", "Inserts by outcome", ["sink", "outcome"])
SINK_SECONDS = Histogram(
    "lineshaft_sink_seconds", "Time of one insert, seconds", ["sink"], buckets=_SECONDS
)
SINK_LAG = Gauge("lineshaft_sink_lag", "Records between a sink and its topic's end", ["sink"])
RETENTION_ROWS = Counter(
    "lineshaft_retention_rows_total", "Stored rows whose moment to expire was rewritten"
)
RETENTION_SERIES = Gauge(
    "lineshaft_retention_series",
    "Series whose period has changed and whose rows are not known to follow it yet",
)
RETENTION_OPEN = Gauge(
    "lineshaft_retention_open", "Rewrites of stored rows that the engine has not finished"
)

# -- webhooks
WEBHOOKS = Counter(
    "lineshaft_webhooks_total",
    "Alerts that are done with: delivered, dead, skipped (the trigger is gone or off)",
    ["outcome"],
)
WEBHOOK_FAILURES = Counter(
    "lineshaft_webhook_failures_total", "Calls of webhooks that were not answered with 2xx"
)
WEBHOOKS_OPEN = Gauge(
    "lineshaft_webhooks_open", "Alerts that were read and are not done with: being told, or waiting"
)

# -- dead letters
DEAD_LETTERS = Counter(
    "lineshaft_dead_letters_total", "Rows or records set aside", ["source", "reason"]
)

# A line that was never counted would not be there at all, and "no data" looks like "all is well".
for _verdict in Verdict:
    SAMPLES_JUDGED.labels(_verdict.name.lower())
for _reason in ("undecodable", "type"):
    DEAD_LETTERS.labels("agents", _reason)
for _outcome in ("delivered", "dead", "skipped"):
    WEBHOOKS.labels(_outcome)
for _state in ("raised", "cleared"):
    ALERTS.labels(_state)

# -- query
READS = Counter("lineshaft_reads_total", "Reads answered", ["kind"])
READ_SECONDS = Histogram(
    "lineshaft_read_seconds", "Time of a read, seconds", ["kind"], buckets=_SECONDS
)
TAIL_ROWS = Gauge("lineshaft_tail_rows", "Samples in the live view that are not stored yet")
LATEST_SERIES = Gauge("lineshaft_latest_series", "Series whose newest sample the live view holds")
STREAM_READERS = Gauge("lineshaft_stream_readers", "Readers who follow changes")
STREAM_CHANGES = Counter(
    "lineshaft_stream_changes_total", "Changes sent, one for each reader that it was sent to"
)
STREAM_ENDS = Counter("lineshaft_stream_ends_total", "Streams that ended, by reason", ["reason"])
STREAM_REPLAYS = Counter(
    "lineshaft_stream_replays_total", "Times that a reader was served from the log"
)
STREAM_GAPS = Counter(
    "lineshaft_stream_gaps_total", "Times that a reader was told that changes are missing"
)
for _ending in ("gone", "slow", "credential", "stopped", "away", "refused"):
    STREAM_ENDS.labels(_ending)

# -- catalogue
CATALOGUE_SKIPPED = Counter(
    "lineshaft_catalogue_skipped_total",
    "Records of the catalogue that were passed over: undecodable, a series that is taken, or (command) no command among the commands",
    ["reason"],
)

# -- running
UP = Gauge("lineshaft_service_up", "1 while the service runs", ["service"])


@cache
def http_seconds(dialect: str, door: str) -> Histogram:
    """`HTTP_SECONDS` of a door; finding a label's line takes longer than adding to it."""
    return HTTP_SECONDS.labels(dialect, door)


@cache
def http_requests(dialect: str, door: str, status: int) -> Counter:
    """`HTTP_REQUESTS` of a door and status."""
    return HTTP_REQUESTS.labels(dialect, door, str(status))


@cache
def door_samples(dialect: str) -> Counter:
    """`DOOR_SAMPLES` of a dialect."""
    return DOOR_SAMPLES.labels(dialect)


def count(tally: Mapping[str, int]) -> None:
    """Add an agent's tally: "received", the six verdicts by their lower-case names, and
    "undecodable" records; alerts "raised" and "cleared".
    """
    for name, rows in tally.items():
        if name == "received":
            SAMPLES_RECEIVED.inc(rows)
        elif name == "undecodable":
            DEAD_LETTERS.labels("agents", name).inc(rows)
        elif name in ("raised", "cleared"):
            ALERTS.labels(name).inc(rows)
        else:
            SAMPLES_JUDGED.labels(name).inc(rows)
            if name == "refused":
                DEAD_LETTERS.labels("agents", "type").inc(rows)


def exposition() -> bytes:
    """All metrics of this process in Prometheus' text format."""
    return generate_latest(REGISTRY)

"""Every setting: type, default, bounds, one sentence. The only reader of the environment and of the
TOML file.

A setting `http_port` is the environment variable LINESHAFT_HTTP_PORT and the key `http_port` of the
TOML file that LINESHAFT_CONFIG names; the environment wins. An unknown or bad one stops the start
with its name.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from services.errors import Broken

PREFIX = "LINESHAFT_"
TOKEN_SECONDS_MAX = 604_800
"""No access token of a machine client lasts longer."""
_CONFIG = "LINESHAFT_CONFIG"
LINKS_BY_HOST = "host"
"""The value of `links_base` that takes the address of each request."""


class BadSetting(Broken):
    """A setting that is unknown or cannot be used; the message begins with its name."""


def _setting(
    default: Any,
    meaning: str,
    *,
    low: float | None = None,
    high: float | None = None,
    secret: bool = False,
) -> Any:
    metadata = {"meaning": meaning, "low": low, "high": high, "secret": secret}
    return field(default=default, metadata=metadata)


@dataclass(frozen=True)
class Settings:
    """All settings of a process. An empty text means: derived, as the sentence says."""

    # -- engines
    data_dir: str = _setting(
        "var", "Folder of the embedded engines, of generated secrets and of demo.json."
    )
    log: str = _setting(
        "", "Event log: sqlite:///path or kafka://host:port,… (default: SQLite in the data folder)."
    )
    store: str = _setting(
        "",
        "Store: chdb:///path or clickhouse://user:password@host:8123/db (default: chDB in the data folder).",
        secret=True,
    )
    topic_prefix: str = _setting(
        "", "Begins the names of topics, consumer groups and Faust's app id."
    )
    lanes: int = _setting(16, "Number of lanes; fixed when the log is made.", low=1, high=1024)
    agents_runner: str = _setting(
        "", "What drives the agents: faust (default on Kafka) or loop (the only one on SQLite)."
    )
    secret: str = _setting(
        "",
        "Key for tokens and for the digests of keys, at least 32 characters (default: made once, in the data folder).",
        secret=True,
    )
    instance: str = _setting(
        "",
        "Stable name of this process within its group on Kafka (default: none, a fresh member at each start).",
    )

    # -- doors
    http_host: str = _setting("127.0.0.1", "Address that the HTTP doors listen on.")
    http_port: int = _setting(
        8080, "Port of the HTTP doors; 0 picks a free one.", low=0, high=65535
    )
    mqtt_host: str = _setting("127.0.0.1", "Address that the MQTT door listens on.")
    mqtt_port: int = _setting(1883, "Port of the MQTT door; 0 picks a free one.", low=0, high=65535)
    ops_host: str = _setting(
        "127.0.0.1", "Address of /livez, /readyz and /metrics where they have a port of their own."
    )
    ops_port: int = _setting(
        -1,
        "Port of /livez, /readyz and /metrics; -1: on the HTTP port where there is one, else 9090.",
        low=-1,
        high=65535,
    )
    tls_cert: str = _setting(
        "", "Certificate chain (PEM) for HTTPS and MQTT over TLS; re-read when the file changes."
    )
    tls_key: str = _setting("", "Private key (PEM) of the certificate.")
    mqtt_tls_port: int = _setting(
        8883,
        "Port of MQTT over TLS, open where a certificate is set; 0 picks a free one.",
        low=0,
        high=65535,
    )
    token_seconds: int = _setting(
        86_400,
        "Life of access tokens of machine clients; one is taken for 60 seconds more, for clocks that differ.",
        low=60,
        high=TOKEN_SECONDS_MAX,
    )
    token_failures_per_minute: int = _setting(
        600,
        "Refused requests for access tokens per minute of the process; beyond them 429.",
        low=1,
        high=1_000_000,
    )
    user_token_seconds: int = _setting(
        9_000, "Life of the tokens of users; the same 60 seconds more hold.", low=60, high=604_800
    )
    user_refresh_seconds: int = _setting(
        604_800, "Life of the refresh tokens of users.", low=60, high=31_536_000
    )

    links_base: str = _setting(
        "",
        "Begins the links in answers of Building X: an address such as https://lineshaft.example, or `host` for the one that the request came to (default: none, paths as the vendor documents them).",
    )

    # -- limits of requests
    receipt_wait_ms: int = _setting(
        2_000,
        "How long a door waits for the judge's receipt before it answers 503.",
        low=10,
        high=60_000,
    )
    receipt_hours: int = _setting(
        24,
        "For how long a receipt that nobody waited for (Prefer: respond-async) can be asked for.",
        low=1,
        high=24,
    )
    append_wait_ms: int = _setting(
        5_000, "How long a door waits for the log before it answers 503.", low=100, high=60_000
    )
    requests_in_flight_max: int = _setting(
        1_024,
        "HTTP requests under way, those that wait for a receipt too; above it 503.",
        low=1,
        high=100_000,
    )
    log_queue_bytes_max: int = _setting(
        64 << 20,
        "Bytes that wait for the log; above it 503, MQTT stops reading.",
        low=1 << 20,
        high=8 << 30,
    )
    body_seconds_max: int = _setting(
        30, "Time for a request's body to arrive; then 408.", low=1, high=600
    )
    range_rows_max: int = _setting(
        100_000, "Samples in one answer of a range read.", low=100, high=10_000_000
    )
    read_wait_ms: int = _setting(
        30_000, "How long a read waits for the store before it answers 503.", low=100, high=600_000
    )
    stream_readers_max: int = _setting(
        1_000, "Streams of changes at a time; above it 503.", low=1, high=100_000
    )
    stream_changes_max: int = _setting(
        10_000,
        "Newest changes of a followed device that are held; who is further behind and takes nothing is cut off.",
        low=100,
        high=1_000_000,
    )
    stream_bytes_max: int = _setting(
        8 << 20,
        "Bytes of memory that they may take; who is further behind and takes nothing is cut off.",
        low=64 << 10,
        high=1 << 30,
    )
    stream_heartbeat_seconds: int = _setting(
        15, "After so long without a change a stream says that it is there.", low=1, high=600
    )
    stream_stalled_seconds: int = _setting(
        30, "A reader who takes nothing for so long is cut off.", low=1, high=3_600
    )
    keys_per_device_max: int = _setting(
        10_000, "Points that a device may create by first use.", low=1, high=1_000_000
    )

    # -- limits of MQTT
    mqtt_connections_max: int = _setting(
        10_000, "MQTT connections of the process.", low=1, high=1_000_000
    )
    mqtt_connections_per_address_max: int = _setting(
        1_000, "MQTT connections from one address.", low=1, high=1_000_000
    )
    mqtt_sessions_per_device_max: int = _setting(
        4, "MQTT sessions of one device; the oldest is closed.", low=1, high=10_000
    )
    mqtt_connect_seconds_max: int = _setting(
        10, "Time from the TCP connection to CONNECT.", low=1, high=600
    )
    mqtt_connect_bytes_max: int = _setting(
        8_192, "Size of CONNECT and of any packet before it is answered.", low=256, high=65_536
    )
    mqtt_payload_bytes_max: int = _setting(
        65_536, "Payload of one publish.", low=256, high=16 << 20
    )
    mqtt_topic_bytes_max: int = _setting(256, "Length of a topic.", low=16, high=65_535)
    mqtt_unacked_max: int = _setting(
        1_000,
        "Publishes of a connection that wait for the log; then it is not read.",
        low=1,
        high=65_535,
    )
    mqtt_keepalive_seconds: int = _setting(
        300, "Keepalive given to clients that ask for none (5.0).", low=10, high=65_535
    )
    mqtt_messages_per_second: int = _setting(
        100, "Publishes per second of one device; 0 lifts the limit.", low=0, high=10_000_000
    )
    mqtt_messages_burst: int = _setting(
        1_000, "Publishes that a device may send at once beyond its rate.", low=1, high=10_000_000
    )
    mqtt_bytes_per_second: int = _setting(
        1 << 20,
        "Bytes of MQTT packets per second of one device; 0 lifts the limit.",
        low=0,
        high=8 << 30,
    )
    mqtt_bytes_burst: int = _setting(
        10 << 20,
        "Bytes that a device may send at once beyond its rate.",
        low=1,
        high=8 << 30,
    )
    mqtt_auth_failures_per_minute: int = _setting(
        10,
        "Refused CONNECTs per minute and address before the answer is held back.",
        low=1,
        high=100_000,
    )

    # -- agents, sinks, view
    checkpoint_seconds: int = _setting(
        30,
        "A lane's state below 1 MiB is checkpointed at least this often while it changes.",
        low=1,
        high=3_600,
    )
    sink_rows: int = _setting(50_000, "Rows of one insert.", low=1, high=1_000_000)
    sink_wait_ms: int = _setting(
        1_000,
        "Longest time that a row waits for its insert. ClickHouse wants few inserts: each leaves a "
        "part that is merged.",
        low=10,
        high=60_000,
    )
    tail_rows_max: int = _setting(
        5_000_000,
        "Samples not yet stored that the live view holds; above it range reads answer 503.",
        low=10_000,
        high=100_000_000,
    )
    refused_share_max: float = _setting(
        0.01,
        "Share of unusable records (of the last 10,000 of a lane) above which a worker stops.",
        low=0.0,
        high=1.0,
    )
    refused_run_max: int = _setting(
        100, "Unusable records in a row above which a worker stops.", low=1, high=1_000_000
    )
    retention_hours: int = _setting(
        168,
        "How long the log keeps records (the embedded one: that everybody has read); topics with a shorter time of their own keep it.",
        low=1,
        high=87_600,
    )

    # -- webhooks
    webhook_private: bool = _setting(
        False,
        "Whether webhooks may lead to addresses that are not public: this machine, the plant's own network.",
    )
    webhook_seconds_max: float = _setting(
        10.0,
        "Time for one call of a webhook, from the look-up of its name on.",
        low=0.1,
        high=120.0,
    )
    webhook_attempts_max: int = _setting(
        12,
        "Calls of a webhook for one alert before that becomes a dead letter; the pause between two doubles from 1 s to 5 minutes.",
        low=1,
        high=1_000,
    )
    webhook_calls_max: int = _setting(
        16, "Calls of webhooks at a time; one URL gets one at a time.", low=1, high=1_000
    )
    webhook_waiting_max: int = _setting(
        1_000,
        "Alerts of one trigger that wait for its webhook; above it they become dead letters.",
        low=1,
        high=100_000,
    )

    # -- commands
    command_seconds: int = _setting(
        600,
        "How long a command waits for its delivery before it is expired; not longer than the log keeps records.",
        low=1,
        high=86_400,
    )
    device_commands_max: int = _setting(
        100, "Commands that wait for one device; above it 429.", low=1, high=100
    )

    # -- running
    log_level: str = _setting("info", "debug, info, warning or error.")
    log_format: str = _setting("json", "json or text.")
    restart_max: int = _setting(
        10,
        "Restarts of a child within restart_minutes after which `up` gives up.",
        low=1,
        high=1_000,
    )
    restart_minutes: int = _setting(10, "The window of restart_max.", low=1, high=1_440)

    @property
    def log_url(self) -> str:
        """The event log's address."""
        return self.log or f"sqlite:///{Path(self.data_dir).absolute() / 'log.sqlite'}"

    @property
    def store_url(self) -> str:
        """The store's address."""
        return self.store or f"chdb:///{Path(self.data_dir).absolute() / 'store'}"

    @property
    def runner(self) -> str:
        """faust or loop."""
        return self.agents_runner or ("faust" if self.log_url.startswith("kafka:") else "loop")

    @property
    def log_embedded(self) -> bool:
        """Whether the log is a file of this machine (one process only)."""
        return self.log_url.startswith("sqlite:")

    @property
    def store_embedded(self) -> bool:
        """Whether the store is the engine in process (one process only)."""
        return self.store_url.startswith("chdb:")


NAMES = tuple(f.name for f in fields(Settings))


def load(environ: Mapping[str, str] | None = None, **given: Any) -> Settings:
    """Settings from the TOML file, then the environment, then `given` (the command line). Raises
    BadSetting.
    """
    settings, _ = load_with_sources(environ, **given)
    return settings


def load_with_sources(
    environ: Mapping[str, str] | None = None, **given: Any
) -> tuple[Settings, dict[str, str]]:
    """Settings, and for each name where its value came from: default, file, environment or command
    line.
    """
    environ = os.environ if environ is None else environ
    raw: dict[str, tuple[Any, str]] = {}
    if path := environ.get(_CONFIG, ""):
        for name, value in _file(path).items():
            raw[name] = (value, f"file {path}")
    for variable, value in environ.items():
        if variable.startswith(PREFIX) and variable != _CONFIG and variable not in FOREIGN:
            raw[variable[len(PREFIX) :].lower()] = (value, "environment")
    raw |= {name: (value, "command line") for name, value in given.items() if value is not None}
    known = {f.name: f for f in fields(Settings)}
    values: dict[str, Any] = {}
    for name, (value, source) in raw.items():
        if name not in known:
            raise BadSetting(f"{PREFIX}{name.upper()}: no such setting ({source})")
        values[name] = _checked(known[name], value)
    settings = replace(Settings(), **values)
    _check_together(settings)
    return settings, {name: raw[name][1] if name in raw else "default" for name in NAMES}


_BOOLEANS = {"true": True, "1": True, "false": False, "0": False}
FOREIGN = frozenset({"LINESHAFT_SPECS", "LINESHAFT_REQUIRE"})
"""Variables of the project's own tests."""


def _file(path: str) -> dict[str, Any]:
    try:
        return tomllib.loads(Path(path).read_text())
    except (OSError, tomllib.TOMLDecodeError) as error:
        raise BadSetting(f"{_CONFIG}: {path}: {error}") from error


def _checked(setting: Any, value: Any) -> Any:
    name, kind = f"{PREFIX}{setting.name.upper()}", type(setting.default)
    try:
        value = _BOOLEANS[str(value).lower()] if kind is bool else kind(value)
    except (TypeError, ValueError, KeyError) as error:
        raise BadSetting(f"{name}: {value!r} is no {kind.__name__}") from error
    low, high = setting.metadata["low"], setting.metadata["high"]
    if (low is not None and value < low) or (high is not None and value > high):
        raise BadSetting(f"{name}: {value} is not between {low} and {high}")
    return value


def _check_together(s: Settings) -> None:
    if s.agents_runner not in ("", "faust", "loop"):
        raise BadSetting(f"LINESHAFT_AGENTS_RUNNER: {s.agents_runner!r} is neither faust nor loop")
    if s.log_embedded and s.agents_runner == "faust":
        raise BadSetting("LINESHAFT_AGENTS_RUNNER: faust needs a kafka:// log")
    if s.secret and len(s.secret) < 32:
        raise BadSetting("LINESHAFT_SECRET: shorter than 32 characters")
    if bool(s.tls_cert) != bool(s.tls_key):
        raise BadSetting("LINESHAFT_TLS_CERT and LINESHAFT_TLS_KEY belong together")
    if s.command_seconds > s.retention_hours * 3_600:
        raise BadSetting("LINESHAFT_COMMAND_SECONDS: longer than LINESHAFT_RETENTION_HOURS")
    if s.links_base not in ("", LINKS_BY_HOST) and "://" not in s.links_base:
        raise BadSetting(f"LINESHAFT_LINKS_BASE: {s.links_base!r} is neither an address nor host")
    if s.log_level not in ("debug", "info", "warning", "error"):
        raise BadSetting(f"LINESHAFT_LOG_LEVEL: {s.log_level!r}")
    if s.log_format not in ("json", "text"):
        raise BadSetting(f"LINESHAFT_LOG_FORMAT: {s.log_format!r}")

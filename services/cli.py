"""The command `lineshaft`: the only module that knows all services.

`run NAME…` is the one primitive that runs anything; `up` supervises such children; the rest
prepares, checks, shows and configures. What goes wrong is said in one line on standard error, exit
code 1 (2: wrong use).
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import os
import ssl
import sys
import urllib.error
import urllib.request
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from schemas.topics import TOPICS
from services import (
    agents,
    demo,
    describe,
    dialects,
    ingress,
    manage,
    ops,
    query,
    registry,
    runtime,
    settings,
    sinks,
)
from services.errors import PipelineError
from services.logs import set_up as set_up_logs
from services.runtime import Runtime, Service
from services.settings import Settings
from services.supervisor import Child, Supervisor, watch_parent

_logger = logging.getLogger(__name__)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; its exit code."""
    arguments = _parser().parse_args(argv)
    try:
        chosen = settings.load(**_given(arguments))
        set_up_logs(chosen)
        return int(arguments.action(chosen, arguments) or 0)
    except PipelineError as error:
        sys.stderr.write(f"lineshaft: {error}\n")
        return 1
    except BrokenPipeError:
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="lineshaft", description="The factory's telemetry log.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, action: Any, help_: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=help_, description=help_)
        sub.set_defaults(action=action)
        return sub

    up = command("up", _up, "Run the whole system, supervised.")
    up.add_argument("--demo", action="store_true", help="with the demo plant and its demo.json")
    run = command("run", _run, "Run services in this process.")
    run.add_argument(
        "services",
        nargs="+",
        choices=sorted(_services(feed=False)),
        metavar="NAME",
        help=f"of {', '.join(sorted(_services(feed=False)))}",
    )
    run.add_argument("--supervised", action="store_true", help="end when standard input closes")
    for sub in (up, run):
        sub.add_argument("--no-feed", action="store_true", help="no demo data flowing")
        sub.add_argument("--http-port", type=int)
        sub.add_argument("--mqtt-port", type=int)
        sub.add_argument("--data-dir")
        sub.add_argument("--ops-port", type=int)
    command("migrate", _migrate, "Make the topics and apply the migrations that are missing.")
    command("check", _check, "Check settings and plug-ins without starting anything.")
    command("topics", _topics, "List the topics.")
    command("routes", _routes, "List methods and paths of every door, and the service behind it.")
    ready = command("ready", _ready, "Ask the process of these settings whether it is ready.")
    ready.add_argument("--url", help="of /readyz (default: derived from the settings)")
    shown = command("settings", _settings, "Show every setting with its source and meaning.")
    shown.add_argument("--env", action="store_true", help="as an environment file")
    shown.add_argument("--markdown", action="store_true", help="as the reference page")
    written = command("openapi", _openapi, "Write one OpenAPI file a dialect.")
    written.add_argument("--out", default="schemas/openapi", help="folder")
    manage.add_commands(commands)
    return parser


def _given(arguments: argparse.Namespace) -> dict[str, Any]:
    names = ("http_port", "mqtt_port", "ops_port", "data_dir")
    return {name: getattr(arguments, name, None) for name in names}


def _services(*, feed: bool) -> dict[str, Service]:
    return {
        "ingress": ingress.SERVICE,
        "agents": agents.SERVICE,
        "sinks": sinks.SERVICE,
        "query": query.SERVICE,
        "demo": demo.DemoService(feed=feed),
    }


# -- running


def _run(chosen: Settings, arguments: argparse.Namespace) -> int:
    # What is written, the log and the store among it, is for nobody else to read.
    os.umask(0o077)
    if arguments.supervised:
        watch_parent()
    available = _services(feed=not arguments.no_feed)
    services = [available[name] for name in available if name in arguments.services]

    # In the loop it would keep all else waiting: the log, the health check, the demo's calls.
    _logger.info("loading compiled code; where there is none yet, that takes about a minute")
    for service in services:
        service.warm()

    async def announce(running: Runtime, address: str) -> None:
        plant = available["demo"]
        if plant in services and isinstance(plant, demo.DemoService):
            await plant.announce(running, address)
        where = f", MQTT on port {running.mqtt_port}" if running.mqtt_port else ""
        _logger.info("ready: %s on %s%s", " ".join(arguments.services), address, where)

    async def body(stop: asyncio.Event) -> None:
        async with runtime.open_runtime(chosen, stop) as opened:
            await runtime.serve(opened, services, ops=ops.ops_routes, ready=announce, stop=stop)

    return runtime.run(body)


def _up(chosen: Settings, arguments: argparse.Namespace) -> int:
    if not (chosen.log_embedded and chosen.store_embedded) and not _prepared(chosen):
        return 0
    children = [
        _child(name, services, chosen, arguments)
        for name, services in placement(chosen, with_demo=arguments.demo).items()
    ]
    supervisor = Supervisor(
        children, restart_max=chosen.restart_max, restart_minutes=chosen.restart_minutes
    )

    before = _stamp(chosen)

    async def body() -> int:
        hinting = asyncio.create_task(_hint(chosen, before)) if arguments.demo else None
        try:
            return await supervisor.run()
        finally:
            if hinting:
                hinting.cancel()

    return asyncio.run(body())


def _prepared(chosen: Settings) -> bool:
    """Make topics and tables once log and store are there; False where the stop came first."""

    async def body(stop: asyncio.Event) -> bool:
        done = await runtime.when_there(partial(runtime.prepare, chosen), stop)
        for line in done or ():
            _logger.info("prepared: %s", line)
        return done is not None

    return bool(runtime.run(body))


def placement(chosen: Settings, *, with_demo: bool) -> dict[str, list[str]]:
    """Child to services. What is embedded is opened by one process only: there all are in one."""
    doors = ["ingress", "query", *(["demo"] if with_demo else [])]
    if chosen.log_embedded or chosen.store_embedded:
        return {"lineshaft": [*doors, "agents", "sinks"]}
    return {"edge": doors, "agents": ["agents"], "sinks": ["sinks"]}


def _child(
    name: str, services: Sequence[str], chosen: Settings, given: argparse.Namespace
) -> Child:
    argv = [sys.executable, "-m", "services", "run", *services, "--supervised"]
    if given.no_feed:
        argv.append("--no-feed")
    argv += ["--data-dir", chosen.data_dir]
    if "ingress" in services:
        argv += ["--http-port", str(chosen.http_port), "--mqtt-port", str(chosen.mqtt_port)]
    else:
        argv += ["--ops-port", str(_OPS_PORTS[name])]
    return Child(name, argv)


_OPS_PORTS = {"agents": 9191, "sinks": 9192}


def _stamp(chosen: Settings) -> int:
    path = Path(chosen.data_dir) / demo.FILE
    return path.stat().st_mtime_ns if path.exists() else 0


async def _hint(chosen: Settings, before: int) -> None:
    """Once the demo plant is ready, print what to try: unprefixed, so that it can be pasted."""
    while _stamp(chosen) == before:
        await asyncio.sleep(0.1)
    plant = json.loads((Path(chosen.data_dir) / demo.FILE).read_text())
    while not await asyncio.to_thread(_is_ready, f"{plant['http']}/readyz", chosen.tls_cert):
        await asyncio.sleep(0.1)
    sys.stdout.write(demo.hints(plant) + "\n")
    sys.stdout.flush()


# -- preparing and looking


def _migrate(chosen: Settings, _: argparse.Namespace) -> None:
    for line in asyncio.run(runtime.prepare(chosen)):
        _say(line)


def _check(chosen: Settings, _: argparse.Namespace) -> None:
    spoken = registry.discover(dialects, "DIALECT")
    _say(f"log       {chosen.log_url}")
    _say(f"store     {describe.masked(chosen.store_url)}")
    _say(f"runner    {chosen.runner}")
    for dialect in spoken.values():
        doors = len(dialect.pushes) + len(dialect.publishes) + len(dialect.reads)
        _say(f"dialect   {dialect.name}: {doors + len(dialect.calls)} doors, {dialect.title}")
    for name in agents.all_agents():
        _say(f"agent     {name}")
    for sink in sinks.all_sinks():
        _say(f"sink      {sink.name}")
    for outbox in sinks.all_outboxes():
        _say(f"outbox    {outbox.name}")
    describe.check_doors(spoken.values())


def _topics(chosen: Settings, _: argparse.Namespace) -> None:
    for topic in TOPICS:
        kept = "compacted" if topic.compacted else f"{topic.retention_ms // 3_600_000} h"
        lanes = topic.lane_count(chosen.lanes)
        _say(f"{chosen.topic_prefix}{topic.name:<20} {lanes:>4} lanes  {kept:<10} {topic.what}")


def _routes(_chosen: Settings, _: argparse.Namespace) -> None:
    for line in describe.routes(registry.discover(dialects, "DIALECT").values()):
        _say(line)


def _ready(chosen: Settings, arguments: argparse.Namespace) -> int:
    port = chosen.ops_port if chosen.ops_port >= 0 else chosen.http_port
    scheme = "https" if chosen.tls_cert and chosen.ops_port < 0 else "http"
    url = arguments.url or f"{scheme}://127.0.0.1:{port}/readyz"
    return 0 if _is_ready(url, chosen.tls_cert) else 1


def _is_ready(url: str, trust: str = "") -> bool:
    context = ssl.create_default_context(cafile=trust) if trust and url[:6] == "https:" else None
    if context:
        context.check_hostname = False
    try:
        with urllib.request.urlopen(url, timeout=5, context=context) as answer:
            return int(answer.status) == 200
    except (OSError, urllib.error.URLError):
        return False


def _settings(_: Settings, arguments: argparse.Namespace) -> None:
    chosen, sources = settings.load_with_sources(**_given(arguments))
    if arguments.env:
        _say(describe.settings_env())
    elif arguments.markdown:
        _say(describe.settings_markdown())
    else:
        for line in describe.settings_lines(chosen, sources):
            _say(line)


def _openapi(_: Settings, arguments: argparse.Namespace) -> None:
    folder = Path(arguments.out)
    folder.mkdir(parents=True, exist_ok=True)
    for dialect in registry.discover(dialects, "DIALECT").values():
        page = describe.openapi(dialect)
        (folder / f"{dialect.name}.json").write_text(json.dumps(page, indent=2) + "\n")


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")

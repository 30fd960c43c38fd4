"""The command's part that configures: `lineshaft tenants|devices|points|keys|users …`.

With the embedded log a running process has the catalogue to itself; then the action is done there,
through its socket in the data folder. Otherwise the log is opened here. Results are JSON; a secret
is shown once, when it is made.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from schemas.catalogue import SCOPES
from schemas.samples import Kind
from schemas.topics import TOPICS
from services.auth import installation_secret
from services.catalogue import Control, View, remote
from services.clock import SystemClock
from services.errors import Unavailable
from services.eventlog import open_eventlog
from services.runtime import CONTROL_SOCKET
from services.settings import Settings

Prepare = Callable[[argparse.Namespace], dict[str, Any]]


def add_commands(commands: Any) -> None:
    """Add the sub-commands to the command's parser."""
    _tenants(_group(commands, "tenants", "Customers or plants."))
    _devices(_group(commands, "devices", "What brings data."))
    _points(_group(commands, "points", "What is measured on a device."))
    _keys(_group(commands, "keys", "Credentials of machines: device tokens, clients, API keys."))
    _users(_group(commands, "users", "People who log in."))


def _group(commands: Any, name: str, help_: str) -> Any:
    parser = commands.add_parser(name, help=help_, description=help_)
    return parser.add_subparsers(required=True, metavar="ACTION")


def _action(
    group: Any, name: str, action: str, help_: str, prepare: Prepare = vars, **fixed: Any
) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = group.add_parser(name, help=help_, description=help_)

    def run(chosen: Settings, given: argparse.Namespace) -> None:
        arguments = {key: value for key, value in prepare(given).items() if value is not None}
        for own in ("action", "data_dir"):
            arguments.pop(own, None)
        result = act(chosen, action, arguments | fixed)
        sys.stdout.write(json.dumps(result, indent=2, ensure_ascii=False) + "\n")

    parser.set_defaults(action=run)
    parser.add_argument("--data-dir", help="data folder of the embedded engines")
    return parser


def act(chosen: Settings, action: str, arguments: dict[str, Any]) -> Any:
    """Do one control action where the catalogue can be reached; its result as JSON values."""
    path = Path(chosen.data_dir) / CONTROL_SOCKET
    if chosen.log_embedded and path.exists():
        try:
            return remote.ask(path, action, arguments)
        except Unavailable:
            path.unlink(missing_ok=True)
    return asyncio.run(_act_here(chosen, action, arguments))


async def _act_here(chosen: Settings, action: str, arguments: dict[str, Any]) -> Any:
    secret = installation_secret(chosen)
    log = open_eventlog(chosen.log_url, lanes=chosen.lanes, prefix=chosen.topic_prefix)
    async with log:
        await log.create(TOPICS)
        view, stop = View(keys_per_device_max=chosen.keys_per_device_max), asyncio.Event()
        following = asyncio.create_task(view.follow(log, stop))
        try:
            await view.ready()
            return await remote.act(
                Control(log, view, SystemClock(), secret), view, action, arguments
            )
        finally:
            stop.set()
            await following


def _tenants(group: Any) -> None:
    add = _action(group, "add", "add_tenant", "Make a tenant.")
    add.add_argument("id", help="its short name, [a-z0-9-]")
    add.add_argument("name", help="its full name")
    _action(group, "list", "list", "Show the tenants.", kind="tenant")


def _devices(group: Any) -> None:
    add = _action(group, "add", "add_device", "Make a device.")
    add.add_argument("tenant")
    add.add_argument("name")
    add.add_argument("--type")
    delete = _action(group, "delete", "delete_device", "Delete a device with its points.")
    delete.add_argument("tenant")
    delete.add_argument("id")
    shown = _action(group, "list", "list", "Show the devices.", kind="device")
    shown.add_argument("--tenant")


def _points(group: Any) -> None:
    def prepare(given: argparse.Namespace) -> dict[str, Any]:
        arguments = dict(vars(given))
        if arguments.get("kind") is not None:
            arguments["kind"] = int(Kind[arguments["kind"].upper()])
        return arguments

    add = _action(group, "add", "add_point", "Declare a point of a device.", prepare)
    add.add_argument("tenant")
    add.add_argument("device", help="the device's id")
    add.add_argument("key")
    add.add_argument("--kind", choices=[kind.name.lower() for kind in Kind], required=True)
    add.add_argument("--name")
    add.add_argument("--unit")
    add.add_argument("--id", help="default: derived from tenant, device and key")
    delete = _action(group, "delete", "delete_point", "Delete a point.")
    delete.add_argument("tenant")
    delete.add_argument("id")
    shown = _action(group, "list", "list", "Show the points.", kind="point")
    shown.add_argument("--tenant")


def _keys(group: Any) -> None:
    add = _action(group, "add", "add_key", "Make a credential; its secret is shown once.")
    add.add_argument("tenant")
    add.add_argument("name")
    add.add_argument("--use", choices=("device", "client", "api"), required=True)
    add.add_argument("--device", help="the device's id, for a device token")
    add.add_argument("--scopes", nargs="+", choices=SCOPES, required=True)
    add.add_argument("--days", type=float, help="how long it is good for (default: no end)")
    rotate = _action(group, "rotate", "rotate_key", "Give a credential a new secret.")
    rotate.add_argument("id")
    rotate.add_argument(
        "--overlap-seconds",
        type=int,
        default=3_600,
        help="how long the old secret stays good (default 3600)",
    )
    revoke = _action(group, "revoke", "revoke_key", "Refuse a credential from now on.")
    revoke.add_argument("id")
    shown = _action(group, "list", "list", "Show the credentials, without secrets.", kind="key")
    shown.add_argument("--tenant")


def _users(group: Any) -> None:
    def prepare(given: argparse.Namespace) -> dict[str, Any]:
        arguments = dict(vars(given))
        tenants, scopes = arguments.pop("tenant"), arguments.pop("scopes")
        return arguments | {"tenants": dict.fromkeys(tenants, scopes)}

    add = _action(
        group, "add", "add_user", "Make a user; a password that is made up is shown.", prepare
    )
    add.add_argument("name")
    add.add_argument("--tenant", action="append", required=True, help="may be given several times")
    add.add_argument("--scopes", nargs="+", choices=SCOPES, default=["read"])
    add.add_argument("--password", help="default: made up and shown once")
    password = _action(group, "password", "set_password", "Set a user's password.")
    password.add_argument("name")
    password.add_argument("--password", help="default: made up and shown once")
    disable = _action(group, "disable", "disable_user", "Let a user in no more.")
    disable.add_argument("name")
    enable = _action(group, "enable", "enable_user", "Let a disabled user in again.")
    enable.add_argument("name")
    _action(group, "list", "list", "Show the users.", kind="user")

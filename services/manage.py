"""The command's part that configures: `lineshaft tenants|locations|devices|points|keys|users …`.

With the embedded log a running process has the catalogue to itself; then the action is done there,
through its socket in the data folder. Otherwise the log is opened here. Results are JSON; a secret
is shown once, when it is made.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from schemas.catalogue import LOCATION_TYPES, ROLES, ROLES_OF_A_BINDING, SCOPES
from schemas.points import WHENS
from schemas.samples import Kind
from schemas.topics import TOPICS
from services.auth import installation_secret
from services.catalogue import OVERLAP_SECONDS, Caller, Control, View, api_server_id, remote
from services.clock import SystemClock
from services.errors import Unavailable
from services.eventlog import open_eventlog
from services.runtime import CONTROL_SOCKET
from services.settings import Settings

Prepare = Callable[[argparse.Namespace], dict[str, Any]]


def add_commands(commands: Any) -> None:
    """Add the sub-commands to the command's parser."""
    _tenants(_group(commands, "tenants", "Customers or plants."))
    _api_servers(_group(commands, "api-servers", "Where Next Plus pushes to: one of each tenant."))
    _locations(_group(commands, "locations", "Campuses, buildings, floors, rooms."))
    _devices(_group(commands, "devices", "What brings data."))
    _points(_group(commands, "points", "What is measured on a device."))
    _equipment(_group(commands, "equipment", "Machines, cells, lines."))
    _bindings(_group(commands, "bindings", "Which point feeds which equipment."))
    _triggers(_group(commands, "triggers", "Webhooks that are called when a rule holds."))
    _keys(_group(commands, "keys", "Credentials of machines: device tokens, clients, API keys."))
    _signing_keys(
        _group(commands, "signing-keys", "What access tokens of clients are signed with.")
    )
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
            control = Control(
                log,
                view,
                SystemClock(),
                secret,
                command_ms=chosen.command_seconds * 1000,
                device_commands_max=chosen.device_commands_max,
            )
            caller = Caller(f"uid {os.getuid()}", "command")
            return await remote.act(control.by(caller), view, action, arguments)
        finally:
            stop.set()
            await following


def _tenants(group: Any) -> None:
    add = _action(group, "add", "add_tenant", "Make a tenant.")
    add.add_argument("id", help="its short name, [a-z0-9-]")
    add.add_argument("name", help="its full name")
    _action(group, "list", "list", "Show the tenants.", kind="tenant")


def _api_servers(group: Any) -> None:
    def prepare(given: argparse.Namespace) -> dict[str, Any]:
        return vars(given) | {"id": api_server_id(given.tenant)}

    for name, disabled, help_ in (
        ("enable", False, "Take pushes in again."),
        ("disable", True, "Take no pushes in: they are answered 404."),
    ):
        switch = _action(group, name, "change_device", help_, prepare, disabled=disabled)
        switch.add_argument("tenant")
    rename = _action(group, "rename", "change_device", "Give it another name.", prepare)
    rename.add_argument("tenant")
    rename.add_argument("name")
    shown = _action(group, "list", "list", "Show the API servers.", kind="api_server")
    shown.add_argument("--tenant")


def _locations(group: Any) -> None:
    add = _action(group, "add", "add_location", "Make a location.")
    add.add_argument("tenant")
    add.add_argument("label")
    add.add_argument("--type", choices=LOCATION_TYPES)
    add.add_argument("--id", help="a UUID (default: a random one)")
    change = _action(
        group, "change", "change_location", "Change what is given of a location; '' takes it away."
    )
    change.add_argument("tenant")
    change.add_argument("id")
    change.add_argument("--label")
    for sub in (add, change):
        sub.add_argument("--description")
        sub.add_argument("--time-zone", help="such as Europe/Zurich")
        sub.add_argument("--parent", help="id of the location that it is part of")
        for part in ("street", "postal-code", "locality", "region"):
            sub.add_argument(f"--{part}")
        sub.add_argument("--country-code", help="two letters")
    delete = _action(
        group, "delete", "delete_location", "Delete a location with nothing in it any more."
    )
    delete.add_argument("tenant")
    delete.add_argument("id")
    shown = _action(group, "list", "list", "Show the locations.", kind="location")
    shown.add_argument("--tenant")


def _devices(group: Any) -> None:
    add = _action(group, "add", "add_device", "Make a device.")
    add.add_argument("tenant")
    add.add_argument("name")
    add.add_argument("--type")
    add.add_argument("--id", help="a UUID (default: a random one)")
    change = _action(
        group, "change", "change_device", "Change what is given of a device; '' takes it away."
    )
    change.add_argument("tenant")
    change.add_argument("id")
    change.add_argument("--name")
    for sub in (add, change):
        sub.add_argument("--description")
        sub.add_argument("--model")
        sub.add_argument("--serial", help="its serial number")
        sub.add_argument("--location", help="id of the location where it is")
        sub.add_argument("--gateway", help="id of the device that it is connected through")
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
    add.add_argument("--id", help="a UUID (default: derived from tenant, device and key)")
    change = _action(group, "change", "change_point", "Change what is given of a point.")
    change.add_argument("tenant")
    change.add_argument("id")
    change.add_argument("--key", help="the values that it has go along")
    change.add_argument("--name")
    change.add_argument("--unit")
    for sub in (add, change):
        sub.add_argument("--description")
        sub.add_argument(
            "--writable", action=argparse.BooleanOptionalAction, help="whether it takes commands"
        )
        sub.add_argument(
            "--ingestable",
            action=argparse.BooleanOptionalAction,
            help="whether it takes values over Building X",
        )
        sub.add_argument("--precision", type=int, help="decimals that are shown")
        sub.add_argument("--band", type=float, help="a smaller change does not count")
        sub.add_argument("--keep-minutes", type=int, help="how long values are kept (0: for ever)")
        sub.add_argument(
            "--on-change",
            action=argparse.BooleanOptionalAction,
            help="whether an equal value does not count",
        )

    def typed(given: argparse.Namespace) -> dict[str, Any]:
        arguments = prepare(given)
        if arguments["kind"] not in (Kind.STRING, Kind.JSON):
            # What is no JSON stays a text, and is refused as one.
            with suppress(ValueError):
                arguments["value"] = json.loads(arguments["value"])
        return arguments

    command = _action(group, "command", "command_point", "Ask for a value of a point.", typed)
    command.add_argument("tenant")
    command.add_argument("id")
    command.add_argument("value", help="as JSON has it; a text as it is")
    command.add_argument("--kind", choices=[kind.name.lower() for kind in Kind], required=True)
    delete = _action(group, "delete", "delete_point", "Delete a point with what is tied to it.")
    delete.add_argument("tenant")
    delete.add_argument("id")
    shown = _action(group, "list", "list", "Show the points.", kind="point")
    shown.add_argument("--tenant")


def _equipment(group: Any) -> None:
    add = _action(group, "add", "add_equipment", "Make equipment.")
    add.add_argument("tenant")
    add.add_argument("name")
    rename = _action(group, "rename", "change_equipment", "Give equipment another name.")
    rename.add_argument("tenant")
    rename.add_argument("id")
    rename.add_argument("name")
    delete = _action(group, "delete", "delete_equipment", "Delete equipment with its bindings.")
    delete.add_argument("tenant")
    delete.add_argument("id")
    shown = _action(group, "list", "list", "Show the equipment.", kind="equipment")
    shown.add_argument("--tenant")


def _bindings(group: Any) -> None:
    add = _action(group, "add", "add_binding", "Have a point feed equipment.")
    add.add_argument("tenant")
    add.add_argument("point", help="the point's id")
    add.add_argument("equipment", help="the equipment's id")
    add.add_argument("--role", choices=ROLES_OF_A_BINDING)
    delete = _action(group, "delete", "delete_binding", "Have a point feed it no more.")
    delete.add_argument("tenant")
    delete.add_argument("id")
    shown = _action(group, "list", "list", "Show the bindings.", kind="binding")
    shown.add_argument("--tenant")


def _triggers(group: Any) -> None:
    def prepare(given: argparse.Namespace) -> dict[str, Any]:
        arguments = dict(vars(given))
        if arguments.get("bound") is not None:
            arguments["bound"] = _json_or_text(arguments["bound"])
        return arguments

    add = _action(
        group, "add", "add_trigger", "Make a trigger; the secret of its calls is shown.", prepare
    )
    add.add_argument("tenant")
    add.add_argument("point", help="the point's id")
    change = _action(group, "change", "change_trigger", "Change what is given of it.", prepare)
    change.add_argument("tenant")
    change.add_argument("id")
    for sub, required in ((add, True), (change, False)):
        sub.add_argument("--when", choices=WHENS, required=required)
        bound = "what values are compared with: JSON, else it is a text"
        sub.add_argument("--value", dest="bound", required=required, help=bound)
        sub.add_argument("--url", required=required)
        sub.add_argument("--name")
        sub.add_argument("--hysteresis", type=float, help="how far it has to fail to be over")
        sub.add_argument("--delay-ms", type=int, help="how long it has to hold")
        sub.add_argument(
            "--on-clear", action=argparse.BooleanOptionalAction, help="tell the end too"
        )
    for name, disabled, help_ in (
        ("enable", False, "Call the webhook again."),
        ("disable", True, "Call the webhook no more."),
    ):
        switch = _action(group, name, "change_trigger", help_, disabled=disabled)
        switch.add_argument("tenant")
        switch.add_argument("id")
    delete = _action(group, "delete", "delete_trigger", "Delete a trigger.")
    delete.add_argument("tenant")
    delete.add_argument("id")
    shown = _action(group, "list", "list", "Show the triggers.", kind="trigger")
    shown.add_argument("--tenant")


def _json_or_text(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def _rights(parser: argparse.ArgumentParser, default: str | None = None) -> None:
    """`--role`, or single `--scopes`; `_with_scopes` reads them."""
    rights = parser.add_mutually_exclusive_group(required=default is None)
    rights.add_argument("--role", choices=list(ROLES), default=default)
    rights.add_argument("--scopes", nargs="+", choices=SCOPES)


def _with_scopes(given: argparse.Namespace) -> dict[str, Any]:
    arguments = dict(vars(given))
    role = arguments.pop("role")
    return arguments | {"scopes": arguments["scopes"] or ROLES[role]}


def _keys(group: Any) -> None:
    add = _action(
        group, "add", "add_key", "Make a credential; its secret is shown once.", _with_scopes
    )
    add.add_argument("tenant")
    add.add_argument("name")
    add.add_argument("--use", choices=("device", "client", "api"), default="api")
    add.add_argument("--device", help="the device's id, for a device token")
    _rights(add)
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


def _signing_keys(group: Any) -> None:
    rotate = _action(group, "rotate", "rotate_signing_key", "Make the next key.")
    rotate.add_argument(
        "--overlap-seconds",
        type=int,
        help=f"how long it is published before it signs (default {OVERLAP_SECONDS})",
    )
    end = _action(group, "end", "end_signing_key", "Refuse a key and its tokens from now on.")
    end.add_argument("id")
    _action(group, "list", "list", "Show them in the order of their turns.", kind="signing_key")


def _users(group: Any) -> None:
    def prepare(given: argparse.Namespace) -> dict[str, Any]:
        arguments = _with_scopes(given)
        tenants, scopes = arguments.pop("tenant"), arguments.pop("scopes")
        return arguments | {"tenants": dict.fromkeys(tenants, scopes)}

    add = _action(
        group, "add", "add_user", "Make a user; a password that is made up is shown.", prepare
    )
    add.add_argument("name")
    add.add_argument("--tenant", action="append", required=True, help="may be given several times")
    _rights(add, "operator")
    add.add_argument("--password", help="default: made up and shown once")
    password = _action(group, "password", "set_password", "Set a user's password.")
    password.add_argument("name")
    password.add_argument("--password", help="default: made up and shown once")
    let_in = _action(
        group,
        "let-in",
        "set_rights",
        "Let a user into a tenant, or give other rights.",
        _with_scopes,
    )
    let_in.add_argument("name")
    let_in.add_argument("tenant")
    _rights(let_in)
    remove = _action(
        group, "remove", "remove_user", "Take a user out of a tenant; delete who is in no other."
    )
    remove.add_argument("tenant")
    remove.add_argument("name")
    disable = _action(group, "disable", "disable_user", "Let a user in no more.")
    disable.add_argument("name")
    enable = _action(group, "enable", "enable_user", "Let a disabled user in again.")
    enable.add_argument("name")
    _action(group, "list", "list", "Show the users.", kind="user")

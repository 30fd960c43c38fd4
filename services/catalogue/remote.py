"""Control actions for a process that may not open the embedded log itself, because another one has
it.

The process that has the log listens on a Unix socket in the data folder (its owner only);
`lineshaft tenants add …` and the like ask there. One JSON object a line, in and out: {"action",
"arguments"}, then {"result"} or {"error"}.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import socket
import struct
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict
from inspect import iscoroutinefunction
from pathlib import Path
from typing import Any

from schemas.catalogue import Thing
from schemas.commands import Command
from services.catalogue.audit import Caller
from services.catalogue.control import Control
from services.catalogue.view import View
from services.errors import PipelineError, Refused, Unavailable

_LINE_BYTES_MAX = 1 << 20
_PATH_BYTES_MAX = 107

_logger = logging.getLogger(__name__)


async def act(control: Control, view: View, action: str, arguments: Mapping[str, Any]) -> Any:
    """Do one action by its name, as plain JSON values; `list` shows what is there. Raises
    Refused.
    """
    if action == "list":
        return listing(view, **arguments)
    if action.startswith("_") or not iscoroutinefunction(getattr(Control, action, None)):
        raise Refused(f"no such action: {action}")
    return plain(await getattr(control, action)(**arguments))


def listing(view: View, kind: str, tenant: str = "") -> list[dict[str, Any]]:
    """What is configured of one kind (the things' own names of themselves), without secrets; the
    API servers are devices that are listed apart, too.
    """
    if kind == "signing_key":
        return [plain(key) for key in view.signing_keys()]
    if kind in ("tenant", "user"):
        return [plain(each) for each in (view.tenants() if kind == "tenant" else view.users())]
    tenants = [tenant] if tenant else [each.id for each in view.tenants()]
    return [plain(thing) for of in tenants for thing in _of_tenant(view, kind, of)]


def _of_tenant(view: View, kind: str, tenant: str) -> Sequence[Thing]:
    points = [
        point for each in view.devices(tenant) for point in view.points(tenant, each.id).values()
    ]
    match kind:
        case "location":
            return view.locations(tenant)
        case "device":
            return view.devices(tenant)
        case "api_server":
            return [view.api_server(tenant)]
        case "key":
            return view.keys(tenant)
        case "point":
            return points
        case "equipment":
            return view.all_equipment(tenant)
        case "binding":
            return [found for each in points for found in view.bindings(tenant, point=each.id)]
        case "trigger":
            return [found for each in points for found in view.triggers(tenant, each.id)]
    raise Refused(f"no such kind: {kind}")


def plain(result: Any) -> Any:
    """An action's result as JSON values; digests of secrets are left out."""
    if isinstance(result, Thing):
        body = result.body()
        return {name: value for name, value in body.items() if name not in ("secrets", "password")}
    if isinstance(result, Command):
        return asdict(result)
    if isinstance(result, tuple | list):
        return [plain(part) for part in result]
    return result


@asynccontextmanager
async def listening(control: Control, view: View, path: Path) -> AsyncIterator[None]:
    """Listen for actions while the block runs."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        own = control.by(Caller(_peer(writer), "socket"))
        with contextlib.suppress(OSError, ValueError, asyncio.IncompleteReadError):
            while line := await reader.readline():
                answer = await _answer(own, view, line)
                writer.write(json.dumps(answer).encode() + b"\n")
                await writer.drain()
        writer.close()

    if len(str(path).encode()) > _PATH_BYTES_MAX:
        _logger.warning("%s is too long for a socket: no actions while this process runs", path)
        yield
        return
    path.unlink(missing_ok=True)
    server = await asyncio.start_unix_server(serve, str(path), limit=_LINE_BYTES_MAX)
    path.chmod(0o600)
    try:
        yield
    finally:
        server.close()
        path.unlink(missing_ok=True)


def _peer(writer: asyncio.StreamWriter) -> str:
    """Which user of this machine is at the other end, where the system can tell."""
    if not hasattr(socket, "SO_PEERCRED"):
        return "owner"
    connection = writer.get_extra_info("socket")
    size = struct.calcsize("3i")
    _, user, _ = struct.unpack(
        "3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size)
    )
    return f"uid {user}"


async def _answer(control: Control, view: View, line: bytes) -> dict[str, Any]:
    try:
        asked = json.loads(line)
        return {"result": await act(control, view, asked["action"], asked["arguments"])}
    except PipelineError as error:
        return {"error": str(error)}
    except (ValueError, KeyError, TypeError) as error:
        return {"error": f"not an action: {error}"}


def ask(path: Path, action: str, arguments: Mapping[str, Any]) -> Any:
    """Have the process behind `path` do it. Raises Unavailable where none listens, Refused where it
    refuses, or does not say what became of it.
    """
    try:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(30)
            connection.connect(str(path))
            asked = json.dumps({"action": action, "arguments": arguments})
            connection.sendall(asked.encode() + b"\n")
            with connection.makefile("rb") as lines:
                answer = json.loads(lines.readline())
    except (ConnectionRefusedError, FileNotFoundError) as error:
        raise Unavailable(f"{path}: {error}") from error
    except (OSError, ValueError) as error:
        message = f"no answer from {path} ({error}); look whether it was done"
        raise Refused(message) from error
    if "error" in answer:
        raise Refused(answer["error"])
    return answer["result"]

"""What the command shows of the system: settings, routes, OpenAPI pages. Pure text out of
declarations.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import fields
from itertools import takewhile
from typing import Any
from urllib.parse import urlsplit

from services.dialects import Answer, Auth, Dialect, Push
from services.doors import Door, operation
from services.errors import Broken
from services.settings import PREFIX, Settings

_SECURITY: Mapping[Auth, Any] = {
    Auth.NONE: [],
    Auth.BEARER: [{"bearer": []}],
    Auth.X_AUTHORIZATION: [{"user": []}],
    Auth.ACCESS_TOKEN: [{"token": []}, {"access_token": []}],
    Auth.DEVICE_TOKEN: [],
}
_SCHEMES = {
    "bearer": {"type": "http", "scheme": "bearer"},
    "token": {"type": "apiKey", "in": "header", "name": "Authorization"},
    "access_token": {"type": "apiKey", "in": "query", "name": "access_token"},
    "user": {"type": "apiKey", "in": "header", "name": "X-Authorization"},
}
_ALIASES_APART = 2
"""Paths of a door that are shown one by one; more are shown once, with what they begin with."""


def doors(dialect: Dialect) -> list[tuple[str, Door]]:
    """(service, door) for every HTTP door of the dialect."""
    taking_in: tuple[Door, ...] = (*dialect.pushes, *dialect.calls)
    out: tuple[Door, ...] = (*dialect.reads, *dialect.follows)
    return [("ingress", door) for door in taking_in] + [("query", door) for door in out]


def places(door: Door) -> list[tuple[str, tuple[str, ...]]]:
    """Where a door is: each path, with no prefixes; or, of many paths, the part that all end with,
    and the prefixes that may stand before it ("" among them: nothing).
    """
    from_the_end = zip(*(reversed(path.split("/")) for path in door.paths), strict=False)
    same = [steps[0] for steps in takewhile(lambda steps: len(set(steps)) == 1, from_the_end)]
    tail = "".join(f"/{step}" for step in reversed(same))
    if len(door.paths) <= _ALIASES_APART or not tail:
        return [(path, ()) for path in door.paths]
    return [(tail, tuple(path.removesuffix(tail) for path in door.paths))]


def check_doors(dialects: Iterable[Dialect]) -> None:
    """Raises Broken where two doors claim the same method and path, or the same MQTT topic."""
    claimed: dict[tuple[str, str], str] = {}
    for dialect in dialects:
        places = [(door.method, path) for _, door in doors(dialect) for path in door.paths]
        places += [("MQTT", door.topic) for door in dialect.publishes]
        for method, path in places:
            place = (method, re.sub(r"{\w+}", "{}", path))
            other = claimed.setdefault(place, dialect.name)
            if other != dialect.name:
                raise Broken(f"{method} {path} is claimed by {other} and {dialect.name}")


def routes(dialects: Iterable[Dialect]) -> list[str]:
    """One line a door: service, method, path, dialect, when it answers."""
    lines = []
    for dialect in dialects:
        for service, door in doors(dialect):
            when = door.answer.value if isinstance(door, Push) else ""
            lines += [
                f"{service:<8} {door.method:<6} {path:<80} {dialect.name:<12} {when}".rstrip()
                for path in door.paths
            ]
        lines += [
            f"{'ingress':<8} {'MQTT':<6} {door.topic:<80} {dialect.name:<12} {Answer.APPEND.value}"
            for door in dialect.publishes
        ]
    return lines


def openapi(dialect: Dialect) -> dict[str, Any]:
    """The OpenAPI 3.1 page of one dialect, from what its doors say of themselves. A door with many
    paths is there once; the servers say what the path is below.
    """
    paths: dict[str, dict[str, Any]] = {}
    for _, door in doors(dialect):
        for path, prefixes in places(door):
            described = operation(door, path) | {"security": _SECURITY[door.auth]}
            servers = [{"url": prefix or "/"} for prefix in prefixes]
            item = paths.setdefault(path, {"servers": servers} if servers else {})
            if servers != item.get("servers", []):
                described["servers"] = servers or [{"url": "/"}]
            item[door.method.lower()] = described
    return {
        "openapi": "3.1.0",
        "info": {
            "title": dialect.title,
            "version": "1",
            "description": f"Contract: {dialect.contract_url}",
        },
        "paths": paths,
        "components": {"securitySchemes": _SCHEMES},
    }


# -- settings


def masked(url: str) -> str:
    """An address without its password."""
    password = urlsplit(url).password
    return url.replace(f":{password}@", ":***@") if password else url


def settings_lines(chosen: Settings, sources: Mapping[str, str]) -> list[str]:
    """One line a setting: name, value (secrets masked), source, meaning."""
    lines = []
    for setting in fields(Settings):
        value = getattr(chosen, setting.name)
        if setting.metadata["secret"] and value:
            value = masked(value) if "://" in str(value) else "***"
        name = f"{PREFIX}{setting.name.upper()}"
        lines.append(
            f"{name:<42} {value!s:<24} ({sources[setting.name]}) {setting.metadata['meaning']}"
        )
    return lines


def settings_env() -> str:
    """Every setting as a commented environment file."""
    return "\n".join(
        f"# {setting.metadata['meaning']}{_bounds(setting)}\n"
        f"#{PREFIX}{setting.name.upper()}={setting.default}\n"
        for setting in fields(Settings)
    )


def settings_markdown() -> str:
    """The reference page."""
    rows = [
        f"| `{PREFIX}{setting.name.upper()}` | `{setting.default}` | "
        f"{setting.metadata['meaning']}{_bounds(setting)} |"
        for setting in fields(Settings)
    ]
    head = "| setting | default | meaning |\n| --- | --- | --- |\n"
    return head + "\n".join(rows).replace("| `` |", "| |")


def _bounds(setting: Any) -> str:
    low, high = setting.metadata["low"], setting.metadata["high"]
    return "" if low is None else f" ({low:,} to {high:,})"

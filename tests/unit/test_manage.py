"""The command's part that configures, where no process runs."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from schemas.samples import Kind
from services.manage import act
from services.settings import load
from tests.support.processes import environment, run


@pytest.mark.parametrize(
    ("kind", "good", "value", "bad", "why"),
    [
        ("double", "-21.5", -21.5, "warm", "a double"),
        ("string", "21.5", "21.5", "ä" * 2049, "4096 bytes"),
    ],
)
def test_a_value_is_asked_for_as_the_settings_allow(
    tmp_path: Path, kind: str, good: str, value: Any, bad: str, why: str
) -> None:
    own = {
        "LINESHAFT_DATA_DIR": str(tmp_path),
        "LINESHAFT_COMMAND_SECONDS": "77",
        "LINESHAFT_DEVICE_COMMANDS_MAX": "1",
    }

    def done(action: str, **arguments: Any) -> Any:
        return act(load(own), action, arguments)

    done("add_tenant", id="acme", name="Acme Ltd")
    device = done("add_device", tenant="acme", name="Boiler")
    place = {"tenant": "acme", "device": device["id"], "key": "target"}
    point = done("add_point", **place, kind=int(Kind[kind.upper()]), writable=True)

    def asked(text: str) -> tuple[Any, str]:
        """What the command prints, and what it complains of."""
        argv = [sys.executable, "-m", "services", "points", "command", "acme", point["id"], text]
        it = run([*argv, "--kind", kind], env=environment(**own), check=False, seconds=60)
        return json.loads(it.stdout or "null"), it.stderr

    assert f"lineshaft: value: {why}" in asked(bad)[1]
    made, _ = asked(good)
    assert (made["value"], made["state"], made["point"]) == (value, "queued", point["id"])
    assert made["expires_ms"] - made["at_ms"] == 77_000
    assert "1 commands wait for the device already" in asked(good)[1]

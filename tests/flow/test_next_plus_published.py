"""The samples of Next Plus' own page against a running system, with nothing changed in them but the
address and the token.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support.plant import Plant, running
from tests.support.published import laid_out, needs_documents, page

pytestmark = needs_documents
DOCUMENT = "next-plus-push.txt"
LINES = (
    (0, "import os"),
    (0, "import time"),
    (0, "import requests"),
    (0, "NP_URL ="),
    (0, "TOKEN ="),
    (0, "class NextPlusAPIError"),
    (4, "pass"),
    (0, "def push(items"),
    (4, '"""Push one'),
    (4, "items: list"),
    (4, "r = requests.post("),
    (8, 'f"{NP_URL}'),
    (8, "params="),
    (8, "json=items"),
    (8, "timeout=timeout"),
    (4, ")"),
    (4, "if r.status_code == 401"),
    (8, "raise NextPlusAPIError"),
    (4, "if r.status_code == 422"),
    (8, "raise NextPlusAPIError"),
    (4, "r.raise_for_status()"),
    (4, "return r.json()"),
    (0, "# Pre-declared"),
    (0, "# temperature"),
    (0, "# running"),
    (0, "push(["),
    (4, '{"key": "temperature"'),
    (4, '{"key": "running"'),
    (0, "])"),
    (0, "# Long-running"),
    (0, "def push_with_retry"),
    (4, "for attempt"),
    (8, "try:"),
    (12, "return push(items)"),
    (8, "except (requests.Timeout"),
    (12, "if attempt =="),
    (16, "raise"),
    (12, "time.sleep("),
    (8, "except NextPlusAPIError"),
    (12, "raise"),
)


@pytest.fixture(scope="module")
def plant(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Plant]:
    with running(tmp_path_factory.mktemp("next_plus")) as plant:
        yield plant


def python_sample() -> str:
    """The reusable client."""
    (flat,) = re.findall(r"^python\n(import os .*?)\u03c0", page(DOCUMENT), re.M | re.S)
    return laid_out(flat, LINES)


def curl_samples() -> list[str]:
    """The two commands, each over several lines."""
    found = re.findall(r"^bash\n(curl .*)$", page(DOCUMENT), re.M)
    # What follows a command on its line is a sentence, or a heading that begins with a sign.
    commands = [re.split(r"Typical|[^\x00-\x7f]", one)[0] for one in found]
    return [one.replace("\\ ", "\\\n  ") for one in commands]


def run_python(plant: Plant, code: str, *, url: str = "", token: str = "") -> str:
    """What the sample, followed by `code`, prints."""
    env = os.environ | {
        "NP_URL": url or plant.facts["http"],
        "NP_TOKEN": token or plant.facts["next_plus"]["editor_token"],
    }
    argv = [sys.executable, "-c", python_sample() + code]
    done = subprocess.run(argv, env=env, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def latest(plant: Plant) -> dict[str, str]:
    """The latest values of the API server's parameters, read through another contract."""
    found = plant.client().latest(plant.facts["next_plus"]["device_id"])
    return {key: rows[0]["value"] for key, rows in found.items() if rows}


def test_the_python_client_pushes(plant: Plant) -> None:
    printed = run_python(plant, 'print(push_with_retry([{"key": "cycle_count", "value": 1284}]))')

    assert printed == "{'success': True, 'processed': 1}"
    found = latest(plant)
    assert {name: found.get(name) for name in ("temperature", "running")} == {
        "temperature": "42.5",
        "running": "true",
    }


def test_a_wrong_token_is_the_clients_own_error(plant: Plant) -> None:
    for token in ("nonsense", plant.facts["next_plus"]["operator_token"]):
        env = os.environ | {"NP_URL": plant.facts["http"], "NP_TOKEN": token}
        done = subprocess.run(
            [sys.executable, "-c", python_sample()],
            env=env,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        last = done.stderr.strip().splitlines()[-1]
        assert last.startswith("NextPlusAPIError: Auth failed"), done.stderr


def test_a_wrong_type_is_the_clients_own_error_with_the_details(plant: Plant) -> None:
    code = """
try:
    push_with_retry([{"key": "temperature", "value": "warm"}])
except NextPlusAPIError as error:
    print(error)
"""
    printed = run_python(plant, code)
    assert printed.startswith("Validation: {'error': ")
    assert "'code': 'API_PUSH_VALUE_TYPE_MISMATCH'" in printed
    assert "'expected': 'number', 'received': 'string'" in printed


@contextmanager
def shaky(address: str) -> Iterator[tuple[str, list[str]]]:
    """A way to the server that breaks the second connection, says nothing on the third, and is good
    otherwise; its address and what became of each connection.
    """
    host, _, port = address.removeprefix("http://").rpartition(":")
    listening, fates = socket.create_server(("127.0.0.1", 0)), list[str]()

    def serve() -> None:
        open_ = []
        while True:
            try:
                connection, _ = listening.accept()
            except OSError:
                return
            fates.append({1: "broken", 2: "silent"}.get(len(fates), "good"))
            if fates[-1] == "broken":
                connection.close()
            elif fates[-1] == "silent":
                open_.append(connection)
            else:
                behind = socket.create_connection((host, int(port)))
                for pair in ((connection, behind), (behind, connection)):
                    threading.Thread(target=_pour, args=pair, daemon=True).start()

    threading.Thread(target=serve, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}", fates
    finally:
        listening.close()


def _pour(source: socket.socket, sink: socket.socket) -> None:
    try:
        while data := source.recv(65_536):
            sink.sendall(data)
        sink.shutdown(socket.SHUT_WR)
    except OSError:
        source.close()


def test_network_errors_and_time_outs_are_tried_again(plant: Plant) -> None:
    # The first connection is that of the sample itself.
    with shaky(plant.facts["http"]) as (url, fates):
        code = 'print(push_with_retry([{"key": "temperature", "value": 43.5}]))'
        printed = run_python(plant, code, url=url)
    assert printed == "{'success': True, 'processed': 1}"
    assert fates == ["good", "broken", "silent", "good"]
    assert latest(plant)["temperature"] == "43.5"


@pytest.mark.skipif(not shutil.which("curl"), reason="curl is not installed")
def test_the_curl_command_pushes(plant: Plant, tmp_path: Path) -> None:
    command = curl_samples()[0]
    token = plant.facts["next_plus"]["editor_token"]
    addressed = command.replace("https://<tenant>.nextplus.io", plant.facts["http"])
    assert shell(addressed.replace("<TOKEN>", token), tmp_path) == {"success": True, "processed": 1}
    assert latest(plant)["temperature"] == "23.5"
    refused = shell(addressed.replace("<TOKEN>", "wrong"), tmp_path)
    assert refused["error"]["code"] == "INVALID_TOKEN"


@pytest.mark.skipif(
    not (shutil.which("curl") and shutil.which("jq")), reason="curl or jq is not installed"
)
def test_the_shell_script_pushes_a_dynamic_value(plant: Plant, tmp_path: Path) -> None:
    variables = {
        "NP_URL": plant.facts["http"],
        "NP_TOKEN": plant.facts["next_plus"]["editor_token"],
        "TEMP": "17.25",
    }
    answer = shell(curl_samples()[1], tmp_path, variables)
    assert answer == {"success": True, "processed": 2}
    assert latest(plant)["temperature"] == "17.25"


def shell(command: str, folder: Path, variables: dict[str, str] | None = None) -> dict[str, object]:
    """The JSON that a command prints."""
    env = os.environ | (variables or {})
    done = subprocess.run(
        ["bash", "-c", command], env=env, cwd=folder, capture_output=True, text=True, check=True
    )
    return dict(json.loads(done.stdout))

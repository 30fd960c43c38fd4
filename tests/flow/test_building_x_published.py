"""The quick-start of Building X' own page against a running system, as the shell lines that it
shows; the values of its variables are all that is ours.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import pytest

from tests.support.plant import Plant, running
from tests.support.published import KEPT, commands, needs_documents, page, restored

pytestmark = [
    needs_documents,
    pytest.mark.skipif(not shutil.which("curl"), reason="curl is not installed"),
]
DOCUMENT = "building-x-point-value-ingest.txt"
# The page has kept three lines of the first command. The address, and the members that the vendor's
# developer guide lists, are put back.
TOKEN_LINES = (
    KEPT,
    '  "$ADDRESS/oauth/token" \\',
    KEPT,
    KEPT,
    r"  \"client_id\": \"$CLIENT_ID\",",
    r"  \"client_secret\": \"$CLIENT_SECRET\",",
    r"  \"audience\": \"https://horizon.siemens.com\",",
    r"  \"grant_type\": \"client_credentials\"",
    '}"',
)
# Of the second one, lines with nothing but brackets in them are lost.
VALUE_LINES = (*[KEPT] * 7, "    {", *[KEPT] * 4, "      }", "    }", "  ]", '}"')


class Answer(NamedTuple):
    """What curl was answered."""

    status: int
    body: str


@pytest.fixture(scope="module")
def plant(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Plant]:
    with running(tmp_path_factory.mktemp("building_x")) as plant:
        yield plant


def token_command() -> str:
    """The first command of the page."""
    (lines,) = commands(page(DOCUMENT), "curl \\")
    return restored([line for line in lines if line], TOKEN_LINES)


def value_command() -> str:
    """The second one."""
    (lines,) = commands(page(DOCUMENT), "curl -X")
    assert all(not line.strip('{}[]" ') for line in VALUE_LINES if line is not KEPT)
    return restored(lines, VALUE_LINES)


def shell(plant: Plant, command: str, variables: Mapping[str, str]) -> Answer:
    """Run a command with these variables. That curl shall tell the status stands in its own
    configuration, not on the command line.
    """
    (plant.folder / ".curlrc").write_text('silent\nwrite-out = "\\n%{http_code}"\n')
    env = os.environ | {"CURL_HOME": str(plant.folder)} | dict(variables)
    argv = ["bash", "-euo", "pipefail", "-c", command]
    done = subprocess.run(argv, env=env, capture_output=True, text=True, timeout=60, check=True)
    body, _, status = done.stdout.rpartition("\n")
    return Answer(int(status), body)


def get_token(plant: Plant, **variables: str) -> Answer:
    """The page's second step."""
    facts = plant.facts["building_x"]
    own = {
        "ADDRESS": plant.facts["http"],
        "CLIENT_ID": facts["client_id"],
        "CLIENT_SECRET": facts["client_secret"],
    }
    return shell(plant, token_command(), own | variables)


def add_values(plant: Plant, command: str, **variables: str) -> Answer:
    """Its third step; the variable PARTITION holds the address of the partition, as the page uses
    it.
    """
    facts = plant.facts["building_x"]
    own = {
        "TOKEN": json.loads(get_token(plant).body)["access_token"],
        "PARTITION": f"{plant.facts['http']}/ingest/partitions/{facts['partition_id']}",
        "POINTID": facts["point_id"],
    }
    return shell(plant, command, own | variables)


def errors(answer: Answer) -> list[dict[str, Any]]:
    """The errors of a JSON:API document."""
    found: list[dict[str, Any]] = json.loads(answer.body)["errors"]
    return found


def test_a_token_is_created_and_looks_like_the_pages(plant: Plant) -> None:
    answer = get_token(plant)

    assert answer.status == 200
    shown = dict(re.findall(r'^  "(\w+)": (.+?),?$', page(DOCUMENT), re.M))
    found = json.loads(answer.body)
    assert list(found) == list(shown) == ["access_token", "token_type", "expires_in"]
    for name in ("token_type", "expires_in"):
        assert found[name] == json.loads(shown[name])
    assert found["access_token"].count(".") == json.loads(shown["access_token"]).count(".")


def test_the_value_of_the_page_is_added_once(plant: Plant) -> None:
    assert add_values(plant, value_command()) == (204, "")
    again = add_values(plant, value_command())
    assert (again.status, json.loads(again.body)["meta"]) == (202, {"droppedIndices": [0]})
    forced = value_command().replace("/values", "/values?overwrite=true")
    assert add_values(plant, forced) == (204, "")

    (time,) = re.findall(r'timestamp\\": \\"([^"\\]+)', page(DOCUMENT))
    assert stored(plant, time) == [(time, "12.66")]


def test_of_the_four_values_of_the_page_the_third_is_dropped(plant: Plant) -> None:
    text = page(DOCUMENT)
    stamps = re.findall(r"•\s+(\d{4}-\d\d-\d\dT[\d:.]+)", text)
    (index,) = re.findall(r'conflict with index "(\d)"', text)
    answer = add_values(plant, with_values(value_command(), [f"{stamp}Z" for stamp in stamps]))

    assert answer.status == 202
    assert json.loads(answer.body)["meta"] == {"droppedIndices": [int(index)]}
    first = f"{min(stamps)}Z"
    assert stored(plant, first) == [(f"{stamp}Z", "12.66") for stamp in sorted(set(stamps))]
    no_conflict = [f"{stamp}Z".replace("2022", "2021") for stamp in stamps[:2]]
    assert add_values(plant, with_values(value_command(), no_conflict)).status == 204


def with_values(command: str, times: list[str]) -> str:
    """The page's command with its item as often as there are times."""
    before, opening, rest = command.partition("    {\n")
    item, closing, after = rest.partition("\n    }\n")
    items = [opening + re.sub(r"\d{4}-[^\\]+", time, item) + closing.rstrip() for time in times]
    return before + ",\n".join(items) + "\n" + after


def stored(plant: Plant, first: str) -> list[tuple[str, str]]:
    """The point's values of the second that begins so, read by the vendor's own API."""
    client, facts = plant.client(), plant.facts["building_x"]
    path = f"/operations/partitions/{facts['partition_id']}/points/{facts['point_id']}/values"
    second = first[:20]
    query = f"filter[timestamp][from]={second}000Z&filter[timestamp][to]={second}999Z"
    headers = {"Authorization": f"Bearer {client.token()}"}
    status, answer, _ = client.http.request("GET", f"{path}?{query}", headers=headers)
    assert status == 200, answer
    rows = [row["attributes"] for row in answer["data"]]
    return [(row["timestamp"], row["value"]) for row in rows]


def test_wrong_variables_are_told_in_words(plant: Plant) -> None:
    refused = get_token(plant, CLIENT_SECRET="wrong")
    assert refused.status == 401
    assert set(json.loads(refused.body)) == {"error", "error_description", "detail"}
    for wrong, status in (
        ({"TOKEN": "wrong"}, 401),
        ({"POINTID": "00000000-0000-4000-8000-000000000000"}, 404),
        ({"PARTITION": f"{plant.facts['http']}/ingest/partitions/nowhere"}, 404),
    ):
        answer = add_values(plant, value_command(), **wrong)
        assert answer.status == status
        assert errors(answer)[0]["status"] == str(status)

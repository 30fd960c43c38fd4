"""Building X's reading side over HTTP: a generic JSON:API client walks from the partition to the
values by links alone, editors change what it finds, and clients in use get what they ask for.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import pytest
from jsonapi_client import Inclusion, Modifier, Session
from jsonapi_client.exceptions import DocumentError

from tests.flow.test_manage import Device, command
from tests.support.plant import Http, Plant, moment, running
from tests.support.processes import wait_for
from tests.support.stack import AUDIENCE

START_MS = 1_700_000_000_000
API = "application/vnd.api+json"
PREFIXES = (
    "/ingest",
    "/operations",
    "/structure",
    "/api/openness/ingest",
    "/api/openness/operations",
    "/api/openness/structure",
    "",
)


@pytest.fixture(scope="module")
def plant(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Plant]:
    folder = tmp_path_factory.mktemp("reading")
    with running(folder, {"LINESHAFT_LINKS_BASE": "host"}) as plant:
        yield plant


class Api:
    """The plant's Building X API, spoken to with the token of one client."""

    def __init__(self, plant: Plant, client_id: str, client_secret: str) -> None:
        self.address = f"http://127.0.0.1:{plant.http_port}"
        self.http = Http(self.address)
        self.partition: str = plant.facts["building_x"]["partition_id"]
        grant = {"client_id": client_id, "client_secret": client_secret}
        grant |= {"audience": AUDIENCE, "grant_type": "client_credentials"}
        _, answer, _ = self.http.request("POST", "/oauth/token", grant)
        self.headers = {"Authorization": f"Bearer {answer['access_token']}"}

    def __call__(
        self, method: str, path: str, body: Any = None, prefix: str = "/operations"
    ) -> tuple[int, Any, Mapping[str, str]]:
        """(status, document, headers) of a path in the partition, or of a link."""
        if path.startswith(("http", "/partitions/")):
            parts = urlsplit(path)
            whole = f"{parts.path}?{parts.query}"
        else:
            whole = f"{prefix}/partitions/{self.partition}{path}"
        status, document, headers = self.http.request(
            method, whole, body, self.headers | {"Accept": API, "Content-Type": API}
        )
        # Where a refusal came before the body was read, the connection is not used again.
        self.http.close()
        return status, document, headers

    def made(self, path: str, **data: Any) -> str:
        """The id of what is made."""
        status, document, headers = self("POST", path, {"data": data})
        assert status == 201, document
        assert headers["location"] == document["data"]["links"]["self"]
        assert self("GET", headers["location"])[1]["data"] == document["data"]
        return str(document["data"]["id"])


@pytest.fixture(scope="module")
def reader(plant: Plant) -> Api:
    bx = plant.facts["building_x"]
    return Api(plant, bx["client_id"], bx["client_secret"])


@pytest.fixture(scope="module")
def editor(plant: Plant) -> Api:
    key, secret = command(
        plant, "keys", "add", "demo", "editor", "--use", "client", "--role", "editor"
    )
    return Api(plant, key["id"], secret)


def identified(type: str, id: str) -> dict[str, Any]:
    """A relationship to one resource."""
    return {"data": {"type": type, "id": id}}


@pytest.fixture(scope="module")
def site(editor: Api) -> dict[str, str]:
    """A building with a floor, a gateway with a device behind it, and its points."""
    address = {"street": "Main Street 1", "locality": "Zug", "countryCode": "CH"}
    house = editor.made(
        "/locations",
        type="Building",
        attributes={"label": "House", "timeZone": "Europe/Zurich", "postalAddress": address},
    )
    floor = editor.made(
        "/locations",
        type="Floor",
        attributes={"label": "Floor"},
        relationships={"isPartOf": identified("Building", house)},
    )
    gateway = editor.made("/devices", type="Device", attributes={"name": "Gateway"})
    device = editor.made(
        "/devices",
        type="Device",
        attributes={"name": "Unit 3", "modelName": "M", "serialNumber": "S/N 3"},
        relationships={
            "hasLocation": identified("Floor", floor),
            "hasGateway": identified("Device", gateway),
        },
    )
    ids = {"house": house, "floor": floor, "gateway": gateway, "device": device}
    for name, kind in (("temperature", "number"), ("running", "boolean"), ("mode", "string")):
        ids[name] = editor.made(
            f"/devices/{device}/points",
            type="Point",
            attributes={"name": name, "dataType": kind},
        )
    return ids


def put(api: Api, link: str, *values: str) -> None:
    """Values of the point with an id, or behind a link, one a second; they are taken in then."""
    data = [
        {
            "type": "PointValue",
            "attributes": {"timestamp": moment(START_MS + 1_000 * row), "value": value},
        }
        for row, value in enumerate(values)
    ]
    path = link if link.startswith("/") else f"/points/{link}"
    status, document, _ = api("POST", f"{path}/values", {"data": data})
    assert status in (202, 204), document


def test_a_generic_client_walks_from_the_partition_to_the_values(
    plant: Plant, reader: Api, editor: Api, site: dict[str, str]
) -> None:
    wanted = [f"{row}.5" for row in range(25)]
    put(editor, site["temperature"], *wanted)
    for prefix in PREFIXES:
        session = Session(f"{reader.address}{prefix}", request_kwargs={"headers": reader.headers})
        [partition] = session.get("partitions").resources
        assert partition.id == reader.partition

        [house] = [
            each
            for each in partition.relationships["hasLocations"].resources
            if each.id == site["house"]
        ]
        assert house.type == "Building" and house.label == "House"
        [floor] = [
            each
            for each in partition.relationships["hasLocations"].resources
            if each.type == "Floor"
        ]
        [device] = floor.relationships["hasDevices"].resources
        assert (device.id, device.serialNumber) == (site["device"], "S/N 3")

        points = device.relationships["hasPoints"].filter(Modifier("page[limit]=2")).iterator()
        assert [each.name for each in points] == ["temperature", "running", "mode"]

        temperature = session.get(f"partitions/{partition.id}/points", site["temperature"])
        link = temperature.resource.links.self.url
        asked = Modifier(f"filter[timestamp][from]={moment(START_MS)}&page[limit]=10")
        values = session.fetch_document_by_url(asked.url_with_modifiers(f"{link}/values"))
        found = list(values.iterator())
        assert [each.value for each in found] == wanted
        assert [each.timestamp for each in found[:2]] == [moment(START_MS), moment(START_MS + 1000)]
        session.close()


def test_a_generic_client_finds_what_is_included_without_another_request(
    reader: Api, site: dict[str, str]
) -> None:
    prefix = f"{reader.address}/operations/partitions/{reader.partition}"
    session = Session(prefix, request_kwargs={"headers": reader.headers})
    asked = Modifier("page[limit]=1") + Inclusion("hasFeatures", "hasLocation", "hasGateway")
    devices = {each.id: each for each in session.iterate("devices", asked)}
    # Whatever was not included would have to be asked for without a credential.
    session._request_kwargs.clear()
    device = devices[site["device"]]
    info, connectivity = device.relationships["hasFeatures"].resources
    assert (info.type, info.name, connectivity.status) == ("DeviceInfo", "Unit 3", "unknown")
    assert device.relationships["hasLocation"].resource.label == "Floor"
    assert device.relationships["hasGateway"].resource.id == site["gateway"]
    session.close()


def test_a_generic_client_is_told_what_is_not_there(reader: Api) -> None:
    prefix = f"{reader.address}/operations/partitions/{reader.partition}"
    session = Session(prefix, request_kwargs={"headers": reader.headers})
    with pytest.raises(DocumentError, match="404"):
        session.get("locations", "nothing")
    session.close()


# -- what clients in use send ----------------------------------------------------------------------


def test_the_requests_of_a_public_go_client(reader: Api, editor: Api, site: dict[str, str]) -> None:
    put(editor, site["running"], "true")
    status, found, _ = reader("GET", "/locations?filter[type]=Building&include=hasPostalAddress")
    assert status == 200
    [house] = found["data"]
    assert house["attributes"] == {
        "label": "House",
        "timeZone": "Europe/Zurich",
        "description": "",
    }
    [address] = found["included"]
    assert house["relationships"]["hasPostalAddress"]["data"]["id"] == address["id"]
    assert address["attributes"]["locality"] == "Zug"

    include = "include=hasFeatures.DeviceInfo,hasFeatures.Connectivity"
    here = f"filter[hasLocation.data.id]={site['floor']}&page[limit]=100"
    _, found, _ = reader("GET", f"/devices?{include}&{here}")
    [device] = found["data"]
    assert (device["attributes"]["modelName"], device["attributes"]["serialNumber"]) == (
        "M",
        "S/N 3",
    )
    features = {each["type"]: each for each in found["included"]}
    assert {each["relationships"]["hasDevice"]["data"]["id"] for each in features.values()} == {
        device["id"]
    }
    assert features["DeviceInfo"]["attributes"]["name"] == "Unit 3"
    assert "status" in features["Connectivity"]["attributes"]

    status, found, _ = reader("GET", "/devices?filter[hasLocation.data.id]=nowhere")
    assert (status, found["data"]) == (200, [])
    _, found, _ = reader(
        "GET", f"/devices/{site['gateway']}/devices?include=hasFeatures.DeviceInfo"
    )
    assert [each["id"] for each in found["data"]] == [site["device"]]

    for name in ("field", "fields"):
        path = f"/points/{site['running']}?{name}[Point]=pointValue"
        attributes = reader("GET", path)[1]["data"]["attributes"]
        assert (attributes["name"], attributes["dataType"]) == ("running", "boolean")
        assert attributes["pointValue"] == {"value": "true", "timestamp": moment(START_MS)}
        assert attributes["systemAttributes"]["curStatus"] == "ok"
        _, found, _ = reader("GET", f"/devices/{site['device']}/points?{name}[Point]=pointValue")
        values = {e["id"]: e["attributes"].get("pointValue") for e in found["data"]}
        assert values[site["running"]]["value"] == "true"
        assert values[site["mode"]] is None


def test_json_without_the_vendors_media_type_is_served(reader: Api) -> None:
    headers = reader.headers | {"Accept": "application/json", "Content-Type": "application/json"}
    path = f"/operations/partitions/{reader.partition}/devices"
    assert reader.http.request("GET", path, None, headers)[0] == 200


def test_times_as_clients_write_them(reader: Api, editor: Api, site: dict[str, str]) -> None:
    put(editor, site["mode"], "auto", "manual")
    values = f"/points/{site['mode']}/values?filter[timestamp][from]="
    # Brackets and the "+" of an offset as they are; the second parameter is misspelled.
    local = "2023-11-15T00:13:20+02:00"
    assert moment(START_MS).startswith("2023-11-14T22:13:20")
    path = f"{values}{local}&[timestamp][to]=2023-11-15T00:13:21+02:00"
    assert [each["attributes"]["value"] for each in reader("GET", path)[1]["data"]] == [
        "auto",
        "manual",
    ]
    path = f"{values}{local}&filter[timestamp][to]=2023-11-15T00:13:21+02:00"
    assert [each["attributes"]["value"] for each in reader("GET", path)[1]["data"]] == ["auto"]
    quoted = f"/points/{site['mode']}/values?{quote('filter[timestamp][from]')}={quote(local)}"
    assert len(reader("GET", quoted)[1]["data"]) == 2


def test_connectivity_follows_the_session_of_the_device(plant: Plant, reader: Api) -> None:
    facts = plant.facts["opticloud"]
    path = f"/devices/{facts['device_id']}?include=hasFeatures.Connectivity"

    def status() -> str:
        [connectivity] = reader("GET", path)[1]["included"]
        return str(connectivity["attributes"]["status"])

    assert status() == "unknown"
    for _ in range(2):
        device = Device(plant, facts["device_token"])
        assert device.connected.wait(10)
        wait_for(lambda: status() == "connected", what="the device to be connected")
        device.client.disconnect()
        device.client.loop_stop()
        wait_for(lambda: status() == "disconnected", what="the device to be gone")


# -- managing --------------------------------------------------------------------------------------


def test_only_an_editor_changes_anything(reader: Api, site: dict[str, str]) -> None:
    attributes = {"attributes": {"name": "x"}}
    for method, path in (
        ("POST", "/locations"),
        ("PATCH", f"/locations/{site['house']}"),
        ("DELETE", f"/locations/{site['house']}"),
        ("POST", "/devices"),
        ("PATCH", f"/devices/{site['device']}"),
        ("DELETE", f"/devices/{site['device']}"),
        ("POST", "/points"),
        ("POST", f"/devices/{site['device']}/points"),
        ("PATCH", f"/points/{site['mode']}"),
        ("DELETE", f"/points/{site['mode']}"),
    ):
        status, document, _ = reader(method, path, {"data": attributes})
        assert (status, document["errors"][0]["status"]) == (403, "403"), (method, path)


def test_what_is_changed_and_deleted_is_seen_at_once(
    plant: Plant, editor: Api, reader: Api
) -> None:
    house = editor.made("/locations", type="Building", attributes={"label": "Annex"})
    device = editor.made(
        "/devices",
        type="Device",
        attributes={"name": "x"},
        relationships={"hasLocation": identified("Building", house)},
    )
    status, document, _ = editor("DELETE", f"/locations/{house}")
    assert (status, document["errors"][0]["code"]) == (409, "IN_USE")
    moved = {"data": {"relationships": {"hasLocation": {"data": None}}}}
    assert editor("PATCH", f"/devices/{device}", moved)[0] == 200
    found = reader("GET", f"/devices/{device}")[1]["data"]["relationships"]["hasLocation"]
    assert found == {"data": None}
    assert editor("DELETE", f"/locations/{house}")[0] == 204
    assert editor("DELETE", f"/devices/{device}")[0] == 204
    for path in (f"/locations/{house}", f"/devices/{device}"):
        assert reader("GET", path)[0] == editor("DELETE", path)[0] == 404
    names = [each["id"] for each in command(plant, "devices", "list", "--tenant", "demo")]
    assert device not in names


def test_the_command_and_the_api_are_about_the_same_things(
    plant: Plant, reader: Api, site: dict[str, str]
) -> None:
    made = command(
        plant, "locations", "add", "demo", "Hall", "--type", "Room", "--parent", site["floor"],
        "--street", "Side Street 2", "--time-zone", "Europe/Zurich",
    )  # fmt: skip
    path = f"/locations/{made['id']}?include=hasPostalAddress"
    found = reader("GET", path)[1]
    assert (found["data"]["type"], found["included"][0]["attributes"]["street"]) == (
        "Room",
        "Side Street 2",
    )
    command(plant, "locations", "change", "demo", made["id"], "--label", "Hall 2", "--street", "")
    found = reader("GET", path)[1]
    assert found["data"]["attributes"]["label"] == "Hall 2" and "included" not in found
    device = command(
        plant, "devices", "add", "demo", "y", "--model", "M2", "--location", made["id"]
    )
    assert "devices are there" in command(plant, "locations", "delete", "demo", made["id"], code=1)
    command(plant, "devices", "change", "demo", device["id"], "--location", "", "--serial", "7")
    found = reader("GET", f"/devices/{device['id']}")[1]["data"]
    assert (found["attributes"]["modelName"], found["attributes"]["serialNumber"]) == ("M2", "7")
    point = command(
        plant, "points", "add", "demo", device["id"], "setpoint", "--kind", "double",
        "--writable", "--description", "what is wanted",
    )  # fmt: skip
    system = reader("GET", f"/points/{point['id']}")[1]["data"]["attributes"]["systemAttributes"]
    marks = {"writable": "m:", "ingestable": "m:"}
    assert system == {"description": "what is wanted", **marks}
    command(plant, "points", "change", "demo", point["id"], "--no-ingestable")
    system = reader("GET", f"/points/{point['id']}")[1]["data"]["attributes"]["systemAttributes"]
    assert system == {"description": "what is wanted", "writable": "m:"}
    command(plant, "locations", "delete", "demo", made["id"])
    listed = command(plant, "locations", "list", "--tenant", "demo")
    assert made["id"] not in [each["id"] for each in listed]


def test_a_stray_path_is_refused_in_the_vendors_words(reader: Api) -> None:
    for prefix in PREFIXES:
        for method, path, wanted in (("GET", "/nothing", 404), ("PUT", "/devices", 405)):
            status, document, headers = reader(method, path, prefix=prefix)
            assert status == wanted
            assert headers.get("allow") == ("GET, POST" if wanted == 405 else None)
            assert document["errors"][0]["status"] == str(status)
    # The token endpoint has words of its own.
    status, document = reader.http.request("GET", "/oauth/token")[:2]
    assert (status, document["error"]) == (405, "invalid_request")
    # What begins with no vendor's words is nobody's.
    assert reader.http.request("GET", "/nothing")[:2] == (404, {"error": "no such door"})


def test_the_vendors_form_of_links_leads_somewhere_too(tmp_path: Path) -> None:
    with running(tmp_path) as plant:
        key, secret = command(
            plant, "keys", "add", "demo", "editor", "--use", "client", "--role", "editor"
        )
        editor = Api(plant, key["id"], secret)
        device = editor.made("/devices", type="Device", attributes={"name": "Unit 3"})
        attributes = {"name": "temperature", "dataType": "number"}
        point = editor.made(f"/devices/{device}/points", type="Point", attributes=attributes)

        link = editor("GET", f"/points/{point}")[1]["data"]["links"]["self"]
        assert link == f"/partitions/{editor.partition}/points/{point}"
        put(editor, link, "1.5", "2.5", "3.5")
        asked = f"filter[timestamp][from]={moment(START_MS)}&page[limit]=2"
        found = []
        following = f"/points/{point}/values?{asked}"
        while following:
            _, document, _ = editor("GET", following)
            found.append([each["attributes"]["value"] for each in document["data"]])
            following = document["links"].get("next", "")
        assert found == [["1.5", "2.5"], ["3.5"]]
        status, first, _ = editor("GET", "/devices?page[limit]=1")
        status, second, _ = editor("GET", first["links"]["next"])
        assert status == 200 and second["data"][0]["id"] != first["data"][0]["id"]

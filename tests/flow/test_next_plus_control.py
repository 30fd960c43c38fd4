"""Next Plus' control plane over HTTP, on a running system: who may do what, what stops working at
once, what a restart keeps, and parameters whose keys change.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from typing import Any

import pytest

from tests.support.plant import Http, Plant, running
from tests.support.processes import wait_for

SERVERS = "/api/ApiServers"
PARAMETERS = f"{SERVERS}/parameters"
PASSWORD = "correct horse battery"
ROLES = ("viewer", "operator", "editor", "admin")


@pytest.fixture(scope="module")
def plant(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Plant]:
    with running(tmp_path_factory.mktemp("next_plus")) as plant:
        yield plant


class Api:
    """The plant's Next Plus API, spoken to with one token."""

    def __init__(self, plant: Plant, token: str = "") -> None:
        self.http = Http(f"http://127.0.0.1:{plant.http_port}")
        self.headers = {"Authorization": token} if token else {}

    def __call__(self, method: str, path: str, body: Any = None) -> tuple[int, Any]:
        """(status, decoded answer)."""
        status, answer, _ = self.http.request(method, path, body, self.headers)
        # Where a refusal came before the body was read, the connection is not used again.
        self.http.close()
        return status, answer

    def done(self, method: str, path: str, body: Any = None) -> Any:
        """The answer of what has to succeed."""
        status, answer = self(method, path, body)
        assert status in (200, 204), (method, path, status, answer)
        return answer


def log_in(plant: Plant, name: str, password: str, **more: Any) -> Any:
    """What a log in is answered."""
    return Api(plant).done(
        "POST", "/api/Users/login", {"username": name, "password": password, **more}
    )


@pytest.fixture(scope="module")
def admin(plant: Plant) -> Api:
    facts = plant.facts["opticloud"]
    return Api(plant, log_in(plant, facts["username"], facts["password"])["id"])


def of_role(plant: Plant, admin: Api, role: str) -> Api:
    """Somebody who has logged in with this role."""
    name = f"{role}@roles.example"
    if admin("GET", f"/api/Users/{name}")[0] == 404:
        admin.done("POST", "/api/Users", {"username": name, "password": PASSWORD, "role": role})
    return Api(plant, log_in(plant, name, PASSWORD)["id"])


# -- who may do what -------------------------------------------------------------------------------

ME = "/api/Users/me"
READ, CONFIGURE, ADMIN, ANY = "operator", "editor", "admin", "viewer"
NOTHING = "00000000-0000-4000-8000-000000000000"
TABLE = [
    # method, path, the lowest role, the answer to it (none of these changes anything)
    ("POST", f"{SERVERS}/push", CONFIGURE, 422),
    ("GET", f"{SERVERS}/readParameter/{NOTHING}", READ, 404),
    ("GET", SERVERS, CONFIGURE, 200),
    ("GET", f"{SERVERS}/{NOTHING}", CONFIGURE, 404),
    ("PATCH", f"{SERVERS}/{NOTHING}", CONFIGURE, 404),
    ("GET", PARAMETERS, CONFIGURE, 200),
    ("POST", PARAMETERS, CONFIGURE, 422),
    ("GET", f"{PARAMETERS}/{NOTHING}", CONFIGURE, 404),
    ("PATCH", f"{PARAMETERS}/{NOTHING}", CONFIGURE, 404),
    ("DELETE", f"{PARAMETERS}/{NOTHING}", CONFIGURE, 404),
    ("GET", f"{PARAMETERS}/{NOTHING}/bindings", CONFIGURE, 404),
    ("POST", f"{PARAMETERS}/{NOTHING}/bindings", CONFIGURE, 404),
    ("DELETE", f"{PARAMETERS}/{NOTHING}/bindings/{NOTHING}", CONFIGURE, 404),
    ("GET", f"{PARAMETERS}/{NOTHING}/triggers", CONFIGURE, 404),
    ("POST", f"{PARAMETERS}/{NOTHING}/triggers", CONFIGURE, 404),
    ("GET", f"{SERVERS}/triggers/{NOTHING}", CONFIGURE, 404),
    ("PATCH", f"{SERVERS}/triggers/{NOTHING}", CONFIGURE, 404),
    ("DELETE", f"{SERVERS}/triggers/{NOTHING}", CONFIGURE, 404),
    ("GET", "/api/ProductionEntities", CONFIGURE, 200),
    ("POST", "/api/ProductionEntities", CONFIGURE, 422),
    ("GET", f"/api/ProductionEntities/{NOTHING}", CONFIGURE, 404),
    ("PATCH", f"/api/ProductionEntities/{NOTHING}", CONFIGURE, 404),
    ("DELETE", f"/api/ProductionEntities/{NOTHING}", CONFIGURE, 404),
    ("GET", f"/api/ProductionEntities/{NOTHING}/bindings", CONFIGURE, 404),
    ("GET", "/api/Users", ADMIN, 200),
    ("POST", "/api/Users", ADMIN, 422),
    ("GET", f"/api/Users/{NOTHING}", ADMIN, 404),
    ("PATCH", f"/api/Users/{NOTHING}", ADMIN, 404),
    ("DELETE", f"/api/Users/{NOTHING}", ADMIN, 404),
    ("GET", "/api/AccessTokens", ADMIN, 200),
    ("POST", "/api/AccessTokens", ADMIN, 422),
    ("DELETE", f"/api/AccessTokens/{NOTHING}", ADMIN, 404),
    ("GET", "/api/Users/me", ANY, 200),
    ("POST", "/api/Users/logout", ANY, 204),
]


def test_the_table_has_every_door() -> None:
    from services.dialects.next_plus import DIALECT

    doors = [*DIALECT.pushes, *DIALECT.reads, *DIALECT.calls]
    declared = {(door.method, len(door.paths[0].split("/"))) for door in doors}
    listed = {(method, len(path.split("/"))) for method, path, _, _ in TABLE}
    assert declared == listed
    assert len(TABLE) == len(doors) - 1, "every door but log in, which asks for nobody"


@pytest.mark.parametrize("role", ROLES)
def test_a_role_opens_the_doors_up_to_it_and_no_other(role: str, plant: Plant, admin: Api) -> None:
    api = of_role(plant, admin, role)
    found = [(method, path, api(method, path, {})[0]) for method, path, _, _ in TABLE]

    open_to = ROLES[: ROLES.index(role) + 1]
    assert found == [
        (method, path, status if lowest in open_to else 401)
        for method, path, lowest, status in TABLE
    ]


def test_without_a_credential_every_door_is_shut_and_says_so(plant: Plant) -> None:
    for api, code in (
        (Api(plant), "AUTHORIZATION_REQUIRED"),
        (Api(plant, "ls_nobody_nothing"), "INVALID_TOKEN"),
    ):
        for method, path, _, _ in TABLE:
            status, answer = api(method, path, {})
            assert (status, answer["error"]["code"]) == (401, code), (method, path)


def test_only_an_admin_switches_the_api_server_off_and_nobody_pushes_then(
    plant: Plant, admin: Api
) -> None:
    editor = of_role(plant, admin, "editor")
    [server] = editor.done("GET", SERVERS)
    path = f"{SERVERS}/{server['id']}"
    assert server["id"] == plant.facts["next_plus"]["device_id"]

    assert editor("PATCH", path, {"active": False})[0] == 401
    assert editor.done("PATCH", path, {"name": "Line 1"})["name"] == "Line 1"
    item = {"key": "switched", "value": 1}
    assert editor("POST", f"{SERVERS}/push", item)[0] == 200

    assert admin.done("PATCH", path, {"active": False})["active"] is False
    assert editor("POST", f"{SERVERS}/push", item)[0] == 404
    admin.done("PATCH", path, {"active": True})
    assert editor("POST", f"{SERVERS}/push", item)[0] == 200


# -- what stops working ----------------------------------------------------------------------------


def test_log_in_as_loopback_has_it(plant: Plant, admin: Api) -> None:
    of_role(plant, admin, "operator")
    name = "operator@roles.example"

    def answered(body: Mapping[str, Any], path: str = "/api/users/login") -> tuple[int, Any]:
        return Api(plant)("POST", path, body)

    status, answer = answered({"email": name, "password": PASSWORD})
    assert status == 200 and {*answer} == {"id", "ttl", "created", "userId"}
    assert answer["userId"] == admin.done("GET", f"/api/Users/{name}")["id"]
    assert answered({"email": name, "password": PASSWORD}, "/api/Users/login?ttl=7")[1]["ttl"] == 7

    for body in ({"username": name, "password": "wrong"}, {"username": "x", "password": PASSWORD}):
        error = {
            "statusCode": 401,
            "name": "Error",
            "message": "login failed",
            "code": "LOGIN_FAILED",
        }
        assert answered(body) == (401, {"error": error})
    status, answer = answered({"username": name})
    assert (status, answer["error"]["code"]) == (400, "USERNAME_EMAIL_REQUIRED")


def test_log_out_ends_this_token_and_no_other(plant: Plant, admin: Api) -> None:
    one, other = (of_role(plant, admin, "editor") for _ in range(2))
    one.done("POST", "/api/Users/logout")

    status, answer = one("GET", PARAMETERS)
    assert (status, answer["error"]["code"]) == (401, "INVALID_TOKEN")
    assert other("GET", PARAMETERS)[0] == 200


def test_a_token_ends_when_it_says(plant: Plant, admin: Api) -> None:
    made = admin.done("POST", "/api/AccessTokens", {"name": "short", "role": "operator", "ttl": 1})
    api = Api(plant, made["token"])
    wait_for(lambda: api("GET", ME)[0] == 401, what="the end of the token")


def test_an_access_token_that_is_deleted_and_a_user_who_is_disabled_are_out_at_once(
    plant: Plant, admin: Api
) -> None:
    made = admin.done("POST", "/api/AccessTokens", {"name": "script", "role": "editor"})
    by_key, by_user = Api(plant, made["token"]), of_role(plant, admin, "operator")
    assert by_key("GET", ME)[0] == by_user("GET", ME)[0] == 200
    [listed] = [t for t in admin.done("GET", "/api/AccessTokens") if t["id"] == made["id"]]
    assert listed == {k: value for k, value in made.items() if k != "token"}

    admin.done("DELETE", f"/api/AccessTokens/{made['id']}")
    assert by_key("GET", ME)[0] == 401
    assert admin("DELETE", f"/api/AccessTokens/{made['id']}")[0] == 404

    user = "/api/Users/operator@roles.example"
    assert admin.done("PATCH", user, {"disabled": True})["disabled"] is True
    assert by_user("GET", ME)[0] == 401
    admin.done("PATCH", user, {"disabled": False})
    assert by_user("GET", ME)[0] == 200
    admin.done("DELETE", user)
    assert by_user("GET", ME)[0] == 401


# -- parameters ------------------------------------------------------------------------------------


def test_a_parameter_takes_its_values_along_to_its_new_key(plant: Plant, admin: Api) -> None:
    editor = of_role(plant, admin, "editor")
    made = editor.done(
        "POST", PARAMETERS, {"key": "heat", "type": "number", "precision": 1, "maxLogPeriod": 1440}
    )
    assert (made["type"], made["precision"], made["niceName"]) == ("number", 1, "heat")
    one = f"{PARAMETERS}/{made['id']}"
    at_ms = time.time_ns() // 1_000_000 - 60_000

    def push(key: str, value: Any, number: int) -> None:
        item = {"key": key, "value": value, "timestamp": at_ms + number}
        editor.done("POST", f"{SERVERS}/push", item)

    def stored(key: str) -> list[str]:
        client = plant.client()
        device = made["apiServerId"]
        return [value for _, value in client.range(at_ms, at_ms + 100, device=device, key=key)]

    push("heat", 21.5, 1)
    assert editor.done("PATCH", one, {"key": "oven.heat"})["id"] == made["id"]
    push("oven.heat", 22.5, 2)
    push("heat", "warm", 3)

    assert editor.done("GET", f"{SERVERS}/readParameter/{made['id']}") == {"value": 22.5}
    wait_for(lambda: stored("oven.heat") == ["21.5", "22.5"], what="both values by the new key")
    assert stored("heat") == ["warm"]
    found = editor.done(
        "GET", f'{PARAMETERS}?filter={{"where":{{"key":"heat"}}}}'.replace('"', "%22")
    )
    assert [(each["type"], each["niceName"]) for each in found] == [("string", "heat")]
    assert found[0]["id"] != made["id"]

    assert editor("PATCH", one, {"key": "heat"})[0] == 409
    assert editor("PATCH", one, {"type": "string"})[0] == 422
    assert editor("POST", PARAMETERS, {"key": "heat", "type": "number"})[0] == 409
    assert editor.done("DELETE", one) == {"count": 1}
    assert editor("GET", one)[0] == 404


def test_bindings_and_triggers_go_with_what_they_are_tied_to(plant: Plant, admin: Api) -> None:
    editor = of_role(plant, admin, "editor")
    point = editor.done("POST", PARAMETERS, {"key": "strokes", "type": "number"})
    entity = editor.done("POST", "/api/ProductionEntities", {"name": "Press 7"})
    one, of_entity = f"{PARAMETERS}/{point['id']}", f"/api/ProductionEntities/{entity['id']}"

    bound = {"productionEntityId": entity["id"], "role": "counter"}
    binding = editor.done("POST", f"{one}/bindings", bound)
    assert editor("POST", f"{one}/bindings", bound)[0] == 409
    assert editor.done("GET", f"{of_entity}/bindings") == [binding]
    rule = {"when": ">", "value": 80, "hysteresis": 2, "url": "https://example.com/hook"}
    trigger = editor.done("POST", f"{one}/triggers", rule)
    assert trigger.pop("secret").startswith("whsec_")
    assert editor.done("GET", f"{one}/triggers") == [trigger]
    paused = editor.done("PATCH", f"{SERVERS}/triggers/{trigger['id']}", {"active": False})
    assert paused == trigger | {"active": False}

    editor.done("DELETE", one)
    assert editor.done("GET", f"{of_entity}/bindings") == []
    assert editor("GET", f"{SERVERS}/triggers/{trigger['id']}")[0] == 404


# -- a restart -------------------------------------------------------------------------------------


def test_a_restart_keeps_everything(plant: Plant, admin: Api) -> None:
    gone, kept = (of_role(plant, admin, "editor") for _ in range(2))
    gone.done("POST", "/api/Users/logout")
    kept.done("POST", PARAMETERS, {"key": "before", "type": "boolean"})
    entity = kept.done("POST", "/api/ProductionEntities", {"name": "Saw"})
    paths = (SERVERS, PARAMETERS, "/api/ProductionEntities", "/api/Users", "/api/AccessTokens")
    before = [admin.done("GET", path) for path in paths]

    plant.kill()
    plant.start()

    assert [admin.done("GET", path) for path in paths] == before
    assert entity in before[2]
    assert gone("GET", PARAMETERS)[0] == 401
    assert kept("GET", PARAMETERS)[0] == 200

"""Machine users on a running system: OAuth 2 clients of the shelf, keys that others check tokens
with, keys that take turns under load, and the ways in which a token stops being good.
"""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from collections.abc import Iterator
from itertools import count
from typing import Any

import jwt
import pytest
from authlib.integrations.base_client import OAuthError
from authlib.integrations.httpx_client import AsyncOAuth2Client, OAuth2Client
from authlib.integrations.requests_client import OAuth2Session
from jwt import PyJWKClient

from services.catalogue import remote
from services.runtime import CONTROL_SOCKET
from tests.flow.test_manage import command
from tests.support.credentials import kid_of
from tests.support.plant import Client, Http, Plant, moment, running
from tests.support.processes import wait_for
from tests.support.stack import AUDIENCE

GRANT = {"grant_type": "client_credentials", "audience": AUDIENCE}
JSON_API = "application/vnd.api+json"
_times = count(1_600_000_000_000)


@pytest.fixture(scope="module")
def plant(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Plant]:
    with running(tmp_path_factory.mktemp("tokens")) as plant:
        yield plant


class Api:
    """Where things are, for a client that is told no more than addresses and credentials."""

    def __init__(self, facts: dict[str, Any]) -> None:
        self.address = facts["http"]
        own = facts["building_x"]
        self.credentials = (own["client_id"], own["client_secret"])
        self.token_url = f"{self.address}/oauth/token"
        self.keys_url = f"{self.address}/.well-known/jwks.json"
        below = f"/partitions/{own['partition_id']}/points/{own['point_id']}/values"
        self.values_url = f"{self.address}/ingest{below}"

    @staticmethod
    def values() -> dict[str, Any]:
        """One value at a time of its own."""
        attributes = {"timestamp": moment(next(_times)), "value": "1.5"}
        return {"data": [{"type": "PointValue", "attributes": attributes}]}


@pytest.fixture
def api(plant: Plant) -> Api:
    return Api(plant.facts)


@pytest.fixture
def own_client(plant: Plant) -> dict[str, Any]:
    """The facts of the plant with a machine user that nobody else has."""
    made, secret = act(plant, "add_key", tenant="demo", use="client", name="own")
    own = plant.facts["building_x"] | {"client_id": made["id"], "client_secret": secret}
    return plant.facts | {"building_x": own}


def act(plant: Plant, action: str, **arguments: Any) -> Any:
    """What the command has the running process do, without a process for the command."""
    return remote.ask(plant.data_dir / CONTROL_SOCKET, action, arguments)


def rotate(plant: Plant, overlap_seconds: int) -> str:
    """The id of the next signing key."""
    return str(act(plant, "rotate_signing_key", overlap_seconds=overlap_seconds)["id"])


# -- clients of the shelf --------------------------------------------------------------------------

METHODS = ["client_secret_basic", "client_secret_post"]


@pytest.mark.parametrize("method", METHODS)
def test_authlib_on_requests_gets_a_token_and_uses_it(api: Api, method: str) -> None:
    with OAuth2Session(*api.credentials, token_endpoint_auth_method=method) as session:
        token = session.fetch_token(api.token_url, **GRANT)
        assert (token["token_type"], token["expires_in"]) == ("Bearer", 86_400)
        answer = session.post(api.values_url, json=api.values())
        assert answer.status_code == 204, answer.text


@pytest.mark.parametrize("method", METHODS)
def test_authlib_on_httpx_gets_a_token_and_uses_it(api: Api, method: str) -> None:
    with OAuth2Client(*api.credentials, token_endpoint_auth_method=method) as session:
        session.fetch_token(api.token_url, **GRANT)
        headers = {"Content-Type": JSON_API}
        answer = session.post(api.values_url, json=api.values(), headers=headers)
        assert answer.status_code == 204, answer.text


def test_authlib_on_asyncio_gets_a_token_and_uses_it(api: Api) -> None:
    async def flow() -> int:
        async with AsyncOAuth2Client(*api.credentials) as session:
            await session.fetch_token(api.token_url, **GRANT)
            answers = await asyncio.gather(
                *(session.post(api.values_url, json=api.values()) for _ in range(5))
            )
            return sum(answer.status_code == 204 for answer in answers)

    assert asyncio.run(flow()) == 5


@pytest.mark.parametrize(
    ("changed", "error"),
    [
        ({"audience": "https://other.example"}, "access_denied"),
        ({"audience": ""}, "invalid_request"),
        ({"grant_type": "password"}, "unsupported_grant_type"),
    ],
)
def test_authlib_tells_what_was_refused(api: Api, changed: dict[str, str], error: str) -> None:
    with (
        OAuth2Session(*api.credentials) as session,
        pytest.raises(OAuthError) as refused,
    ):
        session.fetch_token(api.token_url, **GRANT | changed)
    assert refused.value.error == error and refused.value.description


@pytest.mark.parametrize("method", METHODS)
def test_authlib_tells_a_wrong_secret(api: Api, method: str) -> None:
    client_id, _ = api.credentials
    with (
        OAuth2Session(client_id, "wrong", token_endpoint_auth_method=method) as session,
        pytest.raises(OAuthError, match="access_denied"),
    ):
        session.fetch_token(api.token_url, **GRANT)


# -- keys ------------------------------------------------------------------------------------------


def test_whoever_keeps_the_keys_can_check_tokens_over_a_rotation(plant: Plant, api: Api) -> None:
    known = PyJWKClient(api.keys_url, lifespan=600, cooldown_duration=600)

    def claims_of(token: str) -> dict[str, Any]:
        key = known.get_signing_key_from_jwt(token)
        found: dict[str, Any] = jwt.decode(
            token, key, algorithms=["ES256"], audience=AUDIENCE, issuer="lineshaft"
        )
        return found

    before, made = Client(plant.facts).token(), rotate(plant, 2)
    tenant = plant.facts["building_x"]["partition_id"]
    assert (claims_of(before)["tenant"], claims_of(before)["sub"]) == (tenant, api.credentials[0])
    with pytest.raises(jwt.InvalidAudienceError):
        key = known.get_signing_key_from_jwt(before)
        jwt.decode(before, key, algorithms=["ES256"], audience="https://other.example")

    # The set was fetched before the key signed, and is not fetched again.
    after = wait_for(lambda: signed_with(plant, made), what="a token of the new key")
    for token in (before, after):
        assert claims_of(token)["aud"] == AUDIENCE


def signed_with(plant: Plant, kid: str) -> str:
    """A token, where it is this key that signs now."""
    token = Client(plant.facts).token()
    return token if kid_of(token) == kid else ""


def test_the_keys_may_be_kept_for_a_while_by_anybody(plant: Plant) -> None:
    status, answer, headers = Http(plant.facts["http"]).request("GET", "/.well-known/jwks.json")

    assert (status, headers["cache-control"]) == (200, "public, max-age=300")
    assert headers["content-type"].startswith("application/json")
    assert all(key["alg"] == "ES256" and "d" not in key for key in answer["keys"])


def test_keys_take_turns_under_load_and_nobody_notices(plant: Plant, api: Api) -> None:
    refused_before = failures(plant)
    stop, statuses, kids = threading.Event(), Counter[int](), set[str]()

    def work(renew_every: int) -> None:
        client = Client(plant.facts)
        for number in count():
            if stop.is_set():
                return
            if number % renew_every == 0:
                client = Client(plant.facts)
                kids.add(kid_of(client.token()))
            statuses[client.post([(moment(next(_times)), "1.5")])[0]] += 1

    # The last one keeps its token through all turns.
    workers = [threading.Thread(target=work, args=(n,)) for n in (1, 5, 20, 10**9)]
    for worker in workers:
        worker.start()
    try:
        for overlap_seconds in (1, 0, 2):
            made = rotate(plant, overlap_seconds)
            wait_for(lambda made=made: made in kids, what="tokens of the new key")  # type: ignore[misc]
            taken = statuses[204]
            wait_for(lambda taken=taken: statuses[204] > taken + 50, what="load")  # type: ignore[misc]
    finally:
        stop.set()
        for worker in workers:
            worker.join(30)

    assert set(statuses) == {204}, statuses
    assert len(kids) >= 4
    assert failures(plant) == refused_before


def failures(plant: Plant) -> float:
    """How many credentials were refused."""
    return sum(
        plant.metric(f'auth_failures_total{{door="{door}"}}') for door in ("bearer", "token")
    )


def test_an_ended_key_ends_its_tokens_and_no_others(plant: Plant) -> None:
    old, new = Client(plant.facts), Client(plant.facts)
    kid = kid_of(old.token())
    assert "rotate first" in command(plant, "signing-keys", "end", kid, code=1)
    made = command(plant, "signing-keys", "rotate", "--overlap-seconds", "0")["id"]
    assert kid_of(new.token()) == made

    command(plant, "signing-keys", "end", kid)

    assert old.post([(moment(next(_times)), "1.5")])[0] == 401
    assert new.post([(moment(next(_times)), "1.5")])[0] == 204
    assert Client(plant.facts).post([(moment(next(_times)), "1.5")])[0] == 204
    listed = [key["id"] for key in command(plant, "signing-keys", "list")]
    assert kid not in listed and listed[-1] == made


# -- machine users ---------------------------------------------------------------------------------


def test_a_revoked_machine_user_is_out_at_once_and_gets_no_token(
    plant: Plant, own_client: dict[str, Any]
) -> None:
    client = Client(own_client)
    assert client.post([(moment(next(_times)), "1.5")])[0] == 204
    before = failures(plant)

    act(plant, "revoke_key", id=own_client["building_x"]["client_id"])

    assert client.post([(moment(next(_times)), "1.5")])[0] == 401
    with pytest.raises(AssertionError, match="401"):
        Client(own_client).token()
    assert failures(plant) == before + 2


def test_a_secret_that_is_rotated_keeps_its_tokens_for_the_overlap(
    plant: Plant, own_client: dict[str, Any]
) -> None:
    client, own = Client(own_client), own_client["building_x"]
    assert client.post([(moment(next(_times)), "1.5")])[0] == 204
    secret = act(plant, "rotate_key", id=own["client_id"], overlap_seconds=600)
    assert client.post([(moment(next(_times)), "1.5")])[0] == 204
    again = Client(own_client | {"building_x": own | {"client_secret": secret}})
    assert again.post([(moment(next(_times)), "1.5")])[0] == 204

    last = act(plant, "rotate_key", id=own["client_id"])

    for ended in (client, again):
        assert ended.post([(moment(next(_times)), "1.5")])[0] == 401
    renewed = Client(own_client | {"building_x": own | {"client_secret": last}})
    assert renewed.post([(moment(next(_times)), "1.5")])[0] == 204


def test_a_token_opens_no_other_tenants_partition(plant: Plant, own_client: dict[str, Any]) -> None:
    other = act(plant, "add_tenant", id="neighbour", name="Neighbour")
    made, secret = act(plant, "add_key", tenant="neighbour", use="client", name="x")
    own = own_client["building_x"]
    theirs = own | {"client_id": made["id"], "client_secret": secret}
    stranger = Client(own_client | {"building_x": theirs})
    assert stranger.post([(moment(next(_times)), "1.5")])[0] == 403
    there = Client(own_client | {"building_x": own | {"partition_id": other["uuid"]}})
    assert there.post([(moment(next(_times)), "1.5")])[0] == 403


def test_tokens_and_keys_outlive_a_restart(plant: Plant) -> None:
    client = Client(plant.facts)
    kid = kid_of(client.token())
    before = Http(plant.facts["http"]).request("GET", "/.well-known/jwks.json")[1]

    plant.kill()
    plant.start()

    assert Http(plant.facts["http"]).request("GET", "/.well-known/jwks.json")[1] == before
    client.http.close()
    assert client.post([(moment(next(_times)), "1.5")])[0] == 204
    assert kid_of(Client(plant.facts).token()) == kid

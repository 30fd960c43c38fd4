"""Who speaks: credentials of every kind, and each way in which one stops being good."""

from __future__ import annotations

import json
import stat
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from math import inf
from pathlib import Path

import jwt
import pytest

from schemas.catalogue import Key, Revocation, Tenant
from services.auth import LEEWAY_SECONDS, SECRET_FILE, installation_secret
from services.catalogue import derive, digest, pepper
from services.dialects import Auth as Way
from services.dialects import Principal
from services.errors import Forbidden
from services.settings import BadSetting, Settings
from tests.support.catalogue import SECRET
from tests.support.credentials import (
    API_KEY,
    AUDIENCE,
    CLIENT_SECRET,
    PASSWORD,
    SETTINGS,
    TOKEN,
    World,
    claims_of,
    hashed,
    refused,
)


@pytest.fixture
def world() -> World:
    return World()


# -- who it is -------------------------------------------------------------------------------------


def test_each_credential_gives_its_principal(world: World) -> None:
    auth = world.auth
    user_token, _ = auth.user_tokens("anna", PASSWORD, "beta")

    assert auth.device(TOKEN) == Principal("acme", "dev-key", frozenset({"ingest"}), "d1")
    assert auth.api(API_KEY) == Principal("acme", "k1", frozenset({"read"}))
    assert world.client(world.access_token()) == Principal(
        "acme", "gw", frozenset({"ingest", "read"})
    )
    claims = claims_of(user_token)
    ends_ms = (claims["exp"] + LEEWAY_SECONDS) * 1000
    assert auth.user_principal(user_token) == Principal(
        "beta", "anna", frozenset({"read"}), expires_ms=ends_ms, token=claims["jti"]
    )


def test_a_principal_lasts_as_long_as_its_key_and_its_secret(world: World) -> None:
    hashed, key = world.token_key.secrets[0][0], world.token_key
    now_ms = world.clock.now_ms()
    for expires_ms, until_ms, ends_ms in [
        (0, 0, inf),
        (now_ms + 5, 0, now_ms + 5),
        (0, now_ms + 3, now_ms + 3),
        (now_ms + 5, now_ms + 3, now_ms + 3),
        (now_ms + 3, now_ms + 5, now_ms + 3),
    ]:
        world.put(replace(key, expires_ms=expires_ms, secrets=((hashed, until_ms),)))
        assert world.auth.device(TOKEN).expires_ms == ends_ms


def test_doors_find_the_credential_where_their_contract_has_it(world: World) -> None:
    of, token = partial(world.auth.principal_of, audience=AUDIENCE), world.access_token()
    user_token, _ = world.auth.user_tokens("anna", PASSWORD, "acme")
    bearer = {"authorization": f"Bearer {token}"}

    def subject(principal: Principal | None) -> str:
        assert principal is not None
        return principal.subject

    assert of(Way.NONE, bearer, {}, {}, scope="") is None
    assert subject(of(Way.BEARER, bearer, {}, {}, scope="ingest")) == "gw"
    assert subject(of(Way.BEARER, {"authorization": f"bearer {API_KEY}"}, {}, {}, scope="")) == "k1"
    of_user = {"x-authorization": f"Bearer {user_token}"}
    assert subject(of(Way.X_AUTHORIZATION, of_user, {}, {}, scope="read")) == "anna"
    assert subject(of(Way.DEVICE_TOKEN, {}, {"token": TOKEN}, {}, scope="ingest")) == "dev-key"


@pytest.mark.parametrize("credential", ["user", "key"])
def test_an_access_token_may_come_in_the_query_or_in_a_header(
    world: World, credential: str
) -> None:
    token = world.auth.user_tokens("anna", PASSWORD, "acme")[0] if credential == "user" else API_KEY
    wanted = "anna" if credential == "user" else "k1"

    def subject(headers: dict[str, str], query: dict[str, str]) -> str:
        found = world.auth.principal_of(
            Way.ACCESS_TOKEN, headers, {}, query, scope="read", audience=""
        )
        assert found is not None
        return found.subject

    assert subject({}, {"access_token": token}) == wanted
    assert subject({"authorization": token}, {}) == wanted
    assert subject({"authorization": f"Bearer {token}"}, {}) == wanted
    assert subject({"x-access-token": token}, {}) == wanted
    # The query wins, also where it is wrong.
    assert subject({"authorization": "nonsense"}, {"access_token": token}) == wanted
    refused(lambda: subject({"authorization": token}, {"access_token": "nonsense"}))
    refused(lambda: subject({}, {}))


@pytest.mark.parametrize("way", [Way.BEARER, Way.X_AUTHORIZATION, Way.DEVICE_TOKEN])
@pytest.mark.parametrize("header", ["", "Bearer", "Bearer ", "Basic YTpi", "Bearer \u00e4.b.c"])
def test_a_door_without_a_credential_stays_shut(world: World, way: Way, header: str) -> None:
    headers = {"authorization": header, "x-authorization": header} if header else {}

    refused(lambda: world.auth.principal_of(way, headers, {}, {}, scope="", audience=""))


def test_a_credential_without_the_right_is_forbidden(world: World) -> None:
    with pytest.raises(Forbidden):
        world.auth.principal_of(
            Way.DEVICE_TOKEN, {}, {"token": TOKEN}, {}, scope="read", audience=""
        )


def test_a_credential_opens_only_the_door_it_is_for(world: World) -> None:
    auth = world.auth
    client_token = world.access_token()
    user_token, refresh_token = auth.user_tokens("anna", PASSWORD, "acme")

    for ask, own in (
        (auth.device, TOKEN),
        (auth.api, API_KEY),
        (world.client, client_token),
        (auth.user_principal, user_token),
        (auth.refresh, refresh_token),
    ):
        ask(own)
        for foreign in (TOKEN, API_KEY, CLIENT_SECRET, client_token, user_token, refresh_token):
            if foreign != own:
                refused(lambda ask=ask, foreign=foreign: ask(foreign))  # type: ignore[misc]


# -- at once ---------------------------------------------------------------------------------------

CHANGES: dict[str, Callable[[World, Key], None]] = {
    "revoked": lambda world, key: world.put(Revocation(key.id)),
    "deleted": lambda world, key: world.delete("key", key.id),
    "expired": lambda world, key: world.put(replace(key, expires_ms=world.clock.now_ms())),
    "without its secret": lambda world, key: world.put(replace(key, secrets=())),
    "rotated out": lambda world, key: world.put(
        replace(key, secrets=((key.secrets[0][0], world.clock.now_ms()),))
    ),
    "for another use": lambda world, key: world.put(replace(key, use="other")),
    "of no tenant": lambda world, key: world.delete("tenant", key.tenant),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_key_that_is_not_good_any_more_opens_nothing_from_then_on(
    world: World, change: str
) -> None:
    auth, token = world.auth, world.access_token()
    asks: list[tuple[Key, Callable[[], object]]] = [
        (world.token_key, lambda: auth.device(TOKEN)),
        (world.api_key, lambda: auth.api(API_KEY)),
        (world.client_key, lambda: world.client(token)),
        (world.client_key, lambda: auth.client_token("gw", CLIENT_SECRET, AUDIENCE)),
    ]
    for _, ask in asks:
        ask()

    said = set()
    for key, ask in asks:
        CHANGES[change](world, key)
        said.add(refused(ask))

    # Who asks does not learn whether the credential ever was one.
    assert said == {refused(lambda: auth.device("never was"))}


def test_a_token_of_a_device_that_is_gone_opens_nothing(world: World) -> None:
    world.auth.device(TOKEN)
    world.delete("device", "d1")

    refused(lambda: world.auth.device(TOKEN))


def test_a_rotated_secret_and_its_tokens_are_good_until_the_overlap_ends(world: World) -> None:
    auth, clock = world.auth, world.clock
    old = world.client_key.secrets[0][0]
    before = world.access_token()
    secrets = ((digest(pepper(SECRET), "new"), 0), (old, clock.now_ms() + 60_000))
    world.put(replace(world.client_key, secrets=secrets))

    during, seconds = auth.client_token("gw", CLIENT_SECRET, AUDIENCE)
    assert seconds == 60
    new, seconds = auth.client_token("gw", "new", AUDIENCE)
    assert seconds == SETTINGS.token_seconds
    clock.advance(59_999)
    for token in (before, during, new):
        world.client(token)

    clock.advance(1)
    refused(lambda: auth.client_token("gw", CLIENT_SECRET, AUDIENCE))
    refused(lambda: world.client(before))
    refused(lambda: world.client(during))
    world.client(new)


def test_rights_that_are_taken_away_are_gone_from_tokens_too(world: World) -> None:
    token, refresh_token = world.auth.user_tokens("anna", PASSWORD, "acme")
    assert world.auth.user_principal(token).scopes == {"read", "admin"}

    world.put(replace(world.anna, tenants={"acme": ("read",)}))
    assert world.auth.user_principal(token).scopes == {"read"}

    world.put(replace(world.anna, tenants={"beta": ("read",)}))
    refused(lambda: world.auth.user_principal(token))
    refused(lambda: world.auth.refresh(refresh_token))


@pytest.mark.parametrize(
    "change",
    [
        lambda world: world.put(replace(world.anna, disabled=True)),
        lambda world: world.put(replace(world.anna, password=hashed("another one"))),
        lambda world: world.delete("user", "anna"),
        lambda world: world.delete("tenant", "acme"),
    ],
)
def test_a_user_who_may_not_any_more_is_out_at_once(
    world: World, change: Callable[[World], None]
) -> None:
    auth = world.auth
    token, refresh_token = auth.user_tokens("anna", PASSWORD, "acme")
    auth.user_principal(token)

    change(world)

    refused(lambda: auth.user_principal(token))
    refused(lambda: auth.refresh(refresh_token))
    refused(lambda: auth.user_tokens("anna", PASSWORD, "acme"))


# -- tokens ----------------------------------------------------------------------------------------


def test_tokens_end_when_they_say(world: World) -> None:
    token = world.access_token()
    claims = claims_of(token)
    assert claims["exp"] - claims["iat"] == SETTINGS.token_seconds

    world.clock.advance((SETTINGS.token_seconds + LEEWAY_SECONDS) * 1000 - 1)
    world.client(token)
    world.clock.advance(1)
    refused(lambda: world.client(token))
    refused(lambda: world.another().client(token, AUDIENCE))


def test_a_refreshed_pair_goes_on_where_the_first_ended(world: World) -> None:
    auth = world.auth
    token, refresh_token = auth.user_tokens("anna", PASSWORD, "acme")
    world.clock.advance((SETTINGS.user_token_seconds + LEEWAY_SECONDS) * 1000)
    refused(lambda: auth.user_principal(token))

    again, _ = auth.refresh(refresh_token)

    assert auth.user_principal(again).tenant == "acme"


def test_another_process_of_the_installation_knows_the_token_and_a_stranger_does_not(
    world: World,
) -> None:
    token = world.access_token()

    world.another().client(token, AUDIENCE)
    stranger = world.another(b"another secret of an installation")
    refused(lambda: stranger.client(token, AUDIENCE))


def without_an_id(token: str) -> str:
    """The same token of a user, signed as it should be, without its id."""
    claims = {name: value for name, value in claims_of(token).items() if name != "jti"}
    return jwt.encode(claims, derive(SECRET, "jwt user"), "HS256", {"typ": "at+jwt"})


def test_user_tokens_have_the_claims_of_thingsboard(world: World) -> None:
    token, refresh_token = world.auth.user_tokens("anna", PASSWORD, "acme")
    claims = claims_of(token)

    assert claims["sub"] == "anna"
    assert (claims["userId"], claims["tenantId"]) == ("uuid of anna", "uuid of acme")
    assert (claims["enabled"], claims["isPublic"]) == (True, False)
    assert claims["scopes"] == ["TENANT_ADMIN"]
    assert claims["exp"] - claims["iat"] == SETTINGS.user_token_seconds
    assert claims_of(world.auth.user_tokens("anna", PASSWORD, "beta")[0])["scopes"] == [
        "CUSTOMER_USER"
    ]
    ends = claims_of(refresh_token)
    assert ends["exp"] - ends["iat"] == SETTINGS.user_refresh_seconds


def test_a_token_says_nothing_of_the_secret_it_was_given_for(world: World) -> None:
    token, refresh_token = world.auth.user_tokens("anna", PASSWORD, "acme")
    kept = world.client_key.secrets[0][0]

    for given in (world.access_token(), token, refresh_token):
        text = json.dumps(claims_of(given))
        assert kept[:8] not in text and world.anna.password not in text


# -- log-in ----------------------------------------------------------------------------------------


def test_log_in_gives_the_tenants_that_the_user_may_enter(world: World) -> None:
    tenants = world.auth.memberships("anna", PASSWORD)

    assert [tenant.id for tenant in tenants] == ["acme", "beta"]
    assert world.auth.user("anna") == world.anna


def test_log_in_to_the_tenant_that_is_chosen_for_at_most_the_setting(world: World) -> None:
    def choose(tenants: Sequence[Tenant]) -> Tenant:
        asked.append([tenant.id for tenant in tenants])
        return tenants[1]

    asked: list[list[str]] = []
    longest = SETTINGS.user_token_seconds
    for wanted, given in ((None, longest), (longest + 1, longest), (7, 7)):
        token, seconds, tenant = world.auth.log_in("anna", PASSWORD, choose, wanted)
        claims = claims_of(token)
        assert (seconds, claims["exp"] - claims["iat"], tenant.id) == (given, given, "beta")
        assert world.auth.user_principal(token).tenant == "beta"
    assert asked == [["acme", "beta"]] * 3

    refused(lambda: world.auth.log_in("anna", "wrong", choose))
    refused(lambda: world.auth.log_in("nobody", PASSWORD, choose))
    world.put(replace(world.anna, tenants={"gone": ("read",)}))
    refused(lambda: world.auth.log_in("anna", PASSWORD, choose))
    assert len(asked) == 3, "who is not let in learns of no tenant"


def test_a_token_that_was_ended_opens_nothing_and_the_others_do(world: World) -> None:
    auth = world.auth
    token, refresh_token = auth.user_tokens("anna", PASSWORD, "acme")
    other, _ = auth.user_tokens("anna", PASSWORD, "acme")
    ended = auth.user_principal(token).token
    assert ended and ended != auth.user_principal(other).token

    world.put(Revocation(Revocation.token_id(ended)))

    refused(lambda: auth.user_principal(token))
    refused(lambda: world.another().user_principal(token))
    auth.user_principal(other)
    auth.user_principal(auth.refresh(refresh_token)[0])
    for kind in ("revocation", "key"):
        world.delete(kind, Revocation.token_id(ended))
    refused(lambda: auth.user_principal(token))


def test_a_token_of_a_user_without_an_id_could_not_be_ended_and_is_refused(world: World) -> None:
    token, _ = world.auth.user_tokens("anna", PASSWORD, "acme")
    world.auth.user_principal(token)

    refused(lambda: world.auth.user_principal(without_an_id(token)))


@pytest.mark.parametrize(
    ("username", "password"),
    [("anna", "wrong"), ("anna", ""), ("nobody", PASSWORD), ("", ""), ("anna", "x" * 5_000)],
)
def test_a_wrong_log_in_is_refused_alike(world: World, username: str, password: str) -> None:
    said = refused(lambda: world.auth.device("never was"))

    assert refused(lambda: world.auth.memberships(username, password)) == said
    assert refused(lambda: world.auth.user_tokens(username, password, "acme")) == said


def test_a_user_enters_no_tenant_but_the_own_ones(world: World) -> None:
    world.put(Tenant("gamma"))

    for tenant in ("gamma", "nowhere"):
        refused(lambda tenant=tenant: world.auth.user_tokens("anna", PASSWORD, tenant))  # type: ignore[misc]


def test_log_ins_at_the_same_time_take_turns(world: World) -> None:
    start = threading.Barrier(6)

    def log_in(number: int) -> int:
        start.wait(10)
        return len(world.auth.memberships("anna", PASSWORD))

    with ThreadPoolExecutor(6) as pool:
        assert list(pool.map(log_in, range(6))) == [2] * 6


# -- the installation's secret ---------------------------------------------------------------------


def test_the_secret_is_made_once_and_only_its_owner_may_read_it(tmp_path: Path) -> None:
    settings = Settings(data_dir=str(tmp_path / "new" / "folder"))

    with ThreadPoolExecutor(8) as pool:
        made = set(pool.map(lambda _: installation_secret(settings), range(8)))

    path = Path(settings.data_dir) / SECRET_FILE
    assert made == {installation_secret(settings)}
    assert len(made.pop()) == 43
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert list(path.parent.iterdir()) == [path]


def test_two_installations_have_two_secrets(tmp_path: Path) -> None:
    one, other = (
        installation_secret(Settings(data_dir=str(tmp_path / name))) for name in ("one", "other")
    )

    assert one != other


def test_a_secret_that_is_set_is_used_and_no_file_is_made(tmp_path: Path) -> None:
    settings = Settings(data_dir=str(tmp_path), secret="s" * 32, log="kafka://localhost:9092")

    assert installation_secret(settings) == b"s" * 32
    assert not list(tmp_path.iterdir())


def test_on_kafka_the_secret_has_to_be_set(tmp_path: Path) -> None:
    settings = Settings(data_dir=str(tmp_path), log="kafka://localhost:9092")

    with pytest.raises(BadSetting, match=r"^LINESHAFT_SECRET: has to be set"):
        installation_secret(settings)


@pytest.mark.parametrize("content", ["", "short\n"])
def test_a_damaged_secret_stops_the_start(tmp_path: Path, content: str) -> None:
    (tmp_path / SECRET_FILE).write_text(content)

    with pytest.raises(BadSetting, match=r"^LINESHAFT_SECRET: .*holds no secret"):
        installation_secret(Settings(data_dir=str(tmp_path)))

"""Access tokens of machine clients: what is in them, what passes for one and what does not, and
keys that take turns.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from joserfc import jwt as jose
from joserfc.jwk import KeySet

from schemas.catalogue import FIRST_SIGNING_KEY, Revocation, SigningKey, Tenant
from services.catalogue import derive
from services.settings import TOKEN_SECONDS_MAX
from services.tokens import LEEWAY_SECONDS, private_key
from tests.support.catalogue import SECRET
from tests.support.credentials import (
    AUDIENCE,
    CLIENT_SECRET,
    PASSWORD,
    SETTINGS,
    World,
    claims_of,
    kid_of,
    refused,
)

FIRST = FIRST_SIGNING_KEY.id
KEPT_MS = (TOKEN_SECONDS_MAX + 300) * 1000


@pytest.fixture
def world() -> World:
    return World()


def published(world: World) -> list[str]:
    """The ids of the key set."""
    return [key["kid"] for key in world.auth.key_set()["keys"]]


# -- what is in it ---------------------------------------------------------------------------------


def test_a_token_says_what_rfc_9068_wants_and_the_tenant(world: World) -> None:
    token = world.access_token()
    claims, now_s = claims_of(token), world.clock.now_ms() // 1000

    assert jwt.get_unverified_header(token) == {"typ": "at+jwt", "alg": "ES256", "kid": FIRST}
    assert {name: claims[name] for name in claims if name not in ("jti", "secret")} == {
        "iss": "lineshaft",
        "sub": "gw",
        "client_id": "gw",
        "aud": AUDIENCE,
        "tenant": "uuid of acme",
        "iat": now_s,
        "exp": now_s + SETTINGS.token_seconds,
    }
    assert claims["jti"] != claims_of(world.access_token())["jti"]


def test_a_stranger_can_check_it_with_the_key_set_alone(world: World) -> None:
    token = world.access_token()

    keys = json.loads(json.dumps(world.auth.key_set()))
    found = jose.decode(token, KeySet.import_key_set(keys), algorithms=["ES256"])
    assert found.claims == claims_of(token)
    assert found.header["typ"] == "at+jwt"

    stranger = world.another(b"another secret of an installation")
    other = KeySet.import_key_set(stranger.key_set())
    with pytest.raises(Exception, match="bad_signature"):
        jose.decode(token, other, algorithms=["ES256"])


def test_the_key_set_has_nothing_private(world: World) -> None:
    (key,) = world.auth.key_set()["keys"]

    assert set(key) == {"kty", "crv", "x", "y", "kid", "use", "alg"}
    assert (key["kty"], key["crv"], key["use"], key["alg"]) == ("EC", "P-256", "sig", "ES256")
    d = private_key(SECRET, FIRST).private_numbers().private_value.to_bytes(32, "big")
    assert base64.urlsafe_b64encode(d).rstrip(b"=").decode() not in json.dumps(key)


def test_coordinates_that_begin_with_zeros_have_their_full_length(world: World) -> None:
    def x_of(kid: str) -> int:
        return private_key(SECRET, kid).public_key().public_numbers().x

    short = next(kid for kid in map(str, range(10_000)) if x_of(kid) < 2**248)
    world.put(SigningKey(short, signs_ms=world.clock.now_ms()))

    keys = world.auth.key_set()["keys"]
    assert short in published(world)
    assert {len(key["x"]) for key in keys} == {43}


def test_keys_of_other_ids_and_other_secrets_are_other_keys() -> None:
    numbers = {
        private_key(secret, kid).private_numbers().private_value
        for secret in (SECRET, b"another secret of an installation")
        for kid in ("first", "second", "1 first", "")
    }
    assert len(numbers) == 8
    same = private_key(SECRET, "first").private_numbers()
    assert same == private_key(SECRET, "first").private_numbers()


# -- what passes for one ---------------------------------------------------------------------------


def signed(claims: dict[str, Any], *, kid: str = FIRST, typ: str = "at+jwt") -> str:
    """A token that is signed with a real key."""
    headers = {"typ": typ, "kid": kid}
    return jwt.encode(claims, private_key(SECRET, kid), "ES256", headers)


def by_hand(header: dict[str, Any], claims: dict[str, Any], key: bytes = b"") -> str:
    """A token that no library would sign: of algorithm none, or HS256 with any bytes as the key."""
    packed = [base64.urlsafe_b64encode(json.dumps(part).encode()) for part in (header, claims)]
    body = b".".join(part.rstrip(b"=") for part in packed)
    mac = hmac.digest(key, body, hashlib.sha256) if key else b""
    return (body + b"." + base64.urlsafe_b64encode(mac).rstrip(b"=")).decode()


def public_bytes(encoding: serialization.Encoding) -> bytes:
    """The public key that signs, as everybody can write it."""
    form = serialization.PublicFormat.SubjectPublicKeyInfo
    return private_key(SECRET, FIRST).public_key().public_bytes(encoding, form)


def without(claims: dict[str, Any], name: str) -> dict[str, Any]:
    return {key: value for key, value in claims.items() if key != name}


ES256 = {"alg": "ES256", "typ": "at+jwt", "kid": FIRST}
HS256 = ES256 | {"alg": "HS256"}
PEM, DER = serialization.Encoding.PEM, serialization.Encoding.DER
FORGED: dict[str, Callable[[dict[str, Any]], str]] = {
    "algorithm none": lambda claims: by_hand(ES256 | {"alg": "none"}, claims),
    "no signature": lambda claims: by_hand(ES256, claims),
    "the public key as a shared one": lambda claims: by_hand(HS256, claims, public_bytes(PEM)),
    "the public key as a shared one, DER": lambda claims: by_hand(HS256, claims, public_bytes(DER)),
    "the JWK as a shared one": lambda claims: by_hand(
        HS256, claims, json.dumps(World().auth.key_set()["keys"][0]).encode()
    ),
    "the shared key of users": lambda claims: by_hand(HS256, claims, derive(SECRET, "jwt user")),
    "the shared key that clients' tokens had once": lambda claims: by_hand(
        {"alg": "HS256", "typ": "at+jwt"},
        claims | {"aud": "lineshaft:client"},
        derive(SECRET, "jwt client"),
    ),
    "another key": lambda claims: jwt.encode(
        claims,
        ec.generate_private_key(ec.SECP256R1()),
        "ES256",
        {"typ": "at+jwt", "kid": FIRST},
    ),
    "a key that it brings along": lambda claims: jwt.encode(
        claims,
        private_key(b"another secret of an installation", FIRST),
        "ES256",
        {"typ": "at+jwt", "kid": FIRST, "jwk": World().auth.key_set()["keys"][0]},
    ),
    "another algorithm": lambda claims: jwt.encode(
        claims,
        rsa.generate_private_key(65_537, 2_048),
        "RS256",
        {"typ": "at+jwt", "kid": FIRST},
    ),
    "an unknown key id": lambda claims: signed(claims, kid="second"),
    "no key id": lambda claims: jwt.encode(
        claims, private_key(SECRET, FIRST), "ES256", {"typ": "at+jwt"}
    ),
    "a key id that is no text": lambda claims: by_hand(ES256 | {"kid": ["first"]}, claims),
    "another type": lambda claims: signed(claims, typ="JWT"),
    "the type of a refresh token": lambda claims: signed(claims, typ="rt+jwt"),
    "another audience": lambda claims: signed(claims | {"aud": "https://other.example"}),
    "the audience of users": lambda claims: signed(claims | {"aud": "lineshaft:user"}),
    "several audiences": lambda claims: signed(claims | {"aud": [AUDIENCE, "x"]}),
    "no audience": lambda claims: signed(without(claims, "aud")),
    "another issuer": lambda claims: signed(claims | {"iss": "somebody"}),
    "not yet valid": lambda claims: signed(claims | {"iat": claims["iat"] + LEEWAY_SECONDS + 1}),
    "expired": lambda claims: signed(claims | {"exp": claims["iat"] - LEEWAY_SECONDS}),
    "of another secret": lambda claims: signed(claims | {"secret": "0" * 32}),
    "of another client": lambda claims: signed(claims | {"sub": "k1"}),
    "of another tenant": lambda claims: signed(claims | {"tenant": "uuid of beta"}),
    "of no tenant": lambda claims: signed(without(claims, "tenant")),
    "no end": lambda claims: signed(without(claims, "exp")),
    "no beginning": lambda claims: signed(without(claims, "iat")),
    "no subject": lambda claims: signed(without(claims, "sub")),
    "no secret": lambda claims: signed(without(claims, "secret")),
    "too long": lambda claims: signed(claims | {"more": "x" * 4_096}),
    "nothing in it": lambda claims: "..",
    "no JSON": lambda claims: "YQ.YQ.YQ",
}


@pytest.mark.filterwarnings("ignore::jwt.warnings.InsecureKeyLengthWarning")
@pytest.mark.parametrize("forgery", FORGED)
def test_a_token_that_is_not_exactly_ours_is_refused(world: World, forgery: str) -> None:
    claims = claims_of(world.access_token())
    assert world.client(signed(claims)).subject == "gw"

    forged = FORGED[forgery](claims)
    said = refused(lambda: world.client(forged))
    assert said == refused(lambda: world.client("never.was.one")), "the reason is not told"
    assert said == refused(lambda: world.client(forged)), "nor is it learnt by asking again"


def test_clocks_that_differ_by_the_leeway_are_no_reason_to_refuse(world: World) -> None:
    claims = claims_of(world.access_token())

    world.client(signed(claims | {"iat": claims["iat"] + LEEWAY_SECONDS}))
    world.client(signed(claims | {"exp": claims["iat"] - LEEWAY_SECONDS + 1}))


def test_a_token_with_one_letter_changed_is_refused(world: World) -> None:
    token = world.access_token()
    world.client(token)

    # The last letter has four bits that mean nothing.
    for place in range(0, len(token) - 1, 5):
        letter = "A" if token[place] != "A" else "B"
        changed = token[:place] + letter + token[place + 1 :]
        refused(lambda changed=changed: world.client(changed))  # type: ignore[misc]


def test_a_token_for_one_audience_opens_nothing_of_another(world: World) -> None:
    other = "https://other.example"
    token = world.access_token()
    of_other, _ = world.auth.client_token("gw", CLIENT_SECRET, other)
    for _ in range(2):
        world.client(token)
        assert world.auth.client(of_other, other).subject == "gw"
        refused(lambda: world.client(of_other))
        refused(lambda: world.auth.client(token, other))
        refused(lambda: world.auth.client(token, ""))


def test_a_token_of_a_user_is_none_of_a_client_and_the_other_way_round(world: World) -> None:
    token, refresh_token = world.auth.user_tokens("anna", PASSWORD, "acme")
    for foreign in (token, refresh_token):
        refused(lambda foreign=foreign: world.client(foreign))  # type: ignore[misc]
        refused(
            lambda foreign=foreign: world.auth.client(foreign, "lineshaft:user")  # type: ignore[misc]
        )
    access_token = world.access_token()
    refused(lambda: world.auth.user_principal(access_token))
    refused(lambda: world.auth.refresh(access_token))
    claims = claims_of(token)
    refused(lambda: world.auth.user_principal(signed(claims)))


def test_a_tenant_that_was_made_anew_has_no_tokens_of_the_old_one(world: World) -> None:
    token = world.access_token()
    world.client(token)

    world.put(Tenant("acme", name="Acme", uuid="another uuid"))

    refused(lambda: world.client(token))
    world.client(world.access_token())


# -- keys that take turns --------------------------------------------------------------------------


def test_a_new_key_is_published_at_once_and_signs_from_its_moment_on(world: World) -> None:
    now_ms = world.clock.now_ms()
    before = world.access_token()
    world.put(SigningKey("second", now_ms, now_ms + 60_000))

    assert published(world) == [FIRST, "second"]
    assert kid_of(world.access_token()) == FIRST
    world.clock.advance(59_999)
    assert kid_of(world.access_token()) == FIRST
    world.clock.advance(1)
    after = world.access_token()
    assert kid_of(after) == "second"
    for token in (before, after):
        assert world.client(token).subject == "gw"
        assert world.another().client(token, AUDIENCE).subject == "gw"


def test_a_process_whose_clock_is_ahead_signs_what_the_others_take(world: World) -> None:
    now_ms = world.clock.now_ms()
    world.put(SigningKey("second", now_ms, now_ms + 30_000))
    world.clock.advance(30_000)
    ahead = world.access_token()
    assert kid_of(ahead) == "second"

    world.clock.advance(-30_000)
    assert kid_of(world.access_token()) == FIRST
    assert world.client(ahead).subject == "gw"


def test_a_key_verifies_until_the_last_token_that_it_can_have_signed_is_over(world: World) -> None:
    now_ms = world.clock.now_ms()
    longest = replace(SETTINGS, token_seconds=TOKEN_SECONDS_MAX)
    world.auth._settings = longest
    world.put(SigningKey("second", now_ms, now_ms + 10_000))
    world.clock.advance(9_999)
    last, seconds = world.auth.client_token("gw", CLIENT_SECRET, AUDIENCE)
    assert (kid_of(last), seconds) == (FIRST, TOKEN_SECONDS_MAX)

    world.clock.advance((seconds + LEEWAY_SECONDS - 1) * 1000)
    world.client(last)
    world.clock.advance(now_ms + 10_000 + KEPT_MS - 1 - world.clock.now_ms())
    assert published(world) == [FIRST, "second"]
    world.clock.advance(1)
    assert published(world) == ["second"]
    refused(lambda: world.client(signed(claims_of(world.access_token()))))
    world.client(world.access_token())


def test_many_turns_leave_the_last_ones(world: World) -> None:
    now_ms, day_ms = world.clock.now_ms(), 86_400_000
    for day in range(20):
        world.put(SigningKey(f"of day {day:02}", now_ms, now_ms + day * day_ms))

    world.clock.advance(19 * day_ms)

    assert kid_of(world.access_token()) == "of day 19"
    assert published(world) == [f"of day {day:02}" for day in range(11, 20)]


def test_an_ended_key_takes_its_tokens_with_it_at_once(world: World) -> None:
    now_ms = world.clock.now_ms()
    old, elsewhere = world.access_token(), world.another()
    world.put(SigningKey("second", now_ms, now_ms))
    new = world.access_token()
    for token in (old, new):
        world.client(token)
        elsewhere.client(token, AUDIENCE)

    world.put(Revocation(Revocation.signing_key_id(FIRST)))

    assert published(world) == ["second"]
    refused(lambda: world.client(old))
    refused(lambda: elsewhere.client(old, AUDIENCE))
    world.client(new)
    elsewhere.client(new, AUDIENCE)
    # For good: neither a deletion of the record nor the key made again takes it back.
    world.delete("revocation", Revocation.signing_key_id(FIRST))
    world.put(SigningKey(FIRST))
    assert published(world) == ["second"]


def test_tokens_of_strangers_leave_nothing_behind(world: World) -> None:
    claims = claims_of(world.access_token())
    stranger = ec.generate_private_key(ec.SECP256R1())
    held = world.auth._tokens._private.cache_info().currsize

    for number in range(1_000):
        headers = {"typ": "at+jwt", "kid": FIRST if number % 100 == 0 else f"kid {number}"}
        forged = jwt.encode(claims | {"jti": str(number)}, stranger, "ES256", headers)
        refused(lambda forged=forged: world.client(forged))  # type: ignore[misc]

    assert world.auth._tokens._private.cache_info().currsize == held, "no key is made for them"
    assert not world.auth._tokens._verified, "and none is remembered"

"""Secrets of the catalogue: how they are drawn, and what of them lies on the log.

Keys that we draw have enough entropy for a fast keyed digest (HMAC-SHA-256, the pepper derived from
the installation's secret); passwords of people get scrypt.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
import string
from base64 import b64decode, b64encode

_LETTERS = string.ascii_letters + string.digits
_SCRYPT_COST, _SCRYPT_BLOCK, _SCRYPT_LANES = 2**14, 8, 1
_SCRYPT_MEMORY_MAX = 64 << 20
PREFIX = "ls"
"""Begins our own API keys, so that a leaked one is recognised: `ls_<id>_<secret>`."""


def derive(secret: bytes, purpose: str) -> bytes:
    """The 32-byte key for one purpose; keys of different purposes say nothing of one another."""
    return hmac.digest(secret, purpose.encode(), "sha256")


def pepper(secret: bytes) -> bytes:
    """The key of `digest`, from the installation's secret."""
    return derive(secret, "keys")


def digest(key: bytes, plain: str) -> str:
    """What is kept of a drawn secret: hex."""
    return hmac.digest(key, plain.encode("utf-8", "surrogatepass"), "sha256").hex()


def drawn(length: int) -> str:
    """Random letters and digits; about 5.95 bits each."""
    return "".join(secrets.choice(_LETTERS) for _ in range(length))


def drawn_secret(use: str, key_id: str) -> str:
    """A fresh secret of the shape that credentials of this use have."""
    if use == "device":
        return drawn(20)
    secret = secrets.token_urlsafe(32)
    return f"{PREFIX}_{key_id}_{secret}" if use == "api" else secret


def password_hash(password: str) -> str:
    """`scrypt$cost$block$lanes$salt$hash`. Takes about 50 ms of CPU: not for the loop's thread."""
    salt = secrets.token_bytes(16)
    parameters = (_SCRYPT_COST, _SCRYPT_BLOCK, _SCRYPT_LANES)
    hashed = _scrypt(password, salt, *parameters)
    return "$".join(
        ("scrypt", *map(str, parameters), b64encode(salt).decode(), b64encode(hashed).decode())
    )


def password_matches(password: str, stored: str) -> bool:
    """Whether `password_hash` made `stored` of this password. As slow as that."""
    try:
        name, cost, block, lanes, salt, hashed = stored.split("$")
        if name != "scrypt":
            return False
        found = _scrypt(password, b64decode(salt), int(cost), int(block), int(lanes))
        return hmac.compare_digest(found, b64decode(hashed))
    except ValueError:
        return False


def _scrypt(password: str, salt: bytes, cost: int, block: int, lanes: int) -> bytes:
    plain = password.encode("utf-8", "surrogatepass")
    return hashlib.scrypt(
        plain, salt=salt, n=cost, r=block, p=lanes, maxmem=_SCRYPT_MEMORY_MAX, dklen=32
    )


def webhook_secret(secret: bytes, trigger_id: str) -> str:
    """The key that signs what is sent for a trigger, as its receiver is given it."""
    key = derive(secret, f"webhook {trigger_id}")
    return f"whsec_{b64encode(key).decode()}"

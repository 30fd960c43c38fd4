"""What a control action takes: each function returns the value, or raises Malformed with what is
wanted in its place.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from urllib.parse import urlsplit
from uuid import UUID

from schemas.catalogue import SCOPES
from services.catalogue._secrets import drawn
from services.errors import Malformed, Refused

DEPTH_MAX = 32
"""Of a tree of locations, and of gateways."""
URL_BYTES_MAX = 2_047
_PASSWORD_LENGTHS = range(8, 1025)


def check(holds: object, where: str, wanted: str) -> None:
    """Raises Malformed unless it holds."""
    if not holds:
        raise Malformed(f"{where}: {wanted}", where=where)


def text(value: str, where: str) -> str:
    """A text that people read: not empty, not long, without control characters."""
    check(
        re.fullmatch(r"[^\x00-\x1f\x7f\ud800-\udfff]{1,256}", value), where, "1 to 256 characters"
    )
    return value


def note(value: str, where: str) -> str:
    """A text that people read and that may be missing: not long, without control characters other
    than line ends and tabs.
    """
    allowed = r"[^\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ud800-\udfff]{0,1000}"
    check(re.fullmatch(allowed, value), where, "up to 1,000 characters")
    return value


def room(count: int, limit: int, owner: str, what: str) -> None:
    """Raises Refused ("too_many") unless one more may be made."""
    if count >= limit:
        raise Refused(f"{owner} may have {limit} {what}", code="too_many")


def uuid_text(value: str) -> str:
    """A UUID in its usual spelling."""
    try:
        return str(UUID(value))
    except ValueError:
        raise Malformed("id: a UUID", where="id") from None


def chosen_id(value: str) -> str:
    """An id that somebody chose. UUIDs of version 5 are those that we derive from names: who chose
    one could have what another tenant will need. Raises Malformed.
    """
    chosen = uuid_text(value)
    check(UUID(chosen).version != 5, "id", "a UUID of another version than 5")
    return chosen


def refuses(asks: Callable[[], object]) -> bool:
    """Whether a check is not passed."""
    try:
        asks()
    except Refused:
        return True
    return False


def check_tree(id: str, end: str, ends: Mapping[str, str], where: str, what: str) -> None:
    """Raises Malformed where something that is hung on `end` would hang on itself, or the tree be
    deeper than DEPTH_MAX. `ends` tells of each thing what it hangs on, of those at the top "".
    """
    levels, above = 1, end
    while above and levels <= DEPTH_MAX:
        check(above != id, where, "another one than itself, or what hangs on it")
        levels, above = levels + 1, ends.get(above, "")
    below = defaultdict(list)
    for each, its_end in ends.items():
        below[its_end].append(each)
    row = below[id]
    while row and levels <= DEPTH_MAX:
        levels, row = levels + 1, [lower for each in row for lower in below[each]]
    check(levels <= DEPTH_MAX, where, f"at most {DEPTH_MAX} {what}, one in the other")


def scopes_of(scopes: Sequence[str]) -> tuple[str, ...]:
    """Rights, in their order."""
    check(scopes and set(scopes) <= set(SCOPES), "scopes", f"some of {', '.join(SCOPES)}")
    return tuple(scope for scope in SCOPES if scope in scopes)


def password_of(password: str | None) -> str:
    """A password; drawn where there is none."""
    if password is None:
        return drawn(20)
    check(len(password) in _PASSWORD_LENGTHS, "password", "8 to 1024 characters")
    return password


def web_address(url: str) -> str:
    """Where a webhook is sent to. A user and a password in it would be shown wherever it is."""
    wanted = f"http:// or https:// with a host, up to {URL_BYTES_MAX} bytes, without a user"
    check(re.fullmatch(rf"[\x21-\x5b\x5d-\x7e]{{1,{URL_BYTES_MAX}}}", url), "url", wanted)
    try:
        parts = urlsplit(url)
        reached = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:
        reached = False
    check(reached and "@" not in parts.netloc, "url", wanted)
    return url

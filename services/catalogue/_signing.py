"""Which key signs access tokens when, and Control's actions on those keys.

A key is published when it is made and signs from a moment on that lies far enough ahead for every
process, and whoever keeps a copy of the key set, to know it by then. The one before it goes on
verifying until the last token that it can have signed is over.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from itertools import pairwise

from schemas.catalogue import Revocation, SigningKey
from services.catalogue._checks import check
from services.catalogue._part import Part
from services.catalogue._secrets import drawn
from services.errors import Refused, Unknown
from services.settings import TOKEN_SECONDS_MAX

_log = logging.getLogger(__name__)

OVERLAP_SECONDS = 3_600
_KEPT_MS = (TOKEN_SECONDS_MAX + 300) * 1000
"""The clocks of processes may differ by some minutes."""
_OVERLAP_SECONDS_MAX = 30 * 86_400
_KEYS_MAX = 16


def signing(keys: Sequence[SigningKey], now_ms: int) -> SigningKey:
    """Of the view's keys the one that signs at this moment."""
    come = [key for key in keys if key.signs_ms <= now_ms]
    return come[-1] if come else keys[0]


def verifying(keys: Sequence[SigningKey], now_ms: int) -> list[SigningKey]:
    """Of the view's keys those whose tokens may be good at this moment; one that is still to sign
    is among them.
    """
    over = {key.id for key, after in pairwise(keys) if after.signs_ms + _KEPT_MS <= now_ms}
    return [key for key in keys if key.id not in over]


class Signing(Part):
    """The keys of access tokens."""

    async def rotate_signing_key(self, overlap_seconds: int = OVERLAP_SECONDS) -> SigningKey:
        """A new key that is published at once and signs after `overlap_seconds`; tokens that were
        given out before stay good.
        """
        check(0 <= overlap_seconds <= _OVERLAP_SECONDS_MAX, "overlap_seconds", "0 to 30 days")
        now_ms = self._clock.now_ms()
        if len(verifying(self._view.signing_keys(), now_ms)) >= _KEYS_MAX:
            raise Refused(f"{_KEYS_MAX} signing keys are in use: end one, or wait a week")
        key = SigningKey(drawn(16), created_ms=now_ms, signs_ms=now_ms + overlap_seconds * 1000)
        return await self._changes.make(key)

    async def end_signing_key(self, id: str) -> None:
        """End a key and all tokens that it signed, at once and for good. Only one that another has
        followed, so that there is always one that signs.
        """
        keys = self._view.signing_keys()
        if all(key.id != id for key in keys):
            raise Unknown(f"no signing key {id!r}", where="id")
        now = signing(keys, self._clock.now_ms())
        if keys.index(now) <= [key.id for key in keys].index(id):
            raise Refused(f"no other key signs after {id!r} yet: rotate first", where="id")
        await self._changes.put(Revocation(Revocation.signing_key_id(id)))
        _log.info("catalogue: ended signing key %s", id)

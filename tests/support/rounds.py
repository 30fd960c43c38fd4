"""How often a randomised test tries, and from which seed: ROUNDS and SEED of the environment."""

from __future__ import annotations

import os
import random


def rounds(default: int) -> int:
    """The number of examples: the environment's ROUNDS where it is set, else `default`."""
    return int(os.environ.get("ROUNDS") or default)


def seed() -> int:
    """The environment's SEED where it is set, else a random one; printed, so that a failure can be
    repeated.
    """
    given = os.environ.get("SEED")
    value = int(given) if given else random.SystemRandom().randrange(2**32)
    print(f"SEED={value}")
    return value

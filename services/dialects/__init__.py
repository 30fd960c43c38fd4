"""Wire contract to canonical model and back. Pure. One module (or folder) a dialect, with its
`DIALECT`; `registry.discover(services.dialects, "DIALECT")` finds them.
"""

from __future__ import annotations

from services.dialects._contract import (
    Answer,
    Auth,
    Call,
    Dialect,
    Follow,
    Following,
    Inbound,
    Intake,
    Page,
    Publish,
    Push,
    Question,
    Read,
    Refusal,
    Reply,
)
from services.dialects._ports import Actions, Lookup, Principal, Promise

__all__ = [
    "Actions",
    "Answer",
    "Auth",
    "Call",
    "Dialect",
    "Follow",
    "Following",
    "Inbound",
    "Intake",
    "Lookup",
    "Page",
    "Principal",
    "Promise",
    "Publish",
    "Push",
    "Question",
    "Read",
    "Refusal",
    "Reply",
]

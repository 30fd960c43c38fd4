"""Beside the flow: what is configured. `View` is the catalogue in memory, `Control` changes it."""

from __future__ import annotations

from services.catalogue._ids import api_server_id, first, new_point, series_id
from services.catalogue._secrets import (
    derive,
    digest,
    password_hash,
    password_matches,
    pepper,
    webhook_secret,
)
from services.catalogue._signing import OVERLAP_SECONDS, signing, verifying
from services.catalogue.audit import Caller
from services.catalogue.commands import Commands
from services.catalogue.control import Control
from services.catalogue.view import View

__all__ = [
    "OVERLAP_SECONDS",
    "Caller",
    "Commands",
    "Control",
    "View",
    "api_server_id",
    "derive",
    "digest",
    "first",
    "new_point",
    "password_hash",
    "password_matches",
    "pepper",
    "series_id",
    "signing",
    "verifying",
    "webhook_secret",
]

"""What optiCLOUD says when it says no: ThingsBoard's error object with its number of the case.

Upstream: ThingsboardErrorResponse and ThingsboardErrorCode.
"""

from __future__ import annotations

from http import HTTPStatus

from services.dialects import _json
from services.dialects._contract import Reply, retry_after, status_of
from services.errors import (
    Forbidden,
    Malformed,
    OverQuota,
    PipelineError,
    Unauthorized,
    Unknown,
)

GENERAL, AUTHENTICATION, TOKEN_EXPIRED = 2, 10, 11
PERMISSION, BAD_PARAMETERS, NOT_FOUND, TOO_MANY = 20, 31, 32, 33

EXPIRED = "token_expired"
"""`Refused.code` of a token that was good once."""

_CODES: tuple[tuple[type[PipelineError], int], ...] = (
    (Unauthorized, AUTHENTICATION),
    (Forbidden, PERMISSION),
    (Unknown, NOT_FOUND),
    (Malformed, BAD_PARAMETERS),
    (OverQuota, TOO_MANY),
)


def refused(error: PipelineError, now_ms: int) -> Reply:
    """The error object; 401 says nothing of what was wrong with the credential."""
    status = status_of(error)
    code = next((code for kind, code in _CODES if isinstance(error, kind)), GENERAL)
    message = str(error) or HTTPStatus(status).phrase
    if isinstance(error, Unauthorized):
        expired = error.code == EXPIRED
        code = TOKEN_EXPIRED if expired else AUTHENTICATION
        message = "Token has expired" if expired else "Authentication failed"
    elif where := getattr(error, "where", ""):
        message = f"{message} (at {where.removeprefix('?')})"
    body = {"status": status, "message": message, "errorCode": code, "timestamp": now_ms}
    return Reply(status, _json.write(body), headers=retry_after(error))

"""What Next Plus says when it says no: LoopBack's error object, with the published codes of a push.

A role that is too low is answered as a credential that is not valid, as published. The names of the
codes other than VALUE_TYPE_MISMATCH are not published.
"""

from __future__ import annotations

from http import HTTPStatus
from typing import Any

from services.dialects import _json
from services.dialects._contract import Reply, retry_after, status_of
from services.errors import Forbidden, Malformed, PipelineError, Refused, Unauthorized

INVALID_BODY = "API_PUSH_INVALID_BODY"
NO_ITEMS = "API_PUSH_NO_ITEMS"
MISSING_KEY = "API_PUSH_MISSING_KEY"
MISSING_VALUE = "API_PUSH_MISSING_VALUE"
VALUE_TYPE_MISMATCH = "API_PUSH_VALUE_TYPE_MISMATCH"
PARAM_NOT_FOUND = "API_PUSH_PARAM_NOT_FOUND"
TIMESTAMP_INVALID = "API_PUSH_TIMESTAMP_INVALID"
TOO_MANY_ITEMS = "API_PUSH_TOO_MANY_ITEMS"
VALUE_TOO_LARGE = "API_PUSH_VALUE_TOO_LARGE"
TOO_MANY_PARAMETERS = "API_PUSH_TOO_MANY_PARAMETERS"
FILTER_INVALID = "API_STREAM_FILTER_INVALID"
MODEL_NOT_FOUND = "MODEL_NOT_FOUND"
AUTHORIZATION_REQUIRED, INVALID_TOKEN = "AUTHORIZATION_REQUIRED", "INVALID_TOKEN"
LOGIN_FAILED, USERNAME_EMAIL_REQUIRED = "LOGIN_FAILED", "USERNAME_EMAIL_REQUIRED"
TENANT_REQUIRED, NO_SESSION = "TENANT_REQUIRED", "NO_SESSION"
INVALID_MEMBER, NOT_CHANGEABLE = "INVALID_MEMBER", "NOT_CHANGEABLE"
ALREADY_EXISTS, TOO_MANY = "ALREADY_EXISTS", "TOO_MANY"
USER_SHARED, OWN_RIGHTS = "USER_SHARED", "OWN_RIGHTS"

NO_CREDENTIAL = "none"
"""`Refused.code` where no credential came at all."""

_NAMES = {
    400: "BadRequestError",
    404: "NotFoundError",
    405: "MethodNotAllowedError",
    408: "RequestTimeoutError",
    409: "ConflictError",
    413: "PayloadTooLargeError",
    415: "UnsupportedMediaTypeError",
    422: "UnprocessableEntityError",
    429: "TooManyRequestsError",
    500: "InternalServerError",
    503: "ServiceUnavailableError",
}


class Invalid(Malformed):
    """422: the body says something that cannot be used. `details` says what, for a program."""

    status = 422

    def __init__(self, code: str, message: str, **details: Any) -> None:
        super().__init__(message, code=code)
        self.details = details


def refused(error: PipelineError, now_ms: int) -> Reply:
    """`{"error": {statusCode, name, message, code, details}}`, the last two where there are any."""
    if isinstance(error, Unauthorized | Forbidden):
        return _unauthorized(error)
    status = status_of(error)
    said: dict[str, Any] = {
        "statusCode": status,
        "name": _NAMES.get(status, "Error"),
        "message": str(error) or HTTPStatus(status).phrase,
    }
    if code := getattr(error, "code", ""):
        said["code"] = code
    details = dict(getattr(error, "details", {}))
    if where := getattr(error, "where", ""):
        details["where"] = where
    if details:
        said["details"] = details
    return Reply(status, _json.write({"error": said}), headers=retry_after(error))


def _unauthorized(error: Refused) -> Reply:
    """LoopBack tells a missing (or too low) credential from one that is not valid."""
    valid = isinstance(error, Forbidden) or error.code == NO_CREDENTIAL
    said = {
        "statusCode": 401,
        "name": "Error",
        "message": "Authorization Required" if valid else "Invalid Access Token",
        "code": AUTHORIZATION_REQUIRED if valid else INVALID_TOKEN,
    }
    return Reply(401, _json.write({"error": said}))

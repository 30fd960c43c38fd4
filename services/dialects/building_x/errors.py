"""What Building X says when it says no: JSON:API errors, and Auth0's at the token endpoint.

https://jsonapi.org/format/1.1/#error-objects
"""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b
from http import HTTPStatus
from typing import Any

from services.dialects import _json
from services.dialects._contract import Reply, retry_after, status_of
from services.errors import Malformed, PipelineError, Unauthorized, Unsupported

JSON_API = "application/vnd.api+json"
_MEDIA_TYPES = frozenset({JSON_API, "application/json"})

_AUTH0 = {
    400: "invalid_request",
    401: "access_denied",
    403: "access_denied",
    429: "too_many_requests",
    503: "temporarily_unavailable",
}


def check_media_type(content_type: str) -> None:
    """Raises Unsupported unless a body of this type is JSON."""
    if content_type in _MEDIA_TYPES:
        return
    if content_type.partition(";")[0].strip().lower() not in _MEDIA_TYPES:
        raise Unsupported(f"send {JSON_API} or application/json")


def refused(error: PipelineError, now_ms: int) -> Reply:
    """One error as JSON:API."""
    detail = str(error) or HTTPStatus(status_of(error)).phrase
    return errors(error, [(detail, getattr(error, "where", ""))], now_ms)


def errors(error: PipelineError, faults: Sequence[tuple[str, str]], now_ms: int) -> Reply:
    """Faults of one kind, each with its detail and its place, as JSON:API.

    The document has at least one error and all members are strings: clients fail on anything else.
    """
    headers = list(retry_after(error))
    if isinstance(error, Unauthorized):
        headers.append(("WWW-Authenticate", "Bearer"))
    items = error_objects(error, faults, now_ms)
    return Reply(status_of(error), _json.write({"errors": items}), JSON_API, headers)


def error_objects(
    error: PipelineError, faults: Sequence[tuple[str, str]], now_ms: int
) -> list[dict[str, Any]]:
    """JSON:API error objects. A place is a pointer ("/data/0"), a query parameter ("?name"; "?" is
    all of the query) or else the name of a header. What is malformed at no place is the document.
    """
    status = status_of(error)
    phrase = HTTPStatus(status).phrase
    code = getattr(error, "code", "") or phrase.upper().replace(" ", "_")
    items = []
    for index, (detail, where) in enumerate(faults):
        seed = f"{now_ms}:{index}:{status}:{where}:{detail}".encode("utf-8", "replace")
        item: dict[str, Any] = {
            "id": blake2b(seed, digest_size=8).hexdigest(),
            "code": code,
            "status": str(status),
            "title": phrase,
            "detail": detail,
        }
        if where.startswith("?"):
            item |= {"source": {"parameter": where[1:]}} if where != "?" else {}
        elif where.startswith("/") or (not where and isinstance(error, Malformed)):
            item["source"] = {"pointer": where}
        elif where:
            item["source"] = {"header": where}
        items.append(item)
    return items


def token_refused(error: PipelineError, now_ms: int) -> Reply:
    """The token endpoint's envelope. A client reads `detail` and breaks where it is missing."""
    status = status_of(error)
    detail = str(error) or HTTPStatus(status).phrase
    name = error.code if isinstance(error, Malformed) else ""
    name = name or _AUTH0.get(status, "invalid_request" if status < 500 else "server_error")
    body = {"error": name, "error_description": detail, "detail": detail}
    headers = [("Cache-Control", "no-store"), *retry_after(error)]
    if isinstance(error, Unauthorized):
        headers.append(("WWW-Authenticate", 'Basic realm="oauth"'))
    return Reply(status, _json.write(body), headers=headers)

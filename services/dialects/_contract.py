"""What a dialect is: doors that translate between a vendor's bytes and the canonical model. Nothing
else.

A dialect opens no socket, reads no clock, sees no log. What it must know it asks of the `Lookup`
that is handed in. Wrong input raises `Refused` (with the place in the body); the door's `refused`
turns that into the vendor's own envelope.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from schemas.blocks import Block
from schemas.catalogue import (
    Point,
)
from schemas.envelope import Change
from schemas.queries import LatestQuery, RangeQuery
from schemas.samples import Value, Verdict
from services.dialects._ports import Actions, Lookup, Principal
from services.errors import PipelineError, Unavailable


@dataclass(frozen=True, slots=True)
class Inbound:
    """One request or one MQTT message, as bytes. `path` and `query` hold the parameters, decoded; a
    repeated query member is its last value. `headers` have lower-case names. `received_ms` is the
    door's clock. `route` is the whole path as it came, aliases' prefix and all.

    `base` is what absolute links in the answer begin with, such as "https://example.com"; empty
    where links are as the vendor documents them.
    """

    body: bytes
    received_ms: int
    principal: Principal | None
    path: Mapping[str, str] = field(default_factory=dict)
    query: Mapping[str, str] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)
    route: str = ""
    base: str = ""

    @property
    def caller(self) -> Principal:
        """The principal, where the door's auth guarantees one."""
        assert self.principal is not None
        return self.principal


@dataclass(slots=True)
class Intake:
    """What a door takes in: samples (of any lane), and what the catalogue must hold for them
    (`first` changes, appended with the samples, before the answer).

    `again`: what the samples are depends on the outcome of the changes (another process may make
    the same thing otherwise). So they go to the log alone, and once the catalogue has them the
    request is decoded anew.

    `note` (0 to 255) comes back with the `Promise` where the receipt is asked for later.
    """

    block: Block
    changes: Sequence[Change] = ()
    again: bool = False
    note: int = 0


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer."""

    status: int
    body: bytes = b""
    media_type: str = "application/json"
    headers: Sequence[tuple[str, str]] = ()


class Answer(Enum):
    """When a door answers."""

    APPEND = "logged"
    """As soon as the record is on the log."""
    VERDICT = "decided"
    """When the judge's receipt is there; it says what became of each row."""


class Auth(Enum):
    """How a door finds its principal."""

    NONE = "none"
    BEARER = "bearer"
    """`Authorization: Bearer` with a token of ours for a machine client and the dialect's
    `audience`, or with an API key.
    """
    X_AUTHORIZATION = "x-authorization"
    """`X-Authorization: Bearer` with a token of ours for a user."""
    ACCESS_TOKEN = "access-token"
    """A user's token or an API key: `?access_token=`, `Authorization` with or without `Bearer`, or
    `X-Access-Token`; the first of these that is there.
    """
    DEVICE_TOKEN = "device"
    """MQTT user name, or the path's `token`."""


def status_of(error: PipelineError) -> int:
    """The HTTP status of an error; 500 for what is our own fault."""
    return int(getattr(error, "status", 500))


def retry_after(error: PipelineError) -> Sequence[tuple[str, str]]:
    """The header that tells the sender when to try again, in whole seconds; none where it shall
    not.
    """
    if not isinstance(error, Unavailable):
        return ()
    return (("Retry-After", str(max(1, -(-error.retry_after_ms // 1000)))),)


_WITH_BODY = {415: "the body has a content coding (gzip, say)"}


def described(
    summary: str,
    responses: Mapping[int, str],
    *,
    media_type: str = "application/json",
    example: Any = None,
    parameters: Mapping[str, str] | None = None,
    required: Collection[str] = (),
    headers: Mapping[str, str] | None = None,
) -> Mapping[str, Any]:
    """A door's `docs` as parts of an OpenAPI operation: `responses` maps status to a sentence,
    `example` is a request's body, `parameters` maps query parameter (some are `required`) to a
    sentence, `headers` those of the request's headers that change what is done.
    """
    said = dict(sorted({**(_WITH_BODY if example is not None else {}), **responses}.items()))
    docs: dict[str, Any] = {
        "summary": summary,
        "responses": {str(status): {"description": text} for status, text in said.items()},
        "parameters": [
            {
                "name": name,
                "in": place,
                "description": text,
                **({"required": True} if name in required else {}),
                "schema": {"type": "string"},
            }
            for place, named in (("query", parameters), ("header", headers))
            for name, text in (named or {}).items()
        ],
    }
    if example is not None:
        content = {media_type: {"schema": {}, "example": example}}
        docs["request"] = {"required": True, "content": content}
    return docs


Refusal = Callable[[PipelineError, int], Reply]
"""How a door says no in its vendor's words: the error, and the door's clock in UTC ms (some
envelopes carry a time). Renders Unavailable and OverQuota too, with Retry-After.
"""


@dataclass(frozen=True, slots=True)
class Push:
    """A door that takes samples in. Several `paths` are aliases; `{name}` in them become
    `Inbound.path`.

    `decode` makes the intake (or raises Refused); `accepted` gets what was
    taken in and the verdict of every row in the request's order (empty where the door answers on
    APPEND), and makes the answer. `bulk` marks a
    hot door: it is served by the plain ASGI path. `docs` describes the door for the OpenAPI page:
    `described` makes it.

    `promised` makes the answer to a request that does not want to wait for the verdicts (`Prefer:
    respond-async`), of the id under which `Actions.promise` has them later; None: the door always
    waits. All samples of a request are of one series there.
    """

    method: str
    paths: Sequence[str]
    auth: Auth
    decode: Callable[[Inbound, Lookup], Intake]
    accepted: Callable[[Inbound, Intake, Sequence[Verdict]], Reply]
    refused: Refusal
    scope: str = "ingest"
    answer: Answer = Answer.APPEND
    promised: Callable[[Inbound, str], Reply] | None = None
    bulk: bool = False
    body_bytes_max: int = 1024 * 1024
    docs: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Publish:
    """An MQTT topic that takes samples in; acknowledged when they are on the log."""

    topic: str
    decode: Callable[[Inbound, Lookup], Intake]
    scope: str = "ingest"


@dataclass(frozen=True, slots=True)
class Page:
    """What a read found. `names` gives each series' key; `asked` lists the series in the order
    asked for. `connected` says of the question's devices, of which anything is known, whether they
    have a session now.
    """

    block: Block
    names: Mapping[int, str]
    asked: Sequence[int]
    connected: Mapping[str, bool] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Question:
    """What a read door wants: one query, or the latest values; `context` is handed back to
    `render`. Of `devices` (their ids) is asked, too, whether they are connected.
    """

    query: RangeQuery | LatestQuery
    names: Mapping[int, str]
    context: Any = None
    devices: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class Read:
    """A door that answers from what is stored and what is on its way there. The answer of a `fresh`
    one has everything that was acknowledged before the question came.
    """

    method: str
    paths: Sequence[str]
    auth: Auth
    parse: Callable[[Inbound, Lookup], Question]
    render: Callable[[Inbound, Question, Page], Reply]
    refused: Refusal
    scope: str = "read"
    fresh: bool = False
    docs: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Following:
    """Which changes a reader wants: those of `device`, or only of the points whose `series` are
    named; without them points that are still to come count too.

    `since` is the id of the last change that the reader has ("": it begins now).
    """

    device: str
    series: frozenset[int] | None = None
    since: str = ""


@dataclass(frozen=True, slots=True)
class Follow:
    """A door that tells of changes as they come: a stream of server-sent events, or a WebSocket at
    the same path. `event` makes one change, a point and (UTC ms, kind, value), a JSON text on one
    line, once for all who follow.
    """

    paths: Sequence[str]
    auth: Auth
    parse: Callable[[Inbound, Lookup], Following]
    event: Callable[[Point, int, int, Value], bytes]
    refused: Refusal
    scope: str = "read"
    docs: Mapping[str, Any] = field(default_factory=dict)
    method: str = "GET"


@dataclass(frozen=True, slots=True)
class Call:
    """A door that has something done and answers with the result: log in, tokens, control actions.

    `handle` is called in a thread of its own (what it asks of `Actions` may take CPU), unless it is
    a coroutine.
    """

    method: str
    paths: Sequence[str]
    auth: Auth
    handle: Callable[[Inbound, Lookup, Actions], Reply | Awaitable[Reply]]
    refused: Refusal
    scope: str = ""
    body_bytes_max: int = 64 * 1024
    docs: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Dialect:
    """A vendor's wire contract: its doors, and the envelope for what hits none of them below
    `prefixes`.
    """

    name: str
    title: str
    contract_url: str
    pushes: Sequence[Push] = ()
    publishes: Sequence[Publish] = ()
    reads: Sequence[Read] = ()
    follows: Sequence[Follow] = ()
    calls: Sequence[Call] = ()
    prefixes: Sequence[str] = ()
    audience: str = ""
    """What the access tokens of machine clients must be for."""
    refused: Refusal | None = None
    warm: Callable[[], None] | None = None
    """What a process that opens these doors does first, so that no request pays for it."""

"""What the management endpoints share: LoopBack's manner of creating, listing and deleting, and the
refusals of control in the words of this API.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

from msgspec import ValidationError
from msgspec.json import Decoder

from services.dialects import _json, _times
from services.dialects._contract import Auth, Call, Inbound, Refusal, Reply, described
from services.dialects.next_plus import errors, filters
from services.dialects.next_plus.errors import Invalid, refused
from services.errors import Forbidden, Malformed, Refused, Taken, Unauthorized, Unknown

T = TypeVar("T")

DELETED = Reply(200, _json.write({"count": 1}))
"""LoopBack's answer to a deletion by id."""
_CODES = {"shared": errors.USER_SHARED, "self": errors.OWN_RIGHTS, "too_many": errors.TOO_MANY}
_RESPONSES = {401: "no valid token, or a role that is too low", 503: "try again later"}
_WITH_BODY = {400: "the body is not JSON"}


def body_of(decoder: Decoder[T], inbound: Inbound) -> T:
    """The members of a request that are looked at; others may be there. Raises Malformed where the
    body is not JSON, Invalid where a member is not of its type.
    """
    try:
        _json.check_utf8(inbound.body)
        return decoder.decode(inbound.body)
    except ValidationError as error:
        raise Invalid(errors.INVALID_MEMBER, str(error)) from None
    except (ValueError, RecursionError) as error:
        raise Malformed(f"the body cannot be read as JSON: {error}") from None


def member(name: str, wanted: str) -> Invalid:
    """The refusal of a member of the body: what it has to be."""
    return Invalid(errors.INVALID_MEMBER, f"{name}: {wanted}", where=name)


def same(name: str, given: object, is_: object) -> None:
    """Raises Invalid where a member that cannot be changed is given another value. Clients send
    back whole objects, so the value that it has is fine.
    """
    if given is not None and given != is_:
        message = f"{name} cannot be changed: it is {is_!r}"
        raise Invalid(errors.NOT_CHANGEABLE, message, where=name)


@contextmanager
def translated(**names: str) -> Iterator[None]:
    """What control refuses, in the words of this API; `names` maps control's names of members to
    those of the body.
    """
    try:
        yield
    except (Forbidden, Unauthorized, Invalid):
        raise
    except Unknown as error:
        if error.where in names:
            raise member(names[error.where], "does not exist") from None
        raise Unknown(error.message, code=errors.MODEL_NOT_FOUND) from None
    except Refused as error:
        name = names.get(error.where, error.where)
        if isinstance(error, Taken):
            code = errors.ALREADY_EXISTS
            raise Taken(f"{name}: is there already", where=name, code=code) from None
        if isinstance(error, Malformed):
            raise member(name, error.message.removeprefix(f"{error.where}: ")) from None
        raise Invalid(_CODES.get(error.code, errors.INVALID_MEMBER), error.message) from None


def unknown(model: str, asked: str) -> Unknown:
    """LoopBack's 404."""
    return Unknown(f'Unknown "{model}" id "{asked[:100]}".', code=errors.MODEL_NOT_FOUND)


def shown(model: Mapping[str, Any], *, headers: Sequence[tuple[str, str]] = ()) -> Reply:
    """One object."""
    return Reply(200, _json.write(model), headers=headers)


def listed(inbound: Inbound, models: Sequence[Mapping[str, Any]]) -> Reply:
    """The objects that the query's `filter` leaves. Raises Malformed."""
    return Reply(200, _json.write(filters.of(inbound.query).applied(models)))


def moment(ms: int) -> str | None:
    """A time as ISO-8601; null where there is none."""
    return _times.text_of(ms) if ms else None


def call(
    method: str,
    path: str | Sequence[str],
    handle: Callable[..., Any],
    scope: str,
    summary: str,
    responses: Mapping[int, str],
    *,
    auth: Auth = Auth.ACCESS_TOKEN,
    refusal: Refusal = refused,
    example: Any = None,
    parameters: Mapping[str, str] | None = None,
) -> Call:
    """A door of these endpoints; `scope` is the right that it asks for."""
    read = {} if example is None else _WITH_BODY
    said = dict(sorted({**_RESPONSES, **read, **responses}.items()))
    paths = (path,) if isinstance(path, str) else tuple(path)
    docs = described(summary, said, example=example, parameters=parameters)
    return Call(method, paths, auth, handle, refusal, scope, docs=docs)

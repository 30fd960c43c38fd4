"""What creating, changing and deleting share: a resource object in the body, control's refusals
with the places that they are about, the doors.

A relationship to nothing, and an attribute that is null, take away what was there.
https://jsonapi.org/format/1.1/#crud
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Generic, TypeVar

from msgspec import UNSET, Struct, UnsetType
from msgspec.json import Decoder
from msgspec.structs import asdict, fields

from schemas.catalogue import CONFIGURE
from services.dialects import _json
from services.dialects._contract import Auth, Call, Inbound, Reply, described
from services.dialects.building_x.errors import JSON_API, check_media_type, refused
from services.dialects.building_x.jsonapi import Draft, Members
from services.dialects.building_x.paths import below
from services.errors import Conflicting, Forbidden, Malformed, Refused

A = TypeVar("A", bound=Struct)
R = TypeVar("R", bound=Struct)

ATTRIBUTES, RELATIONSHIPS = "/data/attributes", "/data/relationships"
GONE = Reply(204, media_type=JSON_API)
Text = str | None | UnsetType
"""A text that may be missing, or null."""


class Identifier(Struct):
    """A resource identifier object."""

    id: str
    type: str | UnsetType = UNSET


class ToOne(Struct):
    """A relationship to one resource, or to none."""

    data: Identifier | None


class Data(Struct, Generic[A, R], forbid_unknown_fields=True):
    """A resource object as it comes. Some clients send no type where the path says all, and some
    send back what they got, links and all.
    """

    id: str | UnsetType = UNSET
    type: str | UnsetType = UNSET
    attributes: A | UnsetType = UNSET
    relationships: R | UnsetType = UNSET
    links: Any = UNSET
    meta: Any = UNSET


class Body(Struct, Generic[A, R], forbid_unknown_fields=True):
    """A document with one resource object."""

    data: Data[A, R]
    links: Any = UNSET
    meta: Any = UNSET
    included: Any = UNSET
    jsonapi: Any = UNSET


def data_of(decoder: Decoder[Body[A, R]], inbound: Inbound) -> Data[A, R]:
    """The resource object in the body. Raises Unsupported, Malformed."""
    check_media_type(inbound.headers.get("content-type", ""))
    return _json.read(decoder, inbound.body).data


def members(given: Struct | UnsetType) -> Members:
    """What is given of attributes or relationships, by control's names; null is an empty text."""
    if isinstance(given, UnsetType):
        return {}
    named = {name: value for name, value in asdict(given).items() if value is not UNSET}
    return {name: _plain(value) for name, value in named.items()}


def ends(given: Struct | UnsetType, types: Mapping[str, Collection[str]]) -> Members:
    """The ids that relationships lead to, by control's names; `types` says of which types they
    are. Raises Conflicting for another one, Malformed for an id that names nothing.
    """
    for each in () if isinstance(given, UnsetType) else fields(given):
        end, where = getattr(given, each.name), f"{RELATIONSHIPS}/{each.encode_name}/data"
        if not isinstance(end, ToOne) or end.data is None:
            continue
        if not end.data.id:
            raise Malformed("an id, or null for no relationship", where=f"{where}/id")
        if end.data.type not in (UNSET, *types[each.name]):
            raise Conflicting(f"one of {', '.join(types[each.name])}", where=f"{where}/type")
    return members(given)


def _plain(value: Any) -> Any:
    if isinstance(value, ToOne):
        return value.data.id if value.data else ""
    return "" if value is None else value


def made_of(data: Data[A, R], types: Collection[str]) -> str:
    """The type of what shall be made. Raises Malformed without one, Conflicting where it belongs
    into another list.
    """
    if isinstance(data.type, UnsetType):
        raise Malformed(f"one of {', '.join(types)}", where="/data/type")
    if data.type not in types:
        raise Conflicting(f"this list is of {', '.join(types)}", where="/data/type")
    return data.type


def same(data: Data[A, R], type: str, id: str) -> None:
    """Raises Conflicting where the body is about something else than the path."""
    for name, given, is_ in (("type", data.type, type), ("id", data.id, id)):
        if given not in (UNSET, is_):
            raise Conflicting(f"the path says {is_}", where=f"/data/{name}")


def for_good(name: str, given: object, is_: object, where: str) -> None:
    """Raises Forbidden where a member that cannot be changed is given another value. Clients send
    back whole objects, so the value that it has is fine.
    """
    if given is not UNSET and given != is_:
        raise Forbidden(f"{name} is for good", where=f"{where}/{name}")


def own_id(data: Data[A, R]) -> Members:
    """The id that the client chose, as control takes it."""
    return {} if isinstance(data.id, UnsetType) else {"id": data.id}


@contextmanager
def pointed(pointers: Mapping[str, str]) -> Iterator[None]:
    """What control refuses, with the place in the body; `pointers` maps control's names to it."""
    try:
        yield
    except Forbidden:
        raise
    except Refused as error:
        where = {"id": "/data/id", **pointers}.get(error.where, "")
        message = error.message.removeprefix(f"{error.where}: ")
        raise type(error)(message, where=where, code=error.code.upper()) from None


def created(draft: Draft, link: str) -> Reply:
    """The answer to what was made."""
    return draft.reply(201, [("Location", link)])


_RESPONSES = {
    400: "the body or a member cannot be used; source says where",
    401: "no token, or not a valid one",
    403: "another's partition, no right to configure, or a member that is for good",
    404: "unknown partition, or something that is named does not exist",
    415: "another content type than the two of JSON, or a content coding",
    503: "try again later",
}


def call(
    method: str,
    path: str,
    handle: Callable[..., Any],
    summary: str,
    responses: Mapping[int, str],
    *,
    scope: str = CONFIGURE,
    example: Members | None = None,
    headers: Mapping[str, str] | None = None,
) -> Call:
    """A door that changes what is configured; `path` is what follows the prefixes."""
    said = dict(sorted({**_RESPONSES, **responses}.items()))
    if method == "DELETE":
        del said[400], said[415]
    body = None if example is None else {"data": example}
    docs = described(summary, said, media_type=JSON_API, example=body, headers=headers)
    return Call(method, below(path), Auth.BEARER, handle, refused, scope, docs=docs)

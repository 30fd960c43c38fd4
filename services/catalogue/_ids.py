"""Who things are: the ids that every process derives alike from names, and the claims by which
things are made.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any
from uuid import UUID, uuid4, uuid5

import xxhash

from schemas.catalogue import Point, Thing
from schemas.envelope import Change
from schemas.points import LANE_SHIFT

_POINT_IDS = UUID("8c5b8ac4-6d0e-5f0c-9d5e-3b7b0c7d8a11")
"""Namespace of the ids of points that are named by nobody."""
_API_SERVERS = UUID("d3f4f6b2-3a0e-5c55-9a0f-6f1f3f0f7c42")
"""Namespace of the ids of the tenants' API servers."""
_LOW = (1 << LANE_SHIFT) - 1


@lru_cache(maxsize=65_536)
def series_id(tenant: str, device: str, key: str) -> int:
    """The 64-bit id of a series: 16 bits of the device's hash above 48 of the whole name's.

    The upper bits choose the lane, so a device's series share one and lie together on disk.
    """
    device_name = f"{tenant}\0{device}".encode("utf-8", "surrogatepass")
    name = device_name + b"\0" + key.encode("utf-8", "surrogatepass")
    high = xxhash.xxh3_64_intdigest(device_name) & 0xFFFF
    return high << LANE_SHIFT | xxhash.xxh3_64_intdigest(name) & _LOW


def point_id(tenant: str, device: str, origin: str) -> str:
    """The id of the point at this place, as long as nobody names it."""
    name = "\0".join((tenant, device, origin)).encode("utf-8", "surrogatepass").hex()
    return str(uuid5(_POINT_IDS, name))


def origin_of(point: Point) -> tuple[str, str, str]:
    """What a point's series is made of."""
    return point.tenant, point.device, point.origin or point.key


def new_point(tenant: str, device: str, key: str, **members: Any) -> Point:
    """A point with the series of its place, and, where `members` brings no `id`, an id made of it.

    The id is derived and not drawn, so that doors which make the same point at once name it alike.
    """
    origin = members.get("origin") or key
    id = members.pop("id", "") or point_id(tenant, device, origin)
    members.setdefault("name", key)
    return Point(
        id,
        tenant=tenant,
        device=device,
        key=key,
        series=series_id(tenant, device, origin),
        **members,
    )


@lru_cache(maxsize=4_096)
def api_server_id(tenant: str) -> str:
    """The id of the tenant's API server."""
    return str(uuid5(_API_SERVERS, tenant))


def first(thing: Thing) -> Change:
    """The change that makes `thing` unless something of its kind and id exists; a claim of its own
    each time.
    """
    return Change(thing.KIND, thing.id, thing.body(), first=True, claim=uuid4().hex)

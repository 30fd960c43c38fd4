"""Where Building X's doors are, and whose the partition and the point are that a path names."""

from __future__ import annotations

from schemas.catalogue import Point
from services.dialects._contract import Inbound
from services.dialects._ports import Lookup
from services.errors import Forbidden, Unknown

PREFIXES = (
    "/ingest",
    "/operations",
    "/structure",
    "/api/openness/ingest",
    "/api/openness/operations",
    "/api/openness/structure",
    "",
)
"""The vendor's hosts and ages differ in what stands before `/partitions`; all mean the same. The
last one is where the links of documents lead.
"""
PARTITIONS = "/partitions"
PARTITION = PARTITIONS + "/{partitionId}"
POINT = PARTITION + "/points/{pointId}"
VALUES = POINT + "/values"


def below(path: str) -> tuple[str, ...]:
    """The path below each of the prefixes."""
    return tuple(prefix + path for prefix in PREFIXES)


def prefix_of(inbound: Inbound) -> str:
    """The prefix that the request came by."""
    return inbound.route.partition(PARTITIONS)[0]


def own_partition(inbound: Inbound, lookup: Lookup) -> str:
    """The tenant whose partition the path names: the caller's. Raises Forbidden for a partition of
    somebody else, Unknown for one that does not exist.
    """
    partition, tenant = inbound.path["partitionId"], inbound.caller.tenant
    owner = lookup.tenant_of(partition)
    if owner is None:
        raise Unknown(f"there is no partition {partition[:100]}")
    if owner != tenant:
        raise Forbidden("the token is not for this partition")
    return tenant


def own_point(inbound: Inbound, lookup: Lookup) -> Point:
    """The point that the path names.

    Raises Forbidden for a partition of somebody else, Unknown for a partition or a point that does
    not exist.
    """
    point = lookup.point(own_partition(inbound, lookup), inbound.path["pointId"])
    if point is None:
        raise Unknown(f"there is no point {inbound.path['pointId'][:100]} in this partition")
    return point

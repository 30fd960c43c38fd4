"""Partitions: a tenant is one, and a credential sees its own."""

from __future__ import annotations

from schemas.catalogue import Tenant
from services.dialects._contract import Inbound
from services.dialects._ports import Lookup
from services.dialects.building_x.jsonapi import Draft, Links, Members, read, related, resource
from services.dialects.building_x.lists import Wanted
from services.dialects.building_x.paths import PARTITION, PARTITIONS, own_partition
from services.errors import Unknown


def of(tenant: Tenant, links: Links, wanted: Wanted) -> Members:
    """A partition as it is shown."""
    lists = {
        f"has{name.title()}": related(links.past(tenant.uuid, name))
        for name in ("locations", "devices", "points")
    }
    own, fields = links.past(tenant.uuid), wanted.of_type("Partition")
    attributes: Members = {"name": tenant.name or tenant.id}
    return resource("Partition", tenant.uuid, attributes, lists, link=own, fields=fields)


def find(inbound: Inbound, lookup: Lookup) -> Draft:
    """The one partition that the credential is for."""
    links = Links(inbound)
    found = of(_tenant(inbound, lookup), links, Wanted.of(inbound.query))
    return Draft([found], {"self": links.past(query=inbound.query)})


def find_by_id(inbound: Inbound, lookup: Lookup) -> Draft:
    """A partition."""
    own_partition(inbound, lookup)
    links = Links(inbound)
    found = of(_tenant(inbound, lookup), links, Wanted.of(inbound.query))
    return Draft(found, {"self": links.to(query=inbound.query)})


def _tenant(inbound: Inbound, lookup: Lookup) -> Tenant:
    if (tenant := lookup.tenant(inbound.caller.tenant)) is None:
        raise Unknown("the credential's partition is gone")
    return tenant


READS = (
    read(PARTITIONS, find, "The partition of the credential", "a list of one"),
    read(PARTITION, find_by_id, "A partition", "the partition"),
)

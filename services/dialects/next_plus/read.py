"""A parameter's latest value, for verification: who was told that a push was taken in reads it
here.
"""

from __future__ import annotations

from schemas.catalogue import Point
from schemas.queries import LatestQuery
from services.dialects import _json
from services.dialects._contract import Auth, Inbound, Page, Question, Read, Reply, described
from services.dialects._ports import Lookup
from services.dialects.next_plus.errors import MODEL_NOT_FOUND, refused
from services.dialects.next_plus.values import json_of
from services.errors import Unknown


def parameter_of(inbound: Inbound, lookup: Lookup) -> Point:
    """The parameter that the path names by its UUID. Raises Unknown."""
    tenant, asked = inbound.caller.tenant, inbound.path["paramId"]
    point = lookup.point(tenant, asked)
    if point is None or point.device != lookup.api_server(tenant).id:
        raise Unknown(f'Unknown "Parameter" id "{asked[:100]}".', code=MODEL_NOT_FOUND)
    return point


def parse(inbound: Inbound, lookup: Lookup) -> Question:
    """The newest sample of the parameter's series."""
    point = parameter_of(inbound, lookup)
    query = LatestQuery(inbound.caller.tenant, (point.series,))
    wanted = point.declared if point.locked else None
    return Question(query, {point.series: point.key}, wanted)


def render(inbound: Inbound, question: Question, page: Page) -> Reply:
    """`{"value": …}`; null where nothing was pushed yet."""
    block, wanted = page.block, question.context
    # What is left of a parameter that was deleted and declared anew with another type is none.
    holds = len(block) > 0 and wanted in (None, block.kind[0])
    value = json_of(block.kind[0], block.value(0)) if holds else None
    return Reply(200, _json.write({"value": value}))


READ_PARAMETER = Read(
    "GET",
    ("/api/ApiServers/readParameter/{paramId}",),
    Auth.ACCESS_TOKEN,
    parse,
    render,
    refused,
    fresh=True,
    docs=described(
        "The latest value of a parameter",
        {
            200: "the value; null where nothing was pushed yet",
            401: "no valid token, or a role below operator",
            404: "no such parameter; the id is the UUID, not the key",
            503: "the values that were pushed before are not judged yet",
        },
    ),
)

"""Values in: one POST with one item, a list of items, or a list under `parameters`.

A hot door: the usual body, numbers and booleans for known parameters, becomes columns by a compiled
scanner (`PLAIN`, `_plain`); any other becomes one `Item` per value and then columns (`_items`). The
first item that cannot be used refuses all of them; of two values for one parameter and millisecond
the later one stands.

Unknown keys become parameters, of the type of their first value. Another process may be doing the
same with another type, and only the log's order says who was first: so the door has the parameter
made, and decodes the request anew when the catalogue knows the outcome (`Intake.again`).
"""

from __future__ import annotations

from collections.abc import Sequence

from schemas.samples import Verdict
from services.dialects import _json
from services.dialects._contract import Auth, Inbound, Intake, Push, Reply, described
from services.dialects._ports import Lookup
from services.dialects._scan import Form, Member, Role
from services.dialects.next_plus import errors
from services.dialects.next_plus._items import TEXT_BYTES_MAX, Batch, items_of
from services.dialects.next_plus._plain import Moment, block_of
from services.dialects.next_plus.errors import Invalid, refused
from services.errors import Forbidden, TooLarge, Unknown

ITEMS_MAX = 1_000
PLAIN = Form(
    "parameters",
    [
        Member("key", Role.TEXT),
        Member("value", Role.VALUE),
        Member("timestamp", Role.STAMP, required=False),
    ],
    bare=True,
)
"""The usual push."""


def decode(inbound: Inbound, lookup: Lookup) -> Intake:
    """The samples of a push. Raises Unknown (the API server is switched off), TooLarge, Invalid."""
    tenant = inbound.caller.tenant
    server = lookup.api_server(tenant)
    if inbound.caller.device not in ("", server.id):
        raise Forbidden("the credential is another device's")
    if server.disabled:
        raise Unknown("no active API server for this tenant")
    if scanned := PLAIN.scan(inbound.body, ITEMS_MAX):
        moment = Moment(lookup, tenant)
        block = block_of(scanned, moment, server.id, inbound.received_ms)
        if block is not None:
            return Intake(block)
    items = items_of(inbound.body)
    if not items:
        raise Invalid(errors.NO_ITEMS, "the body holds no items")
    if len(items) > ITEMS_MAX:
        raise TooLarge(f"a push may have {ITEMS_MAX} items", code=errors.TOO_MANY_ITEMS)
    return Batch(inbound, lookup, server.id, items).intake()


def accepted(inbound: Inbound, intake: Intake, verdicts: Sequence[Verdict]) -> Reply:
    """How many items were taken in, those that will change nothing among them."""
    return Reply(200, _json.write({"success": True, "processed": len(intake.block)}))


PUSH = Push(
    "POST",
    ("/api/ApiServers/push",),
    Auth.ACCESS_TOKEN,
    decode,
    accepted,
    refused,
    bulk=True,
    docs=described(
        "Push values of parameters",
        {
            200: "how many items were taken in",
            401: "no valid token, or a role below editor",
            404: "the tenant's API server is switched off",
            413: f"more than {ITEMS_MAX} items, 1 MiB, or {TEXT_BYTES_MAX} bytes of one text",
            422: "an item cannot be used, `code` and `details` say why; none was taken in",
            503: "try again later; items with a timestamp may be sent again without harm",
        },
        example=[
            {"key": "temperature", "value": 23.5},
            {"key": "door_open", "value": False, "timestamp": "2026-05-19T08:14:02.000Z"},
        ],
        parameters={"access_token": "the token, where it is not in `Authorization`"},
    ),
)

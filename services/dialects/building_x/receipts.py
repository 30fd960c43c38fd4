"""The receipt of an ingest that nobody waited for (`Prefer: respond-async`, RFC 7240): pending, or
decided, with what the waiting request would have been told.

The vendor documents no such resource; it is a JSON:API one, below the vendor's own paths.
"""

from __future__ import annotations

from typing import Any

from schemas.catalogue import INGEST
from schemas.samples import Conflict
from services.dialects import _json
from services.dialects._contract import Auth, Call, Inbound, Reply, described
from services.dialects._ports import Actions, Lookup
from services.dialects.building_x.errors import JSON_API, error_objects, refused
from services.dialects.building_x.ingest import RECEIPT, dropped_of, faults_of, receipt_data
from services.dialects.building_x.paths import below, own_partition
from services.errors import Malformed

_PENDING_SECONDS = "1"


async def read_receipt(inbound: Inbound, lookup: Lookup, actions: Actions) -> Reply:
    """What became of the request, as far as it is known.

    Raises Unknown for a receipt that is not of this partition, or not kept any more.
    """
    own_partition(inbound, lookup)
    receipt = inbound.path["receiptId"]
    promise = await actions.promise(inbound.caller, receipt)
    if promise.verdicts is None:
        body = {"data": receipt_data(receipt, "pending")}
        headers = (("Retry-After", _PENDING_SECONDS), ("Cache-Control", "no-store"))
        return Reply(200, _json.write(body), JSON_API, headers)
    meta: dict[str, Any] = {
        "droppedIndices": dropped_of(promise.verdicts, Conflict(promise.note)),
    }
    # A document has either data or errors; so the errors of single values are told beside it.
    if faults := faults_of(promise.verdicts):
        meta["errors"] = error_objects(Malformed(""), faults, inbound.received_ms)
    body = {"data": receipt_data(receipt, "decided"), "meta": meta}
    return Reply(200, _json.write(body), JSON_API)


READ_RECEIPT = Call(
    "GET",
    below(RECEIPT),
    Auth.BEARER,
    read_receipt,
    refused,
    INGEST,
    docs=described(
        "What became of values that were added with Prefer: respond-async",
        {
            200: "attributes.status is pending, or decided: then meta.droppedIndices has the "
            "0-based places of what was dropped, meta.errors what was refused",
            401: "no token, or not a valid one",
            403: "another's partition",
            404: "unknown partition; no such receipt of it, or not kept any more",
            503: "not known now: try again",
        },
    ),
)

"""Siemens Building X at the door: tokens, point values in and out, commands, and the partitions,
locations, devices and points that lead to them.

https://developer.siemens.com/building-x-openness/api/point-value-ingest-api/quickstart.html
https://developer.siemens.com/building-x-openness/api/building-operations/overview.html
"""

from __future__ import annotations

from services.dialects._contract import Dialect
from services.dialects._scan import warm
from services.dialects.building_x import commands, devices, locations, partitions, points
from services.dialects.building_x.errors import refused
from services.dialects.building_x.ingest import INGEST
from services.dialects.building_x.paths import PARTITIONS, PREFIXES
from services.dialects.building_x.receipts import READ_RECEIPT
from services.dialects.building_x.tokens import AUDIENCE, KEY_SET, TOKEN
from services.dialects.building_x.values import READ_VALUES

__all__ = ["AUDIENCE", "DIALECT"]

DIALECT = Dialect(
    name="building_x",
    title="Siemens Building X",
    contract_url="https://developer.siemens.com/building-x-openness/api/"
    "point-value-ingest-api/quickstart.html",
    pushes=(INGEST,),
    reads=(
        *partitions.READS,
        *locations.READS,
        *devices.READS,
        *points.READS,
        READ_VALUES,
    ),
    calls=(
        TOKEN,
        KEY_SET,
        READ_RECEIPT,
        *locations.CALLS,
        *devices.CALLS,
        *points.CALLS,
        *commands.CALLS,
    ),
    prefixes=tuple(prefix or PARTITIONS for prefix in PREFIXES),
    audience=AUDIENCE,
    refused=refused,
    warm=warm,
)

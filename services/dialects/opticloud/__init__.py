"""optiCLOUD at the door: login, a device's telemetry in over MQTT, its values out over REST.

A relative of ThingsBoard; `errors`, `numbers` and `spelling` follow that system's manners.
https://docs.optimeas.com/en/docs/software/opticloud/api/
"""

from __future__ import annotations

from services.dialects._contract import Dialect
from services.dialects.opticloud.errors import refused
from services.dialects.opticloud.login import AUTHORIZATION, LOGIN, REFRESH
from services.dialects.opticloud.series import KEYS, TIMESERIES
from services.dialects.opticloud.telemetry import TELEMETRY

DIALECT = Dialect(
    name="opticloud",
    title="optiCLOUD",
    contract_url="https://docs.optimeas.com/en/docs/software/opticloud/api/",
    publishes=(TELEMETRY,),
    reads=(TIMESERIES,),
    calls=(AUTHORIZATION, LOGIN, REFRESH, KEYS),
    prefixes=("/api/noauth", "/api/auth", "/api/plugins/telemetry"),
    refused=refused,
)

"""Next Plus at the door: API Connections, the push API, and its parameters.

Every tenant has exactly one API server; its parameters are points of one device of the catalogue
(`Lookup.api_server`). The rest of the product's API follows LoopBack 3, and so does what is not
published of this part: error envelope, log in, the manner of the management endpoints.
"""

from __future__ import annotations

from services.dialects._contract import Dialect
from services.dialects._scan import warm
from services.dialects.next_plus import (
    entities,
    login,
    parameters,
    servers,
    tokens,
    triggers,
    users,
)
from services.dialects.next_plus.errors import refused
from services.dialects.next_plus.push import PUSH
from services.dialects.next_plus.read import READ_PARAMETER
from services.dialects.next_plus.stream import STREAM

DIALECT = Dialect(
    name="next_plus",
    title="Next Plus",
    contract_url=(
        "https://success.nextplus.io/en/articles/"
        "15176463-api-connections-push-live-data-into-next-plus-from-your-own-systems"
    ),
    pushes=(PUSH,),
    reads=(READ_PARAMETER,),
    follows=(STREAM,),
    # The first path that fits is taken: those without a parameter stand before those with one.
    calls=(
        *login.CALLS,
        *users.CALLS,
        *tokens.CALLS,
        *parameters.CALLS,
        *entities.CALLS,
        *triggers.CALLS,
        *servers.CALLS,
    ),
    prefixes=(
        "/api/ApiServers",
        "/api/ProductionEntities",
        "/api/Users",
        "/api/users",
        "/api/AccessTokens",
    ),
    refused=refused,
    warm=warm,
)

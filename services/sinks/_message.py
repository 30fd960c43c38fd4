"""What a webhook is sent: the body, and the headers that sign it.

The headers are those of Standard Webhooks.
https://github.com/standard-webhooks/standard-webhooks/blob/main/spec/standard-webhooks.md
"""

from __future__ import annotations

import hmac
import json
import math
from base64 import b64decode, b64encode
from datetime import UTC, datetime, timedelta
from urllib.parse import quote

from schemas.catalogue import Point, Trigger
from schemas.envelope import Alert
from schemas.samples import Kind, Value

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def body_of(alert: Alert, trigger: Trigger | None, point: Point | None) -> bytes:
    """What a webhook is told: a JSON object. `trigger` and `point` say the names."""
    told = {
        "id": alert.id,
        "trigger": {"id": alert.rule, "name": trigger.name if trigger else None},
        "tenant": alert.tenant,
        "parameter": {
            "id": trigger.point if trigger else None,
            "key": point.key if point else None,
        },
        "state": "raised" if alert.raised else "cleared",
        "ts": _moment(alert.ts_ms),
        "value": _value(alert.value, point),
    }
    return json.dumps(told, separators=(",", ":")).encode()


def _value(value: Value, point: Point | None) -> Value:
    """As JSON: a date as text, and what JSON's numbers cannot be, too."""
    if point is not None and point.declared is Kind.DATE and type(value) is int:
        return _moment(value)
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def _moment(ts_ms: int) -> str:
    """RFC 3339 with milliseconds, UTC."""
    moment = _EPOCH + timedelta(milliseconds=ts_ms)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def signed(secret: str, id: str, seconds: int, body: bytes) -> dict[str, str]:
    """The headers: id, time of the attempt (Unix seconds), and the HMAC-SHA256 of both and the
    body. `secret` is as the receiver was given it.
    """
    id = quote(id, safe="/")
    key = b64decode(secret.removeprefix("whsec_"))
    digest = hmac.digest(key, f"{id}.{seconds}.".encode() + body, "sha256")
    return {
        "webhook-id": id,
        "webhook-timestamp": str(seconds),
        "webhook-signature": f"v1,{b64encode(digest).decode()}",
    }

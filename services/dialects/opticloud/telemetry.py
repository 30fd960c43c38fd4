"""A device's telemetry over MQTT: `v1/devices/me/telemetry`, every published shape of it.

A message is one object or a list of them; an object is `{"ts": ms, "values": {…}}` or plain keys
and values, whose time is the door's. Every sample brings its own type; the last one written wins.
Refused as a whole, so that a device either has all of a message stored or none of it.

This is the project's hottest function: JSON is decoded once, values become columns without an
object between, and what is unusual (quoted numbers, nested values, new keys) leaves the straight
path.

Upstream: JsonConverter.convertToTelemetry.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable
from math import isfinite
from struct import Struct
from typing import Any

from msgspec import Raw
from msgspec import json as msgspec_json

from schemas.blocks import Block, bits_of, bytes_of
from schemas.envelope import Change
from schemas.points import PointPolicy
from schemas.samples import NO_QUALITY, TS_MS_MAX, Conflict, Kind
from services.dialects import _json
from services.dialects._contract import Inbound, Intake, Publish
from services.dialects._ports import Lookup
from services.dialects.opticloud.numbers import LONG_MAX, LONG_MIN, of_literal, of_text
from services.errors import Forbidden, Malformed, PipelineError

KEY_CHARACTERS_MAX = 255

_DECODER = msgspec_json.Decoder(float_hook=of_literal)
_RAW_OBJECT = msgspec_json.Decoder(dict[str, Raw])
_RAW_OBJECTS = msgspec_json.Decoder(list[dict[str, Raw]])
_pack_double, _unpack_long = Struct("<d").pack, Struct("<q").unpack
_QUALITY, _RULE = array("i", (NO_QUALITY,)), array("B", (Conflict.LAST,))
_DOUBLE, _LONG, _BOOL, _STRING, _JSON = (
    int(kind) for kind in (Kind.DOUBLE, Kind.LONG, Kind.BOOL, Kind.STRING, Kind.JSON)
)
_TEXTS = (_STRING, _JSON)


def decode(inbound: Inbound, lookup: Lookup) -> Intake:
    """One message as one block; all rows are of the device that speaks. Keys that are new make
    points.
    """
    caller = inbound.caller
    tenant, device = caller.tenant, caller.device
    if not device:
        raise Forbidden("only a device has telemetry of its own")
    message = _json.read(_DECODER, inbound.body)
    elements = message if type(message) is list else (message,)
    stamps = lookup.stamps(tenant, device)
    policies: list[PointPolicy] = []
    policy_row, last_policy, wanted = 0, None, None
    new_keys: dict[str, None] = {}
    texts: dict[int, str] = {}
    raw: list[dict[str, Raw]] = []
    series: list[int] = []
    times: list[int] = []
    kinds: list[int] = []
    bits: list[int] = []
    policy_rows: list[int] = []
    for index, element in enumerate(elements):
        values, ts_ms = _timed(element, index, inbound.received_ms)
        for key, value in values.items():
            kind_of = type(value)
            if kind_of is float:
                kind, bit = _DOUBLE, _unpack_long(_pack_double(value))[0]
            elif kind_of is int and LONG_MIN <= value <= LONG_MAX:
                kind, bit = _LONG, value
            elif kind_of is bool:
                kind, bit = _BOOL, int(value)
            elif value is None:
                continue
            else:
                kind, bit, text = _unusual(value, key, index, inbound.body, raw)
                if kind in _TEXTS:
                    texts[len(series)] = text
            stamp = stamps.get(key)
            if stamp is None:
                new_keys[key] = None
                series_id, policy = lookup.series(tenant, device, key), lookup.free_policy(tenant)
            else:
                series_id, policy = stamp
            if policy is not last_policy:
                last_policy, policy_row, wanted = policy, _row_of(policies, policy), policy.kind
            if wanted is not None and kind != wanted:
                if wanted == _JSON:
                    text = _written(key, index, inbound.body, raw)
                    fitting = _JSON, bits_of(_JSON, text), text
                else:
                    fitting = _of_type(wanted, kind, bit, value)
                kind, bit, text = fitting
                if kind == wanted:
                    texts.pop(len(series), None)
                    if kind in _TEXTS:
                        texts[len(series)] = text
            series.append(series_id)
            times.append(ts_ms)
            kinds.append(kind)
            bits.append(bit)
            policy_rows.append(policy_row)
    # Only once all of the message is known to be good: a creation is remembered by the catalogue.
    changes = _creations(inbound, lookup, new_keys) if new_keys else ()
    return Intake(_block(policies, series, times, kinds, bits, policy_rows, texts), changes)


def _block(
    policies: list[PointPolicy],
    series: list[int],
    times: list[int],
    kinds: list[int],
    bits: list[int],
    policy_rows: list[int],
    texts: dict[int, str],
) -> Block:
    count = len(series)
    return Block(
        policies,
        array("Q", series),
        array("q", times),
        array("B", kinds),
        array("q", bits),
        _QUALITY * count,
        _RULE * count,
        array("H", policy_rows),
        array("Q"),
        texts,
        sum(map(bytes_of, texts.values())) if texts else 0,
    )


def _timed(element: Any, index: int, received_ms: int) -> tuple[dict[str, Any], int]:
    """The values of one object and their time. Without both `ts` and `values` it is plain."""
    if type(element) is not dict:
        raise Malformed("telemetry is an object or a list of objects", where=f"/{index}")
    if "ts" not in element or "values" not in element:
        return element, received_ms
    values, ts_ms = element["values"], element["ts"]
    if type(values) is not dict:
        raise Malformed("values is an object", where=f"/{index}/values")
    if type(ts_ms) is not int or not 0 <= ts_ms < TS_MS_MAX:
        raise Malformed("ts is in UTC milliseconds between 1970 and 2261", where=f"/{index}/ts")
    return values, ts_ms


def _unusual(
    value: Any, key: str, index: int, body: bytes, raw: list[dict[str, Raw]]
) -> tuple[int, int, str]:
    """Kind, bits and text of a string, of a number that no type holds, and of a nested value."""
    if type(value) is str:
        value = of_text(value)
        if type(value) is float:
            return _DOUBLE, _unpack_long(_pack_double(value))[0], ""
        if type(value) is int:
            return _LONG, value, ""
    if isinstance(value, (dict, list)):
        text = _written(key, index, body, raw)
        return _JSON, bits_of(_JSON, text), text
    text = str(value)
    return _STRING, bits_of(_STRING, text), text


def _of_type(wanted: Kind, kind: int, bit: int, value: Any) -> tuple[int, int, str]:
    """Kind, bits and text of a value for a point that is declared of another type than it is
    written in: of that type where it can be one without loss of meaning, else as it was, and the
    judge refuses it.
    """
    if wanted == _STRING and type(value) is str:
        return _STRING, bits_of(_STRING, value), value
    if wanted == Kind.DATE and kind == _LONG and 0 <= bit < TS_MS_MAX:
        return wanted, bit, ""
    if wanted == _DOUBLE and kind == _LONG:
        return _DOUBLE, _unpack_long(_pack_double(bit))[0], ""
    if wanted == _DOUBLE and kind == _STRING:
        number = of_text(value) if type(value) is str else value
        # Telemetry has no type for it, but a double may be near enough.
        if type(number) is not str and isfinite(double := float(str(number))):
            return _DOUBLE, _unpack_long(_pack_double(double))[0], ""
    return kind, bit, ""


def _written(key: str, index: int, body: bytes, raw: list[dict[str, Raw]]) -> str:
    """A nested value as the sender wrote it, numbers to the letter, without white space.

    `raw` is empty until a message has its first nested value; then it is decoded a second time.
    """
    if not raw:
        raw.extend(_raw_members(body))
    return msgspec_json.format(raw[index][key], indent=-1).decode()


def _raw_members(body: bytes) -> list[dict[str, Raw]]:
    """The undecoded values of each object of a message that has been decoded before."""
    is_list = body.lstrip()[:1] == b"["
    objects = _RAW_OBJECTS.decode(body) if is_list else [_RAW_OBJECT.decode(body)]
    return [
        _RAW_OBJECT.decode(members["values"])
        if "ts" in members and "values" in members
        else members
        for members in objects
    ]


def _creations(inbound: Inbound, lookup: Lookup, keys: Iterable[str]) -> list[Change]:
    """What makes the points of keys that the catalogue does not hold yet."""
    tenant, device, received_ms = inbound.caller.tenant, inbound.caller.device, inbound.received_ms
    for key in keys:
        if not key or len(key) > KEY_CHARACTERS_MAX or "\0" in key:
            raise Malformed(f"a key has 1 to {KEY_CHARACTERS_MAX} characters, none of them NUL")
    changes: list[Change] = []
    for key in keys:
        try:
            change = lookup.creation(tenant, device, key, received_ms)
        except PipelineError:
            for asked in changes:
                lookup.creation_failed(asked)
            raise
        if change is not None:
            changes.append(change)
    return changes


def _row_of(policies: list[PointPolicy], policy: PointPolicy) -> int:
    if policy not in policies:
        policies.append(policy)
    return policies.index(policy)


TELEMETRY = Publish("v1/devices/me/telemetry", decode)

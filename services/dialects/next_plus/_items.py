"""Any push, item by item: what its items are, and what is wrong with the first that cannot be used.

A batch is looked at whole before anything of it counts.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from msgspec import UNSET, Raw, Struct, ValidationError
from msgspec import json as msgspec_json
from msgspec.json import Decoder

from schemas.blocks import Block, bytes_of
from schemas.envelope import Change
from schemas.points import PointPolicy
from schemas.samples import TS_MS_MAX, Kind, Value
from services.dialects import _json, _times
from services.dialects._contract import Inbound, Intake
from services.dialects._ports import Lookup
from services.dialects.next_plus import errors
from services.dialects.next_plus._plain import rule_of
from services.dialects.next_plus.errors import Invalid
from services.dialects.next_plus.values import (
    KEEP_MINUTES_DEFAULT,
    KEY_CHARACTERS_MAX,
    PRECISION_DEFAULT,
    TYPES,
    declared,
    json_type,
)
from services.errors import Malformed, PipelineError, TooLarge

TEXT_BYTES_MAX = 64 * 1024
_SHOWN_BYTES_MAX = 512
UUID_FIELD = "paramId"
"""Not published; it is what the read endpoint calls the UUID."""

_LONGS = range(-(2**63), 2**63)
_EXPECTED = {kind: name for name, kind in TYPES.items()}
_ANYTHING = Kind.STRING
"""A `string` parameter takes any value."""
_ELSEWHERE = (Kind.STRING, Kind.LONG, Kind.JSON)
"""Locked types that are no types of parameters."""
_EPOCH, _MILLISECOND = datetime(1970, 1, 1, tzinfo=UTC), timedelta(milliseconds=1)
_Row = tuple[int, PointPolicy, int, Kind, Value]


class _Item(Struct, gc=False, rename={"param_id": UUID_FIELD}):
    key: Any = UNSET
    param_id: Any = UNSET
    value: Any = UNSET
    timestamp: Any = UNSET


class _Wrapped(Struct):
    parameters: list[_Item]


class _Shape(Struct):
    parameters: Any = UNSET


class _RawItem(Struct):
    value: Raw = Raw(b"null")


class _RawWrapped(Struct):
    parameters: list[_RawItem]


_LIST, _WRAPPED, _ONE = Decoder(list[_Item]), Decoder(_Wrapped), Decoder(_Item)
_SHAPE = Decoder(_Shape)
_RAW_LIST, _RAW_WRAPPED, _RAW_ONE = (
    Decoder(list[_RawItem]),
    Decoder(_RawWrapped),
    Decoder(_RawItem),
)


def items_of(body: bytes) -> list[_Item]:
    """The items of any of the three shapes. Raises Invalid."""
    try:
        _json.check_utf8(body)
        if body.lstrip()[:1] == b"[":
            return _LIST.decode(body)
        if isinstance(_SHAPE.decode(body).parameters, list):
            return _WRAPPED.decode(body).parameters
        return [_ONE.decode(body)]
    except ValidationError as error:
        raise Invalid(
            errors.INVALID_BODY, f"the body is no item and no list of items: {error}"
        ) from None
    except RecursionError:
        raise Invalid(errors.INVALID_BODY, "the JSON is nested too deeply") from None
    except ValueError as error:
        raise Invalid(errors.INVALID_BODY, f"the body is not JSON: {error}") from None


class Batch:
    """A push of any items, one by one."""

    def __init__(
        self, inbound: Inbound, lookup: Lookup, device: str, items: Sequence[_Item]
    ) -> None:
        self._inbound, self._lookup, self._device, self._items = inbound, lookup, device, items
        self._tenant, self._now_ms = inbound.caller.tenant, inbound.received_ms
        self._stamps = lookup.stamps(self._tenant, device)
        self._new: dict[str, Kind] = {}
        """Keys that no parameter has, with the kind of their first value."""
        self._raw: list[_RawItem] = []

    def intake(self) -> Intake:
        """The samples; or, where a key is unknown, the parameters to be made first."""
        rows = [self._row(index, item) for index, item in enumerate(self._items)]
        if self._new:
            return Intake(Block(), self._creations(), again=True)
        block, numbers = Block(), dict[int, int]()
        for series, policy, ts_ms, kind, value in rows:
            # The catalogue has one object for one policy: no two of them are compared.
            if (number := numbers.get(id(policy))) is None:
                number = numbers[id(policy)] = block.policy_index(policy)
            rule = rule_of(ts_ms, policy, self._now_ms)
            block.add(series, ts_ms, kind, value, policy=number, rule=rule)
        return Intake(block)

    def _row(self, index: int, item: _Item) -> _Row:
        key = _named(index, item)
        if item.value is UNSET or item.value is None:
            raise Invalid(errors.MISSING_VALUE, f"item {index} has no value", index=index, key=key)
        series, policy, wanted = self._place(index, key, item)
        kind, value = self._typed(index, key, wanted, item.value)
        if isinstance(value, str) and bytes_of(value) > TEXT_BYTES_MAX:
            raise TooLarge(
                f"item {index}: a text may have {TEXT_BYTES_MAX} bytes", code=errors.VALUE_TOO_LARGE
            )
        return series, policy, _time_of(index, key, item.timestamp, self._now_ms), kind, value

    def _place(self, index: int, key: str, item: _Item) -> tuple[int, PointPolicy, Kind | None]:
        """Series, policy and type of an item's parameter (None: anything goes). A UUID goes before
        a key; what has an unknown key is to be made.
        """
        if item.param_id is not UNSET and item.param_id is not None:
            point = None
            if isinstance(item.param_id, str):
                point = self._lookup.point(self._tenant, item.param_id)
            if point is None or point.device != self._device:
                raise Invalid(
                    errors.PARAM_NOT_FOUND,
                    f"item {index}: there is no parameter with this UUID",
                    **{"index": index, UUID_FIELD: item.param_id},
                )
            policy = self._lookup.policy(point)
            return point.series, policy, policy.kind
        if (known := self._stamps.get(key)) is not None:
            return *known, known[1].kind
        if (wanted := self._new.get(key)) is None:
            wanted = self._new[key] = _inferred(index, key, item.value)
        return 0, self._lookup.free_policy(self._tenant), None if wanted is _ANYTHING else wanted

    def _typed(self, index: int, key: str, wanted: Kind | None, value: Any) -> tuple[Kind, Value]:
        """Kind and value of the sample. Raises Invalid where the value is not of the type."""
        if wanted is None:
            return self._as_it_is(index, value)
        if wanted in _ELSEWHERE:
            return self._of_elsewhere(index, key, wanted, value)
        numeric = isinstance(value, int | float) and not isinstance(value, bool)
        if wanted is Kind.BOOL and isinstance(value, bool):
            return wanted, value
        try:
            if wanted is Kind.DOUBLE and numeric:
                return wanted, float(value)
            if wanted is Kind.DATE and isinstance(value, str):
                return wanted, _moment(value)
        except (ValueError, OverflowError):
            pass
        raise _mismatch(index, key, _EXPECTED[wanted], value)

    def _of_elsewhere(self, index: int, key: str, wanted: Kind, value: Any) -> tuple[Kind, Value]:
        """A value of a type that only points have which were declared by the command."""
        kind, typed = self._as_it_is(index, value)
        if wanted is Kind.JSON:
            return wanted, msgspec_json.encode(value).decode() if kind is not wanted else typed
        if kind is not wanted:
            raise _mismatch(index, key, wanted.name.lower(), value)
        return kind, typed

    def _as_it_is(self, index: int, value: Any) -> tuple[Kind, Value]:
        """Any value under its own type; what no type holds, as the sender wrote it."""
        if isinstance(value, bool):
            return Kind.BOOL, value
        if isinstance(value, str):
            return Kind.STRING, value
        if isinstance(value, float):
            return Kind.DOUBLE, value
        if isinstance(value, int) and value in _LONGS:
            return Kind.LONG, value
        if not self._raw:
            self._raw = _raw_items(self._inbound.body)
        return Kind.JSON, msgspec_json.format(self._raw[index].value, indent=-1).decode()

    def _creations(self) -> list[Change]:
        """What makes the parameters of the unknown keys that nobody is making at this moment."""
        changes: list[Change] = []
        try:
            for key, kind in self._new.items():
                shape = declared(_EXPECTED[kind], PRECISION_DEFAULT, KEEP_MINUTES_DEFAULT)
                change = self._lookup.creation(
                    self._tenant, self._device, key, self._now_ms, **shape
                )
                if change is not None:
                    changes.append(change)
        except PipelineError as error:
            for asked in changes:
                self._lookup.creation_failed(asked)
            if isinstance(error, Malformed):
                raise Invalid(errors.TOO_MANY_PARAMETERS, error.message) from None
            raise
        return changes


def _raw_items(body: bytes) -> list[_RawItem]:
    """The undecoded values of a body that has been decoded before."""
    if body.lstrip()[:1] == b"[":
        return _RAW_LIST.decode(body)
    if isinstance(_SHAPE.decode(body).parameters, list):
        return _RAW_WRAPPED.decode(body).parameters
    return [_RAW_ONE.decode(body)]


def _named(index: int, item: _Item) -> str:
    """The item's key ("" where it has only a UUID). Raises Invalid."""
    if item.param_id is not UNSET and item.param_id is not None:
        return item.key if isinstance(item.key, str) else ""
    key = item.key
    if not isinstance(key, str) or not 0 < len(key) <= KEY_CHARACTERS_MAX or "\0" in key:
        raise Invalid(
            errors.MISSING_KEY,
            f"item {index} has neither a key (1 to {KEY_CHARACTERS_MAX} characters) nor a UUID",
            index=index,
        )
    return key


def _inferred(index: int, key: str, value: Any) -> Kind:
    """The type of a new parameter, from its first value; a date is never inferred from a text."""
    if isinstance(value, bool):
        return Kind.BOOL
    if isinstance(value, int | float):
        return Kind.DOUBLE
    if isinstance(value, str):
        return _ANYTHING
    raise _mismatch(index, key, "scalar", value)


def _mismatch(index: int, key: str, expected: str, value: Any) -> Invalid:
    """The published refusal; what came is repeated in it where it is short."""
    short = len(_json.write(value)) <= _SHOWN_BYTES_MAX
    return Invalid(
        errors.VALUE_TYPE_MISMATCH,
        f"item {index}: the value is not of type {expected}",
        index=index,
        key=key,
        expected=expected,
        received=json_type(value),
        **({"value": value} if short else {}),
    )


def _time_of(index: int, key: str, stamp: Any, received_ms: int) -> int:
    """UTC ms of an item: epoch milliseconds or ISO-8601; the door's clock where none came."""
    if stamp is UNSET or stamp is None:
        return received_ms
    try:
        if isinstance(stamp, str):
            return _moment(stamp)
        whole = isinstance(stamp, int) or (isinstance(stamp, float) and stamp.is_integer())
        if whole and not isinstance(stamp, bool) and 0 <= stamp < TS_MS_MAX:
            return int(stamp)
    except ValueError:
        pass
    raise Invalid(
        errors.TIMESTAMP_INVALID,
        f"item {index}: the timestamp is neither ISO-8601 nor epoch milliseconds of 1970 to 2261",
        index=index,
        key=key,
        timestamp=stamp,
    )


def _moment(text: str) -> int:
    """UTC ms of an ISO-8601 text; without a zone it is UTC. Raises ValueError."""
    try:
        return _times.ms_of(text)
    except ValueError:
        moment = datetime.fromisoformat(text)
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    ts_ms = (moment - _EPOCH) // _MILLISECOND
    if not 0 <= ts_ms < TS_MS_MAX:
        raise ValueError(text)
    return ts_ms

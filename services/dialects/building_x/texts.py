"""The text of a Building X value to the point's declared type and back.

| type | text |
| --- | --- |
| double | a decimal number, also with exponent; not `nan`, not `inf` |
| long | an integer that fits into 64 bits, without fraction and exponent |
| bool | `true` `false` `on` `off` `1` `0`, in any case |
| string | as it came |
| json | one JSON text, kept as it came |
| date | an RFC 3339 time with offset |

A whole request is converted at once: its texts are looked at as one, and only where something is
wrong one by one.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from math import inf, isfinite

from msgspec.json import Decoder

from schemas.blocks import bits_of, double_of
from schemas.samples import Kind, Value
from services.dialects._times import all_ms_of, text_of, why_not

_DOUBLE = b"0123456789+-.eE"
_LONG = b"0123456789+-"
_BOOL = {"true": 1, "false": 0, "on": 1, "off": 0, "1": 1, "0": 0}
_ANY_JSON = Decoder()

_WRONG = {
    Kind.DOUBLE: "not a finite decimal number, as the point's type (double) asks for",
    Kind.LONG: "not an integer within 64 bits, as the point's type (long) asks for",
    Kind.BOOL: "none of true, false, on, off, 1, 0, as the point's type (bool) asks for",
    Kind.JSON: "not JSON, as the point's type (json) asks for",
}


def columns(kind: Kind, texts: Sequence[str]) -> tuple[array[int], dict[int, str]]:
    """The `bits` column (int64 a row) and the kept texts by row. Raises ValueError or OverflowError
    where a text is not of the type.
    """
    if kind == Kind.DOUBLE:
        _check_characters(texts, _DOUBLE)
        doubles = array("d", map(float, texts))
        if inf in doubles or -inf in doubles:
            raise ValueError("beyond the range of a double")
        return array("q", doubles.tobytes()), {}
    if kind == Kind.LONG:
        _check_characters(texts, _LONG)
        return array("q", map(int, texts)), {}
    if kind == Kind.BOOL:
        return array("q", map(_bool, texts)), {}
    if kind == Kind.DATE:
        return array("q", all_ms_of(texts)), {}
    if kind == Kind.JSON:
        _check_json(texts)
    return array("q", [bits_of(kind, text) for text in texts]), dict(enumerate(texts))


def value_of(kind: Kind, text: str) -> Value:
    """What one text means. Raises ValueError or OverflowError where it is not of the type."""
    bits, kept = columns(kind, [text])
    if kept:
        return text
    if kind == Kind.DOUBLE:
        return double_of(bits[0])
    return bool(bits[0]) if kind == Kind.BOOL else bits[0]


def why_not_value(kind: Kind, text: str) -> str:
    """What is wrong with a text, for a person; empty where nothing is."""
    if kind == Kind.DATE:
        return why_not(text)
    try:
        columns(kind, [text])
    except (ValueError, OverflowError):
        return _WRONG[kind]
    return ""


def text_of_value(kind: int, value: Value) -> str:
    """A stored value as the text that Building X shows."""
    if kind == Kind.BOOL:
        return "true" if value else "false"
    if kind == Kind.DATE:
        return text_of(int(value))
    if kind == Kind.DOUBLE:
        return repr(float(value)) if isfinite(float(value)) else ""
    return str(value)


def _check_characters(texts: Sequence[str], allowed: bytes) -> None:
    """Python reads more as a number than the contract does: `1_000`, ` 1`, `nan`, other digits."""
    if "".join(texts).encode().translate(None, allowed):
        raise ValueError("not a number")


def _bool(text: str) -> int:
    value = _BOOL.get(text.lower())
    if value is None:
        raise ValueError(text)
    return value


def _check_json(texts: Sequence[str]) -> None:
    for text in texts:
        try:
            _ANY_JSON.decode(text)
        except RecursionError:
            raise ValueError("nested too deeply") from None

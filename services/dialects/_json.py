"""JSON at the doors: bytes to typed values, with the place of the first mistake as a JSON pointer.

The only thing that dialects share besides their contract.
"""

from __future__ import annotations

import re
from typing import Any, TypeVar

import msgspec

from services.errors import Malformed

T = TypeVar("T")

_PLACE = re.compile(r"(?s)(.*) - at `(?:key in )?\$(.*)`")
_STEP = re.compile(r"\.([^.\[\]]+)|\[([^\]]*)\]")


def read(decoder: msgspec.json.Decoder[T], body: bytes) -> T:
    """The value in `body`. Raises Malformed with the pointer of the first thing that is wrong."""
    try:
        check_utf8(body)
        return decoder.decode(body)
    except msgspec.ValidationError as error:
        raise _misplaced(str(error)) from None
    except RecursionError:
        raise Malformed("the JSON is nested too deeply") from None
    except ValueError as error:
        raise Malformed(f"the body cannot be read as JSON: {error}") from None


def check_utf8(body: bytes) -> None:
    """Raises ValueError where a byte is not of UTF-8 (RFC 8259, section 8.1): the decoder does not
    look into the texts that it passes over.
    """
    if body.isascii():
        return
    try:
        body.decode()
    except UnicodeDecodeError as error:
        raise ValueError(f"byte {error.start} is not of UTF-8") from None


def write(value: Any) -> bytes:
    """Compact JSON."""
    return msgspec.json.encode(value)


def _misplaced(text: str) -> Malformed:
    """msgspec says "Expected `str`, got `int` - at `$.data[3].attributes.value`"."""
    found = _PLACE.fullmatch(text)
    if found is None:
        return Malformed(text)
    # Inside an object of any keys msgspec does not say which: the pointer ends before it.
    steps = [name or index for name, index in _STEP.findall(found[2].partition("[...]")[0])]
    return Malformed(found[1], where="".join("/" + _escaped(step) for step in steps))


def _escaped(step: str) -> str:
    """RFC 6901, section 3."""
    return step.replace("~", "~0").replace("/", "~1")

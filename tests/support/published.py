"""Samples of the vendors' published documents, taken from them at test time.

`LINESHAFT_SPECS` names the folder that holds them. Some documents have lost line breaks and
indentation of code: `laid_out` restores those, and nothing else. Others have lost whole lines:
`restored` puts those back, and leaves what is there as it is.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

import pytest

SPECS = os.environ.get("LINESHAFT_SPECS", "")
needs_documents = pytest.mark.skipif(
    not SPECS, reason="LINESHAFT_SPECS does not name the folder of the published documents"
)
Line = tuple[int, str]
"""Indentation and beginning of a line of code."""


def page(name: str) -> str:
    """A whole document."""
    return (Path(SPECS) / name).read_text()


def laid_out(flat: str, lines: Sequence[Line]) -> str:
    """The code in `flat` with a line break and the indentation before the beginning of each of its
    `lines`, which come in this order. All else stays as it is, to the letter.
    """
    pieces, at = [], 0
    for number, (indent, beginning) in enumerate(lines):
        found = flat.find(beginning, at)
        assert found >= 0, f"no {beginning!r} behind {flat[max(0, at - 40) : at]!r}"
        if number:
            pieces.append(flat[at:found].rstrip(" "))
        pieces.append("\n" * bool(number) + " " * indent + beginning)
        at = found + len(beginning)
    code = "".join(pieces) + flat[at:]
    assert re.sub(r"\s", "", code) == re.sub(r"\s", "", flat[flat.find(lines[0][1]) :])
    return code + "\n"


KEPT = None
"""Stands for the next line of a document."""


def restored(lines: Sequence[str], whole: Sequence[str | None]) -> str:
    """The code of which `lines` are left: each KEPT of `whole` is the next of them, to the letter,
    and all else is what was lost between them.
    """
    left = iter(lines)
    code = [next(left) if line is KEPT else line for line in whole]
    assert not list(left), "the document has more lines than are used"
    return "\n".join(code) + "\n"


def commands(text: str, beginning: str) -> list[list[str]]:
    """The lines of each command that begins so, up to the next empty line."""
    return [part.split("\n") for part in text.split("\n\n") if part.strip().startswith(beginning)]

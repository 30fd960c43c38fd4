"""Golden examples: requests as files, and what a dialect must make of them.

`tests/examples/<dialect>/setup.json` lists the things in the catalogue, and commands. Each case is
a folder:

- `request.json`: `door` ("POST /path" as the dialect declares it, or "PUBLISH topic"), `path`,
  `query`, `headers`, `route`, `base`, `principal`, `received_ms`, `body` as JSON; `verdicts` of the
  judge; `promised`: the id of the receipt of a push that is not waited for; `tenants` that the user
  of `ListedActions` may enter (default: acme); which devices are `connected`.
- `body.txt`: the body as bytes, where it is not JSON or must stay as it is written.
- `records.json`: the samples that come out, in order, and the keys that get a point.
- `question.json`: the query that comes out of a read, its series by key.
- `page.json`: the samples that the read finds.
- `reply.json`: the answer. What is there must be equal, and more may be there, unless `exactly` is
  true. A publish has no answer: `refused` names the error, `where` the place.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from schemas.blocks import Block
from schemas.catalogue import THINGS, Thing
from schemas.commands import Command
from schemas.samples import Conflict, Kind, Verdict
from services.dialects import Inbound
from tests.support.lookup import ListedLookup, a_principal

EXAMPLES = Path(__file__).parent.parent / "examples"


@dataclass(frozen=True)
class Example:
    """One case, read from its folder."""

    dialect: str
    folder: Path

    def __str__(self) -> str:
        return f"{self.dialect}/{self.folder.name}"

    def json(self, name: str) -> Any:
        """The content of a file, None where there is none."""
        path = self.folder / f"{name}.json"
        return json.loads(path.read_text()) if path.exists() else None

    def things(self) -> list[Thing]:
        """What the catalogue holds."""
        return [THINGS[row.pop("thing")].of(row) for row in self._setup() if row["thing"] in THINGS]

    def commands(self) -> list[Command]:
        """The commands that were given, the newest first."""
        rows = [row for row in self._setup() if row.pop("thing") == "command"]
        return [Command(**row) for row in rows]

    def _setup(self) -> list[dict[str, Any]]:
        path = EXAMPLES / self.dialect / "setup.json"
        rows: list[dict[str, Any]] = json.loads(path.read_text())
        return rows

    def inbound(self, request: dict[str, Any]) -> Inbound:
        """The request as its door gets it."""
        text = self.folder / "body.txt"
        if text.exists():
            body = text.read_bytes()
        else:
            body = json.dumps(request["body"]).encode() if "body" in request else b""
        principal = request["principal"]
        return Inbound(
            body,
            request.get("received_ms", 0),
            a_principal(**principal) if principal else None,
            request.get("path", {}),
            request.get("query", {}),
            request.get("headers", {}),
            request.get("route", ""),
            request.get("base", ""),
        )

    @staticmethod
    def verdicts(request: dict[str, Any]) -> list[Verdict]:
        """What the judge decides."""
        return [Verdict[name] for name in request["verdicts"]]


def examples() -> Iterator[Example]:
    """All examples of all dialects."""
    for request in sorted(EXAMPLES.glob("*/*/request.json")):
        yield Example(request.parent.parent.name, request.parent)


def records_of(block: Block, lookup: ListedLookup, tenant: str) -> list[dict[str, Any]]:
    """The rows of a block as they stand in `records.json`."""
    places = lookup.places(tenant)
    rows = []
    for sample in block.samples():
        device, key = places[sample.series]
        row = {"device": device, "key": key, "ts_ms": sample.ts_ms, "kind": sample.kind.name}
        row |= {"value": sample.value, "quality": sample.quality, "rule": sample.rule.name}
        rows.append(row)
    return rows


def block_of(records: list[dict[str, Any]], lookup: ListedLookup, tenant: str) -> Block:
    """A block of what stands in `page.json`."""
    block = Block()
    policy = block.policy_index(lookup.free_policy(tenant))
    for row in records:
        quality = {} if row["quality"] is None else {"quality": row["quality"]}
        block.add(
            lookup.series(tenant, row["device"], row["key"]),
            row["ts_ms"],
            Kind[row["kind"]],
            row["value"],
            policy=policy,
            rule=Conflict[row["rule"]],
            **quality,
        )
    return block


def differences(wanted: Any, found: Any, where: str = "") -> list[str]:
    """Where `found` lacks or contradicts what is `wanted`; it may have more members."""
    if isinstance(wanted, dict) and isinstance(found, dict):
        lines = [f"{where}/{name} is missing" for name in wanted if name not in found]
        for name in wanted.keys() & found.keys():
            lines += differences(wanted[name], found[name], f"{where}/{name}")
        return lines
    if isinstance(wanted, list) and isinstance(found, list) and len(wanted) == len(found):
        return [
            line
            for index, pair in enumerate(zip(wanted, found, strict=True))
            for line in differences(*pair, f"{where}/{index}")
        ]
    same = type(wanted) is type(found) and wanted == found
    return [] if same else [f"{where or '/'}: wanted {wanted!r}, found {found!r}"]

"""JSON:API documents: resource objects, how they are linked, and the doors that answer with them.

Everything that is configured is in a document when its question is parsed. What is live (a point's
latest value, whether a device is connected) is found afterwards, for all of the document at once.
https://jsonapi.org/format/1.1/
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote

from schemas.queries import LatestQuery
from schemas.samples import NO_QUALITY
from services.dialects import _json
from services.dialects._contract import Auth, Inbound, Page, Question, Read, Reply, described
from services.dialects._ports import Lookup
from services.dialects._times import text_of
from services.dialects.building_x.errors import JSON_API, refused
from services.dialects.building_x.lists import CURSOR
from services.dialects.building_x.paths import PARTITIONS, below, prefix_of
from services.dialects.building_x.texts import text_of_value

Members = dict[str, Any]

_READ_RESPONSES = {
    400: "a parameter cannot be used; source says which",
    401: "no token, or not a valid one",
    403: "another's partition",
    503: "try again later",
}


class Links:
    """Where links lead. In the vendor's form they are paths that begin at `/partitions`; where
    absolute ones are asked for, they begin with our address and the prefix of the request.
    """

    def __init__(self, inbound: Inbound) -> None:
        prefix = prefix_of(inbound) if inbound.base else ""
        self._root = inbound.base + prefix + PARTITIONS
        self._partition = inbound.path.get("partitionId", "")

    def to(self, *steps: str, query: Mapping[str, str] | None = None) -> str:
        """The link to something in the partition, by the steps of its path."""
        return self.past(self._partition, *steps, query=query)

    def past(self, *steps: str, query: Mapping[str, str] | None = None) -> str:
        """The link to something below `/partitions`."""
        path = "".join(f"/{quote(step, safe='')}" for step in steps if step)
        members = (f"{quote(k, safe='[]')}={quote(v, safe=':,')}" for k, v in (query or {}).items())
        return f"{self._root}{path}{'?' if query else ''}{'&'.join(members)}"

    def page(self, query: Mapping[str, str], cursor: str, *steps: str) -> Members:
        """The links of a page of a list: its own, and the next one's where there is a `cursor`."""
        found = {"self": self.to(*steps, query=query)}
        if cursor:
            found["next"] = self.to(*steps, query={**query, CURSOR: cursor})
        return found


def identifier(type: str, id: str) -> Members:
    """A resource identifier object."""
    return {"type": type, "id": id}


def to_one(type: str, id: str) -> Members:
    """A relationship to one resource; `id` empty: to none."""
    return {"data": identifier(type, id) if id else None}


def related(link: str) -> Members:
    """A relationship of which only is said where it leads."""
    return {"links": {"related": link}}


def resource(
    type: str,
    id: str,
    attributes: Members,
    relationships: Members | None = None,
    *,
    link: str = "",
    fields: frozenset[str] | None = None,
) -> Members:
    """A resource object; of its attributes and relationships those named by `fields`."""
    found: Members = {"type": type, "id": id}
    for name, members in (("attributes", attributes), ("relationships", relationships or {})):
        kept = {k: v for k, v in members.items() if fields is None or k in fields}
        if kept or name == "attributes":
            found[name] = kept
    if link:
        found["links"] = {"self": link}
    return found


@dataclass(slots=True)
class Draft:
    """A document of the resources `data`, without what is live.

    `points` maps series to the attributes that get its latest value, `devices` a device's id to
    those that get its status.
    """

    data: Members | list[Members]
    links: Members = field(default_factory=dict)
    included: dict[tuple[str, str], Members] = field(default_factory=dict)
    points: dict[int, Members] = field(default_factory=dict)
    devices: dict[str, Members] = field(default_factory=dict)

    def include(self, resources: Iterable[Members]) -> None:
        """Add resources beside the primary ones, each once."""
        for each in resources:
            self.included.setdefault(_name(each), each)

    def reply(self, status: int = 200, headers: Iterable[tuple[str, str]] = ()) -> Reply:
        """The document as it is."""
        document: Members = {}
        if self.links:
            document["links"] = self.links
        document["data"] = self.data
        if self.included:
            # What is among the primary ones is not there a second time.
            primary = {*map(_name, self.data if isinstance(self.data, list) else [self.data])}
            rest = [each for name, each in self.included.items() if name not in primary]
            document |= {"included": rest} if rest else {}
        return Reply(status, _json.write(document), JSON_API, tuple(headers))


def _name(of: Members) -> tuple[str, str]:
    return of["type"], of["id"]


def render(inbound: Inbound, question: Question, page: Page) -> Reply:
    """The document, with what was found."""
    draft: Draft = question.context
    block = page.block
    for row, series in enumerate(block.series):
        shown = draft.points[series]
        quality = block.quality[row]
        value: Members = {
            "value": text_of_value(block.kind[row], block.value(row)),
            "timestamp": text_of(block.ts_ms[row]),
        }
        if quality != NO_QUALITY:
            value["qualityOfValue"] = quality
        shown["pointValue"] = value | shown.get("pointValue", {})
        if "systemAttributes" in shown and quality in (NO_QUALITY, 0):
            shown["systemAttributes"]["curStatus"] = "ok"
    for device, shown in draft.devices.items():
        if device in page.connected:
            shown["status"] = "connected" if page.connected[device] else "disconnected"
    return draft.reply()


def read(
    path: str,
    draft: Callable[[Inbound, Lookup], Draft],
    summary: str,
    answer: str,
    *,
    missing: str = "unknown partition",
    parameters: Mapping[str, str] | None = None,
) -> Read:
    """A door that answers with a document; `path` is what follows the prefixes."""

    def parse(inbound: Inbound, lookup: Lookup) -> Question:
        found = draft(inbound, lookup)
        series = tuple(found.points)
        names = dict.fromkeys(series, "")
        query = LatestQuery(inbound.caller.tenant, series)
        return Question(query, names, found, devices=tuple(found.devices))

    responses = dict(sorted({**_READ_RESPONSES, 200: answer, 404: missing}.items()))
    return Read(
        "GET",
        below(path),
        Auth.BEARER,
        parse,
        render,
        refused,
        fresh=True,
        docs=described(summary, responses, parameters=parameters),
    )

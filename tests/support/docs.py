"""The generated parts of the documentation: tables made from the code's own declarations.

A page of docs/ has a pair of comment lines around each generated part, `<!-- begin NAME -->` and
`<!-- end -->`; what stands between them is written by `make docs` and compared by
tests/test_docs.py. infra/env.example is written as a whole.

    python -m tests.support.docs
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import fields
from pathlib import Path

from prometheus_client import Counter
from prometheus_client.metrics import MetricWrapperBase

from schemas.topics import TOPICS
from services import describe, dialects, metrics, registry
from services.dialects import Dialect, Push
from services.doors import Door
from services.settings import PREFIX, Settings
from tests.support.processes import ROOT

DOCS = ROOT / "docs"
ENV_EXAMPLE = ROOT / "infra" / "env.example"
METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE")
SPOKEN: dict[str, Dialect] = registry.discover(dialects, "DIALECT")

_BLOCK = re.compile(r"(<!-- begin ([a-z_: ]+) -->\n).*?(<!-- end -->)", re.DOTALL)
_TABLE = re.compile(
    r"((?:^--[^\n]*\n)*)^CREATE TABLE IF NOT EXISTS (\w+) \(\n(.*?)\n\)\nENGINE = (.*?);",
    re.MULTILINE | re.DOTALL,
)
_ADDED = re.compile(
    r"^ALTER TABLE (\w+) ADD COLUMN IF NOT EXISTS\n(.*?);$", re.MULTILINE | re.DOTALL
)
_VIEW = re.compile(
    r"((?:^--[^\n]*\n)*)^CREATE (?:OR REPLACE VIEW|VIEW IF NOT EXISTS) (\w+) AS\n"
    r"SELECT\n(.*?)\nFROM",
    re.MULTILINE | re.DOTALL,
)
_SHOWN = re.compile(r" AS (\w+),?$", re.MULTILINE)
_COLUMN = re.compile(r"^ {4}(?!CONSTRAINT)(\w+) +([A-Z]\w+(?:\(.*?\)+)?)", re.MULTILINE)
_COMMENT = re.compile(r"COMMENT '([^']*)'")


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(str(cell) for cell in line)} |\n" for line in lines)


def all_metrics() -> list[MetricWrapperBase]:
    """Every metric, in the order in which services/metrics.py declares them."""
    return [metric for metric in vars(metrics).values() if isinstance(metric, MetricWrapperBase)]


def metric_name(metric: MetricWrapperBase) -> str:
    """The name under which Prometheus sees it (a histogram's without _bucket, _sum, _count)."""
    (described,) = metric.describe()
    return f"{described.name}_total" if isinstance(metric, Counter) else described.name


def metrics_table() -> str:
    """Every metric with kind, labels and meaning."""
    rows = []
    for metric in all_metrics():
        (described,) = metric.describe()
        labels = ", ".join(f"`{label}`" for label in metric._labelnames)
        rows.append((f"`{metric_name(metric)}`", described.type, labels, described.documentation))
    return table(("metric", "kind", "labels", "meaning"), rows)


def topics_table() -> str:
    """Every topic with its lanes and how long it is kept."""
    rows = []
    for topic in TOPICS:
        lanes = topic.lanes or "as many as there are"
        hours = topic.retention_ms // 3_600_000
        kept = "newest of each key" if topic.compacted else f"{hours} h"
        rows.append((f"`{topic.name}`", topic.what, lanes, kept))
    return table(("topic", "what lies on it", "lanes", "kept"), rows)


def tables_sections() -> str:
    """Every table and view of the migrations: what it is for, its columns, its order."""
    sections = []
    paths = sorted((ROOT / "schemas" / "migrations").glob("*.sql"))
    sql = "\n".join(path.read_text() for path in paths)
    added = _ADDED.findall(sql)
    for comment, name, body, engine in _TABLE.findall(sql):
        rows = []
        body = "\n".join((body, *(column for of, column in added if of == name)))
        for line in body.splitlines():
            if column := _COLUMN.match(line):
                meaning = _COMMENT.search(line)
                rows.append((f"`{column[1]}`", f"`{column[2]}`", meaning[1] if meaning else ""))
        order = re.search(r"ORDER BY (.*)", engine)
        assert order, f"{name} has no order"
        columns = table(("column", "type", "meaning"), rows)
        facts = f"`{engine.splitlines()[0]}`, ordered by `{order[1].strip('()')}`."
        said = f"{_said(comment)}\n\n" if comment else ""
        sections.append(f"### {name}\n\n{said}{columns}\n{facts}\n")
    # A view may be made anew: the last one stands.
    views = {name: (comment, body) for comment, name, body in _VIEW.findall(sql)}
    for name, (comment, body) in views.items():
        shown = ", ".join(f"`{column}`" for column in _SHOWN.findall(body))
        sections.append(f"### {name} (view)\n\n{_said(comment)}\n\nColumns: {shown}.\n")
    return "\n".join(sections)


def _said(comment: str) -> str:
    """The text of SQL comment lines."""
    return " ".join(line.removeprefix("--").strip() for line in comment.splitlines())


def ports_table() -> str:
    """Every port that a process may listen on, with its setting and default."""
    rows = [
        (f"`{PREFIX}{setting.name.upper()}`", setting.default, setting.metadata["meaning"])
        for setting in fields(Settings)
        if setting.name.endswith("_port")
    ]
    return table(("setting", "default", "meaning"), rows)


def doors_table(dialect: Dialect) -> Callable[[], str]:
    """The doors of one dialect, those of one path together; what may stand before a path that
    begins with `…` is said below.
    """

    def made() -> str:
        marks: dict[tuple[str, ...], str] = {}
        rows: dict[tuple[str, ...], list[tuple[str, Door]]] = {}
        for _, door in describe.doors(dialect):
            places = describe.places(door)
            for _, prefixes in places:
                if prefixes:
                    marks.setdefault(prefixes, "…" * (len(marks) + 1))
            shown = "<br>".join(f"`{marks.get(prefixes, '')}{path}`" for path, prefixes in places)
            rows.setdefault(tuple(path for path, _ in places), []).append((shown, door))
        cells: list[Sequence[object]] = [
            (shown, door.method, door.docs.get("summary", ""), _answers(door))
            for of_path in rows.values()
            for shown, door in sorted(of_path, key=lambda row: METHODS.index(row[1].method))
        ]
        cells += [
            (f"`{door.topic}`", "MQTT", "Telemetry of a device", "when it is logged")
            for door in dialect.publishes
        ]
        lines = [table(("path or topic", "method", "what for", "answers"), cells)]
        lines += [f"`{mark}` is {_any_of(prefixes)}.\n" for prefixes, mark in marks.items()]
        return "\n".join(lines)

    return made


def _answers(door: Door) -> str:
    return f"when it is {door.answer.value}" if isinstance(door, Push) else "at once"


def _any_of(prefixes: Sequence[str]) -> str:
    """`a`, `b` or nothing."""
    named = [f"`{prefix}`" for prefix in prefixes if prefix]
    if "" in prefixes:
        named.append("nothing")
    return f"any of {', '.join(named[:-1])} or {named[-1]}"


BLOCKS: dict[str, Callable[[], str]] = {
    "settings": describe.settings_markdown,
    "metrics": metrics_table,
    "topics": topics_table,
    "tables": tables_sections,
    "ports": ports_table,
} | {f"doors: {name}": doors_table(dialect) for name, dialect in SPOKEN.items()}


def rendered(text: str) -> str:
    """A page with its generated parts as they should be."""

    def block(found: re.Match[str]) -> str:
        return f"{found[1]}{BLOCKS[found[2]]().strip()}\n{found[3]}"

    return _BLOCK.sub(block, text)


def blocks_in(text: str) -> list[str]:
    """The names of a page's generated parts."""
    return [found[1] for found in _BLOCK.findall(text)]


def pages() -> list[Path]:
    """Every page of docs/."""
    return sorted(DOCS.rglob("*.md"))


def env_example() -> str:
    """The whole of infra/env.example."""
    head = (
        "# Every setting with its default. Written by `make docs`; take the lines that you need.\n"
    )
    return f"{head}\n{describe.settings_env().strip()}\n"


def main() -> None:
    """Write all that is generated."""
    for page in pages():
        page.write_text(rendered(page.read_text()))
    ENV_EXAMPLE.write_text(env_example())
    sys.stdout.write(f"{len(pages())} pages and {ENV_EXAMPLE.relative_to(ROOT)} are current\n")


if __name__ == "__main__":
    main()

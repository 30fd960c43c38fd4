"""The documentation says what the code says: generated parts are current, nothing is left out, and
what a page, a dashboard or an alert names exists.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from schemas.tables import TABLES
from schemas.topics import TOPICS
from services import describe
from services.dialects import Dialect
from services.settings import NAMES, PREFIX
from tests.support import docs
from tests.support.processes import ROOT

PAGES = [*ROOT.glob("*.md"), *docs.pages()]
OPENAPI = ROOT / "schemas" / "openapi"


def of_repository(path: Path) -> str:
    """The path as a test's name."""
    return path.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("page", docs.pages(), ids=of_repository)
def test_a_page_is_current(page: Path) -> None:
    assert page.read_text() == docs.rendered(page.read_text()), "write it anew: make docs"


def test_every_generated_part_has_its_place() -> None:
    used = [name for page in docs.pages() for name in docs.blocks_in(page.read_text())]
    assert sorted(used) == sorted(docs.BLOCKS)


def test_the_example_of_settings_is_current() -> None:
    assert docs.ENV_EXAMPLE.read_text() == docs.env_example(), "write it anew: make docs"


@pytest.mark.parametrize(
    ("page", "names"),
    [
        ("settings.md", [f"{PREFIX}{name.upper()}" for name in NAMES]),
        ("metrics.md", [docs.metric_name(metric) for metric in docs.all_metrics()]),
        ("topics.md", [topic.name for topic in TOPICS]),
        ("ports.md", [f"{PREFIX}{name.upper()}" for name in NAMES if name.endswith("_port")]),
    ],
)
def test_nothing_is_left_out(page: str, names: list[str]) -> None:
    text = (docs.DOCS / page).read_text()
    assert names
    assert [name for name in names if f"`{name}`" not in text] == []


def test_every_table_is_documented() -> None:
    created = re.compile(r"^CREATE (?:TABLE|VIEW) IF NOT EXISTS (\w+)", re.MULTILINE)
    migrations = (ROOT / "schemas" / "migrations").glob("*.sql")
    names = {name for path in migrations for name in created.findall(path.read_text())}
    assert {table.name for table in TABLES} <= names
    text = (docs.DOCS / "tables.md").read_text()
    assert [name for name in names if not re.search(rf"^### {name}\b", text, re.MULTILINE)] == []


def paths_of(dialect: Dialect) -> list[tuple[str, str]]:
    """(method, path) for every path of every HTTP door."""
    return sorted((door.method, path) for _, door in describe.doors(dialect) for path in door.paths)


@pytest.mark.parametrize("name", docs.SPOKEN)
def test_every_dialect_has_its_page_and_is_in_the_readme(name: str) -> None:
    dialect = docs.SPOKEN[name]
    text = (docs.DOCS / "dialects" / f"{name}.md").read_text()
    prefixes = {
        mark: [
            "" if prefix == "nothing" else prefix.strip("`") for prefix in re.split(", | or ", of)
        ]
        for mark, of in re.findall(r"^`(…+)` is any of (.*)\.$", text, re.MULTILINE)
    }
    shown = [
        (method, prefix + path)
        for cell, method in re.findall(r"^\| (`\S+`) \| ([A-Z]+) \|", text, re.MULTILINE)
        for mark, path in re.findall(r"`(…*)([^`]+)`", cell)
        for prefix in (prefixes[mark] if mark else [""])
    ]
    topics = [("MQTT", door.topic) for door in dialect.publishes]
    assert sorted(shown) == sorted(paths_of(dialect) + topics)
    readme = (ROOT / "README.md").read_text()
    assert f"docs/dialects/{name}.md" in readme
    assert dialect.contract_url in readme


@pytest.mark.parametrize("name", docs.SPOKEN)
def test_openapi_is_current(name: str) -> None:
    written = json.loads((OPENAPI / f"{name}.json").read_text())
    made = json.loads(json.dumps(describe.openapi(docs.SPOKEN[name])))
    assert written == made, "write it anew: make openapi"


@pytest.mark.parametrize("name", docs.SPOKEN)
def test_openapi_has_every_path_of_every_door(name: str) -> None:
    nowhere = [{"url": "/"}]
    shown = [
        (method.upper(), server["url"].rstrip("/") + path)
        for path, item in json.loads((OPENAPI / f"{name}.json").read_text())["paths"].items()
        for method, described in item.items()
        if method != "servers"
        for server in described.get("servers", item.get("servers", nowhere))
    ]
    assert sorted(shown) == paths_of(docs.SPOKEN[name])


def test_there_is_no_openapi_page_of_nobody() -> None:
    assert {path.stem for path in OPENAPI.glob("*.json")} == set(docs.SPOKEN)


@pytest.mark.parametrize("page", PAGES, ids=of_repository)
def test_links_lead_somewhere(page: Path) -> None:
    links = re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text())
    ours = [link for link in links if "://" not in link]
    assert [link for link in ours if not (page.parent / link).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=of_repository)
def test_named_settings_and_make_targets_exist(page: Path) -> None:
    text = page.read_text()
    known = {f"{PREFIX}{name.upper()}" for name in NAMES}
    known |= {"LINESHAFT_CONFIG", "LINESHAFT_REQUIRE"}
    assert set(re.findall(r"LINESHAFT_[A-Z_]+[A-Z]", text)) <= known
    targets = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"`make (\w+)", text)) <= targets


@pytest.mark.parametrize(
    "file", ["infra/grafana/dashboards/lineshaft.json", "infra/prometheus/alerts.yml"]
)
def test_dashboard_and_alerts_use_metrics_that_exist(file: str) -> None:
    used = set(re.findall(r"\blineshaft_\w+", (ROOT / file).read_text()))
    known = {docs.metric_name(metric) for metric in docs.all_metrics()}
    known |= {f"{name}{end}" for name in known for end in ("_bucket", "_sum", "_count")}
    assert used
    assert used <= known


def test_every_make_target_says_what_it_does() -> None:
    makefile = (ROOT / "Makefile").read_text()
    (phony,) = re.findall(r"^\.PHONY: (.*)$", makefile, re.MULTILINE)
    said = re.findall(r"^(\w+):.*?## ", makefile, re.MULTILINE)
    assert sorted(phony.split()) == sorted(said)

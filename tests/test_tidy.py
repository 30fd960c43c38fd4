"""The house style that no other tool checks; every finding names what to do instead.

Scope: the Python files of `services/`, `schemas/` and `tests/`, the files around them, and the tree
that ARCHITECTURE.md draws.
"""

from __future__ import annotations

import ast
import io
import json
import re
import tokenize
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import pytest

import services.agents
import services.dialects
import services.sinks
from services import registry
from tests.support.processes import ROOT

SHIPPED = ("services", "schemas")
PYTHON = sorted(p for top in (*SHIPPED, "tests") for p in (ROOT / top).rglob("*.py"))


@dataclass(frozen=True)
class Banned:
    """A dotted name, the only files where it may stand, and what everybody else uses."""

    name: str
    homes: frozenset[str]
    instead: str


def banned(names: str, homes: str, instead: str) -> list[Banned]:
    """One rule for several names; names and homes are separated by blanks."""
    return [Banned(name, frozenset(homes.split()), instead) for name in names.split()]


IN_SHIPPED = [
    *banned(
        "time.time time.time_ns datetime.now datetime.utcnow datetime.datetime.now date.today",
        "services/clock.py",
        "a Clock that is handed in (services/clock.py)",
    ),
    *banned(
        "os.environ os.getenv",
        "services/settings.py",
        "a setting (services/settings.py)",
    ),
    *banned(
        "os._exit",
        "services/agents/_guard.py",
        "the guard (services/agents/_guard.py), or an exception",
    ),
    *banned("print", "", "logging; a command's answer goes to sys.stdout.write"),
    *banned(
        "time.sleep",
        # The event loop's own thread rests for once, so that the writer's thread gets its turn.
        "services/eventlog/_sqlite_writer.py",
        "asyncio.sleep, or waiting for an event with a deadline",
    ),
    *banned("eval exec", "", "a declaration"),
]
IN_TESTS = [
    *banned(
        "time.sleep",
        # The first waits on conditions; the others send at a pace and kill at a random moment.
        "tests/support/processes.py tests/support/load.py tests/flow/test_kill.py",
        "wait_for(condition) of tests/support/processes.py, or a ManualClock",
    ),
    *banned(
        "unittest.mock mock.patch monkeypatch.setattr mocker.patch",
        "",
        "another implementation of the port, handed in",
    ),
]
CATCH_ALL_HOMES = frozenset(
    {
        "services/agents/_guard.py",
        "services/eventlog/_sqlite_writer.py",
        "services/doors.py",
    }
)
"""The tops of the loops: one catch each, which says what happened and answers or ends. Elsewhere
only what cleans up and raises again may catch everything.
"""

DRAWERS = frozenset({"utils", "util", "common", "base", "misc", "manager", "helpers", "helper"})
LEFTOVER = re.compile(r"\b(TO" r"DO|FIX" r"ME|XX" r"X|HA" r"CK)\b")
ELSEWHERE = re.compile(r"/wo" r"rk/|/tm" r"p/w\b|\biss" r"ue #\d", re.IGNORECASE)


def place(path: Path) -> str:
    """The path as the rules write it."""
    return path.relative_to(ROOT).as_posix()


def dotted(node: ast.expr) -> str:
    """`a.b.c` of an expression; empty for anything else."""
    match node:
        case ast.Name(id=name):
            return name
        case ast.Attribute(value=value, attr=name):
            return f"{dotted(value)}.{name}"
    return ""


def used_names(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """(line, dotted name) of what a module uses or imports by name."""
    for node in ast.walk(tree):
        match node:
            case ast.Attribute() | ast.Name():
                yield node.lineno, dotted(node)
            case ast.ImportFrom(module=str(module), names=names):
                yield from ((node.lineno, f"{module}.{alias.name}") for alias in names)
            case ast.Import(names=names):
                yield from ((node.lineno, alias.name) for alias in names)


@pytest.mark.parametrize(
    ("tops", "rules"), [(SHIPPED, IN_SHIPPED), (("tests",), IN_TESTS)], ids=["shipped", "tests"]
)
def test_banned_names_stay_at_home(tops: tuple[str, ...], rules: list[Banned]) -> None:
    by_name = {rule.name: rule for rule in rules}
    findings = [
        f"{place(path)}:{line}: {name}: use {by_name[name].instead}"
        for path in PYTHON
        if place(path).split("/")[0] in tops
        for line, name in used_names(ast.parse(path.read_text()))
        if name in by_name and place(path) not in by_name[name].homes
    ]
    assert findings == []


@pytest.mark.parametrize(
    "code",
    [
        "import time\ntime.sleep(1)",
        "from time import sleep",
        "pause = time.sleep",
        "x.time.sleep()",
    ],
)
def test_the_look_for_names_sees(code: str) -> None:
    """The control of the test above; the last one is another thing of that name."""
    seen = "time.sleep" in {name for _, name in used_names(ast.parse(code))}
    assert seen is not code.startswith("x.")


def test_nobody_catches_everything_but_the_tops_of_loops() -> None:
    findings = [
        f"{place(path)}:{node.lineno}: catch what can be handled, or let the top of the loop do it"
        for path in PYTHON
        if place(path).startswith(SHIPPED)
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ExceptHandler)
        and (node.type is None or dotted(node.type) in ("Exception", "BaseException"))
        and not (isinstance(node.body[-1], ast.Raise) and node.body[-1].exc is None)
        and place(path) not in CATCH_ALL_HOMES
    ]
    assert findings == []


def test_no_file_is_a_drawer() -> None:
    findings = [
        f"{place(path)}: name it after the one thing that it holds"
        for path in PYTHON
        if DRAWERS & {path.stem.strip("_"), path.parent.name}
    ]
    assert findings == []


def test_nothing_is_left_over() -> None:
    findings = [
        f"{place(path)}:{token.start[0]}: do it now, or leave it out: {token.string}"
        for path in PYTHON
        for token in tokenize.tokenize(io.BytesIO(path.read_bytes()).readline)
        if token.type == tokenize.COMMENT and LEFTOVER.search(token.string)
    ]
    assert findings == []


def test_nothing_points_outside_of_the_repository() -> None:
    around = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), ROOT / "Makefile"]
    around += [p for p in (ROOT / "infra").rglob("*") if p.is_file() and p.suffix != ".env"]
    around += (ROOT / "schemas").rglob("*.sql")
    findings = [
        f"{place(path)}:{number}: say it in the repository's own words: {line.strip()}"
        for path in [*PYTHON, *around]
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if ELSEWHERE.search(line)
    ]
    assert findings == []


def test_every_module_says_its_place() -> None:
    findings = [
        f"{place(path)}: begin with a sentence on its place in the flow"
        for path in PYTHON
        if path.read_text().strip() and not ast.get_docstring(ast.parse(path.read_text()))
    ]
    assert findings == []


@pytest.mark.parametrize(
    ("package", "attribute"),
    [
        (services.dialects, "DIALECT"),
        (services.agents, "AGENT"),
        (services.sinks, "SINKS"),
    ],
    ids=["dialects", "agents", "sinks"],
)
def test_every_plug_in_has_its_attribute(package: ModuleType, attribute: str) -> None:
    assert registry.discover(package, attribute)


@pytest.mark.parametrize("dialect", registry.discover(services.dialects, "DIALECT"))
def test_a_dialect_has_golden_examples_and_one_refusal(dialect: str) -> None:
    cases = list((ROOT / "tests" / "examples" / dialect).glob("*/request.json"))
    replies = [
        json.loads(p.read_text()) for p in (c.parent / "reply.json" for c in cases) if p.exists()
    ]
    assert len(cases) >= 2, "add a folder of the next case to tests/examples"
    assert any(reply.get("status", 0) >= 400 or "refused" in reply for reply in replies)


def test_migrations_are_contiguous() -> None:
    names = sorted(path.name for path in (ROOT / "schemas" / "migrations").glob("*.sql"))
    assert names
    for number, name in enumerate(names, 1):
        assert re.fullmatch(rf"{number:04}_[a-z_]+\.sql", name), f"{name}: expected {number:04}_…"


def drawn_tree() -> set[str]:
    """The paths below `services/` and `schemas/` in the tree of ARCHITECTURE.md."""
    text = (ROOT / "ARCHITECTURE.md").read_text()
    tree = text.split("## The tree", 1)[1].split("```", 2)[1]
    drawn, folders = set(), [""]
    for line in tree.splitlines()[1:]:
        if not (entry := re.match(r"( *)(\S+)", line)):
            continue
        depth, name = len(entry[1]) // 2, entry[2]
        path = folders[depth] + name
        folders = [*folders[: depth + 1], path]
        drawn.add(path)
    return {path for path in drawn if path.startswith(SHIPPED)}


def real_tree() -> set[str]:
    """The same of the disk. Files that are data count as their folder."""
    real = set()
    for path in (p for top in SHIPPED for p in (ROOT / top).rglob("*") if p.is_file()):
        if "__pycache__" in path.parts:
            continue
        if path.suffix in (".py", ".sql"):
            real.add(place(path))
        real |= {f"{place(folder)}/" for folder in path.parents if ROOT in folder.parents}
    return real


def test_the_tree_of_architecture_is_the_tree_on_disk() -> None:
    assert sorted(drawn_tree() - real_tree()) == [], "drawn, but not there"
    assert sorted(real_tree() - drawn_tree()) == [], "there, but not drawn: add a line each"

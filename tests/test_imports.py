"""The import rules bite: each contract is broken on purpose once, in a copy, and must say so.

A misspelt module in a contract's list would pass in silence, and so would a contract that looks at
the wrong folder. The copy gets one violation for each contract and one import of every forbidden
library; import-linter then has to find all of them.
"""

from __future__ import annotations

import importlib.util
import shutil
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

from tests.support.processes import ROOT, run

CONTRACTS: list[dict[str, Any]] = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"][
    "importlinter"
]["contracts"]

TOWER = "the tower: higher may import lower, siblings never"
GROUND = "schemas is the ground floor"
PURE = "domain is pure"
TRANSLATE = "dialects translate, nothing else"
STRANGERS = "dialects do not know one another"
HOMES = "each outside library has one home"

FORBIDDEN = {c["name"]: c["forbidden_modules"] for c in CONTRACTS if c["type"] == "forbidden"}

WHERE = {
    GROUND: "schemas.violation",
    PURE: "services.domain.violation",
    TRANSLATE: "services.dialects.violation",
    HOMES: "services.violation",
}
"""The module that imports everything that the contract forbids."""

VIOLATIONS = {module: FORBIDDEN[name] for name, module in WHERE.items()} | {
    # A sibling, and a floor above.
    "services.store.violation": ["services.eventlog", "services.catalogue"],
    # A second dialect that knows the first.
    "services.dialects.violation_too": ["services.dialects.violation"],
}

LINT = """
import sys
from importlinter.cli import lint_imports
sys.exit(lint_imports(config_filename="pyproject.toml", cache_dir=None, no_cache=True))
"""


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> str:
    """What import-linter says of the copy with all the violations in it."""
    copy = tmp_path_factory.mktemp("violations")
    shutil.copy(ROOT / "pyproject.toml", copy)
    for package in ("services", "schemas"):
        skip = shutil.ignore_patterns("__pycache__", "demo_data")
        shutil.copytree(ROOT / package, copy / package, ignore=skip)
    for module, imported in VIOLATIONS.items():
        path = copy / Path(*module.split(".")).with_suffix(".py")
        assert path.parent.is_dir(), f"{path.parent} has gone; move the violation"
        path.write_text("".join(f"import {name}\n" for name in imported))
    (copy / "services" / "attic").mkdir()
    (copy / "services" / "attic" / "__init__.py").write_text("")
    done = run([sys.executable, "-c", LINT], cwd=copy, check=False)
    assert done.returncode == 1, done.stdout + done.stderr
    return done.stdout


def section(report: str, contract: str) -> str:
    """The details of one broken contract."""
    details = report[report.index("Broken contracts") :]
    assert f"\n{contract}\n---" in details, f"not broken: {contract}\n{report[-3000:]}"
    rest = details.split(f"\n{contract}\n---", 1)[1]
    names = [c["name"] for c in CONTRACTS]
    return min((rest.split(f"\n{name}\n---", 1)[0] for name in names), key=len)


def test_every_contract_has_its_violation() -> None:
    assert {c["name"] for c in CONTRACTS} == {TOWER, STRANGERS, *WHERE}


@pytest.mark.parametrize("contract", [c["name"] for c in CONTRACTS])
def test_a_violation_breaks_the_contract(report: str, contract: str) -> None:
    assert section(report, contract)


@pytest.mark.parametrize(
    ("contract", "library"), [(name, lib) for name in FORBIDDEN for lib in FORBIDDEN[name]]
)
def test_every_forbidden_module_is_found(report: str, contract: str, library: str) -> None:
    assert f"{WHERE[contract]} -> {library}" in section(report, contract)


@pytest.mark.parametrize("library", sorted({lib for libs in FORBIDDEN.values() for lib in libs}))
def test_every_forbidden_module_exists(library: str) -> None:
    assert importlib.util.find_spec(library) is not None


def test_a_sibling_and_a_floor_above_are_found(report: str) -> None:
    tower = section(report, TOWER)
    assert "services.store.violation -> services.eventlog" in tower
    assert "services.store.violation -> services.catalogue" in tower


def test_a_new_folder_must_be_given_a_floor(report: str) -> None:
    assert "attic" in section(report, TOWER)


def test_a_dialect_that_knows_another_is_found(report: str) -> None:
    found = section(report, STRANGERS)
    assert "services.dialects.violation_too -> services.dialects.violation" in found

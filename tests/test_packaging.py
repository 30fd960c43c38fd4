"""The distribution: nobody else claims our two package names, and every data file is packed."""

from __future__ import annotations

import tomllib
from importlib.metadata import distribution, packages_distributions
from pathlib import PurePath

import pytest

from tests.support.processes import ROOT

PACKAGES = ("services", "schemas")


@pytest.mark.parametrize("package", PACKAGES)
def test_nobody_else_claims_the_name(package: str) -> None:
    assert set(packages_distributions()[package]) == {"lineshaft"}


@pytest.mark.parametrize("folder", ["tests", "infra"])
def test_what_is_not_shipped_is_not_installed(folder: str) -> None:
    assert "lineshaft" not in packages_distributions().get(folder, [])


def test_there_is_one_console_script() -> None:
    scripts = distribution("lineshaft").entry_points.select(group="console_scripts")
    assert [(script.name, script.value) for script in scripts] == [
        ("lineshaft", "services.cli:main")
    ]


@pytest.mark.parametrize("package", PACKAGES)
def test_every_data_file_is_package_data(package: str) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    patterns = project["tool"]["setuptools"]["package-data"].get(package, [])
    data = [
        PurePath(path.relative_to(ROOT / package))
        for path in (ROOT / package).rglob("*")
        if path.is_file() and path.suffix != ".py" and "__pycache__" not in path.parts
    ]
    assert [str(path) for path in data if not any(path.match(glob) for glob in patterns)] == []


@pytest.mark.parametrize("package", PACKAGES)
def test_every_folder_with_code_is_a_package(package: str) -> None:
    """A folder without `__init__.py` would be left out of the wheel without a word."""
    folders = {path.parent for path in (ROOT / package).rglob("*.py")}
    assert [str(folder) for folder in folders if not (folder / "__init__.py").is_file()] == []

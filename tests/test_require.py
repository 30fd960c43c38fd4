"""LINESHAFT_REQUIRE: a test that skips itself although its engine is required fails the run."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.processes import ROOT, environment

SKIPS = """
import pytest

@pytest.mark.needs_kafka
def test_on_kafka():
    pytest.skip("no Java here")
"""

SKIPS_WHOLE = """
import pytest
pytest.skip("no Java here", allow_module_level=True)
"""

EXPECTED_FAILURE = """
import pytest

@pytest.mark.needs_kafka
@pytest.mark.xfail(reason="Kafka cannot", strict=True)
def test_on_kafka():
    assert False
"""


def run(folder: Path, module: str, required: str) -> subprocess.CompletedProcess[str]:
    """Run pytest on one module under our conftest."""
    (folder / "test_it.py").write_text(module)
    (folder / "conftest.py").write_text((ROOT / "tests" / "conftest.py").read_text())
    argv = [
        sys.executable,
        "-m",
        "pytest",
        "-c",
        str(ROOT / "pyproject.toml"),
        "-p",
        "no:cacheprovider",
    ]
    return subprocess.run(
        [*argv, f"--rootdir={folder}", str(folder)],
        env=environment(LINESHAFT_REQUIRE=required),
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.mark.parametrize("module", [SKIPS, SKIPS_WHOLE])
def test_a_skip_fails_where_the_engine_is_required(tmp_path: Path, module: str) -> None:
    done = run(tmp_path, module, "kafka,containers")
    assert done.returncode != 0
    assert "no Java here" in done.stdout


@pytest.mark.parametrize(("module", "required"), [(SKIPS, ""), (SKIPS, "containers")])
def test_a_skip_is_a_skip_elsewhere(tmp_path: Path, module: str, required: str) -> None:
    done = run(tmp_path, module, required)
    assert done.returncode == 0, done.stdout
    assert "1 skipped" in done.stdout


def test_an_expected_failure_is_no_skip(tmp_path: Path) -> None:
    assert run(tmp_path, EXPECTED_FAILURE, "kafka").returncode == 0


def test_a_kind_that_does_not_exist_stops_the_run(tmp_path: Path) -> None:
    done = run(tmp_path, SKIPS, "kafak")
    assert done.returncode != 0
    assert "kafak" in done.stderr

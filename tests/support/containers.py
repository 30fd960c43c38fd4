"""The container engine of this machine, for the tests that build the image and run compose files.

An engine is not assumed: tests carry the marker `needs_containers` and call `engine()`, which
skips with one visible line where none answers.
"""

from __future__ import annotations

import functools
import shutil
import subprocess

import pytest

from tests.support.processes import run


@functools.cache
def _why_not() -> str:
    """Why there is no container engine; empty where one answers."""
    if not shutil.which("docker"):
        return "there is no docker command"
    answer = subprocess.run(
        ["docker", "info", "--format", "{{.ServerVersion}}"],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    if answer.returncode:
        return f"no container engine answers: {answer.stderr.strip()[-200:]}"
    return ""


def engine() -> None:
    """Skip the test unless a container engine answers."""
    if why := _why_not():
        pytest.skip(why)


def image(*names: str) -> None:
    """Skip the test unless these images are there or can be pulled."""
    engine()
    for name in names:
        if docker("image", "inspect", name, check=False).returncode == 0:
            continue
        if docker("pull", "--quiet", name, check=False, seconds=600).returncode:
            pytest.skip(f"the image {name} is not here and cannot be pulled")


@functools.cache
def compose_command() -> tuple[str, ...]:
    """`docker compose`, or the older `docker-compose`; skips the test where there is neither."""
    engine()
    if docker("compose", "version", check=False).returncode == 0:
        return ("docker", "compose")
    if shutil.which("docker-compose"):
        return ("docker-compose",)
    pytest.skip("there is neither docker compose nor docker-compose")


def docker(
    *arguments: str, check: bool = True, seconds: float = 120
) -> subprocess.CompletedProcess[str]:
    """Run a docker command in the repository; its output is text. With `check` it must succeed."""
    return run(("docker", *arguments), check=check, seconds=seconds)

"""What every test sees: one seed for the run, how tests are shared out, and the rule for skips.

A test that needs Kafka, a container engine or ClickHouse's image carries the marker `needs_kafka`,
`needs_containers` or `needs_clickhouse` and skips itself where there is none.
LINESHAFT_REQUIRE=kafka,containers says that they are there: a skip of such a test is then a
failure, so that a build machine cannot go green by losing its engines.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Generator

import hypothesis
import pytest

# How long an example takes says how busy the machine is.
hypothesis.settings.register_profile("any machine", deadline=None)
hypothesis.settings.load_profile("any machine")

KINDS = ("kafka", "containers", "clickhouse")
LONGEST = "tests/system/test_kafka_road.py"


def pytest_configure(config: pytest.Config) -> None:
    """Choose the seed once, for `tests.support.rounds` too, and refuse a LINESHAFT_REQUIRE that
    would guard nothing.
    """
    os.environ["SEED"] = os.environ.get("SEED") or str(secrets.randbits(32))
    if unknown := _required() - set(KINDS):
        raise pytest.UsageError(
            f"LINESHAFT_REQUIRE: {', '.join(sorted(unknown))} is not in {KINDS}"
        )


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest file first: where two processes share the files (`make test`), the two that need
    brokers and containers for many minutes are not run at the same time.
    """
    items.sort(key=lambda item: not item.nodeid.startswith(LONGEST))


def pytest_report_header() -> str:
    """The line that lets somebody run the same again."""
    required = ",".join(sorted(_required())) or "nothing"
    return f"seed={os.environ['SEED']} required={required}"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Turn the skip of a test whose engine is required into a failure."""
    report = yield
    marked = {kind for kind in _required() if item.get_closest_marker(f"needs_{kind}")}
    if report.skipped and marked and not hasattr(report, "wasxfail"):
        report.outcome = "failed"
        report.longrepr = f"LINESHAFT_REQUIRE names {', '.join(sorted(marked))}: {_why(report)}"
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(
    collector: pytest.Collector,
) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """A module that skips itself as a whole hides its markers, so that is a failure too."""
    report = yield
    if report.skipped and _required():
        report.outcome = "failed"
        report.longrepr = f"{collector.nodeid} skips itself as a whole: {_why(report)}"
    return report


def _required() -> set[str]:
    return {kind for kind in os.environ.get("LINESHAFT_REQUIRE", "").split(",") if kind}


def _why(report: pytest.TestReport | pytest.CollectReport) -> str:
    """The reason of a skip: (path, line, reason) where pytest gives it so."""
    return str(report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr)

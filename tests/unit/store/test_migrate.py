"""Migrations: numbered without gaps, cut into statements that may be applied again."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import pytest

from schemas.tables import TABLES
from services.errors import Broken
from services.store.migrate import apply, migrations, quoted, split


class Recorder:
    """Stands for the engine's client: knows what was recorded, and notes the statements."""

    def __init__(self) -> None:
        self.statements: list[str] = []
        self.recorded: dict[str, str] = {}
        self.breaks_at = ""

    def command(
        self, cmd: str, parameters: Mapping[str, Any] | None = None, *, use_database: bool = True
    ) -> object:
        if self.breaks_at and self.breaks_at in cmd:
            raise ConnectionError(cmd)
        self.statements.append(cmd)
        if parameters:
            self.recorded[parameters["name"]] = parameters["checksum"]
        return None

    def query(self, query: str) -> Any:
        recorded = list(self.recorded.items())

        class Answer:
            result_rows = recorded

        return Answer


TEXTS = {"0001_a.sql": "CREATE A; CREATE B;", "0002_b.sql": "CREATE C"}


def created(recorder: Recorder) -> list[str]:
    """The statements of the files that were executed."""
    return [s for s in recorder.statements if re.fullmatch(r"CREATE \w", s)]


def test_what_is_missing_is_applied_in_order_and_then_nothing() -> None:
    engine = Recorder()
    assert apply(engine, "db", {"0001_a.sql": TEXTS["0001_a.sql"]}) == ["0001_a.sql"]
    assert apply(engine, "db", TEXTS) == ["0002_b.sql"]
    assert apply(engine, "db", TEXTS) == []
    assert created(engine) == ["CREATE A", "CREATE B", "CREATE C"]


def test_a_file_that_broke_off_is_applied_again_from_its_beginning() -> None:
    engine = Recorder()
    engine.breaks_at = "CREATE B"
    with pytest.raises(ConnectionError):
        apply(engine, "db", TEXTS)
    engine.breaks_at = ""
    assert apply(engine, "db", TEXTS) == list(TEXTS)
    assert created(engine) == ["CREATE A", "CREATE A", "CREATE B", "CREATE C"]


def test_a_file_that_was_changed_is_broken_and_nothing_is_applied() -> None:
    engine = Recorder()
    apply(engine, "db", {"0001_a.sql": "CREATE A;"})
    with pytest.raises(Broken, match=r"0001_a\.sql"):
        apply(engine, "db", TEXTS)
    assert created(engine) == ["CREATE A"]


@pytest.mark.parametrize(
    ("sql", "statements"),
    [
        ("A; B", ["A", "B"]),
        ("A;\n\n;;B;", ["A", "B"]),
        ("A -- not; here\n; B", ["A", "B"]),
        ("A /* nor; \n here */ ; B", ["A", "B"]),
        ("A 'x;y'; B", ["A 'x;y'", "B"]),
        ("A 'it''s;'; B", ["A 'it''s;'", "B"]),
        (r"A 'it\'s;'; B", [r"A 'it\'s;'", "B"]),
        ("A 'no -- comment'; B", ["A 'no -- comment'", "B"]),
        ("A `odd;name`; B", ["A `odd;name`", "B"]),
        ('A "odd;name"; B', ['A "odd;name"', "B"]),
        ("-- nothing", []),
        ("", []),
    ],
)
def test_statements_end_at_semicolons_that_are_code(sql: str, statements: list[str]) -> None:
    assert [re.sub(r"\s+", " ", s) for s in split(sql)] == statements


def test_every_statement_may_be_applied_again() -> None:
    for name, text in migrations().items():
        for statement in split(text):
            assert re.match(
                r"(CREATE (TABLE|VIEW|DATABASE|MATERIALIZED VIEW) IF NOT EXISTS"
                r"|CREATE OR REPLACE VIEW"
                r"|ALTER TABLE \w+ \w+ (COLUMN|INDEX|CONSTRAINT) IF (NOT )?EXISTS"
                r"|ALTER TABLE \w+ MODIFY (TTL|SETTING))\s",
                statement,
            ), f"{name}: {statement[:80]}"


def test_every_table_is_durable_and_replaces() -> None:
    for name, text in migrations().items():
        for statement in split(text):
            if statement.startswith("CREATE TABLE"):
                assert "ReplacingMergeTree" in statement, name
                assert "fsync_after_insert = 1" in statement, name
                assert "fsync_part_directory = 1" in statement, name


def test_every_table_that_a_sink_fills_is_made() -> None:
    text = "\n".join(migrations().values())
    for table in TABLES:
        assert f"CREATE TABLE IF NOT EXISTS {table.name} (" in text


def test_a_name_is_quoted() -> None:
    assert quoted("a`b\\c") == "`a\\`b\\\\c`"

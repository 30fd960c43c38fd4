"""What is shown of doors: each path once, however many places it is at."""

from __future__ import annotations

from dataclasses import replace

from services import describe
from tests.support import docs

DIALECT = docs.SPOKEN["opticloud"]
READ = DIALECT.reads[0]


def at(*paths: str) -> list[tuple[str, tuple[str, ...]]]:
    """The places of a door with these paths."""
    return describe.places(replace(READ, paths=paths))


def test_a_few_paths_are_shown_one_by_one() -> None:
    assert at("/a/x") == [("/a/x", ())]
    assert at("/a/x", "/b/x") == [("/a/x", ()), ("/b/x", ())]


def test_many_paths_are_shown_once_with_what_they_begin_with() -> None:
    assert at("/a/x/{id}", "/b/x/{id}", "/x/{id}") == [("/x/{id}", ("/a", "/b", ""))]


def test_a_common_end_begins_at_a_step_of_the_path() -> None:
    assert at("/ab/x", "/cb/x", "/db/x") == [("/x", ("/ab", "/cb", "/db"))]


def test_many_paths_without_a_common_end_are_shown_one_by_one() -> None:
    assert at("/a", "/b", "/c") == [("/a", ()), ("/b", ()), ("/c", ())]


def test_doors_of_one_path_that_are_at_other_places_say_so() -> None:
    many, more = ("/a/x", "/b/x", "/c/x"), ("/a/x", "/b/x", "/x")
    reads = [replace(READ, paths=many), replace(READ, method="POST", paths=more)]
    dialect = replace(DIALECT, reads=reads, calls=(), publishes=())

    item = describe.openapi(dialect)["paths"]["/x"]
    assert item["servers"] == [{"url": "/a"}, {"url": "/b"}, {"url": "/c"}]
    assert "servers" not in item["get"]
    assert item["post"]["servers"] == [{"url": "/a"}, {"url": "/b"}, {"url": "/"}]

    page = docs.doors_table(dialect)()
    assert "| `…/x` | GET |" in page
    assert "| `……/x` | POST |" in page
    assert "`…` is any of `/a`, `/b` or `/c`." in page
    assert "`……` is any of `/a`, `/b` or nothing." in page

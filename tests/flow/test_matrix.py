"""What came in by any door reads the same through every API: each kind of value, on a running
system, by every writing door against every reading one there is.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from schemas.samples import Kind
from tests.support.matrix import END_MS, TENANT, VALUES, Access, Place, Sample
from tests.support.matrix_readers import READERS, WITHOUT_VALUES, Reader, reading_doors
from tests.support.matrix_writers import WRITERS, Writer, writing_doors
from tests.support.plant import running

FAMILIES = (*Kind, None)
"""The kinds of declared points; None: a point that takes any, whose samples bring their own."""
START_MS = 1_600_000_000_000
LAST_MS = END_MS - 1
PLACES = ("the API server", "a device")


@dataclass
class Seen:
    """What was kept of what one door wrote to a point, and what each reader showed of it."""

    place: Place
    kept: dict[int, Sample]
    readers: dict[str, Reader]


class Matrix:
    """Writes each thing once, and remembers what all readers saw of it."""

    def __init__(self, access: Access) -> None:
        self.access = access
        server = access.facts["next_plus"]["device_id"]
        device = access.act("add_device", tenant=TENANT, name="Matrix")["id"]
        self._devices = dict(zip(PLACES, (server, device), strict=True))
        self._places: dict[tuple[str, Kind | None, str], Place] = {}
        self._seen: dict[Place, Seen | AssertionError] = {}

    def place(self, where: str, kind: Kind | None, writer: str) -> Place:
        """The point for what this door writes of this kind."""
        named = (where, kind, writer)
        if named not in self._places:
            key = f"{'any' if kind is None else kind.name.lower()} of {writer.split()[0]}"
            made = self.access.act(
                "add_point",
                tenant=TENANT,
                device=self._devices[where],
                key=key,
                kind=kind,
                locked=kind is not None,
            )
            on_server = where == PLACES[0]
            self._places[named] = Place(made["device"], key, made["id"], kind, on_server)
        return self._places[named]

    def seen(self, where: str, kind: Kind | None, door: str) -> Seen:
        """What became of everything that this door can write to such a point."""
        place = self.place(where, kind, door)
        if place not in self._seen:
            try:
                self._seen[place] = self._write(place, WRITERS[door](self.access))
            except AssertionError as error:
                self._seen[place] = error
        seen = self._seen[place]
        if isinstance(seen, AssertionError):
            raise seen
        return seen

    def _write(self, place: Place, writer: Writer) -> Seen:
        own = {door: make(self.access) for door, make in READERS.items() if make.reaches(place)}
        seen = Seen(place, {}, own)
        for reader in own.values():
            reader.begin(place)
        families = VALUES if place.kind is None else {place.kind: VALUES[place.kind]}
        given = [(kind, value) for kind, values in families.items() for value in values]
        given.append((kind := next(iter(families)), VALUES[kind][0]))
        for number, (kind, value) in enumerate(given):
            ts_ms = (0, 1, 86_399_999)[number] if number < 3 else START_MS + number * 1_001
            if number == len(given) - 1:
                ts_ms = LAST_MS
            quality = (None, 0, 1, 2, 3)[number % 5] if writer.with_quality else None
            writer.write(place, ts_ms, kind, value, quality)
            if (kept := writer.taken(place, kind, value)) is None:
                continue
            seen.kept[ts_ms] = (*kept, quality)
            for reader in own.values():
                reader.look(place, ts_ms)
        for reader in own.values():
            reader.end(place, LAST_MS)
        return seen


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Matrix]:
    with running(tmp_path_factory.mktemp("matrix")) as plant:
        access = Access(plant)
        try:
            yield Matrix(access)
        finally:
            access.close()


def test_every_door_that_takes_values_in_and_every_one_that_shows_them_is_in_the_matrix() -> None:
    assert set(WRITERS) == writing_doors()
    assert set(READERS) | WITHOUT_VALUES == reading_doors()
    assert not set(READERS) & WITHOUT_VALUES


def short(given: Any) -> str | None:
    """What stands in a test's name."""
    if given is None:
        return "any"
    return given.name.lower() if isinstance(given, Kind) else str(given).replace("/", "|")


@pytest.mark.parametrize("reader", READERS, ids=short)
@pytest.mark.parametrize("writer", WRITERS, ids=short)
@pytest.mark.parametrize("kind", FAMILIES, ids=short)
@pytest.mark.parametrize("where", PLACES)
def test_a_value_reads_as_the_api_spells_it_whoever_wrote_it(
    written: Matrix, where: str, kind: Kind | None, writer: str, reader: str
) -> None:
    place = written.place(where, kind, writer)
    if not WRITERS[writer].reaches(place):
        WRITERS[writer](written.access).assert_refused(place)
        return
    if not READERS[reader].reaches(place):
        READERS[reader](written.access).assert_refused(place)
        return
    seen = written.seen(where, kind, writer)
    by = seen.readers[reader]
    assert by.shown == {ts_ms: by.spelled(*sample) for ts_ms, sample in seen.kept.items()}


@pytest.mark.parametrize("kind", FAMILIES, ids=short)
def test_every_door_writes_values_of_every_kind(written: Matrix, kind: Kind | None) -> None:
    for door, make in WRITERS.items():
        kept = written.seen(PLACES[0], kind, door).kept
        assert len(kept) >= 2, door
        if kind is not None:
            assert {sample[0] for sample in kept.values()} == {kind}
        assert make.reaches(written.place(PLACES[0], kind, door))

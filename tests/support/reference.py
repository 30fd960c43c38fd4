"""The judge's specification run over blocks, and a store that answers it: what kernels and agent
are compared with.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence

from schemas.blocks import Block
from schemas.envelope import Position
from schemas.points import PointPolicy
from schemas.queries import LatestQuery, TakenQuery
from schemas.samples import STORED, Conflict, Sample, Verdict
from services.domain import admission
from services.domain.dedupe import Fingerprint, fingerprint
from services.domain.lattice import Place, is_earlier, version_of
from tests.support.builders import a_block


class ModelStore:
    """Rows by series and time; of several at a place the highest version counts."""

    def __init__(self) -> None:
        self.rows: dict[int, dict[int, dict[int, Sample]]] = defaultdict(lambda: defaultdict(dict))

    def insert(self, block: Block) -> None:
        """Store a judged block."""
        for version, sample in zip(block.version, block.samples(), strict=True):
            self.rows[sample.series][sample.ts_ms][version] = sample

    def at(self, series: int, ts_ms: int) -> tuple[int, Sample] | None:
        """(version, sample) of what stands there."""
        versions = self.rows.get(series, {}).get(ts_ms)
        return max(versions.items(), key=lambda item: item[0]) if versions else None

    def latest(self, series: int) -> tuple[int, Sample] | None:
        """(version, sample) of the series' newest time."""
        times = self.rows.get(series)
        return self.at(series, max(times)) if times else None

    def answer(self, query: TakenQuery | LatestQuery) -> Block:
        """What a store answers."""
        if isinstance(query, TakenQuery):
            found = [self.at(*place) for place in zip(query.series, query.ts_ms, strict=True)]
        else:
            found = [self.latest(series) for series in query.series or ()]
        return _block(row for row in found if row is not None)

    def merged(self) -> dict[tuple[int, int], Fingerprint]:
        """Every place with what stands there."""
        return {
            (series, ts_ms): fingerprint(versions[max(versions)])
            for series, times in self.rows.items()
            for ts_ms, versions in times.items()
        }


def _block(rows: Iterable[tuple[int, Sample]]) -> Block:
    rows = list(rows)
    if not rows:
        return Block()
    block = a_block(*(sample for _, sample in rows))
    block.version.extend(version for version, _ in rows)
    return block


class ReferenceLane:
    """A lane judged sample by sample by `services.domain.admission`. It never forgets."""

    def __init__(self, store: ModelStore, *, whole: bool) -> None:
        self.store, self.whole = store, whole
        self.series: dict[int, admission.Series] = {}

    def judge(
        self, position: Position, items: Sequence[tuple[Sample, PointPolicy]]
    ) -> tuple[list[Verdict], list[int]]:
        """Verdicts and versions (0 where nothing is stored) of one record."""
        self._learn(position, [sample for sample, _ in items])
        verdicts, versions = [], []
        for row, (sample, policy) in enumerate(items):
            state = self.series.get(sample.series, admission.Series())
            self.series[sample.series], verdict = admission.step(state, sample, policy)
            place = Place(position.epoch, position.offset, row, sample.rule)
            verdicts.append(verdict)
            versions.append(version_of(place) if verdict in STORED else 0)
        return verdicts, versions

    def _learn(self, position: Position, samples: Sequence[Sample]) -> None:
        """Ask for everything that is not known before anything is learned, then learn it all."""
        unknown = {s.series for s in samples if not self.whole} - set(self.series)
        latest = [self.store.latest(series) for series in unknown]
        taken = [
            self.store.at(s.series, s.ts_ms)
            for s in samples
            if s.series in unknown
            or admission.must_ask(self.series.get(s.series, admission.Series()), s.ts_ms)
        ]
        for row in latest + taken:
            if row is not None and is_earlier(row[0], position):
                self._update(row[1], admission.learn)
        for row in latest:
            if row is not None:
                self._update(row[1], lambda state, s: admission.ask_up_to(state, s.ts_ms))
        for series in unknown:
            self.series.setdefault(series, admission.Series())

    def _update(self, sample: Sample, change) -> None:  # type: ignore[no-untyped-def]
        state = self.series.get(sample.series, admission.Series())
        self.series[sample.series] = change(state, sample)


def sequential(samples: Iterable[Sample]) -> dict[tuple[int, int], Fingerprint]:
    """What must stand in the store when nothing is suppressed or refused: the plain meaning of
    first and last wins and of renewing, in the order of the log.
    """
    places: dict[tuple[int, int], Fingerprint] = {}
    for sample in samples:
        place = sample.series, sample.ts_ms
        if place not in places or sample.rule != Conflict.FIRST:
            places[place] = fingerprint(sample)
    return places

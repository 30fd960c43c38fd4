"""Compiles the judge's kernels, the doors' scanner and what else is compiled as the image is built,
so that a container's first sample does not wait for it. Compiled code is kept by processor type; on
another one it is compiled anew at its first use.
"""

from __future__ import annotations

from schemas.blocks import Block
from schemas.envelope import Position
from schemas.points import PointPolicy
from schemas.samples import Kind, Sample
from services.dialects import _scan
from services.domain import newest
from services.domain.memory import Lane


def main() -> None:
    """Scan a push; judge samples in order, late and repeated ones, with a deadband."""
    _scan.warm()
    newest.warm()
    times = [*range(100), 50, 50]
    samples = [Sample(1, ts_ms, Kind.DOUBLE, float(ts_ms // 2)) for ts_ms in times]
    block = Block.of_samples(samples, PointPolicy("warm", band=0.5, heartbeat_ms=10))
    for whole in (True, False):
        lane = Lane(whole=whole, rows_max=1)
        asked, _ = lane.questions(block)
        judgement = lane.judge(block, Position(0, 1))
        lane.suppressed(block, judgement.verdicts)
        lane.learn(judgement.stored(block), Position(0, 2), asked)
        lane.questions(block)
        lane.judge(block, Position(0, 3))
        lane.forget(3)


if __name__ == "__main__":
    main()

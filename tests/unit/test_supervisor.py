"""The supervisor, with real child processes: lines, restarts, giving up, stopping, dying."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import textwrap
from pathlib import Path

import pytest

from services.supervisor import LINE_BYTES_MAX, Child, Restarts, Supervisor
from tests.support.processes import Process, alive, started, wait_for


def python(name: str, script: str, *arguments: object) -> Child:
    """A child that runs a Python script."""
    return Child(name, [sys.executable, "-c", textwrap.dedent(script), *map(str, arguments)])


def supervise(*children: Child, restart_max: int = 3) -> tuple[int, list[bytes]]:
    """Run the supervisor until it ends by itself; its exit code and what it wrote."""
    lines: list[bytes] = []
    supervisor = Supervisor(
        children, restart_max=restart_max, restart_minutes=1, pause_ms=1, write=lines.append
    )
    return asyncio.run(asyncio.wait_for(supervisor.run(), 30)), lines


SUPERVISOR = """
import asyncio, logging, sys
from services.supervisor import Child, Supervisor
logging.basicConfig()
children = [Child(str(n), [sys.executable, "-c", script]) for n, script in enumerate(sys.argv[1:])]
supervisor = Supervisor(children, restart_max=3, restart_minutes=1, pause_ms=1, stop_seconds=1)
sys.exit(asyncio.run(supervisor.run()))
"""

OBEDIENT = """
import signal, sys
def end(*_):
    print("ends", flush=True)
    sys.exit(0)
signal.signal(signal.SIGTERM, end)
print("runs", flush=True)
while True:
    signal.pause()
"""

STUBBORN = """
import os, signal
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print("runs", os.getpid(), flush=True)
while True:
    signal.pause()
"""


def supervisor_of(*scripts: str) -> list[str]:
    """The command line of a supervisor whose children run these scripts and are named 0, 1, …"""
    return [sys.executable, "-c", SUPERVISOR, *scripts]


def pid_of(process: Process, child: int) -> int:
    """The process id that the child wrote behind "runs"."""
    return int(process.wait_output(rf"^{child} \| runs (\d+)")[1])


def test_a_pause_doubles_up_to_its_limit() -> None:
    restarts = Restarts(count_max=9, window_ms=60_000, pause_ms=500, pause_ms_max=3_000)
    assert [restarts.pause(0, jitter=1) for _ in range(5)] == [500, 1000, 2000, 3000, 3000]


def test_jitter_takes_away_at_most_half_of_a_pause() -> None:
    assert Restarts(1, 60_000, pause_ms=500).pause(0, jitter=0) == 250


def test_one_restart_too_many_within_the_window_gives_up() -> None:
    restarts = Restarts(count_max=2, window_ms=60_000)
    assert restarts.pause(0, 0) is not None
    assert restarts.pause(59_999, 0) is not None
    assert restarts.pause(59_999, 0) is None


def test_restarts_outside_the_window_are_forgotten() -> None:
    restarts = Restarts(count_max=1, window_ms=60_000, pause_ms=500)
    assert [restarts.pause(at, 1) for at in (0, 60_000, 120_000)] == [500, 500, 500]


def test_lines_of_both_streams_carry_the_name() -> None:
    script = "import sys; print('out', flush=True); sys.stderr.write('err, unfinished')"
    _, lines = supervise(python("doors", script), restart_max=1)
    assert lines[:2] == [b"doors | out\n", b"doors | err, unfinished\n"]


def test_an_endless_line_is_cut() -> None:
    script = f"print('x' * {3 * LINE_BYTES_MAX})"
    _, lines = supervise(python("doors", script), restart_max=1)
    first = lines[: len(lines) // 2]
    assert sum(line.count(b"x") for line in first) == 3 * LINE_BYTES_MAX
    assert max(map(len, first)) <= 2 * LINE_BYTES_MAX + len(b"doors | \n")


def test_a_child_that_ends_is_started_again(tmp_path: Path) -> None:
    lives = tmp_path / "lives"
    script = "import sys; open(sys.argv[1], 'a').write('x')"
    code, _ = supervise(python("doors", script, lives), restart_max=3)
    assert (code, lives.read_text()) == (1, "xxxx")


def test_giving_up_on_one_child_stops_the_others(tmp_path: Path) -> None:
    started_at = tmp_path / "pid"
    lasting = (
        "import os, signal, sys; open(sys.argv[1], 'w').write(str(os.getpid())); signal.pause()"
    )
    failing = """
        import os, sys, time
        while not (os.path.exists(sys.argv[1]) and os.path.getsize(sys.argv[1])):
            time.sleep(0.01)
        sys.exit(3)
    """
    code, _ = supervise(python("a", lasting, started_at), python("b", failing, started_at))
    assert code == 1
    assert not alive(int(started_at.read_text()))


def test_a_program_that_does_not_exist_counts_as_ended() -> None:
    code, _ = supervise(Child("doors", ["/nowhere/lineshaft"]), restart_max=1)
    assert code == 1


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_the_children_in_flow_order(tmp_path: Path, number: int) -> None:
    with started(supervisor_of(OBEDIENT, OBEDIENT), output=tmp_path / "out") as process:
        process.wait_output(r"^0 \| runs")
        process.wait_output(r"^1 \| runs")
        process.signal(number)
        assert process.wait(seconds=20) == 0
        output = process.output()
        assert output.index("0 | ends") < output.index("1 | ends")


def test_a_child_that_does_not_stop_is_killed(tmp_path: Path) -> None:
    with started(supervisor_of(STUBBORN), output=tmp_path / "out") as process:
        child = pid_of(process, 0)
        assert process.stop(seconds=20) == 0
        assert not alive(child)


def test_a_killed_child_is_started_again(tmp_path: Path) -> None:
    with started(supervisor_of(STUBBORN), output=tmp_path / "out") as process:
        first = pid_of(process, 0)
        os.kill(first, signal.SIGKILL)
        process.wait_output(r"^0 \| runs (?!" + str(first) + r"\b)\d+")


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's request is Linux's")
def test_children_die_with_a_supervisor_that_was_killed(tmp_path: Path) -> None:
    with started(supervisor_of(STUBBORN), output=tmp_path / "out") as process:
        child = pid_of(process, 0)
        process.signal(signal.SIGKILL)
        wait_for(lambda: not alive(child), what="the child's end")


def test_a_child_that_watches_ends_when_its_input_does(tmp_path: Path) -> None:
    """The portable way, without the kernel's help: nobody holds the other end of its input."""
    script = """
        import signal, sys
        from services.supervisor import watch_parent
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(7))
        watch_parent()
        signal.pause()
    """
    with started(python("", script).argv, output=tmp_path / "out") as process:
        assert process.wait(seconds=20) == 7

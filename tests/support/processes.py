"""Child processes of tests: start, watch and kill them, and wait on conditions with a deadline.

A process started here ends with the test, also when pytest itself is killed: on Linux the kernel
is asked to kill it with its parent. That request is made by a tiny launcher that then becomes the
program, because a Python function between fork and exec may hang where the chDB engine is loaded.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

ROOT = Path(__file__).resolve().parents[2]

T = TypeVar("T")

_LAUNCHER = """
import ctypes, os, signal, sys
if sys.platform == "linux":
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)
    if os.getppid() != int(sys.argv[1]):
        sys.exit("the test that started this is gone")
os.execvp(sys.argv[2], sys.argv[2:])
"""


def free_port() -> int:
    """A TCP port of 127.0.0.1 that nobody listens on at this moment."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def wait_for(condition: Callable[[], T], *, seconds: float = 30, what: str = "") -> T:
    """The first true answer of `condition`, asked again and again; fails after `seconds`."""
    deadline = time.monotonic() + seconds
    while True:
        answer = condition()
        if answer:
            return answer
        if time.monotonic() > deadline:
            what = what or getattr(condition, "__name__", "the condition")
            raise AssertionError(f"after {seconds} s still not: {what} (last: {answer!r})")
        time.sleep(0.02)


def let_pass(seconds: float) -> None:
    """Let time pass under load, up to a moment drawn by chance; never to wait for something."""
    time.sleep(seconds)


def listening(port: int, host: str = "127.0.0.1") -> bool:
    """Whether somebody accepts TCP connections there."""
    with socket.socket() as sock:
        sock.settimeout(1)
        return sock.connect_ex((host, port)) == 0


def alive(pid: int) -> bool:
    """Whether a process with this id runs; one that ended and was not yet collected does not."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return True


class Process:
    """A running child in a process group of its own; its output, both streams, goes to a file."""

    def __init__(
        self, argv: Sequence[str], *, output: Path, env: Mapping[str, str] | None, cwd: Path
    ) -> None:
        self._output = output
        with output.open("ab") as sink:
            self._popen = subprocess.Popen(
                [sys.executable, "-c", _LAUNCHER, str(os.getpid()), *argv],
                stdin=subprocess.DEVNULL,
                stdout=sink,
                stderr=subprocess.STDOUT,
                env=dict(env) if env is not None else None,
                cwd=cwd,
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._popen.pid

    @property
    def returncode(self) -> int | None:
        """Its exit code; None while it runs, negative when a signal ended it."""
        return self._popen.poll()

    def output(self) -> str:
        """What it wrote so far, on both streams."""
        return self._output.read_text(errors="backslashreplace")

    def wait_output(self, pattern: str, *, seconds: float = 30) -> re.Match[str]:
        """Wait until the output matches; fails at once when the process ends without that."""

        def matched() -> re.Match[str] | None:
            ended = self.returncode is not None
            found = re.search(pattern, self.output(), re.MULTILINE)
            assert found or not ended, f"ended with {self.returncode}:\n{self.output()[-4000:]}"
            return found

        found = wait_for(matched, seconds=seconds, what=f"output /{pattern}/ of {self.pid}")
        assert found is not None
        return found

    def signal(self, number: int) -> None:
        """Send a signal to the process alone."""
        self._popen.send_signal(number)

    def kill(self) -> None:
        """kill -9 to the whole group, and collect it. Harmless when it is gone."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        self._popen.wait()

    def stop(self, *, seconds: float = 30) -> int:
        """SIGTERM; its exit code. Fails when it does not end in time."""
        self._popen.send_signal(signal.SIGTERM)
        return self.wait(seconds=seconds)

    def wait(self, *, seconds: float = 30) -> int:
        """Its exit code, once it has ended by itself; fails after `seconds`."""
        try:
            return self._popen.wait(seconds)
        except subprocess.TimeoutExpired:
            raise AssertionError(
                f"{self.pid} still runs after {seconds} s:\n{self.output()[-4000:]}"
            ) from None


@contextlib.contextmanager
def started(
    argv: Sequence[str],
    *,
    output: Path,
    env: Mapping[str, str] | None = None,
    cwd: Path = ROOT,
) -> Iterator[Process]:
    """Run a program for the time of a `with` block; whatever is left of it then is killed.

    `env` is its whole environment (None: ours). Not for threads other than the main one: the
    kernel counts the end of the starting thread as the end of the parent.
    """
    process = Process(argv, output=output, env=env, cwd=cwd)
    try:
        yield process
    finally:
        process.kill()


def environment(**more: str) -> dict[str, str]:
    """Our environment without LINESHAFT_* variables, and with `more`."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("LINESHAFT_")}
    return kept | more


def run(
    argv: Sequence[str],
    *,
    check: bool = True,
    seconds: float = 120,
    cwd: Path = ROOT,
    env: Mapping[str, str] | None = None,
) -> subprocess.CompletedProcess[str]:
    """Run a command to its end; its output is text. With `check` a failure shows what it wrote."""
    done = subprocess.run(
        argv, cwd=cwd, env=env, capture_output=True, text=True, timeout=seconds, check=False
    )
    assert not check or done.returncode == 0, (
        f"{' '.join(argv)} ended with {done.returncode}:\n{(done.stdout + done.stderr)[-6000:]}"
    )
    return done

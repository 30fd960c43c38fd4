"""Beside the flow: `lineshaft up` keeps children running, each a `lineshaft run …` of its own.

It starts them in flow order, puts each one's name in front of its lines, starts one that ended
again after a growing pause, and gives up when that happens too often, so that systemd or the
container runtime sees it. It knows no service: a child is a name and a command line.

Children never outlive it, even killed by -9: Linux is asked to kill them with their parent, and
everywhere their standard input is a pipe that only the supervisor holds (`watch_parent`).
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import logging
import os
import random
import signal
import sys
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from services.clock import Clock, SystemClock

_log = logging.getLogger(__name__)

LINE_BYTES_MAX = 64 * 1024
"""A longer line of a child is cut into several."""
_PR_SET_PDEATHSIG = 1
_SIGNALS = (signal.SIGTERM, signal.SIGINT)


@dataclass(frozen=True, slots=True)
class Child:
    """A command to keep running. `env` is its whole environment; None means the supervisor's."""

    name: str
    argv: Sequence[str]
    env: Mapping[str, str] | None = None


@dataclass(slots=True)
class Restarts:
    """When a child that ended is started again: a pure rule, asked with the present time.

    The pause doubles with every restart inside the window, up to `pause_ms_max`.
    """

    count_max: int
    window_ms: float
    pause_ms: float = 500
    pause_ms_max: float = 30_000
    _at: deque[float] = field(default_factory=deque)

    def pause(self, now_ms: float, jitter: float) -> float | None:
        """Milliseconds to wait before the restart, between half and all of the step by `jitter`
        (0 to 1); None when there were `count_max` restarts within the window already.
        """
        while self._at and self._at[0] <= now_ms - self.window_ms:
            self._at.popleft()
        if len(self._at) >= self.count_max:
            return None
        step = min(self.pause_ms * 2.0 ** len(self._at), self.pause_ms_max)
        self._at.append(now_ms)
        return step * (0.5 + jitter / 2)


class Supervisor:
    """Runs the children, given in flow order, until it is told to stop or gives up."""

    def __init__(
        self,
        children: Sequence[Child],
        *,
        restart_max: int,
        restart_minutes: float,
        pause_ms: float = 500,
        stop_seconds: float = 10,
        clock: Clock | None = None,
        write: Callable[[bytes], None] | None = None,
    ) -> None:
        self._children = children
        self._restarts = {
            child.name: Restarts(restart_max, restart_minutes * 60_000, pause_ms)
            for child in children
        }
        self._stop_seconds = stop_seconds
        self._clock = clock or SystemClock()
        self._write = write or _write_stdout
        self._running: dict[str, asyncio.subprocess.Process] = {}
        self._stop = asyncio.Event()
        self._gave_up = False

    async def run(self) -> int:
        """Keep all children running; the exit code: 0 after SIGTERM or SIGINT, 1 after giving up.

        Every child has ended when this returns, also when it is cancelled.
        """
        loop = asyncio.get_running_loop()
        for number in _SIGNALS:
            loop.add_signal_handler(number, self._stop.set)
        keepers = [asyncio.create_task(self._keep(child)) for child in self._children]
        stopped = asyncio.create_task(self._stop.wait())
        try:
            # A keeper ends only when it gave up, or by an error that must not be swallowed.
            await asyncio.wait([stopped, *keepers], return_when=asyncio.FIRST_COMPLETED)
        finally:
            self._stop.set()
            await self._stop_all()
            await asyncio.gather(stopped, *keepers)
            for number in _SIGNALS:
                loop.remove_signal_handler(number)
        return 1 if self._gave_up else 0

    async def _keep(self, child: Child) -> None:
        """Start the child again and again; returns on stop or after giving up."""
        while not self._stop.is_set():
            code = await self._once(child)
            if self._stop.is_set():
                return
            pause = self._restarts[child.name].pause(self._clock.monotonic_ms(), random.random())
            if pause is None:
                _log.error("%s ended with %s too often; giving up", child.name, code)
                self._gave_up = True
                return
            _log.warning("%s ended with %s; again in %.1f s", child.name, code, pause / 1000)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stop.wait(), pause / 1000)

    async def _once(self, child: Child) -> int | str:
        """One life of the child; its exit code, or why it could not be started."""
        try:
            process = await asyncio.create_subprocess_exec(
                *child.argv,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.STDOUT,
                env=child.env,
                # Ctrl-C on a terminal goes to the supervisor alone, which stops in flow order.
                process_group=0,
                preexec_fn=_end_with_parent(os.getpid()),
            )
        except OSError as error:
            return str(error)
        self._running[child.name] = process
        _log.info("%s started as process %d", child.name, process.pid)
        try:
            if self._stop.is_set():
                # The stop came while it was being started: it has done nothing yet.
                _kill(process)
            await self._pass_on(child.name, process)
            return await process.wait()
        finally:
            _kill(process)
            del self._running[child.name]

    async def _pass_on(self, name: str, process: asyncio.subprocess.Process) -> None:
        """Write the child's output, line by line, until it closes it."""
        assert process.stdout is not None
        head, rest = f"{name} | ".encode(), b""
        while chunk := await process.stdout.read(LINE_BYTES_MAX):
            *lines, rest = (rest + chunk).split(b"\n")
            for line in lines:
                self._write(head + line + b"\n")
            if len(rest) >= LINE_BYTES_MAX:
                self._write(head + rest + b"\n")
                rest = b""
        if rest:
            self._write(head + rest + b"\n")

    async def _stop_all(self) -> None:
        """Stop the children one after the other, in flow order: doors first."""
        for child in self._children:
            process = self._running.get(child.name)
            if process is None:
                continue
            with contextlib.suppress(ProcessLookupError):
                process.terminate()
            try:
                await asyncio.wait_for(process.wait(), self._stop_seconds)
            except TimeoutError:
                _log.warning("%s did not end in %g s; killed", child.name, self._stop_seconds)
                _kill(process)


def _kill(process: asyncio.subprocess.Process) -> None:
    """kill -9 to the child and whatever it started. Harmless when it was collected already."""
    if process.returncode is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


def watch_parent() -> None:
    """In a child: end this process when the supervisor is gone, however it went.

    Reads standard input, which nobody writes to, on a thread of its own; its end is the
    supervisor's. Then SIGTERM, for an orderly stop, and SIGKILL when that takes too long.
    """

    def watch() -> None:
        with contextlib.suppress(OSError):
            while os.read(sys.stdin.fileno(), 1):
                pass
        os.kill(os.getpid(), signal.SIGTERM)
        threading.Event().wait(10)
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=watch, name="watch-parent", daemon=True).start()


def _end_with_parent(parent: int) -> Callable[[], None] | None:
    """What the child does between fork and exec: ask the kernel to kill it with its parent."""
    if sys.platform != "linux":
        return None
    prctl = ctypes.CDLL(None).prctl

    def ask() -> None:
        prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        # The parent may have died before the kernel was asked.
        if os.getppid() != parent:
            os.kill(os.getpid(), signal.SIGKILL)

    return ask


def _write_stdout(line: bytes) -> None:
    sys.stdout.buffer.write(line)
    sys.stdout.buffer.flush()

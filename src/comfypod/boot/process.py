"""One supervised child: an asserted state machine around a process in a session of its own."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import time
from enum import StrEnum
from typing import TYPE_CHECKING

from comfypod import proc
from comfypod.boot import httpd
from comfypod.boot.policy import Attempts, after_death, exit_code
from comfypod.errors import HostError

if TYPE_CHECKING:
    from collections.abc import Callable

    from comfypod.boot.services import Service

_STARTUP_POLL = 0.05
_WATCH_SECONDS = 5.0
_ANSWER_SECONDS = 5.0
_MISSED_ANSWERS = 3
_DRAIN_SECONDS = 1.0


class State(StrEnum):
    """Where a service is; `waiting` is the pause before a restart."""

    STOPPED = "stopped"
    STARTING = "starting"
    READY = "ready"
    DEGRADED = "degraded"
    WAITING = "waiting"
    STOPPING = "stopping"
    FAILED = "failed"


MOVES: dict[State, frozenset[State]] = {
    State.STOPPED: frozenset({State.STARTING}),
    State.STARTING: frozenset({State.READY, State.WAITING, State.FAILED, State.STOPPING, State.STOPPED}),
    State.READY: frozenset({State.DEGRADED, State.WAITING, State.FAILED, State.STOPPING}),
    State.DEGRADED: frozenset({State.READY, State.WAITING, State.FAILED, State.STOPPING}),
    State.WAITING: frozenset({State.STARTING, State.STOPPED}),
    State.STOPPING: frozenset({State.STOPPED}),
    State.FAILED: frozenset({State.STOPPED}),
}


class Supervised:
    """Runs one service until told to stop: starts it, watches it, restarts it after a growing pause."""

    def __init__(
        self, service: Service, output: Callable[[bytes], None], changed: Callable[[Supervised], None]
    ) -> None:
        self.service = service
        self.state = State.STOPPED
        self.attempts = Attempts()
        self.restarts = 0
        self.last_exit: int | None = None
        self.failing = False
        self._output = output
        self._changed = changed
        self._child: asyncio.subprocess.Process | None = None
        self._ready_at: float | None = None
        self._ending = asyncio.Event()

    @property
    def pid(self) -> int | None:
        """The child's pid, None when there is none."""
        return self._child.pid if self._child is not None else None

    @property
    def failure_code(self) -> int:
        """Exit code of the last run when it ended by itself and none since became ready, else 0.

        Ending by itself with 0 is a failure too for a program that should serve; it counts as 1.
        """
        return exit_code(self.last_exit) or 1 if self.failing and self.last_exit is not None else 0

    def _move(self, state: State) -> None:
        assert state in MOVES[self.state], f"{self.service.name}: {self.state} -> {state}"  # noqa: S101
        self.state = state
        self._changed(self)

    async def run(self) -> None:
        """Keep the service running until `stop` or until it is given up."""
        while not self._ending.is_set():
            returncode = await self._one_run()
            if self._ending.is_set():
                break
            ready_seconds = None if self._ready_at is None else time.monotonic() - self._ready_at
            self.last_exit, self.failing = returncode, True
            self.attempts = after_death(self.attempts, self.service.limits, ready_seconds)
            if self.attempts.gave_up:
                self._move(State.FAILED)
                return
            self._move(State.WAITING)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self.attempts.delay):
                    await self._ending.wait()
            self.restarts += not self._ending.is_set()
        if self.state in (State.READY, State.DEGRADED):
            self._move(State.STOPPING)
        if self.state is not State.STOPPED:
            self._move(State.STOPPED)

    async def _one_run(self) -> int:
        self._ready_at = None
        self._move(State.STARTING)
        argv = self.service.safe_argv if self.attempts.safe_mode else self.service.argv
        try:
            child = await proc.start_service(argv, self.service.env, self.service.cwd)
        except HostError as error:
            self._output(f"{error.message}\n".encode())
            return 127
        self._child = child.process
        self._changed(self)
        watcher = asyncio.create_task(self._watch())
        pump = asyncio.create_task(self._pump(child.output))
        stopper = asyncio.create_task(self._end(child.process)) if self._ending.is_set() else None
        returncode = await child.process.wait()
        watcher.cancel()
        proc.signal_group(child.process.pid, signal.SIGKILL)
        # A descendant in a session of its own may keep the pipe open for ever.
        await asyncio.wait([pump], timeout=_DRAIN_SECONDS)
        pump.cancel()
        child.close()
        if stopper is not None:
            await stopper
        self._child = None
        return returncode

    async def _pump(self, output: asyncio.StreamReader) -> None:
        while chunk := await output.read(1 << 16):
            self._output(chunk)

    async def _watch(self) -> None:
        while not await self._answers():  # noqa: ASYNC110 - what is waited for happens in another process
            await asyncio.sleep(_STARTUP_POLL)
        missed = 0
        while True:
            if self.state in (State.STARTING, State.DEGRADED) and missed == 0:
                self._ready_at = self._ready_at or time.monotonic()
                self.failing = False
                self._move(State.READY)
            await asyncio.sleep(_WATCH_SECONDS)
            missed = 0 if await self._answers() else missed + 1
            if missed >= _MISSED_ANSWERS and self.state is State.READY:
                self._move(State.DEGRADED)

    async def _answers(self) -> bool:
        answer = await httpd.get(self.service.host, self.service.port, self.service.path, _ANSWER_SECONDS)
        return answer is not None and answer.status == 200

    async def stop(self) -> None:
        """Ask the child to end, insist after half of its time, kill its group after all of it."""
        self._ending.set()
        if self._child is not None and self._child.returncode is None:
            await self._end(self._child)

    async def _end(self, child: asyncio.subprocess.Process) -> None:
        was_ready = self.state in (State.READY, State.DEGRADED)
        if self.state is not State.STOPPING:
            self._move(State.STOPPING)
        # ComfyUI cleans up after Ctrl-C only, and only once it serves; JupyterLab would ask back.
        proc.signal_process(child.pid, signal.SIGINT if self.service.critical and was_ready else signal.SIGTERM)
        for harder in (signal.SIGTERM, signal.SIGKILL):
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self.service.stop_seconds / 2):
                    await child.wait()
            if child.returncode is not None:
                return
            proc.signal_group(child.pid, harder)
        await child.wait()

    def kill(self) -> bool:
        """End the child and its group at once."""
        self._ending.set()
        return self._child is not None and proc.signal_group(self._child.pid, signal.SIGKILL)

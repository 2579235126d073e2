"""One supervised child: an asserted state machine around a process in a session of its own."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import time
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from comfypod import proc
from comfypod.boot import httpd, memory, silence
from comfypod.boot.policy import AGAIN, CAUSES, Attempts, Cause, after_death, cause_of, exit_code
from comfypod.errors import HostError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from comfypod.boot.services import Service

_STARTUP_POLL = 0.05
# Of a program that will say when it listens; a node may have closed its line.
_UNTOLD_POLL = 0.5
_WATCH_SECONDS = 5.0
_MISSED_ANSWERS = 3
_LOOKS_BEFORE_WEDGED = 12
_DRAIN_SECONDS = 1.0

Heard = Literal["well", "ill", "silence"]


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
    State.STOPPING: frozenset({State.STARTING, State.STOPPED}),
    State.FAILED: frozenset({State.STOPPED}),
}


def _by_policy(service: Supervised, served: float | None) -> Attempts:
    return after_death(service.attempts, service.service.limits, served)


async def _started(service: Service, argv: tuple[str, ...]) -> proc.ServiceChild:
    return await proc.start_service(argv, service.env, service.cwd, service.keep)


class Supervised:
    """Runs one service until told to stop: starts it, watches it, restarts it after a growing pause.

    `prompts` is written by whoever asks ComfyUI for its queue. `cause` is why the last run was killed, where known.
    `decide` says what follows a death, by the seconds that the run had served. `start` starts the program.
    """

    def __init__(
        self,
        service: Service,
        output: Callable[[bytes], None],
        changed: Callable[[Supervised], None],
        cgroup: Path = memory.ROOT,
        decide: Callable[[Supervised, float | None], Attempts] | None = None,
        start: Callable[[Service, tuple[str, ...]], Awaitable[proc.ServiceChild]] = _started,
    ) -> None:
        self.service = service
        self.state = State.STOPPED
        self.attempts = Attempts()
        self.restarts = 0
        self.restarts_by_cause = dict.fromkeys(CAUSES, 0)
        self.last_exit: int | None = None
        self.failing = False
        self.cause: Cause | None = None
        self.prompts = 0
        self.busy = False
        self._cgroup, self._decide, self._start = cgroup, decide or _by_policy, start
        self._before = memory.Memory()
        self._silence = silence.begun(0.0)
        self._wedged: Cause | None = None
        self._output = output
        self._changed = changed
        self._child: asyncio.subprocess.Process | None = None
        self._ready_at: float | None = None
        self._ending, self._listens = asyncio.Event(), asyncio.Event()
        self._asked: Attempts | None = None

    @property
    def pid(self) -> int | None:
        """The child's pid, None when there is none."""
        return self._child.pid if self._child is not None else None

    @property
    def argv(self) -> tuple[str, ...]:
        """What it is started with."""
        return self.service.safe_argv if self.attempts.safe_mode else self.service.argv

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
            self.forget_kills()
            returncode = await self._one_run()
            if self._ending.is_set():
                break
            if returncode == AGAIN and self._ready_at is not None and self._asked is None:
                self._move(State.STOPPING)
                self._asked = self.attempts
            if self._asked is not None:
                self.attempts, self._asked = self._asked, None
                self._count_restart("asked")
                continue
            self.last_exit, self.failing = returncode, True
            self.cause = self._wedged or memory.ran_out(self._before, memory.read(self._cgroup), returncode)
            self.attempts = self._decide(self, self.served_seconds)
            if self.attempts.gave_up:
                self._move(State.FAILED)
                return
            self._move(State.WAITING)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self.attempts.delay):
                    await self._ending.wait()
            if not self._ending.is_set():
                self._count_restart(cause_of(returncode, self.cause.code if self.cause else ""))
        if self.state in (State.READY, State.DEGRADED):
            self._move(State.STOPPING)
        if self.state is not State.STOPPED:
            self._move(State.STOPPED)

    @property
    def served_seconds(self) -> float | None:
        """How long this run has served, without the silence at its end; None when it never was ready."""
        return None if self._ready_at is None else time.monotonic() - self._ready_at - self._silence.seconds

    def forget_kills(self) -> None:
        """Take what the kernel has killed so far for lack of memory as not ours."""
        self._before = memory.read(self._cgroup)

    def _count_restart(self, cause: str) -> None:
        self.restarts += 1
        self.restarts_by_cause[cause] += 1

    async def _one_run(self) -> int:
        self._ready_at, self._wedged, self.busy, self.prompts = None, None, False, 0
        self._silence = silence.begun(time.monotonic())
        self._listens.clear()
        self._move(State.STARTING)
        try:
            child = await self._start(self.service, self.argv)
        except HostError as error:
            self._output(f"{error.message}\n".encode())
            return 127
        self._child = child.process
        self._changed(self)
        watcher = asyncio.create_task(self._watch(child.process.pid))
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

    async def _watch(self, pid: int) -> None:
        """Tell whether the child is ready; kill it when it is wedged. What does not listen yet may take its time."""
        missed = 0
        while self._wedged is None and not self._ending.is_set():
            heard = await self._ask()
            missed = 0 if heard == "well" else missed + 1
            self._judge(pid, silent=heard == "silence")
            if missed == 0 and self.state in (State.STARTING, State.DEGRADED):
                self._ready_at = self._ready_at or time.monotonic()
                self.failing = False
                self._move(State.READY)
            elif missed >= _MISSED_ANSWERS and self.state is State.READY:
                self._move(State.DEGRADED)
            await self._pause()

    def listens(self) -> None:
        """Take it from the child that it listens now: it is asked at once."""
        self._listens.set()

    async def _pause(self) -> None:
        """Wait until it is time to ask again."""
        if self.state is not State.STARTING:
            await asyncio.sleep(self._beat)
        elif self._listens.is_set() or not self.service.tells:
            await asyncio.sleep(_STARTUP_POLL)
        else:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_UNTOLD_POLL):
                    await self._listens.wait()

    @property
    def _beat(self) -> float:
        """Time between two questions, and for an answer: a silence is seen several times before it is too long."""
        limit = self.service.wedged_seconds
        return min(_WATCH_SECONDS, limit / _LOOKS_BEFORE_WEDGED) if limit else _WATCH_SECONDS

    async def _ask(self) -> Heard:
        """Ask once. Whoever refuses or closes a connection is not silent: it does not listen yet, or speaks TLS."""
        try:
            answer = await httpd.ask(self.service.host, self.service.port, self.service.path, self._beat)
        except TimeoutError:
            return "silence"
        except (OSError, ValueError):
            return "ill"
        return "well" if answer.status == 200 else "ill"

    def _judge(self, pid: int, *, silent: bool) -> None:
        used = proc.group_seconds(pid) if silent else 0.0
        self._silence = silence.after(self._silence, silence.Look(time.monotonic(), silent, used, self.prompts))
        judgement = silence.judge(self._silence, self.service.wedged_seconds)
        self.busy = judgement == "busy"
        if judgement == "wedged":
            self.abort(silence.wedged(self._silence))

    def abort(self, cause: Cause) -> None:
        """Kill a child that will not get anywhere, which is a death."""
        if self._child is not None:
            self._wedged = cause
            proc.signal_group(self._child.pid, signal.SIGKILL)

    async def restart(self, attempts: Attempts) -> bool:
        """End the child and start it again at once, which is no death; False when there is no child to end."""
        if self._child is None or self.state not in (State.STARTING, State.READY, State.DEGRADED):
            return False
        self._asked = attempts
        await self._end(self._child)
        return True

    def revive(self, *, safe_mode: bool) -> bool:
        """Prepare a service that was given up for another `run`; False when it was not."""
        if self.state is not State.FAILED or self._ending.is_set():
            return False
        # At once, so that whoever asks a second time finds nothing to prepare.
        self._move(State.STOPPED)
        self.attempts = Attempts(safe_mode=safe_mode)
        self._count_restart("asked")
        return True

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

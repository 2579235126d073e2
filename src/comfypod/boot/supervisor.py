"""The boot itself: control plane first, then the stages, then the services, until told to stop."""

from __future__ import annotations

import asyncio
import errno
import os
import signal
import time
from functools import partial
from typing import TYPE_CHECKING

from comfypod import __version__
from comfypod.boot import httpd, identity, probes, services, trial
from comfypod.boot.comfyui import Comfyui
from comfypod.boot.context import Context, Stage, StageCancelledError, Surroundings
from comfypod.boot.doorway import NAME, Doorway
from comfypod.boot.health import Health, StageView, sentence
from comfypod.boot.logfile import Logs
from comfypod.boot.measure import Meter
from comfypod.boot.presence import Presence
from comfypod.boot.process import State, Supervised
from comfypod.boot.stages import STAGES
from comfypod.boot.watch import Watch
from comfypod.errors import BusyError, ComfypodError, NotRunningError, Problem, ServiceError, UsageError
from comfypod.files import storage_error
from comfypod.result import Result, failure
from comfypod.workspace import state
from comfypod.workspace.layout import Layout
from comfypod.workspace.lease import Lease

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from comfypod.boot.fetcher import Fetcher
    from comfypod.boot.policy import Cause
    from comfypod.errors import HostError
    from comfypod.log import Console
    from comfypod.podfile import PodFile
    from comfypod.settings import Settings

_ENOUGH_CORES = 4
_JUPYTER_LATEST_SECONDS = 60.0
# A wrapper such as `uv run` passes on the Ctrl-C that the terminal has sent to the whole group already.
_SAME_SIGNAL_SECONDS = 0.3
_UNKILLABLE_SECONDS = 5.0


class Supervisor:
    """Runs one pod in this process. `begun` is the monotonic time of boot's first instruction."""

    def __init__(
        self, pod: PodFile, settings: Settings, console: Console, begun: float, surroundings: Surroundings
    ) -> None:
        layout = Layout(settings.workspace)
        self.health = Health(
            pod, begun, stages=[StageView(stage.name) for stage in STAGES], settings=settings.shown(),
            cgroup=surroundings.cgroup,
        )  # fmt: skip
        self._pod, self._settings, self._console = pod, settings, console
        self._layout = layout
        self._stop = asyncio.Event()
        self._signaled: float | None = None
        self._jupyter_waits = False
        self._gathering: asyncio.Task[None] | None = None
        self._fetching: asyncio.Task[None] | None = None
        self._fetcher: Fetcher | None = None
        self._failure: ComfypodError | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._logs = Logs(layout.logs, console, self.health.report)
        lease = Lease(layout.pods)
        self._context = Context(
            pod, settings, layout, self.health, console, self._stop.is_set, lease, self._taken, surroundings
        )
        meter = Meter(settings.workspace, surroundings.cgroup)
        self._respond = partial(probes.respond, health=self.health, meter=meter)
        self._doorway = Doorway(self._context, self, self._respond)
        self._presence = Presence(self._context)
        self._comfyui = Comfyui(self._context, self)
        for problem in settings.problems:
            self.report(problem)

    async def run(self) -> Result:
        """Boot, supervise, stop; return how it ended. The exit code is ComfyUI's last failure where it had one.

        Raises:
            BusyError: the control port or the pod's own is taken.
            UsageError: its address is not this machine's.
        """
        self.health.note("imported")
        self._take_signals()
        release, workspace = self._pod.release, self._settings.workspace
        self._console.line(f"comfypod {__version__} boots {release} ({self._pod.profile}) in {workspace}")
        server = await self._serve()
        self.health.note("control plane answers")
        self._comfyui.warm_up()
        self._open_door()
        booting = self.spawn(self._boot())
        await self._stop.wait()
        await self._stop_services(booting)
        self._doorway.close()
        server.close()
        if trial.on_trial(self._context) and self._signaled is not None:
            await self.noted(trial.forgiven)
        self._clean_up()
        return self._result()

    async def _serve(self) -> asyncio.Server:
        host, port = self._settings.control_listen, self._settings.control_port
        try:
            return await httpd.serve(host, port, self._respond)
        except (OSError, ValueError) as error:
            if isinstance(error, OSError) and error.errno == errno.EADDRINUSE:
                hint = "stop what uses it, or choose another with --control-port"
                raise BusyError(f"the control port {host}:{port} is not free", hint) from error
            hint = "give an address of this machine as COMFYPOD_CONTROL_LISTEN"
            raise UsageError(f"the control plane cannot listen on {host}:{port}: {error}", hint) from error

    def _open_door(self) -> None:
        self._doorway.open()
        talk = asyncio.create_task(self._doorway.run())
        talk.add_done_callback(self._ended)
        self._talk = talk
        self._run(Supervised(self._doorway.service(), partial(self._logs.show, NAME), self.changed))

    def spawn(self, work: Coroutine[None, None, None]) -> asyncio.Task[None]:
        """Run something beside the rest; a defect in it stops the pod instead of leaving it half alive."""
        task = asyncio.create_task(work)
        task.add_done_callback(self._ended)
        self._tasks.append(task)
        return task

    def _ended(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and task.exception() is not None:
            self._stop.set()

    def _result(self) -> Result:
        if self._failure is not None:
            return failure("boot", self._failure)
        failed = [service for service in self.health.critical() if service.failure_code]
        problems = tuple(Problem(ServiceError.code, sentence(service)) for service in failed)
        code = failed[0].failure_code if failed else 0
        return Result("boot", status="error" if failed else "success", exit_code=code, errors=problems)

    def _take_signals(self) -> None:
        loop = asyncio.get_running_loop()
        for signum in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            if signum != signal.SIGHUP or signal.getsignal(signum) != signal.SIG_IGN:
                loop.add_signal_handler(signum, self._on_signal, signum)

    def _on_signal(self, signum: signal.Signals) -> None:
        before, self._signaled = self._signaled, time.monotonic()
        if before is not None and self._signaled - before < _SAME_SIGNAL_SECONDS:
            return
        if before is None:
            self._console.line(f"{signum.name}: stopping; once more stops at once")
            self.health.draining, self.health.stopping = self.health.answers, True
            self._stop.set()
            return
        self._console.line(f"{signum.name} again: stopping at once")
        self._doorway.end()
        for service in self.health.services:
            service.kill()
        if not self.health.critical():
            self._leave(128 + signum)

    def report(self, problem: Problem) -> None:
        """Say what is wrong, in the status and in the log."""
        self.health.report(problem)
        self._console.problem(problem)

    async def _boot(self) -> None:
        prepared = await self._stages()
        await self.noted(lambda _: self._context.lease.run())
        if prepared and not self._stop.is_set():
            await self._comfyui.prepare()
            self.health.note("stages done")
            self.spawn(Watch(self._context, self._lost).run(self._stop))
            self._fetch()
            self._start_services()

    async def _stages(self) -> bool:
        for stage, view in zip(STAGES, self.health.stages, strict=True):
            if self._stop.is_set() or not await self._stage(stage, view):
                return False
        return True

    async def _stage(self, stage: Stage, view: StageView) -> bool:
        """Run one stage in a thread, so that probes are answered meanwhile; False ends the boot."""
        view.state, started = "running", time.monotonic()
        try:
            view.detail = await asyncio.to_thread(_work, stage, self._context, view)
            view.state = "done"
        except StageCancelledError:
            view.state = "failed"
        except ComfypodError as error:
            self._stage_failed(stage, view, error)
        except OSError as error:
            self._stage_failed(stage, view, storage_error(error, f"the stage {stage.name} failed"))
        view.seconds = round(time.monotonic() - started, 3)
        self._doorway.push()
        self._console.line(f"  {stage.name}: {view.detail} ({view.seconds:.2f} s)")
        return view.state in ("done", "degraded")

    def _stage_failed(self, stage: Stage, view: StageView, error: ComfypodError) -> None:
        view.state, view.detail = ("failed" if stage.policy == "stop" else "degraded"), error.message
        for problem in error.problems:
            self.report(problem)
        if stage.policy == "stop":
            self._fail(error)

    def _fail(self, error: ComfypodError) -> None:
        self.health.failed = error.message
        self._failure = error
        if self._settings.on_failure == "exit":
            self._stop.set()
        elif self._context.token:
            self._jupyter_waits = True
            self._start_jupyter()
        elif self._doorway.asks:
            self._context.token = self._settings.token or os.urandom(24).hex()
            self._console.line(f"  what is wrong: {self._doorway.login('comfyui')}", private=True)
        self._doorway.push()

    def _lost(self, error: HostError) -> None:
        """End the pod, whatever `on_failure` says: nothing in it can mend this, but its orchestrator can."""
        for problem in error.problems:
            self.report(problem)
        self.health.failed, self._failure = error.message, error
        self._stop.set()
        limit = 2 * self._settings.stop_seconds + _UNKILLABLE_SECONDS
        asyncio.get_running_loop().call_later(limit, self._leave, error.exit_code)

    def _leave(self, code: int) -> None:
        """End at once: what hangs in a dead driver cannot even be killed, so its end is not waited for."""
        self._clean_up()
        os._exit(code)

    def _taken(self) -> None:
        """Say on the workspace that this pod runs, and log there from now on."""
        self._presence.take()
        self._logs.keep()

    def _start_services(self) -> None:
        self._comfyui.start()
        self._jupyter_waits = True
        if len(os.sched_getaffinity(0)) >= _ENOUGH_CORES:
            self._start_jupyter()
        else:
            asyncio.get_running_loop().call_later(_JUPYTER_LATEST_SECONDS, self._start_jupyter)

    async def noted(self, note: Callable[[Layout], None]) -> None:
        """Write to the workspace; a disk that refuses is a problem and no more."""
        try:
            await asyncio.to_thread(note, self._layout)
        except OSError as error:
            self.health.report(Problem("storage", f"{self._layout.state}: {error.strerror}", "free some space"))

    def _was_ready(self, service: Supervised) -> None:
        self.health.settle(service.service.name)
        if service.service.critical:
            self._comfyui.was_ready(service)

    def given_up(self, service: Supervised) -> None:
        """Report a service that is given up for good; without ComfyUI the pod ends where that was asked for."""
        name = service.service.name
        self.report(Problem(name, sentence(service), f"see {self._layout.logs / name}.log"))
        if service.service.critical and self._settings.on_failure == "exit":
            self._stop.set()

    def _start_jupyter(self) -> None:
        """Start JupyterLab, once. On few cores it waits until ComfyUI serves or has died: both would be slower."""
        if not self._jupyter_waits or self._stop.is_set():
            return
        self._jupyter_waits = False
        try:
            jupyter = services.jupyter(self._context.pod, self._settings, self._context.environ)
        except BusyError as error:
            self.report(Problem("jupyter", error.message, error.hint))
        else:
            if jupyter is not None:
                self.start(jupyter)

    def _gather(self) -> None:
        """Complete packages and nodes, once, now that ComfyUI no longer waits for disk and processor."""
        if self._gathering is None and self._context.layer is not None and not self._stop.is_set():
            from comfypod.boot.gather import Gatherer

            restart = partial(self._comfyui.restart, toggle_safe_mode=False)
            self._gathering = self.spawn(Gatherer(self._context, restart).run())

    def _fetch(self) -> None:
        """Fetch models from now on, beside ComfyUI."""
        from comfypod.boot.fetcher import Fetcher

        self._fetcher = Fetcher(self._context)
        self._fetching = self.spawn(self._fetcher.run())

    def start(self, service: services.Service) -> None:
        """Run a service of the pod, with a log on the workspace."""
        if self._context.in_image:
            identity.renounce()
        self.health.urls[service.name] = self._doorway.url(service.name)
        output, cgroup = self._logs.of(service.name), self._context.surroundings.cgroup
        if service.critical:
            supervised = Supervised(service, output, self.changed, cgroup, self._comfyui.decide, self._comfyui.launch)
            self._comfyui.follow(supervised)
        else:
            supervised = Supervised(service, output, self.changed, cgroup)
        self._run(supervised)

    def _run(self, supervised: Supervised) -> None:
        # The gateway, which is first to start, stays last: so it is last to stop.
        running = self.health.services
        running.insert(max(0, len(running) - 1), supervised)
        self.spawn(supervised.run())

    def changed(self, service: Supervised) -> None:
        """Say what follows from a service's new state, and see to it."""
        if service.pid is not None:
            self.health.note(f"{service.service.name} process started")
        self._doorway.push()
        name, attempts = service.service.name, service.attempts
        if service.state is State.READY:
            self._was_ready(service)
        if service.service.critical and service.state not in (State.STARTING, State.STOPPING, State.STOPPED):
            self._start_jupyter()
            self._gather()
        if service.cause is not None and service.state in (State.WAITING, State.FAILED):
            self._report_cause(name, service.cause)
        if service.state is State.WAITING:
            self.report(Problem(name, sentence(service), f"its last lines are in {self._layout.logs / name}.log"))
            if attempts.safe_mode and attempts.quick == 0:
                self.report(_safe_mode_problem(name))
        elif service.state is State.FAILED:
            (self._comfyui if service.service.critical else self).given_up(service)
        elif service.state is State.DEGRADED:
            self.report(Problem(name, sentence(service), "`comfypod logs` shows what it is doing"))
        elif service.service.critical and self.health.answers and self.health.note("ready"):
            self._doorway.announce()

    def _report_cause(self, name: str, cause: Cause) -> None:
        """Say why a service was killed; that stays when it serves again, the last time for all."""
        self.health.settle(cause.code)
        self.report(Problem(cause.code, f"{name} {cause.told}", cause.hint))

    async def restart_comfyui(self, *, toggle_safe_mode: bool) -> str:
        """Start ComfyUI again, on request."""
        return await self._comfyui.restart(toggle_safe_mode=toggle_safe_mode)

    async def roll_back(self) -> str:
        """Go back to the release that the volume keeps, on request."""
        return await self._comfyui.roll_back()

    def pull_models(self, text: str) -> str:
        """Fetch models, on request."""
        if self._fetcher is None:
            raise NotRunningError("the workspace is not ready yet", "wait until the stages of the boot are done")
        return self._fetcher.ask(text)

    async def new_token(self) -> str:
        """Replace the token; sessions of the old one are over."""
        if self._settings.token:
            raise UsageError("the token was given from outside", "change COMFYPOD_TOKEN and start the pod again")
        try:
            token = await asyncio.to_thread(state.make_token, self._layout.token)
        except OSError as error:
            raise storage_error(error, "cannot keep a new token") from error
        self._context.token = token
        return token

    async def _stop_services(self, booting: asyncio.Task[None]) -> None:
        self.health.stopping = True
        self._doorway.push()
        self._comfyui.stand_down()
        await asyncio.wait([booting])
        *services, gateway = self.health.services
        # The rest stops while ComfyUI drains: docker's ten seconds are for both.
        others = [service.stop() for service in services if not service.service.critical]
        await asyncio.gather(*others, *map(self._comfyui.drain, self.health.critical()))
        for service in self.health.critical():
            await service.stop()
        self._doorway.end()
        await gateway.stop()
        self._comfyui.close()
        for task in filter(None, (self._gathering, self._fetching)):
            task.cancel()
        results = await asyncio.gather(*self._tasks, return_exceptions=True)
        self._talk.cancel()
        await asyncio.gather(self._talk, return_exceptions=True)
        if left := await asyncio.to_thread(self._presence.end_orphans):
            self._console.line(f"ended {left} processes that services had left running")
        if defects := [result for result in results if isinstance(result, BaseException) and not _cancelled(result)]:
            self._clean_up()
            raise defects[0]

    def _clean_up(self) -> None:
        """Leave nothing that says that this pod runs."""
        self._presence.leave()
        self._console.line("stopped")
        self._logs.close()


def _work(stage: Stage, context: Context, view: StageView) -> str:
    return stage.work(context, view)


def _cancelled(result: BaseException) -> bool:
    return isinstance(result, asyncio.CancelledError)


def _safe_mode_problem(name: str) -> Problem:
    return Problem(
        "safe-mode",
        f"{name} died quickly several times; it starts without custom nodes now",
        "look for the node in `comfypod logs comfyui`, remove or mend it, then stop and start the pod",
    )

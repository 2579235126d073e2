"""The boot itself: control plane first, then the stages, then the services, until told to stop."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import signal
import time
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from comfypod import __version__
from comfypod.boot import httpd, identity, probes, services
from comfypod.boot.context import Context, Stage, StageCancelledError, Surroundings
from comfypod.boot.health import Health, StageView, sentence
from comfypod.boot.logfile import LogFile
from comfypod.boot.process import State, Supervised
from comfypod.boot.stages import STAGES
from comfypod.errors import BusyError, ComfypodError, Problem, ServiceError, UsageError
from comfypod.files import storage_error
from comfypod.ports import connect_host, http_url
from comfypod.result import Result, failure
from comfypod.workspace import run
from comfypod.workspace.core import Core, forgive, go_back, settle
from comfypod.workspace.layout import Layout
from comfypod.workspace.lease import Lease

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from comfypod.log import Console
    from comfypod.podfile import PodFile
    from comfypod.settings import Settings

_ENOUGH_CORES = 4
_JUPYTER_LATEST_SECONDS = 60.0
# A wrapper such as `uv run` passes on the Ctrl-C that the terminal has sent to the whole group already.
_SAME_SIGNAL_SECONDS = 0.3


class Supervisor:
    """Runs one pod in this process. `begun` is the monotonic time of boot's first instruction."""

    def __init__(
        self, pod: PodFile, settings: Settings, console: Console, begun: float, surroundings: Surroundings
    ) -> None:
        layout = Layout(settings.workspace)
        self.health = Health(pod, begun, stages=[StageView(stage.name) for stage in STAGES], settings=settings.shown())
        self._pod, self._settings, self._console = pod, settings, console
        self._layout = layout
        self._stop = asyncio.Event()
        self._signaled: float | None = None
        self._jupyter_waits = False
        self._ours = False
        self._failure: ComfypodError | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._logs: list[LogFile] = []
        lease = Lease(layout.pods)
        self._context = Context(
            pod, settings, layout, self.health, console, self._stop.is_set, lease, self._taken, surroundings
        )
        for problem in settings.problems:
            self._report(problem)

    async def run(self) -> Result:
        """Boot, supervise, stop; return how it ended. The exit code is ComfyUI's last failure where it had one.

        Raises:
            BusyError: the control port is taken.
            UsageError: its address is not this machine's.
        """
        self.health.note("imported")
        self._take_signals()
        release, workspace = self._pod.release, self._settings.workspace
        self._console.line(f"comfypod {__version__} boots {release} ({self._pod.profile}) in {workspace}")
        server = await self._serve()
        self.health.note("control plane answers")
        self._spawn(self._boot())
        await self._stop.wait()
        await self._stop_services()
        server.close()
        if self._trial and self._signaled is not None:
            await self._noted(forgive)
        self._clean_up()
        return self._result()

    async def _serve(self) -> asyncio.Server:
        host, port = self._settings.control_listen, self._settings.control_port
        try:
            return await httpd.serve(host, port, partial(probes.respond, health=self.health))
        except (OSError, ValueError) as error:
            if isinstance(error, OSError) and error.errno == errno.EADDRINUSE:
                hint = "stop what uses it, or choose another with --control-port"
                raise BusyError(f"the control port {host}:{port} is not free", hint) from error
            hint = "give an address of this machine as COMFYPOD_CONTROL_LISTEN"
            raise UsageError(f"the control plane cannot listen on {host}:{port}: {error}", hint) from error

    def _spawn(self, work: Coroutine[None, None, None]) -> None:
        """Run something beside the rest; a defect in it stops the pod instead of leaving it half alive."""
        task = asyncio.create_task(work)
        task.add_done_callback(self._ended)
        self._tasks.append(task)

    def _ended(self, task: asyncio.Task[None]) -> None:
        if task.exception() is not None:
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
            self.health.stopping = True
            self._stop.set()
            return
        self._console.line(f"{signum.name} again: stopping at once")
        for service in self.health.services:
            service.kill()
        if not self.health.services:
            self._clean_up()
            os._exit(128 + signum)

    def _report(self, problem: Problem) -> None:
        self.health.report(problem)
        self._console.problem(problem)

    async def _boot(self) -> None:
        prepared = await self._stages()
        await self._noted(lambda _: self._context.lease.run())
        if prepared and not self._stop.is_set():
            self.health.note("stages done")
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
            view.detail = await asyncio.to_thread(stage.work, self._context, view)
            view.state = "done"
        except StageCancelledError:
            view.state = "failed"
        except ComfypodError as error:
            self._stage_failed(stage, view, error)
        except OSError as error:
            self._stage_failed(stage, view, storage_error(error, f"the stage {stage.name} failed"))
        view.seconds = round(time.monotonic() - started, 3)
        self._console.line(f"  {stage.name}: {view.detail} ({view.seconds:.2f} s)")
        return view.state in ("done", "degraded")

    def _stage_failed(self, stage: Stage, view: StageView, error: ComfypodError) -> None:
        view.state, view.detail = ("failed" if stage.policy == "stop" else "degraded"), error.message
        for problem in error.problems:
            self._report(problem)
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

    def _taken(self) -> None:
        """Say on the workspace that this pod runs, and log there from now on."""
        self._ours = True
        self._record()
        log = LogFile(self._layout.logs / "boot.log")
        self._logs.append(log)
        self._console.mirror(lambda text: log.write(f"{_now()} {text}\n".encode("utf-8", "backslashreplace")))

    def _start_services(self) -> None:
        self._start_comfyui()
        self._jupyter_waits = True
        if len(os.sched_getaffinity(0)) >= _ENOUGH_CORES:
            self._start_jupyter()
        else:
            asyncio.get_running_loop().call_later(_JUPYTER_LATEST_SECONDS, self._start_jupyter)

    def _start_comfyui(self) -> None:
        context = self._context
        assert context.core is not None  # noqa: S101 - the workspace stage has run
        self._start(
            services.comfyui(
                self._pod, self._settings, context.core, context.environ,
                cpu=context.cpu, extra_paths=context.extra_paths,
            )
        )  # fmt: skip

    async def _go_back(self, failed: Supervised) -> None:
        """Take back an upgrade whose ComfyUI does not start."""
        context, reason = self._context, sentence(failed)
        try:
            core = await asyncio.to_thread(self._back, reason)
        except ComfypodError as error:
            self._given_up(failed, final=True)
            self._report(Problem(error.code, error.message, error.hint))
            return
        self._report(
            Problem(
                "rolled-back", f"ComfyUI {self._pod.comfyui_version} did not start: {reason}; {core.version} is back",
                "see what it said with `comfypod logs comfyui`; `comfypod workspace upgrade` tries it again",
            )
        )  # fmt: skip
        for problem in core.problems:
            self._report(problem)
        context.core = core
        self.health.workspace |= {"release": core.release, "version": core.version, "persist": "move"}
        self.health.services.remove(failed)
        if not self._stop.is_set():
            self._start_comfyui()

    def _back(self, reason: str) -> Core:
        lease = self._context.lease
        try:
            lease.prepare()
            try:
                if others := lease.others():
                    told = f"the pod on {others[0].host} uses {self._layout.comfyui} as well, so it is not taken back"
                    raise BusyError(told, "stop that pod, then start this one again")
                return go_back(self._layout, self._pod.release, self._pod.environment_key, reason)
            finally:
                lease.run()
        except OSError as error:
            raise storage_error(error, f"cannot go back in {self._layout.comfyui}") from error

    async def _settle(self, service: Supervised) -> None:
        """Keep an upgrade whose ComfyUI was ready."""
        assert self._context.core is not None  # noqa: S101 - the workspace stage has run
        self._context.core = replace(self._context.core, trial=False)
        limits = replace(service.service.limits, has_safe_mode=not self._settings.safe_mode)
        service.service = replace(service.service, limits=limits)
        await self._noted(settle)

    async def _noted(self, note: Callable[[Layout], None]) -> None:
        try:
            await asyncio.to_thread(note, self._layout)
        except OSError as error:
            self.health.report(Problem("storage", f"{self._layout.state}: {error.strerror}", "free some space"))

    @property
    def _trial(self) -> bool:
        return self._context.core is not None and self._context.core.trial

    def _was_ready(self, service: Supervised) -> None:
        self.health.settle(service.service.name)
        if service.service.critical and self._trial:
            self._spawn(self._settle(service))

    def _given_up(self, service: Supervised, *, final: bool = False) -> None:
        if service.service.critical and self._trial and not final:
            self._spawn(self._go_back(service))
            return
        self._report(
            Problem(service.service.name, sentence(service), f"see {self._layout.logs / service.service.name}.log")
        )
        if service.service.critical and self._settings.on_failure == "exit":
            self._stop.set()

    def _start_jupyter(self) -> None:
        """Start JupyterLab, once. On few cores it waits until ComfyUI serves or has died: both would be slower."""
        if not self._jupyter_waits or self._stop.is_set():
            return
        self._jupyter_waits = False
        try:
            token = self._context.token
            self._start(services.jupyter(self._pod, self._settings, self._layout, token, self._context.environ))
        except OSError as error:
            told = storage_error(error, "cannot start JupyterLab")
            self._report(Problem("jupyter", told.message, told.hint))

    def _start(self, service: services.Service | None) -> None:
        if service is None:
            return
        if self._context.in_image:
            identity.renounce()
        self.health.urls[service.name] = service.url
        log = LogFile(self._layout.logs / f"{service.name}.log")
        self._logs.append(log)
        supervised = Supervised(service, partial(self._output, service.name, log), self._changed)
        self.health.services.append(supervised)
        self._spawn(supervised.run())

    def _output(self, name: str, log: LogFile, data: bytes) -> None:
        log.write(data)
        if not self._console.quiet:
            for line in data.decode("utf-8", "replace").splitlines():
                self._console.line(f"{name} | {line}", private=True)
        if log.lost:
            self.health.report(
                Problem(
                    "storage", f"{log.path} cannot be written; lines are lost", "free space on the workspace's disk"
                )
            )

    def _changed(self, service: Supervised) -> None:
        if service.pid is not None:
            self.health.note(f"{service.service.name} process started")
        name, attempts = service.service.name, service.attempts
        if service.state is State.READY:
            self._was_ready(service)
        if service.service.critical and service.state not in (State.STARTING, State.STOPPING, State.STOPPED):
            self._start_jupyter()
        if service.state is State.WAITING:
            self._report(Problem(name, sentence(service), f"its last lines are in {self._layout.logs / name}.log"))
            if attempts.safe_mode and attempts.quick == 0:
                self._report(_safe_mode_problem(name))
        elif service.state is State.FAILED:
            self._given_up(service)
        elif service.state is State.DEGRADED:
            self._report(Problem(name, sentence(service), "`comfypod logs` shows what it is doing"))
        elif service.service.critical and self.health.ready and self.health.note("ready"):
            self._announce()

    def _announce(self) -> None:
        seconds = time.monotonic() - self.health.begun
        self._console.line(f"ready after {seconds:.1f} s")
        for name, url in self.health.urls.items():
            self._console.line(f"  {name}: {url}")
        shows = self._console.interactive or self._context.token_made
        if "jupyter" in self.health.urls and shows and not self._settings.jupyter_password:
            self._console.line(f"  log in: {self.health.urls['jupyter']}/lab?token={self._context.token}", private=True)
            self._console.line(f"  the token is kept in {self._layout.token}")

    def _record(self) -> None:
        record = run.RunRecord(self.health.process, self._control)
        try:
            run.write(self._layout.run_record, record)
        except OSError as error:
            self.health.report(Problem("storage", f"{self._layout.run_record}: {error.strerror}", "free some space"))

    @property
    def _control(self) -> str:
        return http_url(connect_host(self._settings.control_listen), self._settings.control_port)

    async def _stop_services(self) -> None:
        self.health.stopping = True
        await asyncio.wait(self._tasks[:1])
        for service in self.health.services:
            await service.stop()
        results = await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._ours and (left := await asyncio.to_thread(self._end_orphans)):
            self._console.line(f"ended {left} processes that services had left running")
        if defects := [result for result in results if isinstance(result, BaseException)]:
            self._clean_up()
            raise defects[0]

    def _end_orphans(self) -> int:
        """End what services have left, unless it may be another pod's, which has the same mark."""
        with contextlib.suppress(OSError):
            if not self._context.lease.others():
                return run.end_orphans(self._layout.root)
        return 0

    def _clean_up(self) -> None:
        """Leave nothing that says that this pod runs."""
        if self._ours:
            with contextlib.suppress(OSError):
                if (record := run.read(self._layout.run_record)) and record.boot == self.health.process:
                    self._layout.run_record.unlink(missing_ok=True)
        self._context.lease.release()
        self._console.line("stopped")
        for log in self._logs:
            log.close()


def _safe_mode_problem(name: str) -> Problem:
    return Problem(
        "safe-mode",
        f"{name} died quickly several times; it starts without custom nodes now",
        "look for the node in `comfypod logs comfyui`, remove or mend it, then stop and start the pod",
    )


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S%z")

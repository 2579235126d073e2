"""The pod's health: what stages and services report, and the one view of it that every probe gives."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from comfypod import __version__
from comfypod.boot import memory
from comfypod.boot.identity import current
from comfypod.boot.process import State
from comfypod.counts import DownloadCounts, GatewayCounts, PromptCounts
from comfypod.workspace.run import Boot, this_process

if TYPE_CHECKING:
    from pathlib import Path

    from comfypod.boot.process import Supervised
    from comfypod.errors import Problem
    from comfypod.podfile import PodFile

Phase = Literal["preparing", "starting", "ready", "degraded", "failed", "stopping"]
StageState = Literal["waiting", "running", "done", "degraded", "failed"]


@dataclass(slots=True)
class StageView:
    """One stage as `/status` shows it."""

    name: str
    state: StageState = "waiting"
    seconds: float = 0.0
    detail: str = ""


@dataclass(frozen=True, slots=True)
class StandbyView:
    """The standby as `/status` shows it: what it is at, the memory that it has, how many starts it has been so far."""

    state: str = "off"
    memory_bytes: int = 0
    starts: int = 0


@dataclass(frozen=True, slots=True)
class ColdView:
    """What starts on a cold disk are helped by, as `/status` shows it.

    The record is `none`, `off`, `used`, or `unused` for a reason; so many bytes were asked to be read ahead.
    """

    state: str = "none"
    reason: str = ""
    bytes_ahead: int = 0


@dataclass(frozen=True, slots=True)
class Check:
    """What was looked at last: whether it is well, and how it is in a few words."""

    well: bool
    text: str


@dataclass(slots=True)
class Health:
    """Everything that is known about the pod; the supervisor and what it runs write it, probes only read it.

    `checks` are those of a running pod by name (`boot/watch.py`); one that is not well keeps the pod from being ready.
    `gateway` is what the gateway has counted.
    """

    pod: PodFile
    begun: float
    stages: list[StageView] = field(default_factory=list)
    services: list[Supervised] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    identity: dict[str, int | str] = field(default_factory=lambda: current().shown())
    workspace: dict[str, Any] = field(default_factory=dict)
    environment: dict[str, Any] = field(default_factory=dict)
    nodes: list[dict[str, Any]] = field(default_factory=list)
    models: list[dict[str, Any]] = field(default_factory=list)
    urls: dict[str, str] = field(default_factory=dict)
    settings: dict[str, dict[str, str]] = field(default_factory=dict)
    checks: dict[str, Check] = field(default_factory=dict)
    cgroup: Path = memory.ROOT
    stopping: bool = False
    draining: bool = False
    queue_saved: int = 0
    failed: str = ""
    fetching: bool = False
    moments: dict[str, float] = field(default_factory=dict)
    process: Boot = field(default_factory=this_process)
    prompts: PromptCounts = field(default_factory=PromptCounts)
    downloads: DownloadCounts = field(default_factory=DownloadCounts)
    gateway: GatewayCounts | None = None
    standby: StandbyView = field(default_factory=StandbyView)
    cold_start: ColdView = field(default_factory=ColdView)

    def note(self, moment: str) -> bool:
        """Note when something happened first, in seconds since boot's first instruction; True that one time."""
        if moment in self.moments:
            return False
        self.moments[moment] = round(time.monotonic() - self.begun, 4)
        return True

    def report(self, problem: Problem) -> None:
        """Add a problem once."""
        if problem not in self.problems:
            self.problems.append(problem)

    def settle(self, code: str) -> None:
        """Take back problems that are over."""
        self.problems[:] = [problem for problem in self.problems if problem.code != code]

    def critical(self) -> list[Supervised]:
        """Return the services without which the pod is not ready."""
        return [service for service in self.services if service.service.critical]

    @property
    def phase(self) -> Phase:
        """The pod in one word."""
        if self.stopping:
            return "stopping"
        if self.failed or any(service.state is State.FAILED for service in self.critical()):
            return "failed"
        if not self.critical():
            return "preparing"
        if not all(service.state is State.READY and service.attempts.search is None for service in self.critical()):
            return "starting"
        return "ready" if all(check.well for check in self.checks.values()) else "degraded"

    @property
    def ready(self) -> bool:
        """Whether ComfyUI answers, the checks are well and the pod is not on its way out."""
        return self.phase == "ready"

    @property
    def answers(self) -> bool:
        """Whether ComfyUI answers and the pod is not on its way out, be it well or not."""
        return self.phase in ("ready", "degraded")

    @property
    def reasons(self) -> list[str]:
        """Why the pod is not ready, as short sentences; empty when it is."""
        return [row.text for row in self.rows() if not row.well]

    def rows(self) -> list[Check]:
        """Return what readiness is made of, one row each."""
        if self.stopping:
            return [Check(well=False, text="the pod is draining" if self.draining else "the pod is stopping")]
        if self.failed:
            return [Check(well=False, text=self.failed)]
        waits = [] if self.answers else [Check(well=False, text=reason) for reason in self._waits()]
        return [*(waits or [Check(well=True, text="ComfyUI answers")]), *self.checks.values()]

    def _waits(self) -> list[str]:
        running = [
            f"stage {stage.name} runs" + (f": {stage.detail}" if stage.detail else "")
            for stage in self.stages
            if stage.state == "running"
        ]
        waiting = [
            sentence(service)
            for service in self.critical()
            if service.state is not State.READY or service.attempts.search is not None
        ]
        return running + waiting or [f"the pod is {self.phase}"]

    def snapshot(self) -> dict[str, Any]:
        """Return `/status` (fields in `docs/status.md`) without what must be asked of ComfyUI."""
        return {
            "phase": self.phase,
            "ready": self.ready,
            "reasons": self.reasons,
            "stages": [asdict(stage) for stage in self.stages],
            "services": [_service_view(service) for service in self.services],
            "comfyui": {
                "version": self.workspace.get("version", self.pod.comfyui_version),
                "queue_running": None,
                "queue_pending": None,
                "queue_saved": self.queue_saved,
            },
            "memory": memory.read(self.cgroup).shown(),
            "standby": asdict(self.standby),
            "cold_start": asdict(self.cold_start),
            "identity": self.identity,
            "workspace": self.workspace,
            "environment": self.environment or {"key": "", "torch": self.pod.torch, "changed": []},
            "nodes": self.nodes,
            "models": self.models,
            "problems": [asdict(problem) for problem in self.problems],
            "urls": self.urls,
            "settings": self.settings,
            "boot": {
                "comfypod": __version__,
                **asdict(self.process),
                "profile": self.pod.profile,
                "engine": self.pod.engine,
                "seconds": round(time.monotonic() - self.begun, 3),
                "seconds_to_ready": self.moments.get("ready"),
                "moments": self.moments,
            },
        }


def sentence(service: Supervised) -> str:
    """Say what a service that is not ready is doing."""
    name, code = service.service.name, service.last_exit
    ended = ""
    if service.failing and code is not None:
        ended = f" after it ended with {code if code >= 0 else f'signal {-code}'}"
        if service.cause is not None:
            ended = f" after it {service.cause.told}"
    if service.attempts.search is not None:
        ended = f" without {len(service.attempts.search.left_out)} nodes, to find the one that ends it"
    match service.state:
        case State.READY:
            return f"{name} runs{ended}"
        case State.STARTING:
            return f"{name} is starting{ended}"
        case State.WAITING:
            return f"{name} starts again in {service.attempts.delay:.0f} s{ended}"
        case State.DEGRADED:
            doing = "is busy with a prompt" if service.busy else "runs"
            return f"{name} {doing} and does not answer"
        case State.FAILED:
            return f"{name} was given up{ended}"
        case _:
            return f"{name} is {service.state}"


def _service_view(service: Supervised) -> dict[str, Any]:
    return {
        "name": service.service.name,
        "state": str(service.state),
        "pid": service.pid,
        "restarts": service.restarts,
        "last_exit": service.last_exit,
        "safe_mode": service.attempts.safe_mode,
    }

"""ComfyUI's life in a pod: its start, an upgrade on trial, what follows when it is ready or given up, its restart."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import TYPE_CHECKING, Protocol

from comfypod.boot import services, trial
from comfypod.boot.cold import ColdStart
from comfypod.boot.drain import Keeper
from comfypod.boot.health import sentence
from comfypod.boot.nodeguard import NodeGuard
from comfypod.boot.policy import Attempts
from comfypod.boot.standby import Standby
from comfypod.errors import ComfypodError, NotRunningError, Problem

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from comfypod.boot.context import Context
    from comfypod.boot.process import Supervised
    from comfypod.boot.services import Service
    from comfypod.workspace.layout import Layout


class Pod(Protocol):
    """What the supervisor does for ComfyUI."""

    def start(self, service: Service) -> None:
        """Run a service from now on."""

    def spawn(self, work: Coroutine[None, None, None]) -> asyncio.Task[None]:
        """Run something beside the rest."""

    def report(self, problem: Problem) -> None:
        """Say what is wrong."""

    def changed(self, service: Supervised) -> None:
        """See what follows from a service's new state."""

    def given_up(self, service: Supervised) -> None:
        """See what follows from a service that is given up for good."""

    async def noted(self, note: Callable[[Layout], None]) -> None:
        """Write to the workspace; a disk that refuses is a problem and no more."""


class Comfyui:
    """The one ComfyUI of a pod, by whichever `Supervised` it runs now."""

    def __init__(self, context: Context, pod: Pod) -> None:
        self._context, self._pod = context, pod
        self._keeper = Keeper(context, pod.report)
        self._guard = NodeGuard(context, pod.report, pod.changed)
        self._standby = Standby(context)
        self._cold = ColdStart(context)
        self._served: asyncio.Task[None] | None = None
        self._beside: asyncio.Task[None] | None = None
        self._recording: asyncio.Task[None] | None = None
        context.allow_node = self._guard.allow
        self.decide = self._guard.decide
        self.follow = self._guard.follow
        self.drain = self._keeper.drain
        self.launch = self._standby.start
        self.warm_up = self._cold.begin

    async def prepare(self) -> None:
        """See which nodes are there, and whether there is a record of a start."""
        await asyncio.to_thread(self._cold.wait)
        await asyncio.to_thread(self._guard.look)

    def start(self) -> None:
        """Start it from the core that the workspace stage has prepared."""
        context = self._context
        assert context.core is not None  # noqa: S101 - the workspace stage has run
        service = services.comfyui(
            context.pod, context.settings, context.core, context.environ,
            cpu=context.cpu, extra_paths=context.extra_paths, guard=self._guard.descriptors,
        )  # fmt: skip
        self._pod.start(self._standby.known_to(service))
        self._beside = self._beside or self._pod.spawn(self._standby.run())

    def was_ready(self, service: Supervised) -> None:
        """Keep an upgrade, draw conclusions about nodes, submit prompts that were left over."""
        self._cold.end()
        if trial.on_trial(self._context):
            self._pod.spawn(self._settle(service))
        if self._context.cancelled():
            return
        self.close()
        # A task of its own, because it waits for long and must not hold up the end of the pod.
        self._served = self._pod.spawn(self._guard.served(service))
        self._recording = self._recording or self._pod.spawn(self._cold.learn(service))
        if service.attempts.search is None:
            self._pod.spawn(self._keeper.resume(service))

    async def _settle(self, service: Supervised) -> None:
        """Keep an upgrade whose ComfyUI was ready."""
        trial.passed(self._context)
        limits = replace(service.service.limits, has_safe_mode=not self._context.settings.safe_mode)
        service.service = replace(service.service, limits=limits)
        await self._pod.noted(trial.settled)

    def given_up(self, service: Supervised) -> None:
        """Take back an upgrade whose ComfyUI does not start; otherwise that was it."""
        if trial.on_trial(self._context):
            self._pod.spawn(self._go_back(service))
        else:
            self._pod.given_up(service)

    async def _go_back(self, failed: Supervised) -> None:
        try:
            said = await asyncio.to_thread(trial.take_back, self._context, sentence(failed))
        except ComfypodError as error:
            self._pod.given_up(failed)
            self._pod.report(error.problem)
            return
        for problem in said:
            self._pod.report(problem)
        self._context.health.services.remove(failed)
        if not self._context.cancelled():
            self.start()

    async def restart(self, *, toggle_safe_mode: bool) -> str:
        """Start it again, on request.

        Raises:
            NotRunningError: there is nothing to start again.
        """
        critical = self._context.health.critical()
        if critical:
            await self.prepare()
        for service in critical:
            safe_mode = service.attempts.safe_mode is not toggle_safe_mode
            revived = service.revive(safe_mode=safe_mode)
            if revived:
                self._pod.spawn(service.run())
            if revived or await service.restart(Attempts(safe_mode=safe_mode)):
                return "ComfyUI starts again" + (" without custom nodes" if safe_mode else "")
        raise NotRunningError("ComfyUI does not run now", "wait until it does, or start the pod again")

    async def roll_back(self) -> str:
        """Put the release that is kept in the place of the one that runs, and start its ComfyUI.

        Raises:
            StorageError: there is none, or the disk refused.
            BusyError: another pod uses it as well.
        """
        context, kept = self._context, trial.take_way_back(self._context)
        for service in context.health.critical():
            await service.stop()
            context.health.services.remove(service)
        try:
            core = await asyncio.to_thread(trial.step_back, context, "the pod's page asked for it")
        except ComfypodError:
            context.health.workspace["kept"] = kept
            raise
        finally:
            if not context.cancelled():
                self.start()
        for problem in core.problems:
            self._pod.report(problem)
        return f"ComfyUI {core.version} starts; `comfypod workspace upgrade` brings {context.pod.comfyui_version} again"

    def stand_down(self) -> None:
        """Have nothing beside ComfyUI from now on."""
        self._cold.end()
        for task in filter(None, (self._beside, self._recording)):
            task.cancel()

    def close(self) -> None:
        """Draw no more conclusions."""
        if self._served is not None:
            self._served.cancel()

"""What a pod fetches and installs once ComfyUI serves or has died: packages that its layer lacks, nodes that it wants.

Nothing here holds up a start or a stop: it runs in a thread that is left behind, and what is half done is undone by the
next boot.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from comfypod.boot.context import StageCancelledError
from comfypod.boot.errand import Errand
from comfypod.boot.health import StageView
from comfypod.boot.process import State
from comfypod.environment import layer as layers
from comfypod.environment.look import look
from comfypod.errors import ComfypodError, Problem
from comfypod.files import storage_error

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from comfypod.boot.context import Context
    from comfypod.environment.layer import Layer

_SECONDS = 4 * 3600.0
_IDLE_POLL = 1.0


class Gatherer:
    """Gathers once for each pod; `restart` starts ComfyUI again, which is asked for when it is idle."""

    def __init__(self, context: Context, restart: Callable[[], Awaitable[object]]) -> None:
        self._context, self._restart = context, restart

    async def run(self) -> None:
        """Gather what is missing; where that changes what ComfyUI loads, start it again as soon as it is idle."""
        layer = self._context.layer
        if layer is None:
            return
        try:
            changed, problems = await Errand(lambda: self._gather(layer), _SECONDS).run()
        except OSError as error:
            told = storage_error(error, f"packages and nodes of {layer.root} were not completed")
            changed, problems = (), told.problems
        for problem in problems:
            self._context.warn(problem)
        if changed and not self._context.cancelled():
            self._context.console.line(f"ComfyUI starts again when it is idle, for {', '.join(changed)}")
            await self._when_idle()

    async def _when_idle(self) -> None:
        """Wait until no prompt runs or waits; one that a person has queued meanwhile is not interrupted."""
        comfyui = self._context.health.critical()
        while any(each.state in (State.STARTING, State.WAITING) or each.prompts for each in comfyui):
            await asyncio.sleep(_IDLE_POLL)
            comfyui = self._context.health.critical()
        try:
            await self._restart()
        except ComfypodError as error:
            self._context.warn(error.problem)

    def _gather(self, layer: Layer) -> tuple[tuple[str, ...], tuple[Problem, ...]]:
        """Return what is new, and what there is to tell; in a thread."""
        try:
            if not self._context.alone:
                return (), ()
            layers.put_stubs(layer)
            return self._packages_and_nodes(layer)
        except StageCancelledError:
            return (), ()
        except ComfypodError as error:
            return (), error.problems

    def _packages_and_nodes(self, layer: Layer) -> tuple[tuple[str, ...], tuple[Problem, ...]]:
        from comfypod.boot.contents import list_nodes
        from comfypod.boot.wanted import missing_packages, wanted_nodes

        packages, told = missing_packages(self._context, layer)
        nodes, more = wanted_nodes(self._context, layer)
        if nodes or more:
            list_nodes(self._context, StageView("nodes"))
        self._context.health.environment["changed"] = look(layer).rows
        return (*packages, *nodes), (*told, *more)

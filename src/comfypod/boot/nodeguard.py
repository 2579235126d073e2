"""What boot does about custom nodes that fail, hang or end ComfyUI: names them, and leaves out those that end it."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from comfypod.boot import known_nodes
from comfypod.boot.guardline import Event, GuardLine
from comfypod.boot.health import ColdView
from comfypod.boot.known_nodes import Known
from comfypod.boot.policy import FIRST_DELAY, Attempts, Cause, after_death, searched
from comfypod.boot.process import State
from comfypod.errors import Problem
from comfypod.files import storage_error

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from comfypod.boot.context import Context
    from comfypod.boot.process import Supervised

CODE = "node"
_SWITCHED = ("disabled", "shadowed", "missing")
_HINT = "mend or update it, or switch it on again on the pod's page; comfyui.log has its last words"
# A run has to last so many times longer than those that died, to show that what it leaves out was at fault.
_PROOF = 2.0


class NodeGuard:
    """Follows each start of ComfyUI. `changed` is called when a search has found what it was for."""

    def __init__(
        self, context: Context, report: Callable[[Problem], None], changed: Callable[[Supervised], None]
    ) -> None:
        self._context, self._report, self._changed = context, report, changed
        self._line = GuardLine(self._heard)
        self._known = Known({}, {})
        self._prints: Mapping[str, str] = {}
        self._pid, self._crumb = 0, ""
        self._comfyui: Supervised | None = None
        self._overdue: asyncio.TimerHandle | None = None
        self._longest_run = 0.0

    @property
    def descriptors(self) -> tuple[int, int]:
        """What ComfyUI's launcher is given."""
        return self._line.descriptors

    @property
    def _surroundings(self) -> str:
        return f"{self._context.pod.release} {self._context.pod.environment_key}"

    def look(self) -> None:
        """Read what is remembered and compare it with the nodes that are there; what has changed is tried again."""
        context = self._context
        known = known_nodes.read(context.layout.node_starts)
        self._prints = known_nodes.prints(context.node_paths, self._surroundings)
        # A disk that refuses the record does not have this boot forget.
        rows = {**known.aside, **self._known.aside}
        aside = {name: row for name, row in rows.items() if self._prints.get(name) == row[0]}
        self._known = Known(known.works, aside)
        self._order(None)

    def follow(self, comfyui: Supervised) -> None:
        """Follow a ComfyUI that is about to be started."""
        self._comfyui = comfyui
        self._line.listen()

    def decide(self, comfyui: Supervised, served: float | None) -> Attempts:
        """Say what follows a death of ComfyUI. One that a node explains is no more than that node's."""
        self._line.hear()
        node, self._crumb = self._crumb, ""
        self._in_time()
        attempts = comfyui.attempts
        if node and node not in self._known.aside:
            ended = comfyui.last_exit or 0
            told = comfyui.cause.told if comfyui.cause else f"ended with {ended if ended >= 0 else f'signal {-ended}'}"
            self._put_aside({node: f"ComfyUI {told} while it was loaded"})
            attempts = Attempts(attempts.quick, attempts.safe_mode, delay=FIRST_DELAY, search=attempts.search)
        else:
            self._longest_run = max(self._longest_run, served or 0.0)
            attempts = after_death(attempts, comfyui.service.limits, served, self._suspects())
        self._order(attempts)
        return attempts

    def _suspects(self) -> tuple[str, ...]:
        """The nodes that are new or changed since ComfyUI was ready with them."""
        works, aside = self._known.works, self._known.aside
        return tuple(name for name, mark in self._prints.items() if works.get(name) != mark and name not in aside)

    async def served(self, comfyui: Supervised) -> None:
        """Draw the conclusions from a ComfyUI that is ready: on with the search, or what works is remembered."""
        attempts, pid = comfyui.attempts, comfyui.pid
        limits = comfyui.service.limits
        await asyncio.sleep(limits.quick_seconds if attempts.search is None else _PROOF * self._longest_run)
        if comfyui.pid != pid or comfyui.state is not State.READY or comfyui.attempts is not attempts:
            return
        if attempts.search is None:
            if not attempts.safe_mode:
                await self._works()
            return
        step = searched(attempts.search, died=False)
        assert step.search is not None  # noqa: S101 - ComfyUI lives, so there is hope
        self._order(step)
        if step.search.state == "open":
            await comfyui.restart(step)
            return
        self._put_aside(
            dict.fromkeys(step.search.guilty, "ComfyUI died quickly with it, again and again, and lives without")
        )
        comfyui.attempts = Attempts()
        self._order(None)
        self._changed(comfyui)

    async def _works(self) -> None:
        failed = [name for name, (state, _) in self._context.node_outcomes.items() if state != "loaded"]
        works = {name: mark for name, mark in self._prints.items() if name not in failed}
        if works != self._known.works:
            self._known = Known(works, self._known.aside)
            await asyncio.to_thread(self._write)

    def allow(self, name: str) -> None:
        """Give a node to ComfyUI again that was set aside."""
        self._known = Known(self._known.works, {each: row for each, row in self._known.aside.items() if each != name})
        self._context.node_outcomes.pop(name, None)
        self._write()
        self._order(None)

    def _put_aside(self, reasons: Mapping[str, str]) -> None:
        """Leave nodes out from the next start on, and name them; their folders stay as they are."""
        core = self._context.core
        assert core is not None  # noqa: S101 - ComfyUI was started
        new = [core.base / "custom_nodes" / name for name in reasons if name not in self._prints]
        self._prints = {**self._prints, **known_nodes.prints(new, self._surroundings)}
        rows = {name: (self._prints[name], reason) for name, reason in reasons.items()}
        self._known = Known(self._known.works, {**self._known.aside, **rows})
        self._write()
        for name, reason in reasons.items():
            self._show(name, "aside", reason)

    def _write(self) -> None:
        try:
            known_nodes.write(self._context.layout.node_starts, self._known)
        except OSError as error:
            self._report(storage_error(error, "cannot remember for the next boot which nodes work").problem)

    def _order(self, attempts: Attempts | None) -> None:
        """Tell the guard which nodes to refuse at the next start."""
        aside = {name: reason for name, (_, reason) in self._known.aside.items()}
        if attempts is not None and attempts.search is not None:
            aside |= dict.fromkeys(attempts.search.left_out, "left out to find the node that ends ComfyUI")
        self._line.tell(self._context.settings.node_seconds, aside, self._context.record)

    def _heard(self, event: Event) -> None:
        if event.state == "begun":
            self._pid, self._crumb = event.pid, ""
            self._context.node_outcomes.clear()
            self._context.health.settle(CODE)
        elif event.pid != self._pid:
            return
        self._in_time()
        match event.state:
            case "loading":
                self._crumb = event.node
                if limit := self._context.settings.node_seconds:
                    loop = asyncio.get_running_loop()
                    self._overdue = loop.call_later(_PROOF * limit, self._late, event.node)
            case "without-record":
                self._context.health.cold_start = ColdView("unused", event.reason)
            case "over":
                self._crumb = ""
            case "listens" if self._comfyui is not None:
                self._comfyui.listens()
            case "hung":
                self._put_aside({event.node: event.reason})
            case "loaded" | "failed" | "aside":
                self._show(event.node, event.state, event.reason)

    def _in_time(self) -> None:
        if self._overdue is not None:
            self._overdue.cancel()
            self._overdue = None

    def _late(self, node: str) -> None:
        """Kill a ComfyUI whose node hangs where Python's own signal does not get through."""
        assert self._comfyui is not None  # noqa: S101 - it was started
        told = f"hung in the node {node} and was killed"
        self._comfyui.abort(Cause(CODE, told, "COMFYPOD_NODE_SECONDS gives nodes more time"))

    def _show(self, name: str, state: str, reason: str) -> None:
        """Put what became of a node where `/status` has it, and name it where it is not loaded."""
        self._context.node_outcomes[name] = (state, reason)
        from comfypod.nodes.listing import COMFYUIS_OWN

        rows = [row for row in self._context.health.nodes if row["name"] == name]
        if not rows and name != COMFYUIS_OWN:
            self._context.health.nodes.append({"name": name, "state": state, "reason": reason})
        for row in rows:
            if row["state"] not in _SWITCHED:
                row |= {"state": state, "reason": reason}
        if state != "loaded":
            left = "is left out" if state == "aside" else "does not load"
            self._report(Problem(CODE, f"the node {name} {left}: {reason}", _HINT))

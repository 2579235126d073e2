"""What becomes of ComfyUI's queue when the pod stops, and of the prompts that an earlier pod left."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

from comfypod.boot import httpd
from comfypod.boot.process import State
from comfypod.errors import Problem
from comfypod.files import storage_error
from comfypod.workspace import queue
from comfypod.workspace.queue import Saved

if TYPE_CHECKING:
    from collections.abc import Callable

    from comfypod.boot.context import Context
    from comfypod.boot.process import Supervised

_POLL_SECONDS = 0.1
_WATCH_SECONDS = 0.5
_ANSWER_SECONDS = 2.0
# Checking a large prompt may take ComfyUI a while.
_SUBMIT_SECONDS = 30.0
# After the wait: what ended is looked up, what did not is interrupted.
_LAST_SECONDS = 0.5
_LARGEST_QUEUE = 64 << 20


class Queue(NamedTuple):
    """What ComfyUI has to do now."""

    running: tuple[Saved, ...]
    pending: tuple[Saved, ...]

    @property
    def names(self) -> frozenset[str]:
        """The ids of all its prompts."""
        return frozenset(prompt.prompt_id for prompt in (*self.running, *self.pending))


class ComfyUI:
    """ComfyUI's own routes, asked of one run of it; every question is bounded."""

    def __init__(self, service: Supervised) -> None:
        self._service, self._pid = service, service.pid

    @property
    def open(self) -> bool:
        """Whether the run that this was made for goes on."""
        return self._pid is not None and self._service.pid == self._pid

    async def ask(self, path: str, body: Any = None, seconds: float = _ANSWER_SECONDS) -> httpd.Answer | None:
        """GET a path, or POST it where there is a body; None when there is no answer in time."""
        at, data = self._service.service, None if body is None else json.dumps(body).encode()
        return await httpd.get(at.host, at.port, path, seconds, data, _LARGEST_QUEUE)

    async def queue(self) -> Queue | None:
        """Return what runs and what waits; None when ComfyUI does not say."""
        try:
            answer = await self.ask("/queue")
            found = json.loads(answer.body) if answer is not None else {}
            rows = [
                tuple(filter(None, map(queue.from_item, found[f"queue_{each}"]))) for each in ("running", "pending")
            ]
        except (ValueError, KeyError, TypeError, RecursionError):
            return None
        return Queue(*rows)

    async def end_of(self, prompt_id: str) -> bool | None:
        """Return whether a prompt has ended with success; None when it has not ended or nobody says."""
        try:
            answer = await self.ask(f"/history/{prompt_id}")
            found = json.loads(answer.body) if answer is not None and answer.status == 200 else {}
            return bool(found[prompt_id]["status"]["completed"])
        except (ValueError, KeyError, TypeError, RecursionError):
            return None


class Keeper:
    """Keeps the record of unfinished prompts: written when the pod stops, given back to ComfyUI when asked to."""

    def __init__(self, context: Context, report: Callable[[Problem], None]) -> None:
        self._context, self._path = context, context.layout.queue
        self._health, self._console, self._report = context.health, context.console, report
        self._lock = asyncio.Lock()
        self._work: tuple[int | None, asyncio.Task[None]] | None = None
        self._told = False

    async def drain(self, service: Supervised) -> None:
        """Write down what ComfyUI has not finished and let it finish what runs, within `drain_seconds`.

        Nothing is waited for in a pod that has failed, such as one whose GPU is gone.
        """
        if self._work is not None:
            self._work[1].cancel()
        self._health.draining = service.state in (State.READY, State.DEGRADED)
        if not self._health.draining:
            return
        patience = 0.0 if self._health.failed else self._context.settings.drain_seconds
        limit = max(patience, _ANSWER_SECONDS)
        try:
            async with asyncio.timeout(limit + _LAST_SECONDS):
                await self._drain(ComfyUI(service), time.monotonic() + limit, waits=patience > 0)
        except TimeoutError:
            self._console.line("ComfyUI has stopped to answer")
        except (OSError, ValueError) as error:
            self._report(self._problem(error, "prompts that were not finished are lost"))
        self._health.draining = False

    async def _drain(self, comfyui: ComfyUI, deadline: float, *, waits: bool) -> None:
        found = await self._first(comfyui, deadline)
        if found is None:
            self._console.line("ComfyUI did not say what is in its queue")
            return
        seen: frozenset[str] = frozenset()
        waits_until = deadline if waits else time.monotonic()
        while True:
            await self._put_down(comfyui, found, seen)
            seen |= found.names
            if not found.names or time.monotonic() >= waits_until or not comfyui.open:
                break
            await asyncio.sleep(_POLL_SECONDS)
            found = await comfyui.queue() or found
        await self._settle(comfyui, seen)
        if found.running and comfyui.open:
            await comfyui.ask("/interrupt", {"prompt_id": found.running[0].prompt_id})
        if self._health.queue_saved:
            self._console.line(f"{self._health.queue_saved} prompts are kept in {self._path}")

    async def _first(self, comfyui: ComfyUI, deadline: float) -> Queue | None:
        """Ask for the queue until there is an answer: a computation may keep ComfyUI from giving one."""
        while (found := await comfyui.queue()) is None and comfyui.open and time.monotonic() < deadline:  # noqa: ASYNC110
            await asyncio.sleep(_POLL_SECONDS)
        return found

    async def _put_down(self, comfyui: ComfyUI, found: Queue, seen: frozenset[str]) -> None:
        """Write down what is new, and only then take from ComfyUI what waits: by name, so that nothing newer goes."""
        if not found.names <= seen:
            fresh = [prompt for prompt in found.pending if prompt.prompt_id not in seen]
            await self._change(lambda kept: queue.merged(kept, found.running, fresh))
        if found.pending:
            await comfyui.ask("/queue", {"delete": [prompt.prompt_id for prompt in found.pending]})

    async def _settle(self, comfyui: ComfyUI, seen: frozenset[str]) -> None:
        """Forget what has ended with success, also of what was submitted again."""
        kept = await asyncio.to_thread(queue.read, self._path)
        tried = [prompt.prompt_id for prompt in kept if prompt.prompt_id in seen or prompt.attempts]
        done = {prompt_id for prompt_id in tried if comfyui.open and await comfyui.end_of(prompt_id)}
        await self._change(lambda kept: tuple(prompt for prompt in kept if prompt.prompt_id not in done))

    async def resume(self, service: Supervised) -> None:
        """Give an earlier pod's prompts to a ready ComfyUI, where that was asked for; once for each of its runs."""
        task = asyncio.current_task()
        assert task is not None  # noqa: S101 - a coroutine runs in a task
        if self._health.stopping or (self._work is not None and self._work[0] == service.pid):
            return
        if self._work is not None:
            self._work[1].cancel()
        self._work = (service.pid, task)
        with contextlib.suppress(asyncio.CancelledError):
            try:
                await self._resume(service)
            except (OSError, ValueError) as error:
                self._report(self._problem(error, "no prompt is submitted again"))

    async def _resume(self, service: Supervised) -> None:
        kept = await asyncio.to_thread(queue.read, self._path)
        self._health.queue_saved = len(kept)
        if reason := self._reason_to_wait(service):
            if kept and not self._told:
                self._told = True
                self._console.line(f"{len(kept)} prompts of an earlier run are kept in {self._path}: {reason}")
            return
        comfyui, refused = ComfyUI(service), set[str]()
        while comfyui.open and (prompt := await self._next(refused)) is not None:
            self._console.line(f"submits prompt {prompt.prompt_id} of an earlier run again")
            answer = await comfyui.ask("/prompt", prompt.body(), _SUBMIT_SECONDS)
            if answer is None or answer.status == 200:
                await self._watch(comfyui, prompt.prompt_id, away=answer is None)
            else:
                refused.add(prompt.prompt_id)
                self._park(prompt, f"was refused by ComfyUI with {answer.status}")

    def _reason_to_wait(self, service: Supervised) -> str:
        if not self._context.settings.resume:
            return "COMFYPOD_RESUME=on submits them again"
        if self._context.settings.safe_mode or service.attempts.safe_mode:
            return "they wait for a start with custom nodes"
        return "they wait until no other pod uses the workspace" if self._context.lease.others() else ""

    async def _next(self, refused: set[str]) -> Saved | None:
        """Return the oldest prompt that may be tried, with this attempt written down; name those that may not."""
        chosen: list[Saved] = []

        def count(kept: tuple[Saved, ...]) -> tuple[Saved, ...]:
            for prompt in kept:
                if not prompt.parked and prompt.prompt_id not in refused and not chosen:
                    chosen.append(replace(prompt, attempts=prompt.attempts + 1))
            names = {prompt.prompt_id: prompt for prompt in chosen}
            return tuple(names.get(prompt.prompt_id, prompt) for prompt in kept)

        for prompt in await self._change(count):
            if prompt.parked and prompt not in chosen:
                self._park(prompt, f"did not end in {prompt.attempts} attempts")
        return chosen[0] if chosen else None

    async def _watch(self, comfyui: ComfyUI, prompt_id: str, *, away: bool) -> None:
        """Wait until a prompt has ended or is gone, and forget it; keep it when ComfyUI was away meanwhile."""
        while comfyui.open:
            await asyncio.sleep(_WATCH_SECONDS)
            found = await comfyui.queue()
            away = away or found is None
            if found is None or prompt_id in found.names:
                continue
            ended = await comfyui.end_of(prompt_id) is not None
            if not comfyui.open or (away and not ended):
                return
            # In neither place, though ComfyUI never was away: somebody has taken it out of the queue.
            await self._change(lambda kept: tuple(prompt for prompt in kept if prompt.prompt_id != prompt_id))
            return

    def _park(self, prompt: Saved, why: str) -> None:
        hint = f"it is kept in {self._path}: take it out there, or set its `attempts` to 0 to have it tried again"
        problem = Problem("parked-prompt", f"the prompt {prompt.prompt_id} {why}; it is not submitted again", hint)
        if problem not in self._health.problems:
            self._report(problem)

    async def _change(self, change: Callable[[tuple[Saved, ...]], tuple[Saved, ...]]) -> tuple[Saved, ...]:
        """Read, change and write the record; a change that has begun ends, even when whoever asked is cancelled."""
        return await asyncio.shield(self._changed(change))

    async def _changed(self, change: Callable[[tuple[Saved, ...]], tuple[Saved, ...]]) -> tuple[Saved, ...]:
        async with self._lock:
            before = await asyncio.to_thread(queue.read, self._path)
            after = change(before)
            if after != before:
                await asyncio.to_thread(queue.write, self._path, after)
            self._health.queue_saved = len(after)
            return after

    def _problem(self, error: OSError | ValueError, so: str) -> Problem:
        if isinstance(error, OSError):
            return storage_error(error, f"cannot keep {self._path}, so {so}").problem
        return Problem("queue", f"{self._path}: {error}; {so}", "mend the file, or move it away")

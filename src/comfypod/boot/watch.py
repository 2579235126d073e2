"""What is looked at while a pod runs: ComfyUI's queue, the workspace's disk, the GPU. `Health.checks` has it."""

from __future__ import annotations

import asyncio
import contextlib
import os
from functools import partial
from typing import TYPE_CHECKING, Any

from comfypod.boot.errand import Errand
from comfypod.boot.health import Check
from comfypod.boot.process import State
from comfypod.boot.prompts import Observer
from comfypod.errors import ComfypodError, HostError
from comfypod.log import human_bytes

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping, Sequence

    from comfypod.boot.context import Context
    from comfypod.gpu import Survey

_CHECK_SECONDS = 2.0
_PROBE_SECONDS = 5.0
_GPU_MISSES = 3
# States of nodes and models that can be used.
_THERE = frozenset({"present", "baked", "loaded"})


def queue_check(prompts: int, limit: int) -> Check:
    """Judge the number of prompts that ComfyUI has, those at work included."""
    return Check(not limit or prompts <= limit, f"queue {prompts}" + (f" of {limit}" if limit else ""))


def disk_check(free: int | str | None, floor: int) -> Check:
    """Judge the bytes that are free; text is why they are not known, None that the disk does not answer."""
    if not isinstance(free, int):
        return Check(well=False, text=f"the workspace's disk fails: {free or 'it does not answer'}")
    if free < floor:
        return Check(well=False, text=f"disk has {human_bytes(free)} free of at least {human_bytes(floor)}")
    return Check(well=True, text=f"disk has {human_bytes(free)} free")


def required_check(wanted: Sequence[str], rows: Sequence[Mapping[str, object]]) -> Check:
    """Compare the nodes and models that must be there with the rows of `/status`; a pack has to be there wholly."""
    states = {str(row["name"]): str(row["state"]) for row in rows}
    for row in rows:
        if (pack := str(row.get("pack", ""))) and states.get(pack) in (None, *_THERE):
            states[pack] = str(row["state"])
    lacking = [f"{name} is {states.get(name, 'missing')}" for name in wanted if states.get(name) not in _THERE]
    return Check(well=not lacking, text=f"required: {', '.join(lacking) or f'{len(wanted)} are there'}")


def gpu_check(found: Survey | None, before: int) -> Check:
    """Compare the GPUs that answer now with how many there were at boot; None: the driver does not answer."""
    if found is None:
        return Check(well=False, text="the GPU is gone: the NVIDIA driver does not answer")
    if found.trouble:
        return Check(well=False, text=f"the GPU is gone: {found.trouble}")
    if len(found.gpus) < before:
        return Check(well=False, text=f"the GPU is gone: {len(found.gpus)} of {before} are left")
    return Check(well=True, text="GPU answers")


class Watch:
    """Looks after a running pod until `stop`; `lost` is called once when the GPU is gone for good."""

    def __init__(self, context: Context, lost: Callable[[HostError], None]) -> None:
        self._context, self._settings, self._lost = context, context.settings, lost
        self._checks = context.health.checks
        self._disk = Errand(self._free, _PROBE_SECONDS)
        self._gpu = Errand(_survey, _PROBE_SECONDS)
        self._models = Errand(partial(_models, context), _PROBE_SECONDS)
        self._observer = Observer(context.health)
        self._misses = 0

    async def run(self, stop: asyncio.Event) -> None:
        """Look until `stop` is set; what is under way then is dropped."""
        work = [self._every(_CHECK_SECONDS, self._look_at_disk), self._every(_CHECK_SECONDS, self._look_at_queue)]
        if self._context.required:
            work.append(self._every(_CHECK_SECONDS, self._look_at_required))
        if self._context.gpus and self._settings.gpu_seconds:
            work.append(self._every(self._settings.gpu_seconds, self._look_at_gpu))
        tasks = [asyncio.ensure_future(each) for each in (*work, _wait(stop))]
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for task in done:
            task.result()

    async def _every(self, seconds: float, look: Callable[[], Awaitable[None]]) -> None:
        while True:
            await look()
            await asyncio.sleep(seconds)

    async def _look_at_disk(self) -> None:
        free: int | str | None
        try:
            free = await self._disk.run()
        except TimeoutError:
            free = None
        except OSError as error:
            free = error.strerror or str(error)
        self._note("disk", disk_check(free, self._settings.disk_floor))

    def _free(self) -> int:
        facts = os.statvfs(self._settings.workspace)
        free = facts.f_bavail * facts.f_frsize
        self._context.health.workspace |= {"free_bytes": free, "free_inodes": facts.f_favail}
        return free

    async def _look_at_queue(self) -> None:
        """Ask a ComfyUI that answers for its queue, which tells a busy one from a wedged one too."""
        comfyui = self._context.health.critical()
        if any(each.state is not State.READY for each in comfyui):
            self._checks.pop("queue", None)
            return
        if (prompts := await self._observer.look()) is not None:
            comfyui[0].prompts = prompts
            self._note("queue", queue_check(prompts, self._settings.queue_limit))

    async def _look_at_required(self) -> None:
        """Look again at models that were missing: they may come while the pod runs."""
        health = self._context.health
        if not (self._checks.get("required", Check(well=True, text="")).well or health.fetching):
            with contextlib.suppress(OSError, TimeoutError, ComfypodError):
                health.models = await self._models.run()
        self._note("required", required_check(self._context.required, [*health.nodes, *health.models]))

    async def _look_at_gpu(self) -> None:
        try:
            found: Survey | None = await self._gpu.run()
        except TimeoutError:
            found = None
        check = gpu_check(found, self._context.gpus)
        self._note("gpu", check)
        self._misses = 0 if check.well else self._misses + 1
        if self._misses == _GPU_MISSES:
            self._lost(HostError(check.text, "replace the pod; `nvidia-smi` and `dmesg` of the machine say more"))

    def _note(self, name: str, check: Check) -> None:
        """Keep what was found, and say it when it changes for the worse or the better."""
        before, self._checks[name] = self._checks.get(name), check
        if check.well != (before is None or before.well):
            self._context.console.line(f"{'well again' if check.well else 'not ready'}: {check.text}")


def _models(context: Context) -> list[dict[str, Any]]:
    from comfypod.boot.models import survey

    return survey(context)


def _survey() -> Survey:
    from comfypod import gpu

    return gpu.probe()


async def _wait(stop: asyncio.Event) -> None:
    await stop.wait()

"""What a scrape measures beyond what is known: disk, memory, GPUs, ComfyUI's queue, each for two seconds at most."""

from __future__ import annotations

import asyncio
import os
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, TypeVar

from comfypod.boot import memory, prompts
from comfypod.boot.errand import Errand

if TYPE_CHECKING:
    from pathlib import Path

    from comfypod.boot.health import Health
    from comfypod.gpu import Load

_SECONDS = 2.0
_Value = TypeVar("_Value")


@dataclass(frozen=True, slots=True)
class Volume:
    """Room on the workspace's disk; network disks may count no inodes."""

    size: int
    free: int
    inodes: int
    free_inodes: int


@dataclass(frozen=True, slots=True)
class Measured:
    """What was measured for one scrape; None or empty where it is not there or was `late`."""

    volume: Volume | None = None
    memory: memory.Memory | None = None
    gpus: tuple[Load, ...] = ()
    queue_running: int | None = None
    queue_pending: int | None = None
    late: frozenset[str] = frozenset()


SOURCES = ("volume", "memory", "gpu")


class Meter:
    """Measures for one scrape after the other; what is stuck is not asked again until it has answered."""

    def __init__(self, workspace: Path, cgroup: Path = memory.ROOT, seconds: float = _SECONDS) -> None:
        self._volume = Errand(partial(volume, workspace), seconds)
        self._memory = Errand(partial(memory.read, cgroup), seconds)
        self._gpus = Errand(_gpus, seconds)

    async def measure(self, health: Health) -> Measured:
        """Measure everything side by side."""
        late: set[str] = set()
        room = asyncio.ensure_future(_found(self._volume, "volume", late))
        used = asyncio.ensure_future(_found(self._memory, "memory", late))
        gpus = asyncio.ensure_future(_found(self._gpus, "gpu", late))
        queue = await prompts.queue(health)
        running, pending = queue.get("queue_running"), queue.get("queue_pending")
        return Measured(await room, await used, await gpus or (), running, pending, frozenset(late))


async def _found(errand: Errand[_Value], name: str, late: set[str]) -> _Value | None:
    """Return what is measured, None where it cannot be; say when it is late."""
    try:
        return await errand.run()
    except TimeoutError:
        late.add(name)
    except OSError:
        pass
    return None


def volume(workspace: Path) -> Volume:
    """Ask for the room on the workspace's disk; a network that hangs holds this up for as long.

    Raises:
        OSError: there is no workspace yet, or its disk failed.
    """
    found = os.statvfs(workspace)
    size, free = found.f_blocks * found.f_frsize, found.f_bavail * found.f_frsize
    return Volume(size, free, found.f_files, found.f_favail)


def _gpus() -> tuple[Load, ...]:
    from comfypod import gpu

    return gpu.loads()

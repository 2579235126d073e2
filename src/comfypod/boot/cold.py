"""Starts on a cold disk: what is known of an earlier start helps this one, and is found out where nobody has.

An image brings the record of a start. The host engine makes it once for each environment of its store, after a start
and beside a ComfyUI that has nothing to do. It is a start of its own, without anybody's nodes.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from comfypod.boot import memory, pages, readahead
from comfypod.boot.context import StageCancelledError, stopper
from comfypod.boot.health import ColdView
from comfypod.environment import recording

if TYPE_CHECKING:
    from comfypod.boot.context import Context
    from comfypod.boot.process import Supervised

_CALM_SECONDS = 20.0
_LOOK_SECONDS = 2.0
_WORTH_SECONDS = 3.0
_SIZE = 2 << 30


class ColdStart:
    """Has ComfyUI's start be quicker where a record of one fits."""

    def __init__(self, context: Context) -> None:
        self._context = context
        # As it was built: the environment stage puts the volume's packages in front of it.
        self._pod, self._path = context.pod, context.pod.record
        self._ahead: readahead.Readahead | None = None
        self._known, self._over = threading.Event(), False
        if context.settings.cold_start == "off":
            self._path = None
            self._show("off")

    def begin(self) -> None:
        """Look at the record and read ahead, in threads: probes are answered while a cold disk takes its time."""
        if self._path is not None:
            threading.Thread(target=self._begin, args=(self._path,), daemon=True, name="record").start()

    def wait(self) -> None:
        """Wait until it is known whether imports are taken from the record, but no longer than that is worth."""
        if self._path is not None:
            self._known.wait(_WORTH_SECONDS)

    def _begin(self, path: str) -> None:
        try:
            parts = self._read(path)
        finally:
            self._known.set()
        if parts and not self._over and self._has_room(parts) and not readahead.is_resident(parts):
            self._ahead = readahead.Readahead(parts)
            self._ahead.start()
            if self._over:
                self._ahead.stop()

    def _read(self, path: str) -> list[readahead.Part]:
        """Take a record into use and return what to read ahead; one that cannot be used is none."""
        try:
            key = self._pod.environment_key
            known = pages.read(self._context.layout.pages, key)
            parts = readahead.read_parts(path, key, str(self._context.layout.comfyui), known)
        except FileNotFoundError:
            return []
        except (OSError, ValueError) as error:
            self._show("unused", error.strerror or "" if isinstance(error, OSError) else str(error))
            return []
        self._context.record = (path, self._pod.environment_key)
        self._show("used")
        return parts

    def _has_room(self, parts: list[readahead.Part]) -> bool:
        """Tell whether memory is there for what would be read, and as much again for ComfyUI."""
        free = memory.free(self._context.surroundings.cgroup)
        return free is None or free >= 2 * sum(part.length for part in parts)

    def _show(self, state: str, reason: str = "") -> None:
        self._context.health.cold_start = ColdView(state, reason)
        if reason:
            self._context.console.line(f"  the record of a start {self._path} is not used: {reason}")

    def end(self) -> None:
        """Read ahead no more."""
        self._over = True
        if self._ahead is not None:
            self._ahead.stop()
            view = self._context.health.cold_start
            self._context.health.cold_start = replace(view, bytes_ahead=self._ahead.asked)
            self._ahead = None

    async def learn(self, comfyui: Supervised) -> None:
        """Find out for later boots what this one did not know, when this ComfyUI has nothing to do for a while."""
        path, is_host = self._path, self._pod.engine == "host"
        if path is None or not await self._is_calm(comfyui):
            return
        if is_host and self._context.health.cold_start.state != "used":
            await self._make(Path(path))
            if not await self._is_calm(comfyui):
                return
        while comfyui.pid is not None and not await asyncio.to_thread(self._note_pages, path, comfyui.pid):
            # What another pod makes at the moment is there a little later.
            await asyncio.sleep(_LOOK_SECONDS)
            if self._context.health.cold_start.state != "made" or not await self._is_calm(comfyui):
                return

    async def _is_calm(self, comfyui: Supervised) -> bool:
        """Wait for that; False when the pod ends."""
        while not self._context.cancelled():
            if (comfyui.served_seconds or 0.0) >= _CALM_SECONDS and not comfyui.prompts:
                return True
            await asyncio.sleep(_LOOK_SECONDS)
        return False

    async def _make(self, path: Path) -> None:
        free = memory.free(self._context.surroundings.cgroup)
        if free is not None and free < _SIZE:
            return
        with contextlib.suppress(StageCancelledError):
            said = await asyncio.to_thread(
                recording.make, recording.built(self._pod), path, self._context.environ, stopper(self._context)
            )
            if said:
                self._context.console.line(f"  no record of a start could be made: {said}")
            else:
                # From the next boot on: all starts of this one are alike, so that a standby is what it stands for.
                self._show("made")

    def _note_pages(self, path: str, pid: int) -> bool:
        """Note which parts of large libraries ComfyUI uses; False where no record says yet which libraries those are.

        To know nothing of them costs time alone.
        """
        key = self._pod.environment_key
        with contextlib.suppress(OSError):
            if not (names := readahead.large(path, key)):
                return False
            pages.write(self._context.layout.pages, key, pages.used(pid, names))
        return True

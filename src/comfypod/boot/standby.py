"""The standby: a ComfyUI that waits beside the one that serves, so that the next start takes a fraction of one.

It is started as that next start would be, and used for no other (`launch/standby.py` is what it does). It is one of
boot's children like any other, without a port, a lock or a GPU of its own until it is told to go on.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from comfypod import proc
from comfypod.boot import memory
from comfypod.boot.errand import Errand
from comfypod.boot.health import StandbyView
from comfypod.boot.policy import AGAIN
from comfypod.boot.process import State
from comfypod.errors import HostError

if TYPE_CHECKING:
    from comfypod.boot.context import Context
    from comfypod.boot.process import Supervised
    from comfypod.boot.services import Service
    from comfypod.settings import Settings

_LOOK_SECONDS = 2.0
# JupyterLab starts when ComfyUI serves, and whoever waited for that has something to do.
_CALM_SECONDS = 5.0
_DISK_SECONDS = 5.0
# Before one was measured. Most of it are pages of libraries, which it shares with the ComfyUI that serves.
_SIZE = 1 << 30
_LONGEST_RECORD = 1 << 22
# Place of the launcher's descriptors in ComfyUI's command line (`services.comfyui`).
_LINE = 2


def is_on(settings: Settings, argv: tuple[str, ...]) -> bool:
    """Tell whether there is to be one; by itself only where ComfyUI keeps off GPUs."""
    return settings.standby == "on" or (settings.standby == "auto" and "--cpu" in argv)


def fits(free: int | None, size: int, *, there: bool) -> bool:
    """Tell whether memory allows for one: twice its size has to be free to make one, and its size to keep it."""
    return free is None or free >= (size if there else 2 * size)


def _with(service: Service, descriptor: int) -> Service:
    """Give the launcher one descriptor more."""
    argv, safe = (
        (*words[:_LINE], f"{words[_LINE]},{descriptor}", *words[_LINE + 1 :])
        for words in (service.argv, service.safe_argv)
    )
    return replace(service, argv=argv, safe_argv=safe, keep=(*service.keep, descriptor))


@dataclass(frozen=True, slots=True)
class _Key:
    """What a start depends on; a standby is for the start with the very same. `packages` is when they last changed."""

    argv: tuple[str, ...]
    env: frozenset[tuple[str, str]]
    cwd: Path
    keep: tuple[int, ...]
    packages: int


@dataclass(slots=True)
class _Made:
    """A standby that was started. `line` is how we hear that it waits and, later, that it was of use."""

    child: proc.ServiceChild
    line: socket.socket
    key: _Key
    waiting: bool = False

    @property
    def pid(self) -> int:
        return self.child.process.pid

    def lives(self) -> bool:
        return self.child.process.returncode is None

    def waits(self) -> bool:
        """Tell whether it lives and has got as far as it can alone."""
        self.waiting = self.waiting or bool(_heard(self.line))
        return self.waiting and self.lives()

    def go(self) -> bool:
        """Have it go on; False when it is gone."""
        with contextlib.suppress(OSError):
            return self.line.send(b"g") == 1
        return False

    def end(self) -> None:
        """End it at once: it has nothing to lose."""
        proc.signal_group(self.pid, signal.SIGKILL)
        self.line.close()
        self.child.close()


def _heard(line: socket.socket) -> bytes | None:
    """Return what has come, nothing when the other end is closed, None when neither is so."""
    try:
        return line.recv(64)
    except BlockingIOError:
        return None
    except OSError:
        return b""


class Standby:
    """Makes them, one at a time, and starts ComfyUI with or without one."""

    def __init__(self, context: Context) -> None:
        self._context, self._health = context, context.health
        self._record = os.memfd_create("standby")
        self._made: _Made | None = None
        self._gone_on: socket.socket | None = None
        self._ended: list[asyncio.subprocess.Process] = []
        self._failed: int | None = None
        self._size, self._before = _SIZE, 0
        self._packages = Errand(self._changed, _DISK_SECONDS)

    def known_to(self, service: Service) -> Service:
        """Have a ComfyUI that is not started yet note what a standby needs to know."""
        on = is_on(self._context.settings, service.argv)
        self._health.standby = StandbyView("none" if on else "off")
        return _with(service, self._record) if on else service

    def _changed(self) -> int:
        layer = self._context.layer
        return layer.site.stat().st_mtime_ns if layer is not None else 0

    async def _key(self, service: Service, argv: tuple[str, ...]) -> _Key | None:
        try:
            packages = await self._packages.run()
        except (TimeoutError, OSError):
            return None
        return _Key(argv, frozenset(service.env.items()), service.cwd, service.keep, packages)

    async def start(self, service: Service, argv: tuple[str, ...]) -> proc.ServiceChild:
        """Start ComfyUI: by the standby where one waits for just that, else as ever.

        Raises:
            HostError: the program is missing or cannot be executed.
        """
        self._hear()
        made, self._made = self._made, None
        if made is not None:
            if made.waits() and made.key == await self._key(service, argv) and made.go():
                self._forget()
                self._gone_on = made.line
                self._show("none")
                return made.child
            self._made = made
            self._drop("none")
        if is_on(self._context.settings, argv):
            layer = self._context.layer
            image = layer.image if layer is not None else Path(self._context.pod.python).parent.parent
            os.ftruncate(self._record, 0)
            os.pwrite(self._record, json.dumps({"image": str(image), "again": AGAIN}).encode(), 0)
        return await proc.start_service(argv, service.env, service.cwd, service.keep)

    async def run(self) -> None:
        """Look after it until cancelled, which ends it."""
        try:
            while True:
                await asyncio.sleep(_LOOK_SECONDS)
                for comfyui in self._health.critical():
                    if is_on(self._context.settings, comfyui.argv):
                        await self._look(comfyui)
        finally:
            self._forget()
            if self._made is not None:
                self._drop("none")
            await asyncio.gather(*(process.wait() for process in self._ended))

    def _hear(self) -> None:
        """Count the last start as its own, unless it has started afresh."""
        if self._gone_on is not None and (heard := _heard(self._gone_on)) is not None:
            self._forget()
            self._health.standby = replace(self._health.standby, starts=self._health.standby.starts + bool(heard))

    def _forget(self) -> None:
        """Listen no more to the one that is ComfyUI now."""
        if self._gone_on is not None:
            self._gone_on.close()
            self._gone_on = None

    async def _look(self, comfyui: Supervised) -> None:
        self._hear()
        key, made = await self._key(comfyui.service, comfyui.argv), self._made
        free = memory.free(self._context.surroundings.cgroup)
        settled, self._before = key is not None and key.packages == self._before, key.packages if key else 0
        if made is None:
            roomy = fits(free, self._size, there=False)
            if key is not None and settled and self._is_calm(comfyui) and roomy:
                await self._make(comfyui, key)
            elif not roomy:
                self._show("short of memory")
        elif not made.lives():
            self._failed = comfyui.pid
            comfyui.forget_kills()
            self._drop("none")
        elif not fits(free, size := proc.resident(made.pid), there=True):
            self._drop("short of memory")
        elif key != made.key:
            self._drop("none")
        elif made.waits():
            # One that has just died has none.
            self._size = size or self._size
            self._show("waiting", size)
        else:
            # Not by nice(1): a process in a container cannot get back what it has given up.
            proc.signal_group(made.pid, signal.SIGSTOP if comfyui.prompts else signal.SIGCONT)
            self._show("preparing", size)

    def _is_calm(self, comfyui: Supervised) -> bool:
        """Tell whether ComfyUI serves, has nothing to do, and no standby has failed beside it."""
        served = comfyui.served_seconds if comfyui.state is State.READY else None
        if served is None or served < _CALM_SECONDS or comfyui.prompts or comfyui.pid == self._failed:
            return False
        return comfyui.attempts.search is None and b'"modules"' in os.pread(self._record, _LONGEST_RECORD, 0)

    async def _make(self, comfyui: Supervised, key: _Key) -> None:
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        with theirs, contextlib.ExitStack() as undo:
            undo.callback(ours.close)
            service = _with(replace(comfyui.service, argv=comfyui.argv), theirs.fileno())
            try:
                child = await proc.start_service(service.argv, service.env, service.cwd, service.keep)
            except HostError:
                self._failed = comfyui.pid
                return
            undo.pop_all()
        self._made = _Made(child, ours, key)
        self._show("preparing")

    def _drop(self, state: str) -> None:
        made, self._made = self._made, None
        if made is not None:
            made.end()
            still = [process for process in self._ended if process.returncode is None]
            self._ended = [*still, made.child.process]
        self._show(state)

    def _show(self, state: str, size: int = 0) -> None:
        self._health.standby = StandbyView(state, size, self._health.standby.starts)

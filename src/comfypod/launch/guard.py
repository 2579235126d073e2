"""The guard around the loading of ComfyUI's custom nodes; it changes no file of ComfyUI's.

What it shall do it reads from one descriptor (JSON: `seconds`, `aside`), what happens it writes to another (a line of
JSON for each step), so that boot knows which node was being loaded when ComfyUI has died. A node that is set aside is
refused with its reason, one that takes too long is interrupted, and one that leaves by `sys.exit` fails alone.
"""

from __future__ import annotations

import contextlib
import faulthandler
import importlib.machinery
import importlib.util
import json
import logging
import os
import signal
import sys
import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator
    from types import ModuleType

_ENTRIES = ("__init__.py", "prestartup_script.py")
_LONGEST_REASON = 300
_LONGEST_ORDERS = 1 << 20
# What a node may raise that is not its own failure to Python; ComfyUI lets it through and ends.
_LEAVES = (SystemExit, KeyboardInterrupt)


class TookTooLongError(BaseException):
    """Raised in the middle of a node whose time is up; no `except Exception` of the node's own swallows it."""


class Guard:
    """Watches the nodes of this process. `orders` and `events` are open descriptors."""

    def __init__(self, orders: int, events: int) -> None:
        body = json.loads(os.pread(orders, _LONGEST_ORDERS, 0) or b"{}")
        self.seconds: float = body.get("seconds", 0.0)
        self.aside: dict[str, str] = body.get("aside", {})
        self._events = events
        self._node = ""
        self._began = 0.0
        self._failed: dict[str, tuple[str, str]] = {}

    @property
    def loading(self) -> bool:
        """Whether a node is being loaded, or its start script runs."""
        return bool(self._node)

    def install(self) -> None:
        """Watch from now on what is loaded by file; `wrap` is for what ComfyUI does with it."""
        faulthandler.enable()
        plain = importlib.util.spec_from_file_location

        def spec_from_file_location(name: str, location: Any = None, **options: Any) -> Any:
            spec = plain(name, location, **options)
            node = self.node_of(location) if isinstance(location, str) else ""
            if node and spec is not None and type(spec.loader) is importlib.machinery.SourceFileLoader:
                spec.loader = _NodeLoader(self, node, spec.loader)
            return spec

        importlib.util.spec_from_file_location = spec_from_file_location
        self.tell("", "begun")

    def tell(self, node: str, state: str, reason: str = "") -> None:
        """Say what happens; nobody may listen any more."""
        seconds = round(time.monotonic() - self._began, 3) if self._began else 0.0
        line = {"pid": os.getpid(), "node": node, "state": state, "reason": reason, "seconds": seconds}
        with contextlib.suppress(OSError):
            os.write(self._events, json.dumps(line).encode() + b"\n")

    def node_of(self, path: str) -> str:
        """Return the name of the node that a file or folder is the whole or the entry of, else nothing."""
        paths: Any = sys.modules.get("folder_paths")
        if paths is None:
            return ""
        entry = os.path.dirname(path) if os.path.basename(path) in _ENTRIES else path
        return os.path.basename(entry) if os.path.dirname(entry) in paths.get_folder_paths("custom_nodes") else ""

    @contextlib.contextmanager
    def watched(self, node: str) -> Iterator[None]:
        """Leave a crumb that boot finds when this process dies here, and interrupt what takes too long."""
        if self._node:
            yield
            return
        self._node, self._began = node, time.monotonic()
        self.tell(node, "loading")
        before = signal.signal(signal.SIGALRM, self._time_is_up)
        signal.setitimer(signal.ITIMER_REAL, self.seconds, self.seconds)
        try:
            yield
        finally:
            self._node = ""
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)
            self.tell(node, "over")

    def _time_is_up(self, signum: int, frame: object) -> None:
        del signum, frame
        if self._node:
            raise TookTooLongError

    def load(self, node: str, work: Callable[[], None]) -> None:
        """Run a node's own code; whatever way it fails, ComfyUI sees an error that it can survive.

        Raises:
            ImportError: it is set aside, left, or took too long.
        """
        if node in self.aside:
            raise ImportError(f"set aside: {self.aside[node]}")
        with self.watched(node):
            try:
                work()
            except (*_LEAVES, TookTooLongError) as error:
                raise ImportError(self._note(node, error)) from error
            except Exception as error:
                self._note(node, error)
                raise

    async def load_whole(self, node: str, work: Awaitable[bool]) -> bool:
        """Have ComfyUI take a node in, and tell how that ended."""
        with self.watched(node):
            try:
                well = await work
            except (*_LEAVES, TookTooLongError) as error:
                self._note(node, error)
                logging.getLogger().exception("Cannot take in the custom node %s", node)
                well = False
            unknown = ("failed", "ComfyUI found no nodes in it; comfyui.log says why")
            state = ("aside", self.aside[node]) if node in self.aside else self._failed.get(node, unknown)
            self.tell(node, *(("loaded",) if well else state))
        return well

    def wrap(self, nodes: Any) -> None:
        """Watch the whole of `load_custom_node` in ComfyUI's module `nodes`."""
        plain = getattr(nodes, "load_custom_node", None)
        if plain is None:
            return

        async def load_custom_node(module_path: str, *words: Any, **options: Any) -> bool:
            node, work = self.node_of(module_path), plain(module_path, *words, **options)
            return await (self.load_whole(node, work) if node else work)

        nodes.load_custom_node = load_custom_node

    def _note(self, node: str, error: BaseException) -> str:
        """Keep why a node failed, and return it."""
        if isinstance(error, TookTooLongError):
            self._failed[node] = ("hung", f"it took longer than {self.seconds:g} s to load")
        elif isinstance(error, SystemExit):
            self._failed[node] = ("failed", f"it called sys.exit({error.code!r})"[:_LONGEST_REASON])
        elif isinstance(error, FileNotFoundError) and os.path.basename(str(error.filename)) == _ENTRIES[0]:
            self._failed[node] = ("failed", "it has no __init__.py: it is cloned by half, or no node")
        else:
            told = " ".join(f"{type(error).__name__}: {error}".split()).rstrip(": ")
            self._failed[node] = ("failed", told[:_LONGEST_REASON])
        return self._failed[node][1]


class _NodeLoader(importlib.machinery.SourceFileLoader):
    """Python's own loader, watched."""

    def __init__(self, guard: Guard, node: str, plain: importlib.machinery.SourceFileLoader) -> None:
        super().__init__(plain.name, plain.path)
        self._guard, self._node = guard, node

    def exec_module(self, module: ModuleType) -> None:
        self._guard.load(self._node, lambda: super(_NodeLoader, self).exec_module(module))

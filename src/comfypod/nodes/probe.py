"""Runs under ComfyUI's Python, by itself: imports ComfyUI once, then each node in a fork of its own, as ComfyUI does.

Its argument is JSON: `core` (the tree of ComfyUI), `arguments` for its `main.py`, `seconds` that a node may take, and
`nodes` (folders by name). It prints a line of JSON for each node: `name`, `reason` (empty: it imports), `seconds`.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import importlib.util
import inspect
import json
import logging
import os
import select
import signal
import sys
import time
from typing import Any, NoReturn

_DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG
_LONGEST = 1 << 16


def main() -> int:
    """Import ComfyUI, then try each node; the exit code is 0 however they fare."""
    wanted = json.loads(sys.argv[1])
    results = os.fdopen(os.dup(1), "w")
    # What nodes print is not for whoever reads the results.
    os.dup2(2, 1)
    _import_comfyui(wanted["core"], wanted["arguments"])
    for name, path in wanted["nodes"].items():
        begun = time.monotonic()
        reason = _tried(path, wanted["seconds"])
        row = {"name": name, "reason": reason, "seconds": round(time.monotonic() - begun, 2)}
        results.write(json.dumps(row) + "\n")
        results.flush()
    return 0


def _import_comfyui(core: str, arguments: list[str]) -> None:
    """Do what `main.py` does before it comes to custom nodes, on the CPU, without its database and its port."""
    sys.path.insert(0, core)
    sys.argv = [os.path.join(core, "main.py"), "--cpu", *arguments]
    import comfy.options  # type: ignore[import-not-found]

    comfy.options.enable_args_parsing()
    import folder_paths  # type: ignore[import-not-found]  # noqa: F401
    import nodes  # type: ignore[import-not-found]
    import server  # type: ignore[import-not-found]

    # Many nodes add routes to it when they are imported.
    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    server.PromptServer(loop)
    sys.path.insert(0, os.path.join(core, "comfy"))
    # Nodes lean on modules of ComfyUI's own nodes, which import one another in this order only.
    for name in ("init_public_apis", "init_builtin_extra_nodes"):
        done: Any = getattr(nodes, name, lambda: None)()
        if inspect.isawaitable(done):
            loop.run_until_complete(done)


def _tried(path: str, seconds: float) -> str:
    """Import a node in a fork; return why it cannot be imported, nothing when it can."""
    reading, writing = os.pipe()
    parent = os.getpid()
    pid = os.fork()
    if pid == 0:
        os.close(reading)
        _in_the_fork(parent, path, writing)
    os.close(writing)
    said = _read_all(reading, time.monotonic() + seconds)
    os.close(reading)
    if said is None:
        _end(pid)
        return f"its import takes more than {seconds:.0f} s"
    status = 0 if said.endswith(b"\0") else os.waitpid(pid, 0)[1]
    _end(pid)
    if os.WIFSIGNALED(status):
        return f"its import ends Python by {signal.Signals(os.WTERMSIG(status)).name}"
    if not said.startswith(b"="):
        return f"its import ends Python with exit code {os.WEXITSTATUS(status)}"
    return said[1:-1].decode("utf-8", "replace")


def _end(group: int) -> None:
    """End a fork and what it has started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(group, signal.SIGKILL)
    with contextlib.suppress(ChildProcessError):
        os.waitpid(group, 0)


def _read_all(handle: int, deadline: float) -> bytes | None:
    """Return what is written until a NUL or until the other end closes; None when the deadline comes first."""
    data = b""
    while (left := deadline - time.monotonic()) > 0:
        if select.select([handle], [], [], left)[0]:
            part = os.read(handle, _LONGEST)
            data += part
            if not part or part.endswith(b"\0"):
                return data
    return None


def _in_the_fork(parent: int, path: str, writing: int) -> NoReturn:
    os.setpgid(0, 0)
    ctypes.CDLL(None).prctl(_DEATH_SIGNAL, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)
    code = 1
    try:
        reason = _load(path)
        _say(writing, reason)
        code = 0
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 1
    except BaseException as error:  # noqa: BLE001 - whatever a node raises
        _say(writing, f"{type(error).__name__}: {error}")
    finally:
        # Without what a node wants done at the end.
        os._exit(code)


def _say(writing: int, reason: str) -> None:
    os.write(writing, b"=" + reason.encode("utf-8", "replace").replace(b"\0", b" ")[:4000] + b"\0")


class _Reasons(logging.Handler):
    """Keeps the error that ComfyUI is about to pass over, or else its last warning."""

    reason = ""

    def emit(self, record: logging.LogRecord) -> None:
        """Look at one."""
        error = sys.exc_info()[1]
        if error is not None:
            self.reason = f"{type(error).__name__}: {error}"
        elif record.levelno >= logging.WARNING:
            self.reason = record.getMessage()


def _load(path: str) -> str:
    import folder_paths
    import nodes

    folder_paths.add_model_folder_path("custom_nodes", os.path.dirname(path))
    with contextlib.suppress(Exception):
        # ComfyUI passes over its failure too.
        _run(os.path.join(path, "prestartup_script.py"))
    reasons = _Reasons()
    logging.getLogger().addHandler(reasons)
    done: Any = nodes.load_custom_node(path, set(nodes.NODE_CLASS_MAPPINGS), module_parent="custom_nodes")
    if inspect.isawaitable(done):
        done = asyncio.get_event_loop().run_until_complete(done)
    return "" if done else reasons.reason or "ComfyUI does not take it"


def _run(script: str) -> None:
    spec = importlib.util.spec_from_file_location(script.removesuffix(".py"), script)
    if spec is not None and spec.loader is not None:
        spec.loader.exec_module(importlib.util.module_from_spec(spec))


if __name__ == "__main__":
    sys.exit(main())

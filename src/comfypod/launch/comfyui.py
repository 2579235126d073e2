"""Start ComfyUI with a guard around its custom nodes, and with the collector off until it serves.

`python comfyui.py ORDERS,EVENTS MAIN_PY ARGUMENT...` is `python MAIN_PY ARGUMENT...` in all else: the numbers are those
of two open descriptors, see `guard.py`.
"""

from __future__ import annotations

import importlib.util
import os
import runpy
import sys
from typing import Any


def _neighbour(name: str) -> Any:
    """Import a module of this folder under a name that no node has, so that the folder need not be on the path."""
    path = os.path.join(os.path.dirname(os.path.abspath(__file__)), f"{name}.py")
    spec = importlib.util.spec_from_file_location(f"_comfypod_{name}", path)
    assert spec is not None and spec.loader is not None  # noqa: S101, PT018
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _come_back(events: int, launcher: str, line: str) -> None:
    """Have a ComfyUI that replaces itself (ComfyUI-Manager's restart) come back with its guard."""
    plain, main = os.execv, sys.argv[0]

    def execv(program: Any, words: Any) -> None:
        os.set_inheritable(events, True)
        words = list(words)
        if words[1:2] == [main]:
            words[1:1] = [launcher, line]
        plain(program, words)

    os.execv = execv  # type: ignore[assignment]


def main() -> None:
    """Become ComfyUI."""
    launcher, line = sys.argv[:2]
    orders, events = map(int, line.split(","))
    del sys.argv[:2]
    sys.path[0] = os.path.dirname(os.path.realpath(sys.argv[0]))
    os.set_inheritable(events, False)
    _come_back(events, launcher, line)
    _neighbour("guard").Guard(orders, events).install()
    _neighbour("collector").rest_until_served(sys.argv)
    runpy.run_path(sys.argv[0], run_name="__main__")


if __name__ == "__main__":
    main()

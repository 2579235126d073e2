"""Start ComfyUI with a guard around its custom nodes, the collector off until it serves, and imports from one file.

`python comfyui.py ORDERS,EVENTS[,RECORD[,LINE]] MAIN_PY ARGUMENT...` is `python MAIN_PY ARGUMENT...` in all else: the
numbers are those of open descriptors, see `guard.py` and, for the last two, `standby.py`.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import runpy
import sys
from typing import Any, NoReturn

_LONGEST_ORDERS = 1 << 20


def _neighbour(name: str) -> Any:
    """Import a module of this folder under a name that no node has, so that the folder need not be on the path."""
    path = os.path.join(os.path.dirname(os.path.abspath(__file__)), f"{name}.py")
    spec = importlib.util.spec_from_file_location(f"_comfypod_{name}", path)
    assert spec is not None and spec.loader is not None  # noqa: S101, PT018
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class _Launch:
    """One start. `numbers` are the descriptors, `launcher` is the path of this file."""

    def __init__(self, launcher: str, numbers: list[int]) -> None:
        self._launcher, self._numbers, self._arguments = launcher, numbers, list(sys.argv)
        self._plain = os.execv
        self._serving: dict[str, str] | None = None
        self._at = _neighbour("imports").At
        self._standby: Any = None
        self._inquiries: Any = None
        self._why_not = ""

    def prepare(self) -> None:
        """Set up what stands around ComfyUI, be it at once or, in a standby, when its time comes."""
        orders, events, *more = self._numbers
        os.set_inheritable(events, False)
        if record := json.loads(os.pread(orders, _LONGEST_ORDERS, 0) or b"{}").get("record"):
            self._why_not = _neighbour("bundle").install(*record, sys.path[0], self._recall)
        os.execv = self._execv  # type: ignore[assignment]
        self._standby = _neighbour("standby") if more else None
        inquiries = _neighbour("inquiries")
        if inquiries.OPTION in sys.argv:
            # Without a thread or a file more, ComfyUI waits for pip as ever.
            with contextlib.suppress(OSError, RuntimeError):
                self._inquiries = inquiries.Inquiries()
                self._inquiries.begin()
        _neighbour("collector").rest_until_served(sys.argv, self._served)
        if len(more) < 2:
            self._begin()
            return
        os.set_inheritable(more[1], False)
        standby = self._standby.Standby(*more, self._at, self._begin)
        standby.afresh = self._afresh
        standby.loading = lambda: self._guard.loading

    def _recall(self, structures: dict[str, bytes]) -> None:
        structure = _neighbour("structure")
        self._at(structure.MODULE, after=lambda module: structure.recall(module, structures))

    def _begin(self) -> None:
        orders, events, *more = self._numbers
        self._guard = _neighbour("guard").Guard(orders, events)
        self._guard.install()
        if self._why_not:
            self._guard.tell("", "without-record", self._why_not)
        write = self._standby.Recorder(more[0], self._at, lambda: self._guard.loading).write if len(more) == 1 else int
        self._at("nodes", after=lambda nodes: (self._guard.wrap(nodes), write()))

    def _served(self) -> None:
        self._serving = dict(os.environ)
        self._guard.tell("", "listens")
        if self._inquiries is not None:
            self._inquiries.end()

    def _execv(self, program: Any, words: Any) -> None:
        """Have a ComfyUI that replaces itself (ComfyUI-Manager's restart) come back with its guard.

        Where a standby may wait and nothing else is asked for than the same again, it ends and has boot start it.
        """
        words = list(words)
        if words[1:] == self._arguments and self._standby is not None and self._serving == dict(os.environ):
            os._exit(self._standby.read(self._numbers[2])["again"])
        if words[1:2] == self._arguments[:1]:
            words[1:1] = self._words()
        self._replace(program, words)

    def _words(self) -> list[str]:
        return [self._launcher, ",".join(map(str, self._numbers[:3]))]

    def _afresh(self) -> NoReturn:
        self._replace(sys.executable, [sys.orig_argv[0], *self._words(), *self._arguments])
        raise AssertionError

    def _replace(self, program: Any, words: list[str]) -> None:
        os.set_inheritable(self._numbers[1], True)
        self._plain(program, words)


def main() -> None:
    """Become ComfyUI."""
    launcher, line = sys.argv[:2]
    del sys.argv[:2]
    sys.path[0] = os.path.dirname(os.path.realpath(sys.argv[0]))
    _Launch(launcher, [int(number) for number in line.split(",")]).prepare()
    runpy.run_path(sys.argv[0], run_name="__main__")


if __name__ == "__main__":
    main()

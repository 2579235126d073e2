"""A second ComfyUI that waits before its first import of torch, to be the next one that starts.

It takes ComfyUI's own steps with ComfyUI's own arguments until `main.py` has settled devices and allocator (that is
the import of `cuda_malloc`), and imports there what an earlier start had imported from the image between torch and the
module `nodes`: a `Recorder` has noted that. Then it waits for a word, and goes on in `main.py`. When a start script of
a node changes what an import might have depended on, it starts afresh in the same process.
"""

from __future__ import annotations

import contextlib
import copy
import importlib
import importlib.machinery
import json
import os
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from types import ModuleType

_POINT, _HIDDEN = "cuda_malloc", "torch"
_LONGEST = 1 << 22
_STDLIB = os.path.dirname(os.__file__)
_SCORE = "/proc/self/oom_score_adj"
_FIRST_TO_GO = "1000"


def read(record: int) -> dict[str, Any]:
    """Return what the record holds: `image` and `again` come from boot, `modules` and `environ` from a `Recorder`."""
    found: dict[str, Any] = json.loads(os.pread(record, _LONGEST, 0))
    return found


class Surroundings:
    """What decides where an import leads, but for the environment. What is added behind the rest changes nothing."""

    def __init__(self) -> None:
        self._path, self._finders = list(sys.path), _finders()

    def hold(self) -> bool:
        """Tell whether that is still so."""
        return sys.path[: len(self._path)] == self._path and _finders() == self._finders


def _finders() -> list[Any]:
    # Ours come and go.
    return [finder for finder in sys.meta_path if not type(finder).__module__.startswith("_comfypod_")]


class Recorder:
    """Notes what a start of ComfyUI imports from torch on, before any node does, its own extra nodes included.

    Those change the environment and each other's libraries between imports, and so does ComfyUI-Manager before torch.
    Where a start script imports torch itself, nothing is noted. `loading` says whether a node runs.
    """

    def __init__(self, record: int, at: Any, loading: Callable[[], bool]) -> None:
        self._record, self._loading = record, loading
        self._environ: dict[str, str] | None = None
        at(_POINT, after=lambda _: at(_HIDDEN, before=self._settled))
        self._before = Surroundings()

    def _settled(self) -> None:
        if not self._loading() and self._before.hold():
            self._environ, self._early = dict(os.environ), set(sys.modules) - {_HIDDEN}

    def write(self) -> None:
        """Write the record, now that ComfyUI has the module that loads nodes."""
        if self._environ is None:
            return
        body = read(self._record)
        modules = {name: _file(module) for name, module in list(sys.modules.items()) if name not in self._early}
        names = [name for name, path in modules.items() if _is_of(body["image"], path)]
        data = json.dumps({**body, "modules": names, "environ": self._environ}).encode()
        os.ftruncate(self._record, 0)
        os.pwrite(self._record, data, 0)


def _file(module: object) -> str:
    # Not getattr: some modules import others when they are asked for a name.
    found = getattr(module, "__dict__", {}).get("__file__")
    return found if isinstance(found, str) else ""


def _is_of(image: str, path: str) -> bool:
    return path.startswith((f"{image}{os.sep}", f"{_STDLIB}{os.sep}"))


class _Fence:
    """Keeps from being imported what a volume has over the image, and ComfyUI itself: the standby ends.

    To leave such a module out would leave others half imported, or have them take it for not installed.
    """

    def __init__(self, image: str) -> None:
        # Not what is added later: torch makes a module of its own in a temporary folder.
        self._outside = tuple(
            os.path.join(place, "") for place in sys.path if not _is_of(image, os.path.join(place, ""))
        )
        sys.meta_path.insert(0, self)

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        """Return the spec of a package from elsewhere (importlib.abc.MetaPathFinder): to look for it is no import."""
        del target
        spec = None if path is not None else importlib.machinery.PathFinder.find_spec(name)
        places = [] if spec is None else [spec.origin] if spec.has_location else spec.submodule_search_locations or []
        if spec is None or not any((place or "").startswith(self._outside) for place in places):
            return None
        spec.loader = self  # type: ignore[assignment]
        return spec

    def create_module(self, spec: Any) -> None:
        """End (importlib.abc.Loader)."""
        del spec
        os._exit(1)

    def exec_module(self, module: ModuleType) -> None:
        """Be a loader; this is not reached."""


class Standby:
    """Prepares, waits on the descriptor `line`, and calls `begin` when it is to be ComfyUI.

    `afresh` replaces the process by a plain start.
    """

    def __init__(self, record: int, line: int, at: Any, begin: Callable[[], None]) -> None:
        self._body, self._line, self._at, self._begin = read(record), line, at, begin
        self._environ = dict(os.environ)
        self._score = _set_score(_FIRST_TO_GO)
        self._early = at(_HIDDEN, before=lambda: os._exit(0))
        at(_POINT, after=self._reached)
        self.loading: Callable[[], bool] = bool
        self.afresh: Callable[[], object] = int

    def _reached(self, module: ModuleType) -> None:
        del module
        self._early.leave()
        added = self._prepare()
        hidden, before, files = _Hidden(), Surroundings(), self._files()
        os.write(self._line, b"waiting")
        if not os.read(self._line, 1):
            os._exit(0)
        _set_score(self._score)
        if files != self._files():
            self.again()

        def first_look() -> None:
            if self.loading() or not before.hold() or dict(os.environ) != self._body["environ"]:
                self.again()
            os.environ.update(added)
            with contextlib.suppress(OSError):
                os.write(self._line, b"used")
            os.close(self._line)

        if hidden.modules:
            hidden.before = first_look
        else:
            self._at(_HIDDEN, before=first_look)
        self._begin()

    def _prepare(self) -> dict[str, str]:
        """Import what is noted, in the environment that it was imported in; return what that has added to it."""
        own, noted = dict(os.environ), self._body["environ"]
        fence = _Fence(self._body["image"])
        _become(noted)
        for name in self._body["modules"]:
            with contextlib.suppress(Exception):
                importlib.import_module(name)
                continue
            os._exit(1)
        sys.meta_path.remove(fence)
        added = {name: value for name, value in os.environ.items() if noted.get(name) != value}
        _become(own)
        return added

    def _files(self) -> dict[str, tuple[int, int]]:
        """Return size and time of each file that was read from elsewhere, ComfyUI's own above all."""
        found = {}
        for path in {sys.argv[0], *map(_file, list(sys.modules.values()))} - {""}:
            if not _is_of(self._body["image"], path):
                with contextlib.suppress(OSError):
                    facts = os.stat(path)
                    found[path] = facts.st_size, facts.st_mtime_ns
        return found

    def again(self) -> None:
        """Start afresh: what was imported is not what would be."""
        _become(self._environ)
        self.afresh()


def _become(environ: Mapping[str, str]) -> None:
    for name in set(os.environ) - set(environ):
        del os.environ[name]
    os.environ.update(environ)


def _set_score(score: str) -> str:
    """Say how soon the kernel ends this process when memory runs out (proc(5)); return what held before."""
    with contextlib.suppress(OSError), open(_SCORE, "r+", encoding="ascii") as handle:
        before = handle.read().strip()
        handle.write(score)
        return before
    return score


class _Hidden:
    """Torch, out of sight until somebody imports it: ComfyUI looks whether that was done too early."""

    def __init__(self) -> None:
        self.before: Callable[[], object] = int
        names = [name for name in sys.modules if name.partition(".")[0] == _HIDDEN]
        self.modules = {name: sys.modules.pop(name) for name in names}
        if names:
            sys.meta_path.insert(0, self)

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        """Return its spec, with us as the one who loads it (importlib.abc.MetaPathFinder)."""
        del path, target
        if name != _HIDDEN:
            return None
        spec = copy.copy(self.modules[_HIDDEN].__spec__)
        assert spec is not None  # noqa: S101 - it was imported
        spec.loader = self  # type: ignore[assignment]
        return spec

    def create_module(self, spec: Any) -> ModuleType:
        """Return the very module, where nothing has changed since it was imported (importlib.abc.Loader)."""
        self.before()
        sys.meta_path.remove(self)
        module = self.modules[spec.name]
        self._spec = module.__spec__
        return module

    def exec_module(self, module: ModuleType) -> None:
        """Show all of it again."""
        module.__spec__ = self._spec
        sys.modules.update(self.modules)

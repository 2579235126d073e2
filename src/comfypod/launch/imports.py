"""Tells of one import; how Python finds and runs the module stays as it is."""

from __future__ import annotations

import importlib.machinery
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import ModuleType


class At:
    """Calls `before` when a module is about to run for the first time, and `after` with it when it has run."""

    def __init__(
        self, name: str, before: Callable[[], object] = int, after: Callable[[ModuleType], object] = id
    ) -> None:
        self._name, self._before, self._after = name, before, after
        sys.meta_path.insert(0, self)

    def leave(self) -> None:
        """Tell no more."""
        if self in sys.meta_path:
            sys.meta_path.remove(self)

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        """Return the spec of that module (importlib.abc.MetaPathFinder)."""
        if name != self._name:
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path, target)
        if spec is not None and spec.loader is not None:
            loader: Any = spec.loader
            plain = loader.exec_module

            def exec_module(module: ModuleType) -> None:
                del loader.exec_module
                self.leave()
                self._before()
                plain(module)
                self._after(module)

            loader.exec_module = exec_module
        return spec

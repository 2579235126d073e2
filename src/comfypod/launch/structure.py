"""Has transformers read its own sources once and for all.

At each import of itself it opens the source of every model that it has, 1,669 files in transformers 5.23, to find out
which names they offer. For a folder of the image the answer is always the same one; a record (`record.py`) holds it.
"""

from __future__ import annotations

import contextlib
import functools
import marshal
import os
import threading
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, MutableMapping
    from types import ModuleType

MODULE = "transformers.utils.import_utils"
_NAME = "create_import_structure_from_path"


def _wrap(module: ModuleType, around: Callable[[Callable[[Any], Any], Any], Any]) -> None:
    plain = getattr(module, _NAME, None)
    if callable(plain):

        @functools.wraps(plain)
        def create(module_path: Any) -> Any:
            return around(plain, module_path)

        for name in ("cache_clear", "cache_info"):
            if hasattr(plain, name):
                setattr(create, name, getattr(plain, name))
        setattr(module, _NAME, create)


def learn(module: ModuleType, found: MutableMapping[str, bytes]) -> None:
    """Note what is found in each folder that somebody asks for; what is asked for on the way there is part of that."""
    depth = threading.local()

    def around(plain: Callable[[Any], Any], module_path: Any) -> Any:
        depth.now = getattr(depth, "now", 0) + 1
        try:
            answer = plain(module_path)
        finally:
            depth.now -= 1
        # An answer that is given again may have been changed by whoever had it first.
        if not depth.now and os.fspath(module_path) not in found:
            with contextlib.suppress(ValueError):
                # This version of the format has no references, so that equal answers are equal bytes.
                found[os.fspath(module_path)] = marshal.dumps(_ordered(answer), 2)
        return answer

    _wrap(module, around)


def recall(module: ModuleType, found: MutableMapping[str, bytes]) -> None:
    """Answer from what is known, with new objects each time, as whoever asks changes them."""

    def around(plain: Callable[[Any], Any], module_path: Any) -> Any:
        known = found.get(os.fspath(module_path))
        return plain(module_path) if known is None else marshal.loads(known)  # noqa: S302 - as Python does

    _wrap(module, around)


def _ordered(answer: Any) -> Any:
    """Return an answer with its folders and files in one order; a disk's own order is any."""
    if not isinstance(answer, dict):
        return answer
    keys = sorted(answer, key=lambda key: (1, key, ()) if isinstance(key, str) else (0, "", tuple(sorted(key))))
    return {key: _ordered(answer[key]) for key in keys}

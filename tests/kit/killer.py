"""Runs `comfypod` and kills it with SIGKILL at its N-th durable step; counts the steps when N is 0.

A durable step is a system call that changes what a crash leaves behind. They all go through `os` and the file door,
so both are wrapped, in this process alone.
"""

from __future__ import annotations

import errno
import functools
import os
import shutil
import signal
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

STEPS = ("mkdir", "rename", "replace", "unlink", "remove", "rmdir", "symlink", "link", "fsync", "truncate")


class Steps:
    """Counts durable steps, notes them in a file, and does what was asked at one of them."""

    def __init__(self, target: int, fault: str, notes: Path) -> None:
        self.count = 0
        self._target = target
        self._fault = fault
        self._notes = notes

    def step(self, name: str, *words: Any) -> None:
        self.count += 1
        with self._notes.open("a") as handle:
            handle.write(f"{self.count} {name} {' '.join(map(str, words))}\n")
        if self.count != self._target:
            return
        if self._fault == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
            time.sleep(60)
        raise OSError(getattr(errno, self._fault), os.strerror(getattr(errno, self._fault)), *map(str, words[:1]))

    def wrap(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def stepped(*arguments: Any, **options: Any) -> Any:
            self.step(name, *arguments[:2])
            return function(*arguments, **options)

        return stepped


def main() -> int:
    """Take N, the fault (`kill` or an errno's name) and the notes' path, then comfypod's own arguments."""
    target, fault, notes, *arguments = sys.argv[1:]
    steps = Steps(int(target), fault, Path(notes))
    from comfypod import files
    from comfypod.__main__ import main as comfypod

    for name in STEPS:
        setattr(os, name, steps.wrap(name, getattr(os, name)))
    shutil.copyfile = steps.wrap("copyfile", shutil.copyfile)
    files.sync_filesystem = steps.wrap("syncfs", files.sync_filesystem)
    sys.argv[1:] = arguments
    return comfypod()


if __name__ == "__main__":
    sys.exit(main())

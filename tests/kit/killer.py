"""Faults at the N-th durable step of a program: SIGKILL, or an error of the disk; counts the steps when N is 0.

A durable step is a system call that changes what a crash leaves behind. They all go through `os` and the file door,
so both are wrapped, in the process that is to suffer alone: `python -m tests.kit.killer` for a whole `comfypod`, a fork
for one call (`suffer`).
"""

from __future__ import annotations

import errno
import functools
import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

STEPS = (
    "mkdir", "rename", "replace", "unlink", "remove", "rmdir", "symlink", "link", "fsync", "truncate",
    "copy_file_range",
)  # fmt: skip


class Steps:
    """Counts durable steps, notes them in a file, and does what was asked at one of them."""

    def __init__(self, target: int, fault: str, notes: Path) -> None:
        self.count = 0
        self._target = target
        self._fault = fault
        self._notes = os.open(notes, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        self._mutex = threading.Lock()

    def step(self, name: str, *words: Any) -> None:
        with self._mutex:
            self.count += 1
            os.write(self._notes, f"{self.count} {name} {' '.join(map(str, words))}\n".encode())
            if self.count != self._target:
                return
            if self._fault in ("kill", "stop"):
                os.kill(os.getpid(), signal.SIGKILL if self._fault == "kill" else signal.SIGSTOP)
                time.sleep(60)
        raise OSError(getattr(errno, self._fault), os.strerror(getattr(errno, self._fault)), *map(str, words[:1]))

    def wrap(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def stepped(*arguments: Any, **options: Any) -> Any:
            self.step(name, *arguments[:2])
            return function(*arguments, **options)

        return stepped

    def install(self) -> None:
        """Wrap what this process does from now on."""
        from comfypod import files

        for name in STEPS:
            setattr(os, name, self.wrap(name, getattr(os, name)))
        files.sync_filesystem = self.wrap("syncfs", files.sync_filesystem)
        plain = os.open

        def creating(path: Any, flags: int, *more: Any, **options: Any) -> int:
            if flags & os.O_CREAT:
                self.step("create", path)
            return plain(path, flags, *more, **options)

        os.open = creating


def suffer(work: Callable[[], object], step: int, fault: str, notes: Path) -> str:
    """Run `work` in a fork with a fault at one step; return how it ended: `done`, `killed` or an error's text."""
    from comfypod.errors import ComfypodError

    notes.unlink(missing_ok=True)
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        code = 3
        try:
            Steps(step, fault, notes).install()
            work()
            code = 0
        except (ComfypodError, OSError) as error:
            os.write(writing, f"{type(error).__name__}: {error}".encode())
            code = 1
        finally:
            os._exit(code)
    os.close(writing)
    with os.fdopen(reading, "rb") as said:
        text = said.read().decode()
    _, status = os.waitpid(pid, 0)
    if os.WIFSIGNALED(status):
        assert os.WTERMSIG(status) == signal.SIGKILL
        return "killed"
    assert os.WEXITSTATUS(status) in (0, 1), text
    return text or "done"


def main() -> int:
    """Take N, the fault (`kill`, `stop` for SIGSTOP, an errno's name), the notes' path, and comfypod's arguments."""
    target, fault, notes, *arguments = sys.argv[1:]
    from comfypod.__main__ import main as comfypod

    Steps(int(target), fault, Path(notes)).install()
    sys.argv[1:] = arguments
    return comfypod()


if __name__ == "__main__":
    sys.exit(main())

"""The only writer to standard output and standard error."""

from __future__ import annotations

import contextlib
import functools
import os
import queue
import sys
import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from comfypod.errors import Problem
    from comfypod.result import Result

_PLAIN_INTERVAL = 5.0
_MAY_WAIT = 10_000


def human_bytes(count: float) -> str:
    """Format a byte count the way disks are sold: powers of 1000, three digits."""
    for unit in ("B", "kB", "MB", "GB"):
        if abs(count) < 1000:
            return f"{count:.0f} {unit}" if unit == "B" or count >= 100 else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


class Console:
    """Lines for people; `gone` says that nobody reads them any more.

    With `quiet` (used by `--json`) lines go to standard error, so that standard output holds the envelope alone.
    """

    def __init__(self, out: TextIO | None = None, *, quiet: bool = False) -> None:
        self._out = out or (sys.stderr if quiet else sys.stdout)
        self.quiet = quiet
        self.gone = self._out is None
        self._waiting: queue.Queue[str | None] | None = None
        self._writer: threading.Thread | None = None
        self._mirrors: list[Callable[[str], None]] = []
        self._above_bar: Callable[[str], None] | None = None

    def mirror(self, write: Callable[[str], None]) -> None:
        """Also hand every line (without its newline) to `write`, for `boot.log`."""
        self._mirrors.append(write)

    def in_background(self) -> None:
        """Write from a thread of its own from now on, so that a reader who stalls holds up nothing else.

        Lines beyond the ten thousand that may wait are dropped.
        """
        self._waiting = queue.Queue(maxsize=_MAY_WAIT)
        self._writer = threading.Thread(target=self._write_waiting, args=(self._waiting,), daemon=True)
        self._writer.start()

    def drain(self, seconds: float) -> None:
        """Write what waits and go back to writing at once; give up after `seconds`."""
        waiting, self._waiting = self._waiting, None
        if waiting is not None and self._writer is not None:
            with contextlib.suppress(queue.Full):
                waiting.put(None, timeout=seconds)
            self._writer.join(seconds)
            self.gone = self.gone or self._writer.is_alive()

    def _write_waiting(self, waiting: queue.Queue[str | None]) -> None:
        while (text := waiting.get()) is not None:
            self._put(text)

    def _put(self, text: str) -> None:
        if self._above_bar is not None:
            self._above_bar(text)
        elif not self.gone:
            self.gone = not _write(self._out, text)

    @property
    def interactive(self) -> bool:
        """Whether a person watches a terminal."""
        return self._out is not None and self._out.isatty()

    def line(self, text: str = "", *, private: bool = False) -> None:
        """Write one line at once; a `private` one goes to no log. A reader that has gone away is not an error."""
        if self._waiting is None:
            self._put(text)
        else:
            with contextlib.suppress(queue.Full):
                self._waiting.put_nowait(text)
        for write in () if private else self._mirrors:
            write(text)

    def warning(self, text: str) -> None:
        """Write a line that a clean run never has."""
        self.line(f"WARNING {text}")

    def problem(self, problem: Problem) -> None:
        """Write what went wrong and, below it, what to do."""
        self.line(f"ERROR {problem.message}")
        if problem.hint:
            self.line(f"      {problem.hint}")

    @contextmanager
    def progress(self, label: str, total: int | None = None) -> Iterator[Callable[[int], None]]:
        """Show progress in bytes: a bar on a terminal, below whatever lines come, a line every five seconds elsewhere.

        Yields a function that takes the number of bytes done so far.
        """
        if self.interactive:
            with _bar(self._out, label, total) as (advance, above):
                self._above_bar = above
                try:
                    yield advance
                finally:
                    self._above_bar = None
            return
        started = shown = time.monotonic()

        def advance_plain(done: int) -> None:
            nonlocal shown
            now = time.monotonic()
            if now - shown >= _PLAIN_INTERVAL:
                shown = now
                of = f" of {human_bytes(total)}" if total else ""
                self.line(f"  {label}: {human_bytes(done)}{of} after {now - started:.0f} s")

        yield advance_plain

    def render(self, result: Result) -> None:
        """Print a command's result: text, or the JSON envelope."""
        if self.quiet:
            if sys.stdout is not None:
                _write(sys.stdout, result.envelope())
            return
        if result.text:
            self.line(result.text)
        for problem in result.errors:
            self.problem(problem)


def _write(out: TextIO, text: str) -> bool:
    """Write a line; False when nobody reads any more. What the terminal cannot show is shown as `?`."""
    try:
        encoding = out.encoding or "utf-8"
        out.write(text.encode(encoding, "replace").decode(encoding) + "\n")
        out.flush()
    except BrokenPipeError:
        # The interpreter flushes once more at its end and would report the same again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), out.fileno())
        return False
    except (OSError, ValueError):
        return False
    return True


@contextmanager
def _bar(out: TextIO, label: str, total: int | None) -> Iterator[tuple[Callable[[int], None], Callable[[str], None]]]:
    from rich.console import Console as RichConsole
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeElapsedColumn, TransferSpeedColumn

    columns = (
        TextColumn("  {task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=RichConsole(file=out), transient=True) as progress:
        task = progress.add_task(label, total=total)
        above = functools.partial(progress.console.print, markup=False, highlight=False, emoji=False, soft_wrap=True)
        yield lambda done: progress.update(task, completed=done), above

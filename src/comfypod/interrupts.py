"""SIGINT and SIGTERM as exceptions that unwind the stack, so that what is half done is put away."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from typing import TYPE_CHECKING

from comfypod.errors import EXIT_TERMINATED

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import FrameType

_AGAIN_SECONDS = 0.05


class TerminatedError(SystemExit):
    """SIGTERM came."""


_SIGNALS = {KeyboardInterrupt: signal.SIGINT, TerminatedError: signal.SIGTERM}


@contextlib.contextmanager
def raised() -> Iterator[None]:
    """Raise `KeyboardInterrupt` for SIGINT and `TerminatedError` for SIGTERM in the main thread.

    Python raises them wherever the program stands. In a finaliser an exception is reported and forgotten
    (sys.unraisablehook), and the program would go on as if nobody had asked: such a signal is sent once more.
    """
    before, hook = signal.signal(signal.SIGTERM, _raise_terminated), sys.unraisablehook

    def again_or_report(lost: sys.UnraisableHookArgs) -> None:
        signum = _SIGNALS.get(lost.exc_type)
        if signum is None:
            hook(lost)
        else:
            threading.Timer(_AGAIN_SECONDS, os.kill, (os.getpid(), signum)).start()

    sys.unraisablehook = again_or_report
    try:
        yield
    finally:
        sys.unraisablehook = hook
        signal.signal(signal.SIGTERM, before)


def _raise_terminated(_signum: int, _frame: FrameType | None) -> None:
    raise TerminatedError(EXIT_TERMINATED)

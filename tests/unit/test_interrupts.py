from __future__ import annotations

import os
import signal
import sys
import time

import pytest

from comfypod import interrupts


class _Finalised:
    """Whatever signal comes while it is finalised is raised there."""

    def __init__(self, signum: signal.Signals) -> None:
        self.signum = signum

    def __del__(self) -> None:
        os.kill(os.getpid(), self.signum)


@pytest.mark.parametrize(
    ("signum", "error"),
    [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, interrupts.TerminatedError)],
)
def test_a_signal_that_python_lost_in_a_finaliser_comes_again(
    signum: signal.Signals, error: type[BaseException]
) -> None:
    with pytest.raises(error):
        _go_on_after(signum)


def _go_on_after(signum: signal.Signals) -> None:
    with interrupts.raised():
        _Finalised(signum)
        went_on = time.monotonic()
        try:
            time.sleep(10)
        finally:
            assert time.monotonic() - went_on < 5


def test_what_else_goes_wrong_in_a_finaliser_is_reported_as_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    class Wrong:
        def __del__(self) -> None:
            raise ValueError("wrong")

    told: list[type[BaseException]] = []
    monkeypatch.setattr(sys, "unraisablehook", lambda lost: told.append(lost.exc_type))
    with interrupts.raised():
        Wrong()
    assert told == [ValueError]

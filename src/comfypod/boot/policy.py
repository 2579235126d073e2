"""What to do when a service has ended: wait how long, leave custom nodes out, or give up. Pure."""

from __future__ import annotations

from dataclasses import dataclass, replace

CAUSES = ("exit", "signal", "out-of-memory", "wedged", "asked")
_FIRST_DELAY = 1.0
_LONGEST_DELAY = 60.0


@dataclass(frozen=True, slots=True)
class Limits:
    """How a service is judged: a death before ready, or sooner than `quick_seconds` after, is a quick one."""

    quick_seconds: float = 60.0
    quick_deaths: int = 3
    safe_deaths: int = 2
    has_safe_mode: bool = False


@dataclass(frozen=True, slots=True)
class Attempts:
    """A service's history: quick deaths in a row, and whether safe mode is on."""

    quick: int = 0
    safe_mode: bool = False
    gave_up: bool = False
    delay: float = 0.0


@dataclass(frozen=True, slots=True)
class Cause:
    """Why a service was killed, where that is known: a problem's code and hint, and what happened after its name."""

    code: str
    told: str
    hint: str


def after_death(attempts: Attempts, limits: Limits, ready_seconds: float | None) -> Attempts:
    """Return the next history after one death; `ready_seconds` is None when the service never was ready.

    The delay doubles from one second to a minute. After `quick_deaths` in a row a service that has a safe mode is
    started in it; after `safe_deaths` more, or without one, it is given up.
    """
    if ready_seconds is not None and ready_seconds >= limits.quick_seconds:
        return Attempts(safe_mode=attempts.safe_mode, delay=_FIRST_DELAY)
    quick = attempts.quick + 1
    delay = min(_LONGEST_DELAY, _FIRST_DELAY * 2.0 ** (quick - 1))
    if attempts.safe_mode:
        return replace(attempts, quick=quick, delay=delay, gave_up=quick >= limits.safe_deaths)
    if quick < limits.quick_deaths:
        return replace(attempts, quick=quick, delay=delay)
    if limits.has_safe_mode:
        return Attempts(safe_mode=True, delay=_FIRST_DELAY)
    return replace(attempts, quick=quick, delay=delay, gave_up=True)


def exit_code(returncode: int) -> int:
    """Map a child's return code the way shells do: a signal N is 128 + N."""
    return 128 - returncode if returncode < 0 else returncode


def cause_of(returncode: int, told: str = "") -> str:
    """Return which of `CAUSES` ended a service; `told` comes from whoever ended it on purpose or knows why."""
    if told in CAUSES:
        return told
    return "exit" if returncode >= 0 else "signal"

"""What to do when a service has ended: wait how long, leave custom nodes out, or give up. Pure."""

from __future__ import annotations

from dataclasses import dataclass, replace

from comfypod.boot import suspects

CAUSES = ("exit", "signal", "out-of-memory", "wedged", "asked")
FIRST_DELAY = 1.0
# Exit code of a ComfyUI that serves and asks to be started again (`launch/comfyui.py`).
AGAIN = 75
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
    """A service's history: quick deaths in a row, whether safe mode is on, and the search for a node that ends it."""

    quick: int = 0
    safe_mode: bool = False
    gave_up: bool = False
    delay: float = 0.0
    search: suspects.Search | None = None


@dataclass(frozen=True, slots=True)
class Cause:
    """Why a service was killed, where that is known: a problem's code and hint, and what happened after its name."""

    code: str
    told: str
    hint: str


def after_death(
    attempts: Attempts, limits: Limits, ready_seconds: float | None, changed: tuple[str, ...] = ()
) -> Attempts:
    """Return the next history after one death; `ready_seconds` is None when the service never was ready.

    The delay doubles from one second to a minute. After `quick_deaths` in a row a service that has a safe mode is
    started without some of the nodes in `changed`, until those that end it are found. Where that does not help it is
    started in safe mode; after `safe_deaths` more, or without one, it is given up.
    """
    if ready_seconds is not None and ready_seconds >= limits.quick_seconds:
        return Attempts(safe_mode=attempts.safe_mode, delay=FIRST_DELAY)
    if attempts.search is not None:
        return searched(attempts.search, died=True)
    quick = attempts.quick + 1
    delay = min(_LONGEST_DELAY, FIRST_DELAY * 2.0 ** (quick - 1))
    if attempts.safe_mode:
        return replace(attempts, quick=quick, delay=delay, gave_up=quick >= limits.safe_deaths)
    if quick < limits.quick_deaths or not limits.has_safe_mode:
        return replace(attempts, quick=quick, delay=delay, gave_up=quick >= limits.quick_deaths)
    search = suspects.begun(changed) if changed else None
    return Attempts(safe_mode=search is None, delay=FIRST_DELAY, search=search)


def searched(search: suspects.Search, *, died: bool) -> Attempts:
    """Return the next history after a start of a search: on with it, or safe mode when it is not these nodes."""
    step = suspects.after(search, died=died)
    if step.state == "hopeless":
        return Attempts(safe_mode=True, delay=FIRST_DELAY)
    return Attempts(delay=FIRST_DELAY, search=step)


def exit_code(returncode: int) -> int:
    """Map a child's return code the way shells do: a signal N is 128 + N."""
    return 128 - returncode if returncode < 0 else returncode


def cause_of(returncode: int, told: str = "") -> str:
    """Return which of `CAUSES` ended a service; `told` comes from whoever ended it on purpose or knows why."""
    if told in CAUSES:
        return told
    return "exit" if returncode >= 0 else "signal"

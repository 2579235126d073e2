"""Whether a service that accepts connections and does not answer is busy or wedged. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from comfypod.boot.policy import Cause

Judgement = Literal["wait", "busy", "wedged"]

BUSY_FACTOR = 10
# Less of one processor than this is what threads use that wait for something.
_WORKING_SHARE = 0.05
# A pod that was paused as a whole is not blamed for the pause.
_LONGEST_STEP = 15.0


@dataclass(frozen=True, slots=True)
class Look:
    """One look at a service.

    `at` is the time, `silent` that it accepted a connection and did not answer, `cpu` the seconds of processor time
    that its processes have used so far, `prompts` how many prompts it had when it last said so.
    """

    at: float
    silent: bool
    cpu: float = 0.0
    prompts: int = 0


@dataclass(frozen=True, slots=True)
class Silence:
    """How long a service has been silent, and for how long of that it has done no work."""

    look: Look
    seconds: float = 0.0
    idle: float = 0.0


def begun(at: float) -> Silence:
    """Return what is known about a service that was started at a time."""
    return Silence(Look(at, silent=False))


def after(silence: Silence, look: Look) -> Silence:
    """Return what is known after one more look. Work shows between two looks, so the first counts as idle."""
    if not look.silent:
        return Silence(look)
    last, passed = silence.look, min(max(look.at - silence.look.at, 0.0), _LONGEST_STEP)
    worked = last.silent and passed > 0 and look.cpu - last.cpu >= _WORKING_SHARE * passed
    return Silence(look, silence.seconds + passed, 0.0 if worked else silence.idle + passed)


def judge(silence: Silence, limit: float) -> Judgement:
    """Judge a silence; with `limit` 0 none is too long.

    A service that has a prompt and works has ten times `limit`; when it stops to work, it has `limit` from there.
    """
    has_prompt = silence.look.prompts > 0
    quiet = silence.idle if has_prompt else silence.seconds
    if limit > 0 and silence.look.silent and (quiet >= limit or silence.seconds >= BUSY_FACTOR * limit):
        return "wedged"
    return "busy" if has_prompt and silence.idle < silence.seconds else "wait"


def wedged(silence: Silence) -> Cause:
    """Say what was done about a service that is wedged."""
    return Cause(
        "wedged",
        f"accepted connections, did not answer for {silence.seconds:.0f} s and was killed",
        "its last lines say what it was doing; COMFYPOD_WEDGED_SECONDS gives it more time",
    )

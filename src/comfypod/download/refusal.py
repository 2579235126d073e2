"""What hosts refuse, and what to do about it."""

from __future__ import annotations

import email.utils
import itertools
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from comfypod.download import address
from comfypod.errors import SourceError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from urllib.parse import SplitResult

# So many failures in a row, and it is given up; pauses double from the first to the longest.
TRIES = 6
PAUSE_SECONDS = 1.0
_LONGEST_PAUSE = 30.0
# A host that has answered in this run is believed to come back. One that has not, as without a network, is tried for
# so long after its first failure, which survives its restart.
UNMET_SECONDS = 10.0
# What a host may ask for.
_LONGEST_WAIT = 120.0
_PASSING = frozenset({408, 425, 429, 500, 502, 503, 504, 520, 521, 522, 523, 524})
# https://github.com/git-lfs/git-lfs/blob/main/docs/spec.md
_POINTER = b"version https://git-lfs.github.com/spec/"
_PAGES = (b"<!doctype html", b"<html", b"<head", b"<?xml")
_TOKENS = {"huggingface.co": "HF_TOKEN", "civitai.com": "CIVITAI_TOKEN"}


class BrokenError(SourceError):
    """What may pass. `pause` is how many seconds the host asks to wait, `silent` that no answer came at all."""

    def __init__(self, message: str, hint: str = "", pause: float = 0, *, silent: bool = False) -> None:
        super().__init__(message, hint)
        self.pause, self.silent = pause, silent

    def wait(self, turn: int) -> float:
        """Return how long to wait before the next try, after `turn` failures before this one."""
        return self.pause or min(PAUSE_SECONDS * 2.0**turn, _LONGEST_PAUSE)


@dataclass(frozen=True, slots=True)
class Wait:
    """A pause before the next try: why, how long, until when (monotonic), and how long pauses may go on in all."""

    error: BrokenError
    seconds: float
    until: float
    longest: float


class Patience:
    """How long one host is tried again, over all files of a run."""

    def __init__(self) -> None:
        self._met = False
        self._since = 0.0

    def met(self) -> None:
        """Take note that it has answered."""
        self._met = True

    def wait(self, error: BrokenError, turn: int, *, silent: bool) -> Wait:
        """Return the pause after `turn` failures before this one, in which nobody has answered where it is `silent`.

        Raises:
            BrokenError: the given one; it is given up.
        """
        now, left = time.monotonic(), float("inf")
        if silent and not self._met:
            self._since = self._since or now
            left = UNMET_SECONDS - (now - self._since)
        pauses = [error.wait(each) for each in range(turn, TRIES - 1)]
        pauses = [pause for pause, end in zip(pauses, itertools.accumulate(pauses), strict=True) if end <= left]
        if not pauses:
            raise error
        return Wait(error, pauses[0], now + pauses[0], sum(pauses))


class RefusedError(SourceError):
    """A host said no, with a status."""

    def __init__(self, message: str, hint: str, status: int) -> None:
        super().__init__(message, hint)
        self.status = status


def disguised(first: bytes) -> Literal["", "page", "pointer"]:
    """Say by its first bytes what comes in the place of a file: a web page, or a pointer of Git LFS."""
    if first.startswith(_POINTER):
        return "pointer"
    return "page" if first.lstrip(b"\xef\xbb\xbf \t\r\n").lower().startswith(_PAGES) else ""


def refused(
    status: int, reason: str, headers: Mapping[str, str], first: SplitResult, *, with_token: bool
) -> BrokenError | RefusedError:
    """Return the error for an answer other than 200 and 206, with advice."""
    said = f"{address.shown(first.geturl())} answered {status} {reason}".rstrip()
    if status in _PASSING:
        pause = wait_of(headers.get("retry-after", ""))
        after = f"try again in {pause:.0f} seconds" if pause else "try again later"
        return BrokenError(said, f"the host is busy or in trouble: {after}", pause)
    return RefusedError(said, _advice(status, headers, first, with_token=with_token), status)


def _advice(status: int, headers: Mapping[str, str], first: SplitResult, *, with_token: bool) -> str:
    host = address.host(first)
    token = _TOKENS.get(host.removeprefix("www."), f"a token for {host}")
    page = "/".join(first.path.split("/")[:3])
    if headers.get("x-error-code") == "RepoNotFound":
        return f"check the name; if the repository is private, give {token} of someone who may read it"
    if status == 401:
        return f"{host} does not accept {token}: make a new one" if with_token else f"{host} wants a login: set {token}"
    if status == 403:
        licence = f"accept the licence at {first.scheme}://{address.place(first)}{page} in a browser"
        return f"{licence}, with the account of the token" if with_token else f"{licence}, and set {token}"
    if status in (404, 410):
        return "check the address: the file was renamed or removed, or never there"
    return "check the address"


def wait_of(text: str, now: float | None = None) -> float:
    """Return the seconds that a `Retry-After` asks for, bounded; 0 for none."""
    if text.strip().isdecimal():
        return min(float(text), _LONGEST_WAIT)
    try:
        until = email.utils.parsedate_to_datetime(text).timestamp()
    except (ValueError, TypeError, OverflowError):
        return 0.0
    return max(0.0, min(until - (time.time() if now is None else now), _LONGEST_WAIT))

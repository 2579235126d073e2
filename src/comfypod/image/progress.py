"""What an engine prints while it builds: steps for people, and the reason when it fails."""

from __future__ import annotations

import re
import time
from collections import deque
from typing import TYPE_CHECKING

from comfypod.download.address import shown
from comfypod.errors import ComfypodError, ImageError, InstallError, IntegrityError, SourceError, StorageError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from comfypod.log import Console

_QUIET_SECONDS = 15.0
_WIDTH = 110
_KEPT = 400
_STEP = re.compile(r"#\d+ (\[.+\] (?:FROM|RUN|COPY|ADD|WORKDIR) .+|exporting to image)|(?:\[.+\] )?(STEP \d+/\d+: .+)")
_PREFIX = re.compile(r"\A(?:#\d+ )?(?:\d+\.\d+ )?")
_FAILED = re.compile(r"\ACOMFYPOD FAILED (?P<item>.+?): (?P<reason>.*)\Z")
_FULL = re.compile(r"no space left on device|disk quota exceeded", re.IGNORECASE)
_OTHER_CONTENTS = re.compile(r"sha-?256|digest|\bhash|mismatch|checksum|other contents", re.IGNORECASE)
_UNREACHABLE = re.compile(
    r"not reachable|be reached|unreachable|timed? ?out|resolve|name or service|temporary failure|connect|certificate"
    r"|\bssl\b|\btls\b|answered \d{3}|network|failed to fetch|error sending request|\b(?:403|404|429|50\d)\b",
    re.IGNORECASE,
)
_NOISE = re.compile(r"\A(?:-+|\d+ \||>>>|#\d+ sha256:.*|)\Z")


class Steps:
    """Shows each step once, and when nothing new is to be said the last line that was printed, every 15 seconds."""

    def __init__(self, console: Console, label: str) -> None:
        self.lines: deque[str] = deque(maxlen=_KEPT)
        self._console = console
        self._label = label
        self._seen: set[str] = set()
        self._begun = self._told = time.monotonic()

    def line(self, text: str) -> None:
        """Take a line of the engine's output."""
        self.lines.append(text)
        found = _STEP.match(text)
        step = text if found and found[2] else found[1] if found else ""
        if step and step not in self._seen:
            self._seen.add(step)
            self._say(step)

    def tick(self) -> None:
        """Say that the work goes on, where nothing has been said for a while."""
        now = time.monotonic()
        if now - self._told >= _QUIET_SECONDS:
            last = next((line for line in reversed(self.lines) if not _NOISE.match(line)), "nothing printed yet")
            self._say(f"{now - self._begun:.0f} s: {_PREFIX.sub('', last)}")

    def _say(self, text: str) -> None:
        self._told = time.monotonic()
        plain = " ".join(word for word in shown(text).split() if not word.startswith("--mount="))
        self._console.line(f"  {self._label} {plain if len(plain) <= _WIDTH else plain[: _WIDTH - 3] + '...'}")


def build_error(lines: Iterable[str], what: str, log: str) -> ComfypodError:
    """Turn what a failing build printed into an error that names the locked item, or else its last lines."""
    hint = f"the whole log is {log}"
    plain = [shown(_PREFIX.sub("", line)).strip() for line in lines]
    failed = [found for line in plain if (found := _FAILED.match(line))]
    if failed:
        item, reason = failed[-1]["item"], failed[-1]["reason"]
        return _family(reason)(f"{what} was not built: {item}: {reason}", hint)
    last = [line for line in plain if not _NOISE.match(line)][-3:]
    said = " / ".join(last) or "the engine printed nothing"
    return (StorageError if _FULL.search(said) else ImageError)(f"{what} was not built: {said}", hint)


def _family(reason: str) -> type[ComfypodError]:
    if _FULL.search(reason):
        return StorageError
    if _OTHER_CONTENTS.search(reason):
        return IntegrityError
    return SourceError if _UNREACHABLE.search(reason) else InstallError

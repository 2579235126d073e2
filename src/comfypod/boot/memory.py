"""The memory of this pod as the kernel counts it for its control group, versions 2 and 1."""

from __future__ import annotations

import signal
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from comfypod.boot.policy import Cause, exit_code
from comfypod.log import human_bytes

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path("/sys/fs/cgroup")
_OWN = Path("/proc/self/cgroup")
# Version 1 says "no limit" with the largest number of pages.
_NO_LIMIT = 1 << 60
_V2 = ("memory.max", "memory.peak", "memory.current", "memory.events")
_V1 = ("memory.limit_in_bytes", "memory.max_usage_in_bytes", "memory.usage_in_bytes", "memory.oom_control")


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes that may be used, were used at most and are used now, and how often the kernel killed; None: unknown.

    What is used includes files that the kernel keeps in memory and would give back.
    """

    limit: int | None = None
    peak: int | None = None
    used: int | None = None
    oom_kills: int | None = None

    def shown(self) -> dict[str, int | None]:
        """Return it as it stands in `/status`."""
        return {"limit": self.limit, "peak": self.peak, "used": self.used}


def read(root: Path = ROOT, own: Path = _OWN) -> Memory:
    """Read the control group of this process below `root`; `own` names it (cgroups(7)).

    A container sees its own group at the root, whatever its name is outside.
    """
    for folder, (limit, peak, used, events) in _places(root, own):
        if (folder / used).is_file():
            most = _number(folder / limit)
            most = None if most is None or most >= _NO_LIMIT else most
            return Memory(most, _number(folder / peak), _number(folder / used), _oom_kills(folder / events))
    return Memory()


def free(root: Path = ROOT, own: Path = _OWN, machine: Path = Path("/proc/meminfo")) -> int | None:
    """Return the bytes that this process could still have, with the files that the kernel would give back."""
    found = [kib << 10 for name, kib in _table(machine) if name == "MemAvailable:"]
    for folder, (limit, _, used, _) in _places(root, own):
        most, now = _number(folder / limit), _number(folder / used)
        if most is not None and now is not None and most < _NO_LIMIT:
            files = dict(_table(folder / "memory.stat"))
            found.append(most - now + files.get("inactive_file", 0) + files.get("active_file", 0))
            break
    return min(found, default=None)


def _table(path: Path) -> Iterator[tuple[str, int]]:
    for line in _text(path).splitlines():
        words = line.split()
        if len(words) > 1 and words[1].isdecimal():
            yield words[0], int(words[1])


def _places(root: Path, own: Path) -> Iterator[tuple[Path, tuple[str, str, str, str]]]:
    names: dict[str, str] = {}
    for line in _text(own).splitlines():
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        names |= dict.fromkeys(controllers.split(","), path.lstrip("/"))
    yield root / names.get("", ""), _V2
    yield root, _V2
    yield root / "memory" / names.get("memory", ""), _V1
    yield root / "memory", _V1


def _text(path: Path) -> str:
    try:
        return path.read_text("utf-8")
    except (OSError, ValueError):
        return ""


def _number(path: Path) -> int | None:
    text = _text(path).strip()
    return int(text) if text.isdecimal() else None


def _oom_kills(path: Path) -> int | None:
    words = dict(line.split(" ", 1) for line in _text(path).splitlines() if " " in line)
    count = words.get("oom_kill", "").strip()
    return int(count) if count.isdecimal() else None


def ran_out(before: Memory, after: Memory, returncode: int) -> Cause | None:
    """Say that a service was killed for lack of memory; None when it was something else, or cannot be known."""
    if exit_code(returncode) != exit_code(-signal.SIGKILL) or before.oom_kills is None or after.oom_kills is None:
        return None
    if after.oom_kills <= before.oom_kills:
        return None
    figures = [
        f"{name} {human_bytes(value)}" for name, value in (("limit", after.limit), ("peak", after.peak)) if value
    ]
    told = "ran out of memory and was killed" + (f" ({', '.join(figures)})" if figures else "")
    hint = "use a smaller batch or picture, COMFYPOD_COMFYUI_ARGS=--lowvram, or give the pod more memory"
    return Cause("out-of-memory", told, hint)

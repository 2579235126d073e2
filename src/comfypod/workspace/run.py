"""`run.json`: the boot that runs on a workspace now, for `status`, `down` and the boot after a crash."""

from __future__ import annotations

import json
import signal
import time
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from comfypod import proc
from comfypod.files import write_atomic

if TYPE_CHECKING:
    from pathlib import Path

_ORPHAN_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class Child:
    """A process named for good by pid and start time."""

    name: str
    pid: int
    started: int

    @property
    def alive(self) -> bool:
        """Whether this very process still runs."""
        return proc.start_ticks(self.pid) == self.started


@dataclass(frozen=True, slots=True)
class RunRecord:
    """One boot: itself, where its control plane answers, what it opened, and its children."""

    boot: Child
    control: str
    urls: dict[str, str]
    children: tuple[Child, ...] = ()


def write(path: Path, record: RunRecord) -> None:
    """Replace the record; it means nothing after a reboot, so it need not be durable."""
    write_atomic(path, json.dumps(asdict(record), indent=1).encode() + b"\n", 0o600, durable=False)


def read(path: Path) -> RunRecord | None:
    """Read the record; None when there is none or it is damaged."""
    try:
        body: Any = json.loads(path.read_bytes())
        children = tuple(_child(child) for child in body["children"])
        return RunRecord(_child(body["boot"]), str(body["control"]), dict(body["urls"]), children)
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _child(body: Any) -> Child:
    child = Child(str(body["name"]), body["pid"], body["started"])
    if not (type(child.pid) is type(child.started) is int and child.pid > 1):
        raise ValueError("not a process")
    return child


def running(path: Path) -> RunRecord | None:
    """Return the record of a boot that is alive, None otherwise."""
    record = read(path)
    return record if record is not None and record.boot.alive else None


def end_orphans(record: RunRecord) -> tuple[str, ...]:
    """End children that outlived a killed boot; return their names."""
    orphans = [child for child in record.children if child.alive]
    for child in orphans:
        proc.signal_group(child.pid, signal.SIGTERM)
    deadline = time.monotonic() + _ORPHAN_SECONDS
    while any(child.alive for child in orphans) and time.monotonic() < deadline:
        time.sleep(0.05)
    for child in orphans:
        proc.signal_group(child.pid, signal.SIGKILL)
    return tuple(child.name for child in orphans)

"""`run.json`: the boot that runs on a workspace now, for `status` and `down`; and what a killed boot left running."""

from __future__ import annotations

import json
import os
import signal
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from comfypod import proc
from comfypod.errors import BusyError
from comfypod.files import read_small, write_atomic

MARK = "COMFYPOD_POD"
_ORPHAN_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class Boot:
    """A boot process, named for good by pid and start time within its pid namespace (empty when not known)."""

    pid: int
    started: int
    namespace: str = ""

    @property
    def here(self) -> bool:
        """Whether its pid means anything to us: a container and its host share a workspace, but not their pids."""
        return not self.namespace or self.namespace == _namespace()

    @property
    def alive(self) -> bool:
        """Whether this very process still runs; only to be asked when it is `here`."""
        return proc.start_ticks(self.pid) == self.started


@dataclass(frozen=True, slots=True)
class RunRecord:
    """A boot and where its control plane answers."""

    boot: Boot
    control: str


def _namespace() -> str:
    try:
        return str(Path("/proc/self/ns/pid").readlink())
    except OSError:
        return ""


def this_process() -> Boot:
    """Name the calling process."""
    return Boot(os.getpid(), proc.start_ticks(os.getpid()) or 0, _namespace())


def write(path: Path, record: RunRecord) -> None:
    """Replace the record; it means nothing after a reboot, so it need not be durable."""
    write_atomic(path, json.dumps(asdict(record)).encode() + b"\n", 0o600, durable=False)


def read(path: Path) -> RunRecord | None:
    """Read the record; None when there is none or it is damaged."""
    try:
        body: Any = json.loads(read_small(path))
        pid, started = body["boot"]["pid"], body["boot"]["started"]
        if type(pid) is int and pid > 1 and type(started) is int and started > 0:
            boot = Boot(pid, started, str(body["boot"].get("namespace", "")))
            return RunRecord(boot, str(body["control"]))
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        pass
    return None


def running(path: Path) -> RunRecord | None:
    """Return the record of a boot that runs, None otherwise.

    One of another container is believed when its control plane answers here; within five seconds.
    """
    record = read(path)
    if record is None:
        return None
    return record if (record.boot.alive if record.boot.here else _answers(record)) else None


def _answers(record: RunRecord) -> bool:
    from comfypod import control

    found = (control.status(record.control) or {}).get("boot")
    named = (record.boot.pid, record.boot.namespace)
    return isinstance(found, dict) and (found.get("pid"), found.get("namespace")) == named


def in_use(workspace: Path, record_path: Path) -> BusyError:
    """Return the error that says who holds a workspace."""
    record = read(record_path)
    if record is not None and not record.boot.here:
        return BusyError(
            f"the workspace {workspace} is in use by a pod in another container",
            "`comfypod down` stops one that `comfypod up` started, its engine any other; or choose another workspace",
        )
    holder = f" by the pod with pid {record.boot.pid}" if record is not None and record.boot.alive else ""
    return BusyError(
        f"the workspace {workspace} is in use{holder}",
        "`comfypod status` shows it, `comfypod down` stops it; or choose another --workspace",
    )


def end_orphans(workspace: Path) -> int:
    """End what boots of this workspace left running, known by the mark in its environment; return how many.

    Only for whoever holds the workspace, so that no living boot's services are among them.
    """
    mark = f"{MARK}={workspace}"
    orphans = proc.with_variable(mark)
    for pid in orphans:
        proc.signal_process(pid, signal.SIGTERM)
    deadline = time.monotonic() + _ORPHAN_SECONDS
    while any(proc.start_ticks(pid) for pid in orphans) and time.monotonic() < deadline:
        time.sleep(0.02)
    for pid in proc.with_variable(mark) if orphans else ():
        proc.signal_process(pid, signal.SIGKILL)
    return len(orphans)

"""Which pods use a workspace, and which of them may change it: numbered tickets that are renewed.

A pod takes a ticket, a file below `.comfypod/pods` made with O_EXCL, which is atomic on NFS as well. The lowest ticket
that lives prepares the workspace first, as in a bakery (Lamport, 1974). On one machine a ticket lives while its owner
has flock(2) on it. Across machines flock says nothing on many network disks; there a ticket lives while its owner goes
on writing a new beat into it, measured by our own monotonic clock: no two clocks are compared.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import socket
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from comfypod import files
from comfypod.errors import BusyError
from comfypod.workspace import run

if TYPE_CHECKING:
    from collections.abc import Callable

Phase = Literal["preparing", "running"]
Life = Literal["alive", "unknown", "dead"]
BEAT_SECONDS = 5.0
PATIENCE_SECONDS = 45.0
_LOOK_SECONDS = 0.25
# How long a ticket may be empty: its owner writes it at once, and draws again where it is gone by then.
_EMPTY_SECONDS = 1.0
_NAME = re.compile(r"\d{1,15}")
_BYTES = 1024
_TRIES = 100


@dataclass(frozen=True, slots=True)
class Pod:
    """The owner of a ticket: its host's name, what it does, and whether it lives as far as is known by now."""

    number: int
    host: str
    phase: Phase
    life: Life


@dataclass(slots=True)
class _Seen:
    """What was read in a ticket, since when, and whether it has changed while we looked."""

    data: bytes
    since: float
    moved: bool = False


class Lease:
    """This pod's ticket among those of the other pods of a workspace. `folder` holds them.

    A ticket of another `machine` (a kernel, whatever its containers) is dead once its beat has not changed for
    `patience` seconds.
    """

    def __init__(
        self, folder: Path, *, beat: float = BEAT_SECONDS, patience: float = PATIENCE_SECONDS, machine: str = ""
    ) -> None:
        self._folder = folder
        self._every, self._patience = beat, patience
        self._machine = machine or this_machine()
        self._seen: dict[int, _Seen] = {}
        self._mutex = threading.RLock()
        self._end = threading.Event()
        self._number, self._handle = 0, -1
        self._phase: Phase = "preparing"
        self._beat, self._beaten = 0, 0.0

    @property
    def held(self) -> bool:
        """Whether we have a ticket."""
        return self._handle >= 0

    def take(self) -> None:
        """Take a ticket, behind all that are there, and keep it alive until `release`.

        Raises:
            BusyError: others took and gave up tickets without an end.
            OSError: the disk failed.
        """
        self._folder.mkdir(parents=True, exist_ok=True)
        with self._mutex:
            self._draw()
        self._end.clear()
        threading.Thread(target=self._renew, name="lease", daemon=True).start()

    def run(self) -> None:
        """Say that this pod changes the core no longer, and let the next one prepare.

        Raises:
            OSError: the disk failed.
        """
        self._say("running")

    def prepare(self) -> None:
        """Say that this pod is about to change the core; those behind it wait from now on.

        Raises:
            OSError: the disk failed.
        """
        self._say("preparing")

    def _say(self, phase: Phase) -> None:
        with self._mutex:
            self._phase = phase
            if self.held:
                self._write()

    def release(self) -> None:
        """Give the ticket back; harmless without one."""
        self._end.set()
        with self._mutex:
            self._give_back()
            self._phase = "preparing"

    def ensure(self) -> None:
        """Make sure that we have not been taken for dead, as after a long pause of this machine.

        Raises:
            BusyError: another pod may have gone on in our place.
            OSError: the disk failed.
        """
        if not self.held:
            return
        late = time.monotonic() - self._beaten > self._patience / 2
        if late or not self._is_there():
            hint = "start the pod again; it waits for that one"
            raise BusyError(f"this pod stood still, and another one may use {self._folder.parent.parent} now", hint)

    def others(self) -> list[Pod]:
        """Return the other pods that are alive or may be, by number. Tickets of the dead before ours are removed.

        Raises:
            OSError: the disk failed.
        """
        looked = [self._look(number) for number in sorted(_numbers(self._folder)) if number != self._number]
        found = [pod for pod in looked if pod is not None]
        for pod in found:
            if pod.life == "dead" and self.held and pod.number < self._number:
                self._path(pod.number).unlink(missing_ok=True)
        return [pod for pod in found if pod.life != "dead"]

    def users(self) -> list[Pod]:
        """Return those of the others that run ComfyUI over the workspace, and do not wait for us."""
        return [pod for pod in self.others() if pod.phase == "running"]

    def ahead(self) -> Pod | None:
        """Return the first of those who prepare the workspace before it is our turn."""
        return next((pod for pod in self.others() if pod.number < self._number and pod.phase == "preparing"), None)

    def unknown(self) -> Pod | None:
        """Return one of the others of whom it is not known yet whether it lives, unless another is known to."""
        return _unknown(self.others())

    def unknown_user(self) -> Pod | None:
        """Return one of `users` of whom it is not known yet whether it lives, unless another is known to."""
        return _unknown(self.users())

    def wait(
        self, who: Callable[[], Pod | None], tell: Callable[[Pod, float], None], limit: float = float("inf")
    ) -> Pod | None:
        """Wait until there is nobody for whom to wait; return whoever is still there after `limit` seconds.

        `tell` is given who is waited for and the seconds so far; what it raises ends the wait.

        Raises:
            OSError: the disk failed.
        """
        started = time.monotonic()
        while (pod := who()) is not None and (waited := time.monotonic() - started) < limit:
            tell(pod, waited)
            time.sleep(_LOOK_SECONDS)
        return pod

    def _draw(self) -> None:
        for _ in range(_TRIES):
            number = max(_numbers(self._folder), default=0) + 1
            try:
                flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
                self._handle = os.open(self._path(number), flags, 0o644)
            except FileExistsError:
                continue
            self._number = number
            try:
                with contextlib.suppress(PermissionError):
                    os.fchmod(self._handle, 0o644)
                locked = self._lock()
                self._write()
                # A folder may be shown as it was: who drew a number below one that is there draws again.
                if locked and self._is_there() and max(_numbers(self._folder)) == number:
                    return
            except OSError:
                self._give_back()
                raise
            self._give_back()
        raise BusyError(f"no place in {self._folder} could be had", "try again when fewer pods start there")

    def _lock(self) -> bool:
        """Lock our new ticket, where there are locks; whoever looks at it has it for a moment."""
        for _ in range(_TRIES):
            if files.try_lock(self._handle) is not False:
                return True
            time.sleep(0.01)
        return False

    def _give_back(self) -> None:
        if not self.held:
            return
        try:
            if self._is_there():
                self._path(self._number).unlink(missing_ok=True)
        except OSError:
            # A ticket that stays is a dead one.
            pass
        os.close(self._handle)
        self._handle, self._number = -1, 0

    def _renew(self) -> None:
        while not self._end.wait(self._every):
            with self._mutex:
                try:
                    if not self.held or self._end.is_set():
                        return
                    if self._is_there():
                        self._write()
                    elif self._phase == "running":
                        self._give_back()
                        self._draw()
                except (OSError, BusyError):
                    # `ensure` sees that the beat is old.
                    continue

    def _write(self) -> None:
        """Write in place: one call, and a file that other machines have open stays the same."""
        self._beat += 1
        me = run.this_process()
        body = {
            "host": socket.gethostname(), "phase": self._phase, "beat": self._beat, "machine": self._machine,
            "pid": me.pid, "started": me.started, "namespace": me.namespace,
        }  # fmt: skip
        os.pwrite(self._handle, json.dumps(body).encode().ljust(_BYTES - 1) + b"\n", 0)
        self._beaten = time.monotonic()

    def _is_there(self) -> bool:
        try:
            return self.held and os.path.samestat(os.fstat(self._handle), self._path(self._number).stat())
        except FileNotFoundError:
            return False

    def _path(self, number: int) -> Path:
        return self._folder / str(number)

    def _look(self, number: int) -> Pod | None:
        """Read a ticket; None for what is gone or is none."""
        try:
            handle = files.open_plain(self._path(number), os.O_RDONLY)
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.EINVAL):
                raise
            return None
        try:
            data = os.read(handle, _BYTES)
            lockable = files.try_lock(handle, shared=True)
        finally:
            os.close(handle)
        body = _parsed(data)
        phase: Phase = "running" if body.get("phase") == "running" else "preparing"
        return Pod(number, str(body.get("host", "")), phase, self._life(number, data, body, lockable))

    def _life(self, number: int, data: bytes, body: dict[str, Any], lockable: bool | None) -> Life:
        if lockable is False:
            return "alive"
        if body.get("machine") == self._machine != "":
            if lockable:
                return "dead"
            boot = run.Boot(body["pid"], body["started"], body["namespace"])
            if boot.here:
                return "alive" if boot.alive else "dead"
        now = time.monotonic()
        seen = self._seen.setdefault(number, _Seen(data, now))
        if seen.data != data:
            self._seen[number] = _Seen(data, now, moved=True)
            return "alive"
        if now - seen.since > (self._patience if data else min(self._patience, _EMPTY_SECONDS)):
            return "dead"
        return "alive" if seen.moved else "unknown"


def _unknown(pods: list[Pod]) -> Pod | None:
    return pods[0] if pods and all(pod.life == "unknown" for pod in pods) else None


def _numbers(folder: Path) -> set[int]:
    try:
        return {int(name) for name in os.listdir(folder) if _NAME.fullmatch(name)}
    except FileNotFoundError:
        return set()


def _parsed(data: bytes) -> dict[str, Any]:
    """Return what a ticket says; nothing for one that is not written yet, or by something else."""
    try:
        body: dict[str, Any] = dict(json.loads(data))
        known = type(body["pid"]) is int and type(body["started"]) is int and isinstance(body["namespace"], str)
    except (ValueError, KeyError, TypeError, RecursionError):
        return {}
    return body if known and body["pid"] > 0 else {}


def this_machine() -> str:
    """Return a name of the kernel that we run on, the same in all its containers; nothing where it has none."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text("ascii").strip()
    except (OSError, ValueError):
        return ""

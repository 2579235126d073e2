"""The store: what `up` prepares, addressed by contents, shared by all workspaces of a user.

An object is complete when its marker says so; anything without a marker is what a crash left and is made again.
"""

from __future__ import annotations

import json
import re
import time
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from comfypod import files
from comfypod.errors import BusyError, LockError, StorageError
from comfypod.log import human_bytes

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from comfypod.log import Console

MARKER = ".complete"
PAYLOADS = {
    "comfyui": "ComfyUI/main.py",
    "comfyui-env": "venv/bin/python",
    "jupyter-env": "venv/bin/python",
}
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]*")
_POLL_SECONDS = 0.2
_WAIT_SECONDS = 2 * 3600.0


@dataclass(frozen=True, slots=True)
class Building:
    """What a build works with: the new empty folder of the object, and descriptors for `proc.run(keep=...)`.

    A child that keeps them holds the object's lock until it is gone, also when this process was killed.
    """

    folder: Path
    keep: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Marker:
    """Facts of a complete object: bytes on disk, seconds it took, when (Unix time)."""

    kind: str
    key: str
    bytes: int
    seconds: float
    created: int


def data_folder(environ: Mapping[str, str]) -> Path:
    """Return the user's data directory for comfypod, whether it is there or not."""
    if chosen := environ.get("COMFYPOD_DATA"):
        return Path(chosen).expanduser().absolute()
    shared = environ.get("XDG_DATA_HOME", "")
    if Path(shared).is_absolute():
        return Path(shared) / "comfypod"
    return files.home() / ".local" / "share" / "comfypod"


@contextmanager
def disk_errors(action: str, needed: int | None = None) -> Iterator[None]:
    """Turn disk errors within into StorageError, with the bytes needed and how to choose another data directory."""
    try:
        yield
    except StorageError as error:
        raise StorageError(error.message, with_data_hint(error.hint)) from error
    except OSError as error:
        told = files.storage_error(error, action, needed)
        raise StorageError(told.message, with_data_hint(told.hint)) from error


def with_data_hint(hint: str) -> str:
    """Add to a hint how the data directory is chosen, once."""
    return hint if "COMFYPOD_DATA" in hint else f"{hint}; COMFYPOD_DATA=FOLDER puts the store elsewhere"


class Store:
    """The objects below `<data>/store`: `<kind>/<key>/`, each with its marker."""

    def __init__(self, data: Path) -> None:
        self.root = data.absolute() / "store"

    def folder(self, kind: str, key: str) -> Path:
        """Return where an object is or would be.

        Raises:
            LockError: the key, which comes from the lock, is no plain file name.
        """
        if _NAME.fullmatch(key) is None:
            raise LockError(f"the lock names {key!r}, which cannot be a folder's name", "run `comfypod lock`")
        return self.root / kind / key

    def find(self, kind: str, key: str) -> Path | None:
        """Return the folder of a complete object, None when there is none.

        One that has lost what it is there for, such as an environment whose interpreter has left the machine, is not
        complete any more.
        """
        folder = self.folder(kind, key)
        whole = (folder / MARKER).is_file() and (folder / PAYLOADS.get(kind, MARKER)).exists()
        return folder if whole else None

    def ensure(
        self, kind: str, key: str, build: Callable[[Building], None], *, console: Console, needed: int | None = None
    ) -> Path:
        """Return the folder of an object, built by `build` when it is not complete.

        Whatever ends the build, an interrupt too, the part made so far is removed. One process builds an object at a
        time; others wait and use what it made. `needed` is in bytes, for the message when the disk is full.

        Raises:
            StorageError: the disk is full, read-only or not ours.
            BusyError: another process has been building it for two hours.
        """
        if (folder := self.find(kind, key)) is not None:
            return folder
        with disk_errors(f"cannot make {kind} in the store", needed), self._locked(kind, key, console) as keep:
            if (folder := self.find(kind, key)) is None:
                folder = self.folder(kind, key)
                self._build(Building(folder, keep), kind, build, console)
        return folder

    def _build(self, building: Building, kind: str, build: Callable[[Building], None], console: Console) -> None:
        folder, started = building.folder, time.monotonic()
        # In place and not by rename: scripts and bytecode hold the absolute path.
        # The marker goes first: a kill in between must not leave it on half an object.
        (folder / MARKER).unlink(missing_ok=True)
        files.remove_tree(folder)
        files.make_folder(folder)
        with ExitStack() as undo:
            undo.callback(files.remove_tree, folder)
            build(building)
            files.sync_filesystem(folder)
            marker = Marker(
                kind, folder.name, files.tree_bytes(folder), round(time.monotonic() - started, 1), int(time.time())
            )
            files.write_atomic(folder / MARKER, json.dumps(asdict(marker)).encode() + b"\n")
            undo.pop_all()
        console.line(f"  {kind} {folder.name}: {human_bytes(marker.bytes)} in {marker.seconds:.1f} s")

    @contextmanager
    def _locked(self, kind: str, key: str, console: Console) -> Iterator[tuple[int, ...]]:
        files.make_folder(self.root / ".locks")
        lock = files.FolderLock(self.root / ".locks" / f"{kind}-{key}.lock")
        _acquire(lock, f"{kind} {key}", console)
        try:
            yield lock.descriptors
        finally:
            lock.release()


def _acquire(lock: files.FolderLock, what: str, console: Console) -> None:
    started, told = time.monotonic(), False
    while True:
        try:
            lock.acquire()
        except BusyError as error:
            if time.monotonic() - started > _WAIT_SECONDS:
                raise BusyError(
                    f"another comfypod has been making {what} for two hours", "end it and run the command again"
                ) from error
        else:
            return
        if not told:
            console.line(f"  waiting for another comfypod that makes {what}")
            told = True
        time.sleep(_POLL_SECONDS)

"""`comfypod.lock` on disk and in the package."""

from __future__ import annotations

from importlib import resources
from typing import TYPE_CHECKING

from comfypod import files
from comfypod.errors import LockError
from comfypod.lock import schema

if TYPE_CHECKING:
    from pathlib import Path

FILE_NAME = "comfypod.lock"


def read_lock(path: Path | None) -> schema.Lock:
    """Read a lock; None reads the one that comes with comfypod.

    Raises:
        LockError: it is missing, unreadable, or not a lock of this schema.
    """
    if path is None:
        return schema.decode(default_bytes(), f"comfypod's own {FILE_NAME}")
    try:
        data = path.read_bytes()
    except OSError as error:
        raise LockError(f"cannot read {path}: {error.strerror}", "run `comfypod lock` to make it") from error
    return schema.decode(data, str(path))


def default_bytes() -> bytes:
    """Return the lock that comes with comfypod, as stored."""
    return resources.files("comfypod.resources").joinpath(FILE_NAME).read_bytes()


def write_lock(path: Path, lock: schema.Lock) -> bool:
    """Replace a lock file; return False where its bytes are already the same.

    Raises:
        StorageError: the disk forbids it.
    """
    data = schema.encode(lock)
    try:
        if path.is_file() and path.read_bytes() == data:
            return False
        files.write_atomic(path, data)
    except OSError as error:
        raise files.storage_error(error, f"cannot write {path}") from error
    return True

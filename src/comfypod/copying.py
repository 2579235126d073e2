"""Copies of trees: by several threads, sharing blocks with the source where the file system can."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING

from comfypod.files import NO_LINKS, fsync_folder, rename_new, sync_filesystem

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

# A network volume answers several calls at a time; a local disk is as fast with one.
_THREADS = 4
_BATCH = 32
_CHUNK = 1 << 24
_NO_RANGES = frozenset({errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM, errno.EBADF})


@dataclass(frozen=True, slots=True)
class Job:
    """One file to copy to a name that is not taken."""

    source: str
    target: str


def copy_tree(source: Path, target: Path) -> int:
    """Copy a tree into the new folder `target`; return the bytes copied.

    Times are kept (bytecode is judged by them), owners are not. Nothing is durable until the file system is synced.
    """
    return copy_files(list(make_folders(source, target)))


def make_folders(source: Path, target: Path) -> Iterator[Job]:
    """Make the folders and links of a tree in the new folder `target`; yield its files."""
    os.stat(source)
    os.mkdir(target)
    folders = [""]
    while folders:
        base = folders.pop()
        with os.scandir(source / base) as found:
            entries = sorted(found, key=lambda entry: entry.name)
        for entry in entries:
            name = os.path.join(base, entry.name)
            place = os.path.join(target, name)
            if entry.is_symlink():
                os.symlink(os.readlink(entry.path), place)
            elif entry.is_dir():
                os.mkdir(place)
                folders.append(name)
            elif entry.is_file():
                yield Job(entry.path, place)


def copy_files(jobs: Iterable[Job], done: Callable[[int], None] | None = None) -> int:
    """Copy files; return the bytes copied. `done` is told the bytes so far in this thread, and may raise to stop.

    Raises:
        OSError: a file cannot be copied; it names the target. What was copied stays.
    """
    total, stop, waiting = 0, Event(), iter(jobs)

    def copy(batch: tuple[Job, ...]) -> int:
        return sum(copy_file(job.source, job.target) for job in batch if not stop.is_set())

    with ThreadPoolExecutor(_THREADS) as pool:
        try:
            for size in pool.map(copy, iter(lambda: tuple(islice(waiting, _BATCH)), ())):
                total += size
                if done is not None:
                    done(total)
        finally:
            stop.set()
    return total


def copy_file(source: str, target: str) -> int:
    """Copy one file to a new name, with its times and mode; return its size. The owner may always write the copy."""
    try:
        with contextlib.ExitStack() as handles:
            reading = os.open(source, os.O_RDONLY | os.O_CLOEXEC)
            handles.callback(os.close, reading)
            facts = os.fstat(reading)
            mode = stat.S_IMODE(facts.st_mode) | stat.S_IWUSR
            writing = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
            handles.callback(os.close, writing)
            _copy_bytes(reading, writing, facts.st_size)
            if os.fstat(writing).st_mode & 0o777 != mode & 0o777:
                with contextlib.suppress(PermissionError):
                    os.fchmod(writing, mode)
            os.utime(writing, ns=(facts.st_atime_ns, facts.st_mtime_ns))
    except OSError as error:
        raise OSError(error.errno, error.strerror, target) from error
    return facts.st_size


def share_file(source: Path, target: Path) -> None:
    """Give a file a second name: as a hard link, or as a copy where there are none. The new name is whole at once.

    Raises:
        OSError: the name is taken (EEXIST), or the disk refused.
    """
    try:
        os.link(source, target, follow_symlinks=False)
    except OSError as error:
        if error.errno not in {*NO_LINKS, errno.EXDEV, errno.EACCES}:
            raise
        copy_new(source, target)
    fsync_folder(target.parent)


def copy_new(source: Path, target: Path) -> None:
    """Copy a file to a name that must not be taken, first under one of its own: the new name is whole at once.

    Raises:
        OSError: the name is taken (EEXIST), or the disk refused.
    """
    staged = target.with_name(f".{target.name}.new")
    staged.unlink(missing_ok=True)
    try:
        copy_file(str(source), str(staged))
        sync_filesystem(target.parent)
        rename_new(staged, target)
    finally:
        staged.unlink(missing_ok=True)


def _copy_bytes(reading: int, writing: int, size: int) -> None:
    """Copy in the kernel, which shares blocks where it can (copy_file_range(2)), else as sendfile(2) does."""
    left = size
    try:
        while left > 0 and (count := os.copy_file_range(reading, writing, min(left, _CHUNK))):
            left -= count
    except OSError as error:
        if error.errno not in _NO_RANGES:
            raise
    while left > 0 and (count := os.sendfile(writing, reading, size - left, min(left, _CHUNK))):
        left -= count

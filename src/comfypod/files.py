"""The file door: atomic writes, durable trees, digests, locks, and disk errors turned into sentences.

Every call that changes what a crash would leave behind goes through the functions here, one system call each.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from comfypod.errors import BusyError, StorageError, UsageError
from comfypod.log import human_bytes

if TYPE_CHECKING:
    from collections.abc import Iterator

_NOT_CONTENT = frozenset({".git", "__pycache__"})
_UNSUPPORTED = frozenset({errno.EINVAL, errno.ENOTSUP, errno.ENOLCK, errno.ENOSYS})
NO_LINKS = frozenset({errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK})

_LONGEST_RECORD = 1 << 20

_DISK_SENTENCES = {
    errno.ENOSPC: ("the disk is full", "free some space or choose another folder"),
    errno.EDQUOT: ("the disk quota is used up", "free some space or ask for a larger quota"),
    errno.EROFS: ("the file system is read-only", "mount it writable or choose another folder"),
    errno.EACCES: ("permission denied", "choose a folder that you may write to, or mend its owner or mode"),
    errno.EPERM: ("not permitted", "choose a folder that you may write to, or mend its owner or mode"),
    errno.EIO: ("the disk reports an input/output error", "check the disk; what was there before is untouched"),
    errno.ENOTDIR: ("a file stands where a folder is needed", "move that file away or choose another folder"),
    errno.EEXIST: ("a file stands where a folder is needed", "move that file away or choose another folder"),
}


DISK_ERRORS = frozenset(_DISK_SENTENCES) - {errno.ENOTDIR, errno.EEXIST}


@dataclass(frozen=True, slots=True)
class TreeFacts:
    """Contents of a tree: a digest over names and bytes (`sha256:` and 64 hex digits), files, bytes."""

    digest: str
    files: int
    bytes: int


@dataclass(frozen=True, slots=True)
class Room:
    """What a file system has left for us; `inodes` is None where it does not count them."""

    bytes: int
    inodes: int | None


def storage_error(error: OSError, action: str, needed: int | None = None) -> StorageError:
    """Say in a sentence why `action` failed, with the bytes it needs where they are known."""
    reason, hint = _DISK_SENTENCES.get(error.errno or 0, (error.strerror or str(error), "check the disk and try again"))
    if error.errno == errno.ENOSPC and error.filename is not None and _out_of_inodes(Path(str(error.filename))):
        reason, hint = "the disk has no inodes left", "delete small files or use a file system with more inodes"
    room = f" ({human_bytes(needed)} needed)" if needed and error.errno in (errno.ENOSPC, errno.EDQUOT) else ""
    where = f": {error.filename}" if error.filename else ""
    return StorageError(f"{action}: {reason}{room}{where}", hint)


@contextlib.contextmanager
def storage_errors(action: str) -> Iterator[None]:
    """Turn an error of the disk into a sentence that begins with `action`.

    Raises:
        StorageError: the disk failed.
    """
    try:
        yield
    except OSError as error:
        raise storage_error(error, action) from error


def _out_of_inodes(path: Path) -> bool:
    left = room(path)
    return left.inodes == 0 and left.bytes > 0


def home() -> Path:
    """Return the user's home.

    Raises:
        UsageError: there is none, as for a user without a passwd entry.
    """
    try:
        return Path.home()
    except RuntimeError as error:
        raise UsageError("this user has no home folder", "set HOME, or give --workspace and COMFYPOD_DATA") from error


def is_filled(folder: Path) -> bool:
    """Whether a folder is there and has something in it; a link to one counts."""
    try:
        with os.scandir(folder) as entries:
            return next(entries, None) is not None
    except OSError:
        return False


def is_folder(path: Path) -> bool:
    """Whether a path is a folder itself and no link to one; False for whatever cannot be a path."""
    try:
        return stat.S_ISDIR(os.lstat(path).st_mode)
    except (OSError, ValueError):
        return False


def nearest_folder(path: Path) -> Path:
    """Return the path itself or its nearest parent that is there."""
    while not path.exists() and path != path.parent:
        path = path.parent
    return path


def room(path: Path) -> Room:
    """Return what is left for an unprivileged user on the file system that holds, or would hold, `path`."""
    facts = os.statvfs(nearest_folder(path))
    return Room(facts.f_bavail * facts.f_frsize, facts.f_favail if facts.f_files else None)


def make_folder(path: Path, mode: int = 0o777) -> None:
    """Make a folder and its parents.

    Raises:
        StorageError: the disk or its permissions forbid it.
    """
    try:
        path.mkdir(mode=mode, parents=True, exist_ok=True)
    except OSError as error:
        raise storage_error(error, f"cannot make the folder {path}") from error


def fsync_folder(path: Path) -> None:
    """Make renames and new names in a folder durable; file systems that refuse are left to themselves."""
    handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in _UNSUPPORTED:
            raise
    finally:
        os.close(handle)


def sync_filesystem(path: Path) -> None:
    """Make everything written so far to the file system of `path` durable, in one call (syncfs(2))."""
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        if libc.syncfs(handle) != 0 and (code := ctypes.get_errno()) not in _UNSUPPORTED:
            raise OSError(code, os.strerror(code), str(path))
    finally:
        os.close(handle)


def reserve(handle: int, size: int) -> None:
    """Give an open file a size and its room on the disk (fallocate(2)); the size alone where that is unknown.

    Raises:
        OSError: there is no room.
    """
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    arguments = ctypes.c_int(handle), ctypes.c_int(0), ctypes.c_int64(0), ctypes.c_int64(size)
    if libc.fallocate(*arguments) != 0 and (code := ctypes.get_errno()) not in _UNSUPPORTED:
        raise OSError(code, os.strerror(code))
    os.ftruncate(handle, size)


def rename_new(source: Path, target: Path) -> None:
    """Give a file another name that must not be taken; by link(2) where the file system has links.

    Raises:
        FileExistsError: the name is taken.
        OSError: the disk failed.
    """
    try:
        os.link(source, target)
    except OSError as error:
        if error.errno not in NO_LINKS:
            raise
        if os.path.lexists(target):
            raise FileExistsError(errno.EEXIST, "the name is taken", str(target)) from error
        os.rename(source, target)
    else:
        os.unlink(source)


def write_atomic(path: Path, data: bytes, mode: int = 0o644, *, durable: bool = True) -> None:
    """Replace a file's contents: wholly new or wholly old, also after a crash when `durable`.

    One writer at a time; what a killed one left staged is removed by the next.
    """
    staged = path.with_name(f".{path.name}.new")
    with contextlib.ExitStack() as undo:
        _discard(staged)
        handle = os.open(staged, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
        undo.callback(_discard, staged)
        with os.fdopen(handle, "wb") as sink:
            sink.write(data)
            sink.flush()
            if durable:
                os.fsync(sink.fileno())
        os.rename(staged, path)
        undo.pop_all()
    if durable:
        fsync_folder(path.parent)


def write_changed(path: Path, data: bytes, mode: int = 0o644, *, durable: bool = True) -> None:
    """Replace a file's contents as `write_atomic` does, unless they are the same already."""
    try:
        if read_small(path) == data:
            return
    except OSError:
        # What cannot be read is replaced.
        pass
    write_atomic(path, data, mode, durable=durable)


def _discard(staged: Path) -> None:
    with contextlib.suppress(OSError):
        os.unlink(staged)


def open_plain(path: Path, flags: int, mode: int = 0o644) -> int:
    """Open a name that anyone may have put something else under; never waits for the other end of a pipe.

    Raises:
        OSError: it is no plain file (EINVAL), or cannot be opened.
    """
    handle = os.open(path, flags | os.O_NONBLOCK | os.O_CLOEXEC, mode)
    if stat.S_ISREG(os.fstat(handle).st_mode):
        return handle
    os.close(handle)
    raise OSError(errno.EINVAL, "it is not a plain file", str(path))


def read_small(path: Path, limit: int = _LONGEST_RECORD) -> bytes:
    """Read a record or a settings file in as few calls as there can be.

    Raises:
        OSError: it is no plain file (EINVAL), larger than `limit` bytes (EFBIG), or cannot be read.
    """
    handle = open_plain(path, os.O_RDONLY)
    try:
        data = os.read(handle, limit + 1)
    finally:
        os.close(handle)
    if len(data) > limit:
        raise OSError(errno.EFBIG, f"it is larger than {limit >> 20} MiB", str(path))
    return data


def sha256_file(path: Path) -> str:
    """Return the hex SHA-256 of a file."""
    import hashlib

    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def _raise(error: OSError) -> None:
    raise error


def content_paths(root: Path, without: frozenset[str] = _NOT_CONTENT) -> Iterator[str]:
    """Yield the files and links below `root` in sorted order, relative, with `/`.

    `.git` and `__pycache__` are not contents: they differ between sources of the same tree.
    """
    found: list[str] = []
    for folder, names, files in os.walk(root, onerror=_raise):
        names[:] = [name for name in names if name not in without]
        links = [name for name in names if os.path.islink(os.path.join(folder, name))]
        base = os.path.relpath(folder, root)
        prefix = "" if base == "." else base.replace(os.sep, "/") + "/"
        found.extend(prefix + name for name in (*files, *links))
    yield from sorted(found)


def tree_facts(root: Path) -> TreeFacts:
    """Digest a tree: SHA-256 over a line per file of its name and its contents' SHA-256.

    Modes, times and empty folders do not count, so a Git checkout, an archive and a source distribution of the same
    contents agree.
    """
    import hashlib

    whole, count, total = hashlib.sha256(), 0, 0
    for name in content_paths(root):
        path = root / name
        if path.is_symlink():
            line = f"link {_one_line(name)}\0{_one_line(os.readlink(path))}\n"
        else:
            line = f"file {_one_line(name)}\0{sha256_file(path)}\n"
            total += path.stat().st_size
        whole.update(line.encode("utf-8", "surrogateescape"))
        count += 1
    return TreeFacts(f"sha256:{whole.hexdigest()}", count, total)


def _one_line(name: str) -> str:
    """Keep two different trees from giving the same lines."""
    return name.replace("\\", "\\\\").replace("\n", "\\n")


def strip_tree(root: Path) -> None:
    """Remove what the digest of a tree does not cover, so that nothing unseen comes along with it."""
    for folder, names, _ in os.walk(root):
        for name in _NOT_CONTENT.intersection(names):
            remove_tree(Path(folder, name))
            names.remove(name)


def tree_entries(root: Path) -> int:
    """Return how many names a file or a tree has."""
    return 1 + sum(len(names) + len(found) for _, names, found in os.walk(root))


def tree_bytes(root: Path) -> int:
    """Return the bytes that a file or a tree takes on disk, hard links counted once."""
    if not root.is_dir():
        return os.lstat(root).st_blocks * 512
    seen: set[int] = set()
    total = 0
    for folder, _, files in os.walk(root):
        for name in files:
            facts = os.lstat(os.path.join(folder, name))
            if facts.st_ino not in seen:
                seen.add(facts.st_ino)
                total += facts.st_blocks * 512
    return total


def tail(path: Path, lines: int, *, reach: int = 1 << 16) -> list[str]:
    """Return the last lines of a log, none where there is no log; reads at most `reach` bytes."""
    try:
        with os.fdopen(open_plain(path, os.O_RDONLY), "rb") as handle:
            handle.seek(0, os.SEEK_END)
            handle.seek(max(0, handle.tell() - reach))
            text = handle.read().decode("utf-8", "replace")
    except OSError:
        return []
    return text.splitlines()[-lines:] if lines > 0 else []


def remove_tree(path: Path) -> None:
    """Remove a folder that comfypod made; a missing one is fine."""
    if path.is_symlink() or path.is_file():
        path.unlink()
        return
    with contextlib.suppress(FileNotFoundError):
        shutil.rmtree(path)


def try_lock(handle: int, *, shared: bool = False) -> bool | None:
    """Lock an open file (flock(2)) without waiting; False when another has it, None where there are no locks.

    Raises:
        OSError: the disk failed.
    """
    import fcntl

    try:
        fcntl.flock(handle, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno in _UNSUPPORTED:
            return None
        raise
    return True


class FolderLock:
    """An advisory lock (flock(2)) on a file, held by this process until `release` or its end."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._handle: int | None = None

    @property
    def held(self) -> bool:
        """Whether this process holds it."""
        return self._handle is not None

    def acquire(self) -> bool:
        """Take the lock; return False where the file system has no locks.

        Raises:
            BusyError: someone else holds it.
        """
        handle = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            locked = try_lock(handle)
        except OSError:
            os.close(handle)
            raise
        if locked:
            self._handle = handle
            return True
        os.close(handle)
        if locked is None:
            return False
        raise BusyError(f"{self.path.parent} is in use by another process")

    @property
    def descriptors(self) -> tuple[int, ...]:
        """Return the open descriptor, to hand to a child that must hold the lock too; empty when not held."""
        return () if self._handle is None else (self._handle,)

    def release(self) -> None:
        """Let go; harmless when not held."""
        if self._handle is not None:
            os.close(self._handle)
            self._handle = None

"""A folder seen through a file system whose every operation on names takes a while, as on a busy network disk.

`python -m benchmarks.slow_volume FOLDER MOUNT MILLISECONDS` mounts it and stays until it is unmounted. A double for a
network file system with far metadata: contents are as quick as FUSE is.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Any

import mfusepy  # needs libfuse2

_ON_NAMES = {
    "getattr", "access", "chmod", "chown", "create", "link", "mkdir", "mknod", "open", "opendir", "readdir",
    "readlink", "rename", "rmdir", "symlink", "statfs", "truncate", "unlink", "utimens",
}  # fmt: skip
_FACTS = ("mode", "ino", "nlink", "uid", "gid", "size", "atime_ns", "mtime_ns", "ctime_ns")
_ROOM = ("bavail", "bfree", "blocks", "bsize", "favail", "ffree", "files", "flag", "frsize", "namemax")


class Slow(mfusepy.Operations):  # type: ignore[misc,unused-ignore]
    """Passes everything on to a folder, each operation on names after `seconds`."""

    use_ns = True

    def __init__(self, folder: str, seconds: float) -> None:
        self._folder, self._pause = folder, seconds

    def __getattribute__(self, name: str) -> Any:
        """Return an operation, which begins with the pause where it is one on names."""
        if name in _ON_NAMES:
            time.sleep(super().__getattribute__("_pause"))
        return super().__getattribute__(name)

    def _at(self, path: str) -> Path:
        return Path(self._folder + path)

    def getattr(self, path: str, fh: int | None = None) -> dict[str, Any]:  # noqa: D102
        found = self._at(path).lstat() if fh is None else os.fstat(fh)
        return {f"st_{name.removesuffix('_ns')}": getattr(found, f"st_{name}") for name in _FACTS}

    def readdir(self, path: str, fh: int) -> list[str]:  # noqa: D102
        del fh
        return [".", "..", *os.listdir(self._at(path))]

    def open(self, path: str, flags: int) -> int:  # noqa: D102
        return os.open(self._at(path), flags)

    def create(self, path: str, mode: int, fi: Any = None) -> int:  # noqa: D102
        del fi
        return os.open(self._at(path), os.O_RDWR | os.O_CREAT | os.O_EXCL, mode)

    def read(self, path: str, size: int, offset: int, fh: int) -> bytes:  # noqa: D102
        del path
        return os.pread(fh, size, offset)

    def write(self, path: str, data: bytes, offset: int, fh: int) -> int:  # noqa: D102
        del path
        return os.pwrite(fh, data, offset)

    def truncate(self, path: str, length: int, fh: int | None = None) -> None:  # noqa: D102
        os.truncate(self._at(path) if fh is None else fh, length)

    def fsync(self, path: str, datasync: int, fh: int) -> None:  # noqa: D102
        del path, datasync
        os.fsync(fh)

    def release(self, path: str, fh: int) -> None:  # noqa: D102
        del path
        os.close(fh)

    def utimens(self, path: str, times: Any = None) -> None:  # noqa: D102
        os.utime(self._at(path), ns=times, follow_symlinks=False)

    def statfs(self, path: str) -> dict[str, Any]:  # noqa: D102
        found = os.statvfs(self._at(path))
        return {f"f_{name}": getattr(found, f"f_{name}") for name in _ROOM}

    def rename(self, old: str, new: str) -> None:  # noqa: D102
        self._at(old).rename(self._at(new))

    def link(self, target: str, source: str) -> None:  # noqa: D102
        self._at(target).hardlink_to(self._at(source))

    def symlink(self, target: str, source: str) -> None:  # noqa: D102
        self._at(target).symlink_to(source)

    def readlink(self, path: str) -> str:  # noqa: D102
        return str(self._at(path).readlink())

    def access(self, path: str, amode: int) -> None:  # noqa: D102
        if not os.access(self._at(path), amode):
            raise mfusepy.FuseOSError(13)

    def chmod(self, path: str, mode: int) -> None:  # noqa: D102
        self._at(path).chmod(mode)

    def chown(self, path: str, uid: int, gid: int) -> None:  # noqa: D102
        os.lchown(self._at(path), uid, gid)

    def mkdir(self, path: str, mode: int) -> None:  # noqa: D102
        self._at(path).mkdir(mode)

    def rmdir(self, path: str) -> None:  # noqa: D102
        self._at(path).rmdir()

    def unlink(self, path: str) -> None:  # noqa: D102
        self._at(path).unlink()


if __name__ == "__main__":
    mfusepy.FUSE(Slow(sys.argv[1], float(sys.argv[3]) / 1000), sys.argv[2], foreground=True, allow_other=True)

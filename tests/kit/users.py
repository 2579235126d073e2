"""Other users for tests: a folder and a Python that they may use, and processes of ours that become them."""

from __future__ import annotations

import ctypes
import os
import pwd  # noqa: F401 - a process that has become somebody else may not be able to import it any more
import shutil
import sys
import tempfile
from contextlib import contextmanager
from pathlib import Path
from pickle import dumps, loads
from typing import TYPE_CHECKING, TypeVar

import h11

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

T = TypeVar("T")
CHOWN, DAC_OVERRIDE, SETGID, SETUID = 0, 1, 6, 7
_CAPABILITIES_3 = 0x20080522


def _open_to_all(path: Path) -> bool:
    return all(parent.stat().st_mode & 0o001 for parent in path.resolve().parents)


def anyones_python() -> str | None:
    """Return a Python that every user may run; None where there is none (the tests' own may be in root's home)."""
    names = (sys.executable, *(f"/usr/bin/python3.{minor}" for minor in (11, 12, 13, 14)))
    return next((name for name in names if Path(name).exists() and _open_to_all(Path(name))), None)


def libraries() -> Path:
    """Return where the gateway's library is, for a Python that does not have it."""
    return Path(h11.__file__).parents[1]


@contextmanager
def common_folder() -> Iterator[Path]:
    """Make a folder that every user may enter and write to, unlike pytest's own."""
    folder = Path(tempfile.mkdtemp(prefix="comfypod-test-"))
    folder.chmod(0o777)
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


def in_child(work: Callable[[], T]) -> T:
    """Do something in a forked process, which may become another user, and return what it returned or raised."""
    reading, writing = os.pipe()
    pid = os.fork()
    if not pid:
        answer: tuple[bool, T | BaseException]
        try:
            answer = (True, work())
        except BaseException as error:  # noqa: BLE001 - told to the parent, which raises it
            answer = (False, error)
        with os.fdopen(writing, "wb") as sink:
            sink.write(dumps(answer))
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as source:
        data = source.read()
    os.waitpid(pid, 0)
    well, came = loads(data)
    if not well:
        raise came
    result: T = came
    return result


def drop_capabilities(*numbers: int) -> None:
    """Give up capabilities of this process, as `docker run --cap-drop` does for a whole container."""
    libc = ctypes.CDLL(None, use_errno=True)
    header, sets = (ctypes.c_uint32 * 2)(_CAPABILITIES_3, 0), (ctypes.c_uint32 * 6)()
    for call in ("capget", "capset"):
        if call == "capset":
            for index in (0, 1):
                sets[index] &= ~sum(1 << number for number in numbers)
        if getattr(libc, call)(header, sets) != 0:
            raise OSError(ctypes.get_errno(), call)

"""Reads ahead what a start of ComfyUI is known to read, so that the disk is asked for much at a time.

What that is stands beside a record (`launch/record.py`), libraries in the order of their use. Nothing is copied: the
kernel is told what will be needed. What is in memory already costs a look at a few samples.
"""

from __future__ import annotations

import contextlib
import json
import os
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from comfypod.launch.bundle import AHEAD, FORMAT, NONE

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

_THREADS = 8
# What all threads have asked for at a time is in front of what boot and ComfyUI ask for meanwhile.
_PIECE = 2 << 20
_SAMPLES = 16
_ENOUGH = 0.9
_LONGEST_HEAD = 1 << 16
_LONGEST_LIST = 1 << 26
# No file of an image is as large.
_LARGEST = 1 << 38


@dataclass(frozen=True, slots=True)
class Part:
    """A part of a file."""

    path: str
    offset: int
    length: int


def read_parts(path: str, environment: str, core: str, pages: Mapping[str, Any]) -> list[Part]:
    """Return what to read ahead, the record itself first; its ComfyUI is the one in the folder `core` now.

    `pages` are parts of those large files of which the record has names only (`pages.py`), not checked yet.

    Raises:
        OSError: it cannot be read.
        ValueError: it is none, cut, or of other packages; the message says which.
    """
    with open(path, "rb") as handle:
        line = handle.readline(_LONGEST_HEAD)
        size = os.fstat(handle.fileno()).st_size
    match _body(line):
        case {"format": int(version), "environment": str(key), "size": int(rest)} if version == FORMAT:
            if key != environment:
                raise ValueError("it is of other packages")
            if size != len(line) + rest:
                raise ValueError("it is cut")
            return [Part(path, 0, size), *_more(path, environment, core, pages)]
    raise ValueError(NONE)


def _more(path: str, environment: str, core: str, pages: Mapping[str, Any]) -> Iterator[Part]:
    """Yield parts of other files; where that list is missing or no such one, the record alone is read ahead."""
    before, listed = _listed(path, environment)
    for each in listed:
        match each:
            case [str(name), list(parts)]:
                place = os.path.join(core, name[len(before) + 1 :]) if _is_below(name, before) else name
                known = parts or pages.get(name)
                for offset, length in filter(_is_part, known if isinstance(known, list) else ()):
                    yield Part(place, offset, length)


def large(path: str, environment: str) -> set[str]:
    """Return the names of large files that not all is needed of: they stand beside a record without parts.

    Raises:
        OSError: the list cannot be read.
    """
    found = set()
    for each in _listed(path, environment)[1]:
        match each:
            case [str(name), []]:
                found.add(name)
    return found


def _listed(path: str, environment: str) -> tuple[str, list[Any]]:
    """Return the tree of ComfyUI that a record was made of, and what stands beside it to read ahead, not checked yet.

    Raises:
        OSError: it cannot be read.
    """
    try:
        with open(f"{path}{AHEAD}", "rb") as handle:
            body = _body(handle.read(_LONGEST_LIST))
    except FileNotFoundError:
        body = None
    match body:
        case {"format": int(version), "environment": str(key), "core": str(core), "parts": list(listed)} if (
            version == FORMAT and key == environment
        ):
            return core, listed
    return "", []


def _is_below(name: str, folder: str) -> bool:
    return name.startswith(f"{folder}{os.sep}")


def _is_part(value: Any) -> bool:
    match value:
        case [int(offset), int(length)]:
            return 0 <= offset < _LARGEST and 0 < length < _LARGEST
    return False


def _body(data: bytes) -> Any:
    try:
        return json.loads(data)
    except (ValueError, RecursionError):
        return None


def is_resident(parts: Sequence[Part]) -> bool:
    """Whether samples of what would be read are nearly all in memory; where the kernel does not tell, they are not."""
    samples = [*parts[:: max(1, len(parts) // _SAMPLES)], *sorted(parts, key=lambda part: -part.length)[:_SAMPLES]]
    return sum(_has(part.path, part.offset + part.length // 2) for part in samples) >= _ENOUGH * len(samples)


def _has(path: str, offset: int) -> bool:
    try:
        handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        # What is not there is not waited for either.
        return True
    try:
        os.preadv(handle, [bytearray(1)], offset, os.RWF_NOWAIT)
    except OSError:
        return False
    finally:
        os.close(handle)
    return True


class Readahead:
    """Tells the kernel, in threads that nothing waits for, until it is stopped. `asked` is the bytes so far."""

    def __init__(self, parts: Sequence[Part]) -> None:
        self.asked = 0
        self._pieces = _pieces(parts)
        self._lock, self._over = threading.Lock(), False

    def start(self) -> None:
        """Begin."""
        for _ in range(_THREADS):
            threading.Thread(target=self._run, daemon=True, name="readahead").start()

    def stop(self) -> None:
        """Ask for no more."""
        self._over = True

    def _run(self) -> None:
        while not self._over:
            with self._lock:
                group = next(self._pieces, None)
            if group is None:
                return
            with contextlib.suppress(OSError):
                self._ask(group)

    def _ask(self, group: list[Part]) -> None:
        handle = os.open(group[0].path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            for part in group:
                if self._over:
                    return
                os.posix_fadvise(handle, part.offset, part.length, os.POSIX_FADV_WILLNEED)
                self.asked += part.length
            # Until it has come.
            os.pread(handle, 1, group[-1].offset + group[-1].length - 1)
        finally:
            os.close(handle)


def _pieces(parts: Sequence[Part]) -> Iterator[list[Part]]:
    """Yield parts of one file at a time, of about one size, so that the threads are at work on what is needed next."""
    group: list[Part] = []
    size = 0
    for whole in parts:
        for offset in range(whole.offset, whole.offset + whole.length, _PIECE):
            part = Part(whole.path, offset, min(_PIECE, whole.offset + whole.length - offset))
            if group and (group[0].path != part.path or size >= _PIECE):
                yield group
                group, size = [], 0
            group.append(part)
            size += part.length
    if group:
        yield group

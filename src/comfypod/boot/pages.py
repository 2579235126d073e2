"""Which parts of large libraries a ComfyUI has had in its memory, for later boots of the volume to read ahead.

They differ a little from start to start, and with GPU and nodes, so that no image can say it. The kernel knows
(`/proc/PID/pagemap`, proc(5)), whatever it keeps in memory for other programs: what was touched, and around it at
most the large page in which it holds the file. Only files that a record names count.
"""

from __future__ import annotations

import array
import json
import mmap
import os
from typing import TYPE_CHECKING, Any

from comfypod import files
from comfypod.launch.bundle import FORMAT
from comfypod.launch.writer import merged

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping
    from pathlib import Path

_PAGE = mmap.PAGESIZE
_PRESENT = 1 << 63
_LONGEST = 4 << 20

Parts = dict[str, list[list[int]]]


def used(pid: int, paths: Collection[str]) -> Parts:
    """Return which parts of which of these files a process has in its memory, each offset and length in bytes.

    Raises:
        OSError: it is gone, or the kernel does not tell.
    """
    found: Parts = {}
    with open(f"/proc/{pid}/pagemap", "rb", buffering=0) as handle:
        for path, begin, end, base in _mappings(pid):
            if path in paths:
                pages = array.array("Q", os.pread(handle.fileno(), (end - begin) // _PAGE * 8, begin // _PAGE * 8))
                there = [base + number * _PAGE for number, page in enumerate(pages) if page & _PRESENT]
                found.setdefault(path, []).extend([at, _PAGE] for at in there)
    return {path: merged(parts) for path, parts in found.items() if parts}


def _mappings(pid: int) -> Iterator[tuple[str, int, int, int]]:
    """Yield the files that a process has mapped: where from and to, and from which offset of the file.

    A name may hold anything but a line feed.
    """
    with open(f"/proc/{pid}/maps", "rb") as handle:
        for line in handle.read().split(b"\n"):
            words = line.split(maxsplit=5)
            if len(words) == 6 and words[4] != b"0":
                begin, _, end = words[0].partition(b"-")
                yield os.fsdecode(words[5]), int(begin, 16), int(end, 16), int(words[2], 16)


def write(path: Path, environment: str, parts: Mapping[str, list[list[int]]]) -> None:
    """Keep them for starts over the same packages. Of several pods that do so at once, one may be refused.

    Raises:
        OSError: the disk refused.
    """
    body = {"format": FORMAT, "environment": environment, "parts": dict(sorted(parts.items()))}
    files.write_changed(path, json.dumps(body).encode(errors="surrogateescape"), durable=False)


def read(path: Path, environment: str) -> dict[str, Any]:
    """Return what was kept for these packages, None of it checked; nothing where there is no such thing."""
    try:
        body = json.loads(files.read_small(path, _LONGEST))
    except (OSError, ValueError, RecursionError):
        return {}
    match body:
        case {"format": int(version), "environment": str(key), "parts": dict(parts)} if (
            version == FORMAT and key == environment
        ):
            return parts
    return {}

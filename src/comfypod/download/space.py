"""Room for all files of a run, before the first byte of the first."""

from __future__ import annotations

from typing import TYPE_CHECKING

from comfypod import files
from comfypod.download.partial import folder_of
from comfypod.errors import StorageError
from comfypod.log import human_bytes

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from comfypod.download.order import Order

# A folder, its data, two records and a ticket, and the folder that a file goes to.
_NAMES = 6


def check(orders: Iterable[tuple[Order, int]], site: Path) -> None:
    """Refuse files of these sizes when there is no room for them; what partial files have already is counted.

    A file whose place is on another file system needs room there as well.

    Raises:
        StorageError: there is too little, both sizes named.
    """
    here = files.nearest_folder(site)
    needed: dict[int, tuple[Path, int, int]] = {}
    for order, size in orders:
        data, there = folder_of(site, order.target) / "data", files.nearest_folder(order.target.parent)
        held = data.lstat().st_blocks * 512 if data.exists() else 0
        places = {here.stat().st_dev: (here, max(0, size - held))}
        places.setdefault(there.stat().st_dev, (there, size))
        for device, (path, wanted) in places.items():
            _, before, names = needed.get(device, (path, 0, 0))
            needed[device] = path, before + wanted, names + _NAMES
    for path, size, names in needed.values():
        _check(path, size, names)


def _check(path: Path, size: int, names: int) -> None:
    left = files.room(path)
    if left.bytes < size:
        raise StorageError(
            f"the downloads need {human_bytes(size)} and {path} has {human_bytes(left.bytes)}",
            "free some space, use a larger volume, or fetch fewer files",
        )
    if left.inodes is not None and left.inodes < names:
        raise StorageError(
            f"the downloads need {names} inodes and {path} has {left.inodes}",
            "delete small files or use a file system with more inodes",
        )

"""Where a file may be put, and putting it there: whole, under a name that is not taken, for good."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import TYPE_CHECKING

from comfypod import copying, files
from comfypod.errors import IntegrityError, StorageError, UsageError

if TYPE_CHECKING:
    from comfypod.download.order import Order


def check(order: Order) -> None:
    """Refuse a target that leaves its folder, by its name or by a link.

    Raises:
        UsageError: it may not be written.
    """
    target, name = order.target, order.target.name
    hint = "name a file below the folder that it belongs to"
    if not target.is_absolute() or ".." in target.parts or not name.isprintable() or "\\" in name:
        raise UsageError(f"{str(target)!r} cannot be the name of a file to fetch", hint)
    if order.below is not None:
        inside = target.is_relative_to(order.below) and target != order.below
        # Not Path.resolve, which raises another error where links lead in a circle.
        parent, below = Path(os.path.realpath(target.parent)), os.path.realpath(order.below)
        if not inside or not parent.is_relative_to(below):
            raise UsageError(f"{str(target)!r} is not below {order.below}", hint)


def already(order: Order) -> bool:
    """Say whether the file is in place. Whatever else stands there is left alone.

    Raises:
        StorageError: it cannot be read.
        IntegrityError: another file stands there.
    """
    if not os.path.lexists(order.target):
        return False
    with files.storage_errors(f"cannot read {order.target}"):
        same = order.target.is_file() and order.size in (0, order.target.stat().st_size)
        same = same and order.sha256 in ("", files.sha256_file(order.target) if order.sha256 else "")
    if not same:
        hint = "move it away, or choose another name; it was not touched"
        raise IntegrityError(f"another file stands at {order.target}", hint)
    return True


def publish(data: Path, order: Order) -> None:
    """Give the file its name; what is there is never overwritten.

    Raises:
        StorageError: the disk refuses, or the name was taken meanwhile.
        UsageError: its folder leads elsewhere by now.
    """
    target = order.target
    files.make_folder(target.parent)
    check(order)
    try:
        try:
            files.rename_new(data, target)
        except OSError as error:
            if error.errno != errno.EXDEV:
                raise
            copying.copy_new(data, target)
            data.unlink()
        files.fsync_folder(target.parent)
    except FileExistsError as error:
        raise StorageError(f"{target} was made by something else meanwhile", "it was not touched") from error
    except OSError as error:
        raise files.storage_error(error, f"cannot put a file at {target}") from error

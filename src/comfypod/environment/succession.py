"""Which layer comes after which: one that is put by when it is made anew, one that others have overtaken."""

from __future__ import annotations

from typing import TYPE_CHECKING

from comfypod.environment.layer import read_marker
from comfypod.files import fsync_folder, remove_tree

if TYPE_CHECKING:
    from pathlib import Path

    from comfypod.environment.layer import Layer
    from comfypod.workspace.layout import Layout

_BEFORE = ".before"


def put_by(layer: Layer) -> Path | None:
    """Move a complete layer out of the way of a new one of its key, which is made from it; return where it is.

    Raises:
        OSError: the disk failed.
    """
    if read_marker(layer) is None:
        return None
    place = layer.root.with_name(f"{layer.root.name}{_BEFORE}")
    if place.exists():
        remove_tree(place)
    layer.root.rename(place)
    fsync_folder(place.parent)
    return place


def is_behind(layer: Layer, layout: Layout) -> bool:
    """Whether another layer of the volume was changed after this one: packages may have been asked for since.

    Raises:
        OSError: the disk failed.
    """
    others = [path / layer.marker.name for path in layout.envs.iterdir() if path != layer.root]
    mine = layer.marker.stat().st_mtime_ns
    return any(other.is_file() and other.stat().st_mtime_ns > mine for other in others)

"""Which layer comes after which: one that is put by when it is made anew, one that others have overtaken."""

from __future__ import annotations

from typing import TYPE_CHECKING

from comfypod.environment.layer import Layer, read_marker
from comfypod.files import fsync_folder, remove_tree

if TYPE_CHECKING:
    from pathlib import Path

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


def others(layer: Layer, layout: Layout) -> list[Layer]:
    """Return the complete layers of other keys; their images may be gone."""
    try:
        found = [Layer(path, path.name, layer.image) for path in layout.envs.iterdir() if path != layer.root]
    except OSError:
        return []
    return [other for other in found if not other.root.is_symlink() and read_marker(other) is not None]


def is_behind(layer: Layer, layout: Layout) -> bool:
    """Whether another layer of the volume was changed after this one: packages may have been asked for since.

    Raises:
        OSError: the disk failed.
    """
    mine = layer.marker.stat().st_mtime_ns
    return any(other.marker.stat().st_mtime_ns > mine for other in others(layer, layout))

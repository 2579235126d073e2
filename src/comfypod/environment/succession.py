"""Which layer comes after which: one that is put by when it is made anew, one that others have overtaken."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import TYPE_CHECKING

from comfypod.environment.layer import read_marker, remember
from comfypod.files import fsync_folder, is_folder

if TYPE_CHECKING:
    from pathlib import Path

    from comfypod.environment.layer import Layer
    from comfypod.workspace.layout import Layout

_BEFORE = ".before-"


def put_by(layer: Layer) -> Path | None:
    """Move a complete layer out of the way of a new one of its key, which is made from it; return where it is.

    Raises:
        OSError: the disk failed.
    """
    marker, number = read_marker(layer), 1
    if marker is None:
        return None
    while os.path.lexists(place := layer.root.with_name(f"{layer.root.name}{_BEFORE}{number}")):
        number += 1
    layer.root.rename(place)
    fsync_folder(place.parent)
    if marker.get("rebuild"):
        # Who goes back to it wants it as it is.
        remember(replace(layer, root=place), rebuild=False)
    return place


def others(layer: Layer, layout: Layout) -> list[Layer]:
    """Return what else lies where layers are, as layers over the same image; they need not be complete.

    Raises:
        OSError: the folder cannot be listed.
    """
    return [replace(layer, root=path, key=path.name) for path in sorted(layout.envs.iterdir()) if path != layer.root]


def finished(layer: Layer, layout: Layout) -> list[Layer]:
    """Return the complete ones of them; their images may be gone."""
    try:
        return [each for each in others(layer, layout) if is_folder(each.root) and read_marker(each) is not None]
    except OSError:
        return []


def previous_of(layer: Layer, layout: Layout) -> Layer | None:
    """Return the other complete layer that was changed last, None where there is none."""
    return max(finished(layer, layout), key=lambda each: each.marker.stat().st_mtime_ns, default=None)


def behind(layer: Layer, layout: Layout) -> int:
    """Return when another layer of the volume was changed after this one: packages may have been asked for since.

    It is 0 where none was, and where that is `met` by now: clocks differ, and a time may lie ahead of ours.

    Raises:
        OSError: the disk failed.
    """
    markers = [each.marker for each in others(layer, layout) if each.marker.is_file()]
    newest = max((marker.stat().st_mtime_ns for marker in markers), default=0)
    known = (read_marker(layer) or {}).get("met")
    return newest if newest > layer.marker.stat().st_mtime_ns and newest != known else 0

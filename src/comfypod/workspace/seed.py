"""Seeding: put the image's ComfyUI on an empty volume, staged beside its place and switched by one rename."""

from __future__ import annotations

import contextlib
import json
import os
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from comfypod import files
from comfypod.errors import InstallError, StorageError
from comfypod.log import human_bytes

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from comfypod.podfile import PodFile
    from comfypod.workspace.layout import Layout

USER_FOLDERS = ("custom_nodes", "input", "models", "output", "user")
_SLACK = 16 << 20


@dataclass(frozen=True, slots=True)
class Seeded:
    """Where ComfyUI's core and the user's folders are, and how that came to be.

    `kept`: the volume holds this release. `other`: it holds another release, a ComfyUI that comfypod did not make, or
    only folders of the user's; then the core runs from the image over them, and nothing that is there is changed.
    """

    action: Literal["seeded", "kept", "other"]
    core: Path
    base: Path
    release: str
    bytes: int = 0
    seconds: float = 0.0


def seed(layout: Layout, pod: PodFile, pristine: Path, advance: Callable[[int], None]) -> Seeded:
    """Make sure that the volume has a ComfyUI; killed anywhere, the next call completes it.

    Raises:
        InstallError: the image's own ComfyUI is not there.
        StorageError: too little room (both sizes named), or the disk failed; the staged tree is removed.
    """
    files.remove_tree(layout.staging)
    if os.path.lexists(layout.comfyui) and not layout.comfyui.is_dir():
        raise StorageError(f"{layout.comfyui} is there and is no folder", "move it away; nothing was written")
    if layout.comfyui.is_dir():
        found = _marked_release(layout)
        _make_user_folders(layout)
        if found == pod.release and (layout.comfyui / "main.py").is_file():
            return Seeded("kept", layout.comfyui, layout.comfyui, found)
        return Seeded("other", pristine, layout.comfyui, found)
    if not (pristine / "main.py").is_file():
        raise InstallError(f"{pristine} holds no ComfyUI", "run `comfypod up` again, or pull the image again")
    needed = _ensure_room(layout, pristine)
    started = time.monotonic()
    try:
        copied = _stage_and_switch(layout, pod, pristine, advance)
    except OSError as error:
        raise files.storage_error(error, f"cannot seed {layout.comfyui}", needed) from error
    finally:
        with contextlib.suppress(OSError):
            files.remove_tree(layout.staging)
    return Seeded("seeded", layout.comfyui, layout.comfyui, pod.release, copied, time.monotonic() - started)


def _stage_and_switch(layout: Layout, pod: PodFile, pristine: Path, advance: Callable[[int], None]) -> int:
    layout.staging.mkdir()
    staged = layout.staging / layout.comfyui.name
    baked = {f"custom_nodes/{node.name}" for node in pod.nodes}
    copied = files.copy_tree(pristine, staged, advance, without=baked)
    mark = json.dumps({"release": pod.release, "digest": pod.comfyui_digest}) + "\n"
    files.write_atomic(staged / layout.release_mark.name, mark.encode(), durable=False)
    files.sync_filesystem(staged)
    staged.rename(layout.comfyui)
    files.fsync_folder(layout.root)
    return copied


def _make_user_folders(layout: Layout) -> None:
    """Make those that are missing: without `custom_nodes` ComfyUI does not start."""
    for name in USER_FOLDERS:
        folder = layout.comfyui / name
        if not os.path.lexists(folder):
            files.make_folder(folder)


def _marked_release(layout: Layout) -> str:
    try:
        return str(json.loads(files.read_small(layout.release_mark))["release"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return ""


def _ensure_room(layout: Layout, pristine: Path) -> int:
    needed = files.tree_bytes(pristine)
    entries = sum(len(names) + len(found) for _, names, found in os.walk(pristine)) + 8
    left = files.room(layout.root)
    if left.bytes < needed + _SLACK:
        raise StorageError(
            f"{layout.root} has {human_bytes(left.bytes)} left, seeding ComfyUI needs {human_bytes(needed + _SLACK)}",
            "free some space or choose another workspace; nothing was written",
        )
    if left.inodes is not None and left.inodes < entries:
        raise StorageError(
            f"{layout.root} has {left.inodes} inodes left, seeding ComfyUI needs {entries}",
            "delete small files or use a file system with more inodes; nothing was written",
        )
    return needed

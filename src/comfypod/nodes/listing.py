"""Which nodes ComfyUI finds and which it does not, each with its state and the reason for it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from comfypod.errors import UsageError
from comfypod.files import is_folder
from comfypod.nodes import place, record

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from comfypod.podfile import BakedNode
    from comfypod.workspace.layout import Layout

Row = dict[str, str]
# States of the record in which there is no folder that speaks for itself.
# The one node in `custom_nodes` that is part of ComfyUI.
COMFYUIS_OWN = "websocket_image_save.py"
_ABSENT = frozenset({"installing", "placing", "failed", "incomplete"})


def rows(layout: Layout, folder: Path, baked: Sequence[BakedNode]) -> list[Row]:
    """Return a row for each node: `name`, `state`, `reason`; those of the image first."""
    found = entries(folder)
    taken = {entry.name.casefold() for entry in found if _is_folder(entry) or entry.name.endswith(place.OFF)}
    ours = [_row(node.name, *_covered(node, taken)) for node in baked]
    known = record.read(layout).nodes
    own = [_own(entry.name, known) for entry in found if _is_node(entry)]
    here = {row["name"].removesuffix(place.OFF) for row in own}
    absent = [
        _row(name, "installing" if entry.state == "placing" else entry.state, entry.reason)
        for name, entry in known.items()
        if entry.state in _ABSENT and name not in here
    ]
    return [*ours, *sorted([*own, *absent], key=lambda row: row["name"])]


def entries(folder: Path) -> list[os.DirEntry[str]]:
    """Return what is in a folder, sorted; nothing where there is none."""
    try:
        return sorted(os.scandir(folder), key=lambda entry: entry.name)
    except FileNotFoundError:
        return []


def switch(folder: Path, name: str, baked: Iterable[str], *, on: bool) -> str:
    """Have ComfyUI leave a node out at its next start, or take it in again; return its name. Nothing is deleted.

    Raises:
        UsageError: there is no such node, or it cannot be switched.
        OSError: the disk refused.
    """
    names = {entry.name for entry in entries(folder)}
    bare = name.removesuffix(place.OFF)
    mark, node = folder / f"{bare}{place.OFF}", folder / bare
    match bare in names, mark.name in names, on:
        case True, False, False:
            node.rename(mark)
        case False, False, False if bare in baked:
            mark.mkdir()
        case _, True, True if bare in baked and _is_empty(mark):
            mark.rmdir()
        case False, True, True:
            mark.rename(node)
        case _:
            told = f"the node {name!r} cannot be switched {'on' if on else 'off'}"
            raise UsageError(told, f"`comfypod nodes list` names the nodes; {folder} has their folders")
    return bare


def _is_empty(path: Path) -> bool:
    return is_folder(path) and not os.listdir(path)


def _row(name: str, state: str, reason: str = "") -> Row:
    return {"name": name, "state": state, "reason": reason}


def _own(name: str, known: dict[str, record.Entry]) -> Row:
    if name.endswith(place.OFF):
        return _row(name, "disabled")
    entry = known.get(name)
    return _row(name, "present", entry.reason if entry is not None and entry.state == "installed" else "")


def _is_node(entry: os.DirEntry[str]) -> bool:
    if entry.name.startswith((".", "__")) or entry.name == COMFYUIS_OWN or place.is_waiting(entry.name):
        return False
    return _is_folder(entry) or entry.name.endswith((".py", place.OFF))


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:
        return False


def _covered(node: BakedNode, taken: set[str]) -> tuple[str, str]:
    """Return the state of a node of the image, and why it is not used; what the user put on the volume wins.

    ComfyUI does not survive a folder that is not there.
    """
    if not Path(node.path).is_dir():
        return "missing", f"{node.path} is not there"
    name = node.name.casefold()
    if name in taken:
        return "shadowed", f"custom_nodes has a {node.name} of its own"
    if f"{name}{place.OFF}" in taken:
        return "disabled", f"custom_nodes has {node.name}{place.OFF}"
    return "baked", ""

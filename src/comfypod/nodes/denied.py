"""Custom nodes that are known to do harm are set aside before ComfyUI can load them."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from comfypod.environment import denied as lists
from comfypod.errors import Problem, StorageError
from comfypod.workspace.aside import put_aside

if TYPE_CHECKING:
    from pathlib import Path

    from comfypod.workspace.layout import Layout


def set_denied_aside(layout: Layout, nodes: Path) -> tuple[Problem, ...]:
    """Set aside each denied node of a folder, by its name or by where it was cloned from; return what that was."""
    denied, _ = lists.load(layout.denied)
    try:
        names = sorted(os.listdir(nodes))
    except OSError:
        return ()
    paths = [nodes / name for name in names if not name.endswith(".disabled")]
    found = ((path, denied.node(path.name, lists.origins(path))) for path in paths)
    return tuple(_set_aside(layout, path, node.reason) for path, node in found if node is not None)


def _set_aside(layout: Layout, path: Path, reason: str) -> Problem:
    try:
        place = put_aside(layout, path, f"it is denied: {reason}")
    except StorageError as error:
        return Problem("denied", f"{path} is denied ({reason}) and still there: {error.message}", error.hint)
    hint = f"it has run with all that this pod may do: change what secrets it could reach; its files are {place}"
    return Problem("denied", f"{path} was set aside: {reason}", hint)

"""The custom nodes that the volume holds and the image brings along, and how one is switched on and off."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from comfypod.boot import extra_paths
from comfypod.boot.health import StageView
from comfypod.errors import UsageError
from comfypod.files import storage_errors
from comfypod.nodes import listing

if TYPE_CHECKING:
    from comfypod.boot.context import Context


def list_nodes(context: Context, view: StageView) -> str:
    """Note the custom nodes that ComfyUI will find, and tell it where the image's nodes and models are."""
    del view
    assert context.core is not None  # noqa: S101 - the workspace stage has run
    folder = context.core.base / "custom_nodes"
    found = listing.rows(context.layout, folder, context.pod.nodes)
    baked = {row["name"] for row in found[: len(context.pod.nodes)] if row["state"] == "baked"}
    context.baked_nodes = tuple(node for node in context.pod.nodes if node.name in baked)
    own = [row for row in found[len(context.pod.nodes) :] if row["state"] in ("present", "disabled")]
    live = (folder / row["name"] for row in own if row["state"] == "present")
    context.node_paths = (*(Path(node.path) for node in context.baked_nodes), *live)
    context.health.nodes = [_as_loaded(context, row) for row in found]
    extra_paths.write(context)
    brought = f", {len(context.baked_nodes)} of the image's own" if context.pod.nodes else ""
    return f"{len(own)} in custom_nodes{brought}"


def _as_loaded(context: Context, row: dict[str, str]) -> dict[str, str]:
    """Return a node as `/status` shows it: one that ComfyUI has loaded, or not, by what became of it."""
    if row["state"] not in ("present", "baked"):
        return row
    state, reason = context.node_outcomes.get(row["name"], (row["state"], row["reason"]))
    return {**row, "state": state, "reason": reason}


def switch_node(context: Context, name: str, *, on: bool) -> str:
    """Have ComfyUI leave a node out at its next start, or take it in again; nothing is deleted.

    Raises:
        UsageError: there is no such node, or it cannot be switched.
        StorageError: the disk refused.
    """
    if context.core is None:
        raise UsageError("the nodes are not known yet", "wait until the stages of the boot are done")
    folder, baked = context.core.base / "custom_nodes", [node.name for node in context.pod.nodes]
    with storage_errors(f"cannot switch the node {name}"):
        if on and any(row["name"] == name and row["state"] == "aside" for row in context.health.nodes):
            context.allow_node(name)
            bare = name
        else:
            bare = listing.switch(folder, name, baked, on=on)
        list_nodes(context, StageView("nodes"))
    return f"{bare} is {'on' if on else 'off'} from ComfyUI's next start on"

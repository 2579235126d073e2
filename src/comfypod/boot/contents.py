"""The node and model stages: what the volume holds, what the image brings along, and how ComfyUI is told."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from comfypod.boot.health import StageView
from comfypod.errors import StorageError, UsageError
from comfypod.files import storage_errors, write_atomic
from comfypod.nodes import listing
from comfypod.workspace.adopt import adoptions

if TYPE_CHECKING:
    from comfypod.boot.context import Context
    from comfypod.podfile import BakedNode, LockedModel

# Keys of ComfyUI's file that are no kind of model.
_NOT_MODELS = frozenset({"base_path", "is_default", "custom_nodes"})


def list_nodes(context: Context, view: StageView) -> str:
    """Note the custom nodes that ComfyUI will find, and tell it where the image's nodes and models are."""
    del view
    assert context.core is not None  # noqa: S101 - the workspace stage has run
    folder = context.core.base / "custom_nodes"
    found = listing.rows(context.layout, folder, context.pod.nodes)
    baked = {row["name"] for row in found[: len(context.pod.nodes)] if row["state"] == "baked"}
    used = [node for node in context.pod.nodes if node.name in baked]
    own = [row for row in found[len(context.pod.nodes) :] if row["state"] in ("present", "disabled")]
    live = (folder / row["name"] for row in own if row["state"] == "present")
    context.node_paths = (*(Path(node.path) for node in used), *live)
    context.health.nodes = [_as_loaded(context, row) for row in found]
    context.extra_paths = _write_extra_paths(context, used)
    brought = f", {len(used)} of the image's own" if context.pod.nodes else ""
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


def _write_extra_paths(context: Context, nodes: list[BakedNode]) -> Path | None:
    """Write ComfyUI's file of further folders, as JSON, which is YAML too; None when there is nothing to say.

    Raises:
        OSError: the disk failed.
    """
    path, body = context.layout.extra_paths, _extra_paths(context, nodes)
    if not body:
        path.unlink(missing_ok=True)
        return None
    write_atomic(path, (json.dumps(body, indent=1, ensure_ascii=False) + "\n").encode(), durable=False)
    return path


def _extra_paths(context: Context, nodes: list[BakedNode]) -> dict[str, dict[str, str]]:
    body = {f"baked_{node.name}": {"custom_nodes": str(Path(node.path).parent)} for node in nodes}
    for number, adopted in adoptions(context.layout).items():
        places = {**adopted.models, **({"custom_nodes": adopted.nodes} if adopted.nodes else {})}
        if places:
            body[f"adopted_{number}"] = {"base_path": str(context.layout.root), **places}
    if context.pod.models_path is None:
        return body
    folders = [entry.name for entry in listing.entries(Path(context.pod.models_path)) if entry.is_dir()]
    if kinds := {name: _places(context, name) for name in folders if name not in _NOT_MODELS}:
        body["baked_models"] = {"base_path": context.pod.models_path, **kinds}
    return body


def _places(context: Context, kind: str) -> str:
    """Return where models of a kind are, one place a line.

    Nodes that bring a kind of their own add the volume's folder only when the kind has none yet, so it is named too.
    """
    assert context.core is not None  # noqa: S101 - the workspace stage has run
    if (Path(context.pod.comfyui_path) / "models" / kind).is_dir():
        return kind
    return f"{context.core.base / 'models' / kind}\n{kind}"


def check_models(context: Context, view: StageView) -> str:
    """Compare the locked models with what is there, by size: digests of large files would hold up the boot."""
    del view
    assert context.core is not None  # noqa: S101 - the workspace stage has run
    base, rows = context.core.base / "models", []
    places = [base, *([Path(context.pod.models_path)] if context.pod.models_path else [])]
    for model in context.pod.models:
        sizes = [_size(place, model) for place in places]
        found = model.size if model.size in sizes else max(sizes)
        present = "present" if found == model.size else "missing" if not found else "incomplete"
        rows.append({"name": model.name, "state": present, "bytes": found, "total": model.size})
    context.health.models = rows
    lacking = [str(row["name"]) for row in rows if row["state"] != "present"]
    if lacking:
        raise StorageError(f"models not in {base}: {', '.join(lacking)}", "put them there; the rest of the pod works")
    return f"{len(rows)} locked"


def _size(base: Path, model: LockedModel) -> int:
    try:
        return (base / model.folder / model.file).stat().st_size
    except FileNotFoundError:
        return 0

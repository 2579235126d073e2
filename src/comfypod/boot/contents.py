"""The node and model stages: what the volume holds, what the image brings along, and how ComfyUI is told."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING

from comfypod.boot.health import StageView
from comfypod.errors import StorageError, UsageError
from comfypod.files import storage_error, write_atomic
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
    entries = _entries(context.core.base / "custom_nodes")
    own = [{"name": entry.name, "state": _state(entry.name), "reason": ""} for entry in entries if _is_node(entry)]
    taken = {entry.name.casefold() for entry in entries if entry.is_dir() or entry.name.endswith(".disabled")}
    baked = {node: _covered(node, taken) for node in context.pod.nodes}
    rows = [{"name": node.name, "state": state, "reason": why} for node, (state, why) in baked.items()]
    context.health.nodes = rows + own
    used = [node for node, (state, _) in baked.items() if state == "baked"]
    context.extra_paths = _write_extra_paths(context, used)
    brought = f", {len(used)} of the image's own" if context.pod.nodes else ""
    return f"{len(own)} in custom_nodes{brought}"


def switch_node(context: Context, name: str, *, on: bool) -> str:
    """Have ComfyUI leave a node out at its next start, or take it in again; nothing is deleted.

    Raises:
        UsageError: there is no such node, or it cannot be switched.
        StorageError: the disk refused.
    """
    if context.core is None:
        raise UsageError("the nodes are not known yet", "wait until the stages of the boot are done")
    row = next((row for row in context.health.nodes if row["name"] == name), {"state": ""})
    bare, folder = name.removesuffix(".disabled"), context.core.base / "custom_nodes"
    mark, node = folder / f"{bare}.disabled", folder / bare
    try:
        match row["state"], on:
            case ("baked", False):
                mark.mkdir()
            case ("disabled", True) if any(each.name == name for each in context.pod.nodes):
                mark.rmdir()
            case ("disabled", True) if not node.exists():
                mark.rename(node)
            case ("present", False) if not mark.exists():
                node.rename(mark)
            case _:
                told = f"the node {name!r} cannot be switched {'on' if on else 'off'}"
                raise UsageError(told, f"`comfypod status` names the nodes; {folder} has their folders")
        list_nodes(context, StageView("nodes"))
    except OSError as error:
        raise storage_error(error, f"cannot switch the node {name}") from error
    return f"{bare} is {'on' if on else 'off'} from ComfyUI's next start on"


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    try:
        return sorted(os.scandir(folder), key=lambda entry: entry.name)
    except FileNotFoundError:
        return []


def _is_node(entry: os.DirEntry[str]) -> bool:
    if entry.name.startswith((".", "__")) or entry.name == "websocket_image_save.py":
        return False
    return entry.is_dir() or entry.name.endswith((".py", ".disabled"))


def _state(name: str) -> str:
    return "disabled" if name.endswith(".disabled") else "present"


def _covered(node: BakedNode, taken: set[str]) -> tuple[str, str]:
    """Return the state of a node of the image, and why it is not used; what the user put on the volume wins.

    ComfyUI does not survive a folder that is not there.
    """
    if not Path(node.path).is_dir():
        return "missing", f"{node.path} is not there"
    name = node.name.casefold()
    if name in taken:
        return "shadowed", f"custom_nodes has a {node.name} of its own"
    if f"{name}.disabled" in taken:
        return "disabled", f"custom_nodes has {node.name}.disabled"
    return "baked", ""


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
    folders = [entry.name for entry in _entries(Path(context.pod.models_path)) if entry.is_dir()]
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

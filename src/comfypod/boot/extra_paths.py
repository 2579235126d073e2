"""ComfyUI's file of further folders: the image's nodes and models, adopted ones, models found on other mounts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from comfypod.files import write_atomic
from comfypod.models import places
from comfypod.nodes import listing
from comfypod.workspace.adopt import adoptions

if TYPE_CHECKING:
    from comfypod.boot.context import Context

# Keys of ComfyUI's file that are no kind of model.
_NOT_MODELS = frozenset({"base_path", "is_default", "custom_nodes"})


def write(context: Context) -> None:
    """Write ComfyUI's file, as JSON, which is YAML too, and note where it is: nowhere when there is nothing to say.

    Raises:
        OSError: the disk failed.
    """
    path, body = context.layout.extra_paths, _body(context)
    context.extra_paths = path if body else None
    if body:
        write_atomic(path, (json.dumps(body, indent=1, ensure_ascii=False) + "\n").encode(), durable=False)
    else:
        path.unlink(missing_ok=True)


def _body(context: Context) -> dict[str, dict[str, str]]:
    body = {f"baked_{node.name}": {"custom_nodes": str(Path(node.path).parent)} for node in context.baked_nodes}
    for number, adopted in adoptions(context.layout).items():
        kept = {**adopted.models, **({"custom_nodes": adopted.nodes} if adopted.nodes else {})}
        if kept:
            body[f"adopted_{number}"] = {"base_path": str(context.layout.root), **kept}
    if context.places is not None and context.places.found:
        body["found_models"] = places.extra_paths(context.places)
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

"""`comfypod workspace adopt`: what another image has left on a volume, taken over in place, and given back."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from comfypod import files
from comfypod.errors import StorageError
from comfypod.files import storage_errors as told
from comfypod.host.startable import held
from comfypod.host.volume import become_owner, ensure_there, image_of, looked_at, wanted
from comfypod.log import human_bytes
from comfypod.result import Result
from comfypod.workspace import adopt, core, run, state

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from comfypod.log import Console
    from comfypod.workspace.adopt import Found
    from comfypod.workspace.layout import Layout

_VERB = "workspace adopt"


def show(layout: Layout) -> Result:
    """Say what an adoption would do, with sizes. Nothing is changed.

    Raises:
        StorageError: the workspace cannot be read, or a newer comfypod wrote it.
    """
    state.read(layout.state)
    found = looked_at(layout).found
    if found is None:
        return Result(_VERB, {"found": None}, f"nothing in {layout.root} is another image's, or it is adopted already")
    with told(f"cannot read {layout.root}"):
        data = _facts(layout, found)
        text = _text(layout, found, data)
    return Result(_VERB, {"found": data, "done": False}, text)


def carry_out(layout: Layout, console: Console) -> Result:
    """Adopt what is found; where a pod runs, at its next start.

    Raises:
        HostError: it is not known which image would boot.
        StorageError: there is nothing to adopt, the workspace cannot be used, or has too little room.
    """
    become_owner(layout)
    state.read(layout.state)
    found = looked_at(layout).found
    if found is None:
        hint = "`comfypod workspace status` shows what there is"
        raise StorageError(f"nothing in {layout.root} is left to adopt", hint)
    if run.running(layout.run_record) is not None:
        with told(f"cannot write {layout.adopting}"):
            adopt.ask(layout)
        return Result(_VERB, {"done": False}, f"the next start adopts {found.told()}; stop and start the pod")
    image, going_by = image_of(layout), wanted(layout)
    going_by["adopt"] = "auto"
    with held(layout), console.progress("ComfyUI") as advance:
        done = core.bring(layout, image, **going_by, advance=advance)
    rows = [f"  {problem.message}; {problem.hint}" for problem in done.problems]
    data = {"done": done.plan.action == "adopt", "release": done.release}
    if not data["done"]:
        text = "\n".join([f"{done.plan.action}: {done.plan.reason}", *rows])
        return Result(_VERB, data, text, "error", StorageError.exit_code, tuple(done.problems))
    text = "\n".join([f"adopted {found.told()}", *rows, "`comfypod workspace adopt --undo` puts everything back"])
    return Result(_VERB, data, text, errors=tuple(done.problems))


def undo(layout: Layout) -> Result:
    """Undo the last adoption: what it set aside is put back, its links go; where a pod runs, at its next start.

    Raises:
        BusyError: the pod of another container runs.
        StorageError: there is none, or the disk failed.
    """
    ensure_there(layout)
    become_owner(layout)
    found, known = state.read(layout.state), adopt.adoptions(layout)
    if not known:
        hint = "`comfypod workspace adopt` shows what could be adopted"
        raise StorageError(f"no adoption holds in {layout.root}", hint)
    number, adopted = max(known.items())
    if run.running(layout.run_record) is not None:
        with told(f"cannot write {layout.adopting}"):
            adopt.ask(layout, f"undo {number}")
        return Result(_VERB, {"undone": 0}, f"the next start gives back {adopted.kind}; stop and start the pod")
    with held(layout), told(f"cannot put back what was in {layout.comfyui}"):
        core.recover(layout)
        # One that was interrupted has been finished by now.
        left = number in adopt.adoptions(layout)
        problems = core.undo(layout, number, found.environment if found is not None else "") if left else ()
        core.make_user_folders(layout)
    rows = [f"  {problem.message}; {problem.hint}" for problem in problems]
    text = "\n".join([f"{adopted.kind} is as it was before the adoption", *rows])
    return Result(_VERB, {"undone": number}, text, errors=problems)


def _facts(layout: Layout, found: Found) -> dict[str, Any]:
    root = layout.root
    stands = {name: layout.comfyui / name for name in ("models", "custom_nodes", "input", "output", "user")}
    places = {name: root / path for name, path in found.folders.items()}
    used = {**{name: path for name, path in stands.items() if found.core and path.is_dir()}, **places}
    rows = {name: {"path": str(path), **_content(name, path)} for name, path in used.items()}
    moved = [str(layout.comfyui / name) for name in found.folders if os.path.lexists(layout.comfyui / name)]
    return {
        "kind": found.kind, "core": found.core, "folders": rows,
        "models": {kind: [str(root / path) for path in each.splitlines()] for kind, each in found.models.items()},
        "nodes": str(root / found.nodes) if found.nodes else "", "set_aside": moved,
        "held": [str(root / path) for path in found.held], "left": [str(root / path) for path in found.left],
    }  # fmt: skip


def _content(name: str, folder: Path) -> dict[str, int]:
    nodes = [entry for entry in os.scandir(folder) if entry.is_dir() and not entry.name.startswith((".", "__"))]
    return {"bytes": files.tree_bytes(folder), **({"nodes": len(nodes)} if name == "custom_nodes" else {})}


def _text(layout: Layout, found: Found, data: Mapping[str, Any]) -> str:
    aside = layout.adopted / str(adopt.next_number(layout))
    rows = [f"{found.kind} was found in {layout.root}; nothing has been changed yet. An adoption would:"]
    if found.core:
        rows.append(f"  set aside the core in {layout.comfyui} to {aside} and put the image's in its place")
    for name, row in data["folders"].items():
        nodes = f", {row['nodes']} nodes" if "nodes" in row else ""
        how = "link" if name in found.folders else "use"
        rows.append(f"  {how:<5}{row['path']}: {human_bytes(row['bytes'])}{nodes}")
    rows += [f"  set aside {path} to {aside}" for path in data["set_aside"]]
    rows += [f"  show  {path} to ComfyUI as {kind}" for kind, paths in data["models"].items() for path in paths]
    rows += [f"  load  the nodes in {data['nodes']} as well"] if data["nodes"] else []
    rows += [f"  leave {path}: ComfyUI/{path.rpartition('/')[2]} has contents of its own" for path in data["held"]]
    rows += [f"  leave {path}: packages of its own; nodes may need theirs installed again" for path in data["left"]]
    return "\n".join([*rows, "`comfypod workspace adopt --yes` does it, and `--undo` puts everything back"])

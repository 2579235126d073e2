"""`comfypod workspace`: what a volume holds, what a boot would do with it, and the ways forward and back."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from comfypod import files
from comfypod import release as releases
from comfypod.errors import HostError, IntegrityError, Problem, StorageError
from comfypod.files import storage_errors as told
from comfypod.host.startable import held
from comfypod.host.volume import become_owner, ensure_there, image_of, looked_at, wanted
from comfypod.log import human_bytes
from comfypod.result import Result
from comfypod.workspace import core, journal, run, state
from comfypod.workspace import plan as plans
from comfypod.workspace.adopt import adoptions

if TYPE_CHECKING:
    from comfypod.log import Console
    from comfypod.workspace.layout import Layout
    from comfypod.workspace.plan import Plan, Volume

_SHOWN = 20


def status(layout: Layout) -> Result:
    """Show what a workspace holds. Nothing is changed.

    Raises:
        StorageError: it is not there, cannot be read, or a newer comfypod wrote it.
    """
    ensure_there(layout)
    with told(f"cannot read {layout.root}"):
        found, open_, left = state.read(layout.state), journal.read(layout), files.room(layout.root)
    volume = looked_at(layout)
    here = volume.here
    data: dict[str, Any] = {
        "path": str(layout.root),
        "release": here.name if here else "",
        "version": here.version if here else "",
        "persist": here.mode if here else "",
        "previous": volume.kept,
        "stays": volume.choice.reason if volume.choice else "",
        "environment": found.environment if found else "",
        "attempts": max(found.attempts - 1, 0) if found else 0,
        "writer": found.writer if found else "",
        "schema": found.schema if found else 0,
        "unfinished": open_.action if open_ else "",
        "edits": _edits(layout),
        "adopted": [adopted.kind for adopted in adoptions(layout).values()],
        "adoptable": volume.found.told() if volume.found is not None else "",
        "free_bytes": left.bytes,
        "free_inodes": left.inodes,
        "running": run.running(layout.run_record) is not None,
    }
    return Result("workspace status", data, _status_text(data, volume))


def plan(layout: Layout) -> Result:
    """Say exactly what a boot would do with the core. Nothing is changed.

    Raises:
        HostError: it is not known which image would boot.
        StorageError: the workspace cannot be used.
    """
    image = image_of(layout)
    open_ = journal.read(layout)
    if open_ is not None and open_.staged:
        left = f"{len(open_.moves)} names are left"
        text = f"finish: the {open_.action} to {open_.after.release} that was interrupted; {left}"
        return Result("workspace plan", {"action": "finish", "release": open_.after.release, "edits": []}, text)
    with told(f"cannot read {layout.root}"):
        decided, volume = core.plan_for(layout, image, **wanted(layout))
    edits = core.leaving(layout, decided, volume)
    data = {**asdict(decided), "from": volume.here.name if volume.here else "", "edits": list(edits)}
    lines = [f"{decided.action}: ComfyUI {decided.release} as {_kind(decided)}; {decided.reason}"]
    if plans.keeps(decided, volume) and volume.here is not None:
        lines.append(f"  {volume.here.name} is kept for `comfypod workspace rollback`")
        lines += [f"  {volume.kept} is kept no longer"] if volume.kept not in ("", decided.release) else []
    lines += [f"  set aside: {name}" for name in edits[:_SHOWN]]
    lines += [f"  and {len(edits) - _SHOWN} more"] if len(edits) > _SHOWN else []
    return Result("workspace plan", data, "\n".join(lines))


def upgrade(layout: Layout, console: Console) -> Result:
    """Take the image's release, also where a rollback or COMFYPOD_UPGRADE=keep held another one.

    Raises:
        HostError: it is not known which image it is.
        StorageError: the workspace cannot be used, or has too little room.
    """
    become_owner(layout)
    image = image_of(layout)
    state.read(layout.state)
    if run.running(layout.run_record) is not None:
        _write_choice(layout, None)
        text = f"the next start takes {image.release}, unless COMFYPOD_UPGRADE=keep"
        return Result("workspace upgrade", {"release": image.release, "done": False}, text)
    ensure_there(layout)
    with held(layout), console.progress("ComfyUI") as advance:
        _write_choice(layout, None)
        _retry(layout)
        going_by = wanted(layout)
        going_by["upgrade"] = "auto"
        found = core.bring(layout, image, **going_by, advance=advance)
    return _changed("workspace upgrade", found)


def rollback(layout: Layout) -> Result:
    """Go back to the release that is kept, and stay there until the image brings yet another one.

    Raises:
        StorageError: there is none to go back to, or the disk failed.
    """
    ensure_there(layout)
    become_owner(layout)
    state.read(layout.state)
    if run.running(layout.run_record) is None:
        with held(layout):
            left = _brought(layout)
            reason = f"`comfypod workspace rollback` left {left}"
            return _changed("workspace rollback", core.go_back(layout, left, _environment(layout), reason))
    volume = looked_at(layout)
    core.ensure_way_back(layout, volume)
    left = _brought(layout)
    _write_choice(layout, plans.Choice(volume.kept, left, f"`comfypod workspace rollback` left {left}"))
    text = f"the next start goes back to {volume.kept}; stop and start the pod"
    return Result("workspace rollback", {"release": volume.kept, "done": False}, text)


def verify(layout: Layout) -> Result:
    """Compare the core on the volume with its release, file by file; exit code 6 where they differ.

    Raises:
        StorageError: there is no release of comfypod's, or it cannot be read.
    """
    ensure_there(layout)
    here = releases.read(layout.comfyui)
    if here is None:
        raise StorageError(
            f"{layout.comfyui} is no release of comfypod's", "`comfypod workspace status` shows what is there"
        )
    with told(f"cannot read {layout.comfyui}"):
        found = releases.changes(here, layout.comfyui)
    data = {
        "release": here.name,
        "files": len(here.files),
        **{name: list(each) for name, each in asdict(found).items()},
    }
    if found == releases.Changes():
        return Result("workspace verify", data, f"the core is {here.name}, unchanged")
    rows = [f"  {word}: {name}" for word in ("missing", "edited", "added") for name in getattr(found, word)]
    message = f"the core differs from {here.name} in {len(rows)} files"
    problem = Problem(
        IntegrityError.code,
        message,
        "move away the name at the top of ComfyUI/ that it is in, and the next boot puts it back whole",
    )
    return Result(
        "workspace verify", data, "\n".join([message, *rows]), "partial", IntegrityError.exit_code, (problem,)
    )


def _changed(verb: str, found: core.Core) -> Result:
    data = {"release": found.release, "action": found.plan.action, "done": found.plan.action != "image"}
    done = f"{found.plan.action}: ComfyUI {found.release}; {found.plan.reason}"
    text = "\n".join([done, *(f"  {problem.message}; {problem.hint}" for problem in found.problems)])
    failed = [problem for problem in found.problems if problem.code == StorageError.code]
    code = StorageError.exit_code if failed else 0
    return Result(verb, data, text, "error" if failed else "success", code, tuple(found.problems))


def _brought(layout: Layout) -> str:
    """Return the release that the next boot brings, as far as that is known, else the one that is here."""
    here = releases.read(layout.comfyui)
    try:
        return image_of(layout).release
    except HostError:
        return here.name if here is not None else ""


def _edits(layout: Layout) -> list[str]:
    try:
        return sorted(str(path) for path in layout.edits.iterdir())
    except OSError:
        return []


def _environment(layout: Layout) -> str:
    found = state.read(layout.state)
    return found.environment if found is not None else ""


def _write_choice(layout: Layout, choice: plans.Choice | None) -> None:
    with told(f"cannot write {layout.choice}"):
        plans.write_choice(layout, choice)


def _retry(layout: Layout) -> None:
    with told(f"cannot write {layout.state}"):
        core.retry(layout)


def _kind(decided: Plan) -> str:
    return "files" if decided.mode == "move" else "links to the image"


def _status_text(data: dict[str, Any], volume: Volume) -> str:
    here = f"{data['release']}, {'files' if data['persist'] == 'move' else 'links to the image'}"
    if volume.here is None:
        here = "none" if volume.bare else "a ComfyUI that comfypod did not put there; it is left as it is"
    rows = [
        ("workspace", f"{data['path']}, {human_bytes(data['free_bytes'])} free"),
        ("core", here),
        ("kept", data["previous"] or "no release to go back to"),
        ("stays", data["stays"]),
        ("unfinished", data["unfinished"] and f"{data['unfinished']}; the next boot finishes or undoes it"),
        ("trial", data["attempts"] and f"{data['attempts']} boots without ComfyUI being ready"),
        ("written by", data["writer"] and f"comfypod {data['writer']}, schema {data['schema']}"),
        ("set aside", ", ".join(data["edits"])),
        (
            "adopted",
            data["adopted"] and f"{', '.join(data['adopted'])}; `comfypod workspace adopt --undo` gives it back",
        ),
        ("adoptable", data["adoptable"]),
    ]
    return "\n".join(f"{name:<12}{text}" for name, text in rows if text)

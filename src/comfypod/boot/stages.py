"""What happens before ComfyUI starts, in order: stages, each with a policy for its failure."""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from comfypod import files, ports
from comfypod.errors import BusyError, InstallError, StorageError
from comfypod.log import human_bytes
from comfypod.workspace import run, state
from comfypod.workspace.seed import Seeded, seed

if TYPE_CHECKING:
    from collections.abc import Callable

    from comfypod.boot.health import Health, StageView
    from comfypod.log import Console
    from comfypod.podfile import PodFile
    from comfypod.settings import Settings
    from comfypod.workspace.layout import Layout

Policy = Literal["stop", "degrade"]


@dataclass(slots=True)
class Context:
    """What stages share.

    `taken` is called once the workspace is ours. `seeded` and `token` are made by the workspace stage and read by what
    follows.
    """

    pod: PodFile
    settings: Settings
    layout: Layout
    health: Health
    console: Console
    cancelled: Callable[[], bool]
    lock: files.FolderLock
    taken: Callable[[], None]
    seeded: Seeded | None = None
    token: str = ""
    token_made: bool = False


@dataclass(frozen=True, slots=True)
class Stage:
    """A step of the boot. `stop`: its failure ends the boot. `degrade`: it is reported and the boot goes on."""

    name: str
    policy: Policy
    work: Callable[[Context, StageView], str]


class StageCancelledError(Exception):
    """The boot was told to stop while a stage was at work; what it had staged is removed."""


def prepare_workspace(context: Context, view: StageView) -> str:
    """Take the workspace, seed it, keep its records."""
    layout, pod = context.layout, context.pod
    try:
        state.read(layout.state)
        _take(context)
        seeded = context.seeded = seed(layout, pod, Path(pod.comfyui_path), _progress(context, view))
        release = pod.release if seeded.action != "other" else seeded.release
        state.write(layout.state, state.State(release, pod.environment_key, str(layout.root)))
        context.token, context.token_made = _token(context)
    except OSError as error:
        raise files.storage_error(error, f"cannot prepare the workspace {layout.root}") from error
    context.health.workspace = _facts(context, seeded)
    return _told(context, seeded)


def _token(context: Context) -> tuple[str, bool]:
    given = context.settings.token
    return (given, False) if given else state.keep_token(context.layout.token)


def _take(context: Context) -> None:
    layout = context.layout
    for folder in (layout.root, layout.records, layout.logs):
        folder.mkdir(parents=True, exist_ok=True)
    try:
        locked = context.lock.acquire()
    except BusyError as error:
        raise run.in_use(layout.root, layout.run_record) from error
    if not locked:
        if run.running(layout.run_record) is not None:
            raise run.in_use(layout.root, layout.run_record)
        context.console.warning(f"{layout.root} has no file locks: make sure that no other machine uses it")
    if ended := run.end_orphans(layout.root):
        context.console.line(f"ended {ended} processes that a killed boot had left running")
    context.taken()


def _progress(context: Context, view: StageView) -> Callable[[int], None]:
    def advance(done: int) -> None:
        view.detail = f"copied {human_bytes(done)}"
        if context.cancelled():
            raise StageCancelledError

    return advance


def _facts(context: Context, seeded: Seeded) -> dict[str, Any]:
    left = files.room(context.layout.root)
    return {
        "path": str(context.layout.root),
        "persist": "link" if seeded.action == "other" else "move",
        "release": context.pod.release,
        "schema": state.SCHEMA,
        "free_bytes": left.bytes,
        "free_inodes": left.inodes,
    }


def _told(context: Context, seeded: Seeded) -> str:
    if seeded.action == "seeded":
        return f"seeded ComfyUI {context.pod.comfyui_version}: {human_bytes(seeded.bytes)} in {seeded.seconds:.1f} s"
    if seeded.action == "kept":
        return f"ComfyUI {context.pod.comfyui_version} is in place"
    what = f"holds release {seeded.release}" if seeded.release else "holds a ComfyUI that comfypod did not put there"
    return (
        f"{seeded.base} {what}; {context.pod.release} runs from {seeded.core} over its folders, which stay as they are"
    )


def check_environment(context: Context, view: StageView) -> str:
    """Believe in the environment only when its Python is there."""
    del view
    python = Path(context.pod.python)
    if not os.access(python, os.X_OK):
        raise InstallError(f"ComfyUI's Python {python} is missing", "run `comfypod up` again, or pull the image again")
    return f"torch {context.pod.torch}"


def check_port(context: Context, view: StageView) -> str:
    """Refuse a port that is taken before ComfyUI spends ten seconds to find out."""
    del view
    settings = context.settings
    ports.ensure_free(settings.listen, {"--port": settings.port})
    return f"{settings.listen}:{settings.port} is free"


def list_nodes(context: Context, view: StageView) -> str:
    """Note the custom nodes that ComfyUI will find."""
    del view
    assert context.seeded is not None  # noqa: S101 - the workspace stage has run
    folder = context.seeded.base / "custom_nodes"
    names: list[str] = []
    with contextlib.suppress(FileNotFoundError):
        names = sorted(entry.name for entry in os.scandir(folder) if _is_node(entry))
    context.health.nodes = [
        {"name": name, "state": "disabled" if name.endswith(".disabled") else "present", "reason": ""} for name in names
    ]
    return f"{len(names)} in custom_nodes"


def _is_node(entry: os.DirEntry[str]) -> bool:
    if entry.name.startswith((".", "__")) or entry.name == "websocket_image_save.py":
        return False
    return entry.is_dir() or entry.name.endswith((".py", ".disabled"))


def check_models(context: Context, view: StageView) -> str:
    """Compare the locked models with what is there, by size: digests of large files would hold up the boot."""
    del view
    assert context.seeded is not None  # noqa: S101 - the workspace stage has run
    base, rows = context.seeded.base / "models", []
    for model in context.pod.models:
        try:
            found = (base / model.folder / model.file).stat().st_size
        except FileNotFoundError:
            found = 0
        present = "present" if found == model.size else "missing" if not found else "incomplete"
        rows.append({"name": model.name, "state": present, "bytes": found, "total": model.size})
    context.health.models = rows
    lacking = [str(row["name"]) for row in rows if row["state"] != "present"]
    if lacking:
        raise StorageError(f"models not in {base}: {', '.join(lacking)}", "put them there; the rest of the pod works")
    return f"{len(rows)} locked"


STAGES = (
    Stage("workspace", "stop", prepare_workspace),
    Stage("port", "stop", check_port),
    Stage("environment", "stop", check_environment),
    Stage("nodes", "degrade", list_nodes),
    Stage("models", "degrade", check_models),
)

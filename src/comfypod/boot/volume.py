"""The workspace stage: who we are, whether the volume is ours, ComfyUI on it, the records about it."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from comfypod import files
from comfypod.boot import identity
from comfypod.boot.context import StageCancelledError
from comfypod.errors import BusyError, Problem
from comfypod.log import human_bytes
from comfypod.workspace import link, run, state
from comfypod.workspace.core import Core, Wanted, bring, changes, count, image_of, join
from comfypod.workspace.plan import is_network, mount_table, unescaped

if TYPE_CHECKING:
    from collections.abc import Callable

    from comfypod.boot.context import Context
    from comfypod.boot.health import StageView
    from comfypod.workspace.lease import Pod


def prepare_workspace(context: Context, view: StageView) -> str:
    """Become the workspace's owner, take the workspace, give it the image's ComfyUI, keep its records."""
    layout = context.layout
    try:
        _become(context)
        state.read(layout.state)
        _take(context, view)
        _warn(context)
        core = context.core = _core(context, view)
        context.token, context.token_made = _token(context)
        linked = _link(context)
    except OSError as error:
        raise files.storage_error(error, f"cannot prepare the workspace {layout.root}") from error
    finally:
        if context.in_image:
            identity.settle()
    for problem in core.problems:
        context.warn(problem)
    context.health.workspace = _facts(context, core)
    return _told(core) + linked


def _core(context: Context, view: StageView) -> Core:
    """Give the volume the image's core; while others use it, use what is there."""
    settings, layout, lease, image = context.settings, context.layout, context.lease, image_of(context.pod)
    wanted: Wanted = {
        "persist": settings.persist, "upgrade": settings.upgrade, "adopt": settings.adopt,
        "network": is_network(layout, mount_table(context.surroundings.mounts)),
    }  # fmt: skip
    users = lease.users()
    if users and changes(layout, image, wanted):
        lease.wait(lease.unknown_user, _waiting(context, view, "may still use the workspace"))
        users = lease.users()
    if users:
        return join(layout, image, users[0].host or "another machine", wanted)
    if ended := run.end_orphans(layout.root):
        context.console.line(f"ended {ended} processes that a killed boot had left running")
    return count(layout, bring(layout, image, **wanted, advance=_progress(context, view)))


def _become(context: Context) -> None:
    if context.in_image:
        settings = context.settings
        mounts = [Path(point) for point in _mounts(context) or ()]
        context.identity = identity.take_on(context.layout.root, settings.puid, settings.pgid, mounts)
    context.health.identity = context.identity.shown()


def _warn(context: Context) -> None:
    if context.identity.problem is not None:
        context.warn(context.identity.problem)
    if os.statvfs(context.layout.root).f_flag & os.ST_NOEXEC:
        told = f"no program on {context.layout.root} may be run (it is mounted with noexec); ComfyUI does not need to"
        context.warn(Problem("noexec", told, "nodes that bring programs of their own fail; mount it without noexec"))
    if context.in_image and (problem := _unmounted(context)) is not None:
        context.warn(problem)


def _unmounted(context: Context) -> Problem | None:
    """Return what to say when whatever is written goes with the container."""
    root, below = str(context.layout.root.resolve()), _mounts(context)
    if below is None:
        return None
    kept = f", but for {', '.join(below)}" if below else ""
    told = f"{root} is not on a volume: what is written there is lost with the container{kept}"
    return Problem("not-a-mount", told, f"give it one: -v comfypod-workspace:{root}")


def _mounts(context: Context) -> list[str] | None:
    """Return what is mounted below the workspace; None when it is on a volume itself, or nothing is known."""
    root, table = str(context.layout.root.resolve()), mount_table(context.surroundings.mounts)
    if not table:
        return None
    points = {unescaped(line.split(" ")[4]) for line in table.splitlines()}
    if any(point != "/" and f"{root}/".startswith(f"{point}/") for point in points):
        return None
    return sorted(point for point in points if point.startswith(f"{root}/"))


def _token(context: Context) -> tuple[str, bool]:
    given = context.settings.token
    return (given, False) if given else state.keep_token(context.layout.token)


def _take(context: Context, view: StageView) -> None:
    """Take the workspace, after those who prepare it now. On a host it is one pod's; containers may share it."""
    layout, lease = context.layout, context.lease
    if not context.in_image:
        _ensure_nobody(context, view)
    for folder in (layout.root, layout.records, layout.logs):
        folder.mkdir(parents=True, exist_ok=True)
    try:
        lease.take()
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        # Nothing large can be changed on a full disk, and a pod that runs can make room.
        context.warn(files.storage_error(error, f"cannot say in {layout.pods} that this pod is here").problem)
    if not context.in_image:
        _ensure_nobody(context, view)
    limit = context.settings.wait_seconds
    if first := lease.wait(lease.ahead, _waiting(context, view, "prepares the workspace"), limit):
        hint = "look at what that pod says; COMFYPOD_WAIT_SECONDS allows more"
        raise BusyError(f"the pod on {first.host} has prepared {layout.root} for more than {limit:.0f} s", hint)
    context.taken()
    if context.in_image:
        context.environ = identity.environ(os.environ, layout.home)


def _ensure_nobody(context: Context, view: StageView) -> None:
    lease, layout = context.lease, context.layout
    lease.wait(lease.unknown, _waiting(context, view, "may still use the workspace"))
    if lease.others():
        raise run.in_use(layout.root, layout.run_record)


def _waiting(context: Context, view: StageView, what: str) -> Callable[[Pod, float], None]:
    """Return what shows for whom we wait: once on the console, and with its seconds in the status."""
    told: set[int] = set()

    def tell(pod: Pod, seconds: float) -> None:
        view.detail = f"waiting for the pod on {pod.host or 'another machine'}, which {what}: {seconds:.0f} s"
        if pod.number not in told:
            told.add(pod.number)
            context.console.line(view.detail.rpartition(":")[0])
        if context.cancelled():
            raise StageCancelledError

    return tell


def _progress(context: Context, view: StageView) -> Callable[[int], None]:
    def advance(done: int) -> None:
        view.detail = f"copied {human_bytes(done)}"
        if context.cancelled():
            raise StageCancelledError
        context.lease.ensure()

    return advance


def _link(context: Context) -> str:
    """Let the image's own link lead to the volume; return what to say when that cannot be."""
    place, target = context.surroundings.link, context.layout.comfyui
    if not context.in_image or link.leads_to(place, target):
        return ""
    try:
        with identity.as_root():
            link.repoint(place, target)
    except FileExistsError as error:
        context.warn(Problem("link", str(error), f"ComfyUI is at {target}"))
    except OSError as error:
        return f"; {place} does not lead there ({error.strerror})"
    return ""


def _facts(context: Context, core: Core) -> dict[str, Any]:
    left = files.room(context.layout.root)
    return {
        "path": str(context.layout.root),
        "persist": "move" if core.core == core.base else "link",
        "release": core.release,
        "version": core.version,
        "kept": _way_back(context),
        "schema": state.SCHEMA,
        "free_bytes": left.bytes,
        "free_inodes": left.inodes,
    }


def _way_back(context: Context) -> str:
    """Return the release that this pod could go back to, empty where there is none."""
    found = state.read(context.layout.state)
    return found.previous if found is not None and found.release == context.pod.release else ""


_DONE = {
    "seed": "seeded ComfyUI {0.version}{1}",
    "keep": "ComfyUI {0.version} is in place{2}",
    "upgrade": "changed to ComfyUI {0.version}{1}: {0.plan.reason}",
    "return": "went back to ComfyUI {0.version}: {0.plan.reason}",
    "repair": "repaired ComfyUI {0.version}{1}: {0.plan.reason}",
    "convert": "ComfyUI {0.version}{1}: {0.plan.reason}",
    "adopt": "adopted, with ComfyUI {0.version}{1}: {0.plan.reason}",
    "image": "ComfyUI {0.version} runs from {0.core} over {0.base}, where nothing is changed: {0.plan.reason}",
}


def _told(core: Core) -> str:
    links = core.plan.mode == "link" and core.plan.action != "image"
    copied = ", as links" if links else f": {human_bytes(core.bytes)} in {core.seconds:.1f} s"
    held = "" if core.plan.reason == "it is in place" else f": {core.plan.reason}"
    return _DONE[core.plan.action].format(core, copied, held)

"""What a boot does with the core of a workspace: decided from what is there, before anything is changed."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from comfypod import files
from comfypod.workspace import release as releases
from comfypod.workspace.release import USER_FOLDERS, Mode, Release

if TYPE_CHECKING:
    from comfypod.workspace.layout import Layout

Action = Literal["seed", "keep", "upgrade", "return", "repair", "convert", "image"]
ATTEMPTS = 3
_MOUNTS = Path("/proc/self/mountinfo")
# Copies of thousands of small files take minutes there, and so does each start from them.
_NETWORK = frozenset({
    "9p", "afs", "beegfs", "ceph", "cifs", "fuse", "glusterfs", "gpfs", "lustre", "ncpfs", "nfs", "nfs4", "smb3",
    "smbfs", "virtiofs",
})  # fmt: skip
_PLACEHOLDERS = frozenset({*USER_FOLDERS, "temp"})


@dataclass(frozen=True, slots=True)
class Choice:
    """A decision that outlives boots: stay at `release` where the image brings `instead_of`, and why."""

    release: str
    instead_of: str
    reason: str


@dataclass(frozen=True, slots=True)
class Volume:
    """What was found. `here` is the release in place; `bare` says that there is at most the user's folders."""

    here: Release | None
    bare: bool
    missing: tuple[str, ...] = ()
    kept: str = ""
    choice: Choice | None = None
    reachable: bool = True


@dataclass(frozen=True, slots=True)
class Plan:
    """What will be done. `image`: nothing is changed, the core runs from the image over what is there."""

    action: Action
    release: str
    mode: Mode
    reason: str


def look(layout: Layout) -> Volume:
    """Look at the core of a workspace, at its top level only.

    Raises:
        OSError: it cannot be read.
    """
    root = layout.comfyui
    here = releases.read(root)
    names = set(os.listdir(root)) if root.is_dir() else set()
    return Volume(
        here,
        bare=_PLACEHOLDERS.issuperset(names),
        missing=tuple(name for name in here.entries if name not in names) if here is not None else (),
        kept=_kept(layout),
        choice=read_choice(layout),
        reachable=not root.is_dir() or _same_disk(layout),
    )


def decide(volume: Volume, wanted: str, *, persist: str, upgrade: str, network: bool) -> Plan:
    """Decide; pure. `wanted` is the image's release, `persist` and `upgrade` are the settings, `network` the disk."""
    here = volume.here
    target, reason = _target(volume, wanted, upgrade)
    mode: Mode = here.mode if here is not None else "link" if network else "move"
    if persist in ("move", "link"):
        mode = "move" if persist == "move" else "link"
    if not volume.reachable:
        return Plan("image", wanted, "link", "it is on another disk than the workspace")
    if here is None:
        if not volume.bare:
            return Plan("image", wanted, "link", "it holds a ComfyUI that comfypod did not put there")
        return Plan("seed", wanted, mode, "there is no ComfyUI yet")
    if here.name == target:
        return _stay(volume, here, wanted, mode, reason)
    if target == volume.kept and mode == "move":
        return Plan("return", target, "move", reason or f"the image brings {target}, which is kept here")
    return Plan("upgrade", target, mode, f"the image brings {target} in the place of {here.name}")


def _target(volume: Volume, wanted: str, upgrade: str) -> tuple[str, str]:
    """Return which release shall be there, and why it is not the image's."""
    here, choice = volume.here, volume.choice
    if here is None or here.mode == "link":
        return wanted, ""
    if choice is not None and choice.instead_of == wanted and choice.release in (here.name, volume.kept):
        return choice.release, choice.reason
    if upgrade == "keep" and here.name != wanted:
        return here.name, "COMFYPOD_UPGRADE=keep holds it"
    return wanted, ""


def _stay(volume: Volume, here: Release, wanted: str, mode: Mode, reason: str) -> Plan:
    if not volume.missing and (mode == here.mode or here.name != wanted):
        return Plan("keep", here.name, here.mode, reason or "it is in place")
    if here.name != wanted:
        return Plan("upgrade", wanted, mode, f"{here.name} is not whole: {volume.missing[0]} is missing")
    if mode != here.mode:
        return Plan("convert", wanted, mode, f"its core becomes {'links' if mode == 'link' else 'files'}")
    return Plan("repair", wanted, mode, f"missing: {', '.join(volume.missing[:5])}")


def mount_table(path: Path = _MOUNTS) -> str:
    """Return this process's table of mounts (proc(5)), nothing where there is none to be read."""
    try:
        return path.read_text("utf-8", "surrogateescape")
    except OSError:
        return ""


def is_network(layout: Layout, mounts: str) -> bool:
    """Whether the workspace is on a network disk, by the table of mounts (`mountinfo`, proc(5))."""
    root, best, kind = str(layout.root.resolve()), "", ""
    for line in mounts.splitlines():
        before, _, after = line.partition(" - ")
        point = before.split(" ")[4]
        if (point == "/" or f"{root}/".startswith(f"{point}/")) and len(point) >= len(best):
            best, kind = point, after.split(" ")[0]
    return kind in _NETWORK or kind.startswith("fuse.")


def read_choice(layout: Layout) -> Choice | None:
    """Return the decision that was made here, None where there is none."""
    try:
        body = json.loads(files.read_small(layout.choice))
        found = Choice(body["release"], body["instead_of"], body["reason"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
    return found if all(isinstance(text, str) for text in (found.release, found.instead_of, found.reason)) else None


def write_choice(layout: Layout, choice: Choice | None) -> None:
    """Keep a decision for the boots to come, or forget it.

    Raises:
        OSError: the disk failed.
    """
    if choice is None:
        layout.choice.unlink(missing_ok=True)
    else:
        body = {"release": choice.release, "instead_of": choice.instead_of, "reason": choice.reason}
        files.write_atomic(layout.choice, (json.dumps(body) + "\n").encode())


def _kept(layout: Layout) -> str:
    """Return the release that is kept and whole."""
    try:
        names = sorted(os.listdir(layout.releases))
    except FileNotFoundError:
        return ""
    for name in names:
        found = releases.read(layout.releases / name)
        if found is not None and found.name == name and not releases.missing_entries(found, layout.releases / name):
            return name
    return ""


def _same_disk(layout: Layout) -> bool:
    return layout.comfyui.stat().st_dev == layout.records.stat().st_dev


def after_attempts(plan: Plan, volume: Volume, attempts: int) -> Choice | None:
    """Return the decision to go back: boots of an upgrade ended again and again before ComfyUI was ready."""
    here = volume.here
    if plan.action != "keep" or attempts < ATTEMPTS or here is None or not volume.kept or here.mode != "move":
        return None
    return Choice(volume.kept, here.name, f"{here.name} was not ready in {attempts} boots")


def with_choice(volume: Volume, choice: Choice) -> Volume:
    """Return the same facts with another decision."""
    return replace(volume, choice=choice)

"""What a boot does with the core of a workspace: decided from what is there, before anything is changed."""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from comfypod import files
from comfypod import release as releases
from comfypod.release import USER_FOLDERS, Mode, Release
from comfypod.workspace import adopt, state

if TYPE_CHECKING:
    from comfypod.workspace.adopt import Found
    from comfypod.workspace.layout import Layout

Action = Literal["seed", "keep", "upgrade", "return", "repair", "convert", "adopt", "image"]
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
    """What was found.

    `here` is the release in place; `bare` says that there is at most the user's folders; `attempts` counts as in
    the state; `reachable` says that all of the core can be renamed to and from the rest of the workspace; `found` is
    what could be adopted, and `asked` what was asked for (`adopt.asked`).
    """

    here: Release | None
    bare: bool
    missing: tuple[str, ...] = ()
    kept: str = ""
    choice: Choice | None = None
    reachable: bool = True
    attempts: int = 0
    found: Found | None = None
    asked: str = ""


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
    root, found = layout.comfyui, state.read(layout.state)
    here = releases.read(root)
    names = set(os.listdir(root)) if root.is_dir() else set()
    mounts = mounts_below(layout)
    foreign = here is None and not _PLACEHOLDERS.issuperset(names)
    linked = root.is_symlink()
    dangling = linked and not root.exists()
    return Volume(
        here,
        bare=not foreign,
        missing=releases.missing_entries(here, root) if here is not None else (),
        kept=_kept(layout, found.previous if found is not None else "") if here is None or here.mode == "move" else "",
        choice=read_choice(layout),
        reachable=dangling or (not linked and not any(_in_core(root, point) for point in mounts)),
        attempts=found.attempts if found is not None else 0,
        found=adopt.find(layout, names, here, core=foreign or dangling, mounts=mounts),
        asked=adopt.asked(layout),
    )


def decide(volume: Volume, wanted: str, *, persist: str, upgrade: str, network: bool) -> Plan:
    """Decide; pure. `wanted` is the image's release, `persist` and `upgrade` are the settings, `network` the disk."""
    here = volume.here
    mode: Mode = here.mode if here is not None else "link" if network else "move"
    if persist in ("move", "link"):
        mode = "move" if persist == "move" else "link"
    if not volume.reachable:
        return Plan("image", wanted, "link", "it is mounted from elsewhere, in whole or in part, or a link")
    if here is None:
        return _first(volume, wanted, mode)
    target, reason = _target(volume, wanted, upgrade) if mode == here.mode == "move" else (wanted, "")
    if here.name == target:
        return _stay(volume, here, wanted, mode, reason)
    if target == volume.kept and mode == "move":
        return Plan("return", target, "move", reason or f"the image brings {target}, which is kept here")
    return Plan("upgrade", target, mode, f"the image brings {target} in the place of {here.name}")


def _first(volume: Volume, wanted: str, mode: Mode) -> Plan:
    """Decide for a volume that has no release yet."""
    if volume.asked == "adopt" and volume.found is not None:
        return Plan("adopt", wanted, mode, f"{volume.found.kind} was found")
    if not volume.bare:
        return Plan("image", wanted, "link", "it holds a ComfyUI that comfypod did not put there")
    return Plan("seed", wanted, mode, "there is no ComfyUI yet")


def _target(volume: Volume, wanted: str, upgrade: str) -> tuple[str, str]:
    """Return which release shall be there, and why it is not the image's."""
    here, choice = volume.here, volume.choice
    assert here is not None  # noqa: S101 - asked only then
    if choice is not None and choice.instead_of == wanted and choice.release in (here.name, volume.kept):
        return choice.release, choice.reason
    if upgrade == "keep" and here.name != wanted:
        return here.name, "COMFYPOD_UPGRADE=keep holds it"
    return wanted, ""


def keeps(plan: Plan, volume: Volume) -> bool:
    """Whether the release that is there is kept when the plan is carried out: one that is whole, as files."""
    here = volume.here
    whole = here is not None and here.mode == "move" and not volume.missing
    return whole and plan.mode == "move" and plan.action in ("upgrade", "return")


def _stay(volume: Volume, here: Release, wanted: str, mode: Mode, reason: str) -> Plan:
    if not volume.missing and (mode == here.mode or here.name != wanted):
        if volume.asked == "adopt" and volume.found is not None:
            return Plan("adopt", here.name, here.mode, f"{volume.found.kind} was found")
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


def unescaped(text: str) -> str:
    """Return a path of the table of mounts as it is."""
    return re.sub(r"\\([0-7]{3})", lambda found: chr(int(found[1], 8)), text)


def is_network(layout: Layout, mounts: str) -> bool:
    """Whether the workspace is on a network disk, by the table of mounts (`mountinfo`, proc(5))."""
    root, best, kind = str(layout.root.resolve()), "", ""
    for line in mounts.splitlines():
        before, _, after = line.partition(" - ")
        point = unescaped(before.split(" ")[4])
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


def _kept(layout: Layout, previous: str) -> str:
    """Return the release that is kept and whole, the one that the state names before any other."""
    try:
        names = sorted(os.listdir(layout.releases))
    except (FileNotFoundError, NotADirectoryError):
        return ""
    for name in sorted(names, key=lambda name: name != previous):
        found = releases.read(layout.releases / name)
        if found is not None and found.name == name and not releases.missing_entries(found, layout.releases / name):
            return name
    return ""


def mounts_below(layout: Layout) -> tuple[Path, ...]:
    """Return what is mounted below the workspace; two mounts of one disk are different places to rename(2)."""
    root = layout.root.resolve()
    points = (Path(unescaped(line.split(" ")[4])) for line in mount_table().splitlines())
    return tuple(layout.root / point.relative_to(root) for point in points if root in point.parents)


def _in_core(comfyui: Path, point: Path) -> bool:
    """Whether something is mounted on ComfyUI itself or in what may be its core."""
    return point == comfyui or (comfyui in point.parents and point.relative_to(comfyui).parts[0] not in USER_FOLDERS)


def after_attempts(plan: Plan, volume: Volume, wanted: str) -> Choice | None:
    """Return the decision to go back: boots of an upgrade ended again and again before ComfyUI was ready."""
    here = volume.here
    if plan.action != "keep" or volume.attempts <= ATTEMPTS or here is None or not volume.kept:
        return None
    return Choice(volume.kept, wanted, f"{here.name} was not ready in {volume.attempts - 1} boots")

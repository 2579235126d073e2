"""Carrying out a plan: make the core of a workspace that of one release, or leave everything as it was."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from comfypod import files
from comfypod.errors import InstallError, Problem, StorageError
from comfypod.workspace import journal, state, switch
from comfypod.workspace import plan as plans
from comfypod.workspace import release as releases
from comfypod.workspace.release import USER_FOLDERS, Release
from comfypod.workspace.switch import Image, tidy

if TYPE_CHECKING:
    from collections.abc import Callable

    from comfypod.podfile import PodFile
    from comfypod.workspace.layout import Layout
    from comfypod.workspace.plan import Plan, Volume


@dataclass(frozen=True, slots=True)
class Core:
    """Where ComfyUI's core and the user's folders are, and what was done for that.

    `trial` says that this release has not been ready yet after an upgrade, and that there is one to go back to.
    """

    plan: Plan
    core: Path
    base: Path
    release: str
    bytes: int = 0
    seconds: float = 0.0
    trial: bool = False
    problems: tuple[Problem, ...] = ()

    @property
    def version(self) -> str:
        """ComfyUI's version."""
        return self.release.rpartition("-")[0]


def image_of(pod: PodFile) -> Image:
    """Return what an image or the host's store brings."""
    return Image(pod.release, Path(pod.comfyui_path), pod.environment_key)


def plan_for(layout: Layout, image: Image, *, persist: str, upgrade: str, network: bool) -> tuple[Plan, Volume]:
    """Return what a boot would do now, and what it goes by; nothing is changed.

    Raises:
        StorageError: a newer comfypod wrote the workspace, or what is there cannot be used.
    """
    if os.path.lexists(layout.comfyui) and not layout.comfyui.is_dir():
        raise StorageError(f"{layout.comfyui} is there and is no folder", "move it away; nothing was written")
    found = state.read(layout.state)
    volume = plans.look(layout)
    plan = plans.decide(volume, image.release, persist=persist, upgrade=upgrade, network=network)
    if (
        plan.action == "keep"
        and plan.mode == "link"
        and not switch.leads(layout.comfyui / "main.py", image.tree / "main.py")
    ):
        return replace(plan, action="convert", reason="its links lead elsewhere"), volume
    choice = plans.after_attempts(plan, volume, found.attempts if found is not None else 0)
    if choice is None:
        return plan, volume
    volume = plans.with_choice(volume, choice)
    return plans.decide(volume, image.release, persist=persist, upgrade=upgrade, network=network), volume


def bring(
    layout: Layout, image: Image, *, persist: str, upgrade: str, network: bool, advance: Callable[[int], None]
) -> Core:
    """Make sure that the volume has a ComfyUI; killed anywhere, the next call completes it.

    What cannot be done to a volume that has one already, for want of room or because its disk fails, is a problem of
    the result: ComfyUI then runs from the image, and what is there stays.

    Raises:
        InstallError: the image's own ComfyUI is not there.
        StorageError: an empty volume has too little room (both sizes named), or its disk failed.
    """
    if not (image.tree / "main.py").is_file():
        raise InstallError(f"{image.tree} holds no ComfyUI", "run `comfypod up` again, or pull the image again")
    started = time.monotonic()
    try:
        journal.recover(layout)
        tidy(layout)
    except OSError as error:
        if not layout.comfyui.is_dir():
            raise files.storage_error(error, f"cannot finish what was begun in {layout.root}") from error
        return _from_image(layout, image, _unfinished(error, layout))
    plan, volume = plan_for(layout, image, persist=persist, upgrade=upgrade, network=network)
    if volume.choice is not None and volume.choice.reason != _reason(layout):
        plans.write_choice(layout, volume.choice)
    core = carry_out(layout, image, plan, volume, advance)
    make_user_folders(layout)
    return replace(core, seconds=time.monotonic() - started)


def carry_out(layout: Layout, image: Image, plan: Plan, volume: Volume, advance: Callable[[int], None]) -> Core:
    """Carry out a plan, and keep the state that it leads to.

    Raises:
        StorageError: an empty volume could not be seeded.
    """
    if plan.action == "image":
        _keep_state(layout, image, "")
        return Core(plan, image.tree, layout.comfyui, image.release)
    if plan.action == "keep":
        now = _keep_state(layout, image, plan.release)
        tree = image.tree if plan.mode == "link" else layout.comfyui
        return Core(plan, tree, layout.comfyui, plan.release, trial=now.attempts > 0 and bool(volume.kept))
    try:
        core = _change(layout, image, plan, volume, advance)
        tidy(layout)
    except (OSError, StorageError) as error:
        told = error if isinstance(error, StorageError) else _failed(error, plan, layout)
        if plan.action == "seed":
            raise told from error
        problem = Problem(told.code, told.message, told.hint)
        return _from_image(layout, image, problem)
    return core


def go_back(layout: Layout, image: Image, reason: str) -> Core:
    """Put the kept release in the place of one that does not work, for good: this image does not bring it again.

    Raises:
        StorageError: there is none to go back to, or the disk failed.
    """
    volume = plans.look(layout)
    if volume.here is None or volume.here.mode != "move" or not volume.kept:
        raise StorageError(f"{layout.root} keeps no release to go back to", "`comfypod workspace status` shows them")
    try:
        plans.write_choice(layout, plans.Choice(volume.kept, volume.here.name, reason))
        plan, volume = plan_for(layout, image, persist="auto", upgrade="auto", network=False)
        return carry_out(layout, image, plan, volume, lambda _: None)
    except OSError as error:
        raise files.storage_error(error, f"cannot go back to {volume.kept}") from error


def settle(layout: Layout) -> None:
    """Note that ComfyUI was ready after an upgrade: the trial is over.

    Raises:
        OSError: the disk failed.
    """
    if (found := state.read(layout.state)) is not None and found.attempts:
        state.write(layout.state, replace(found, attempts=0))


def forgive(layout: Layout) -> None:
    """Do not count a boot that was stopped before ComfyUI could be ready.

    Raises:
        OSError: the disk failed.
    """
    if (found := state.read(layout.state)) is not None and found.attempts > 1:
        state.write(layout.state, replace(found, attempts=found.attempts - 1))


def make_user_folders(layout: Layout) -> None:
    """Make those that are missing: without `custom_nodes` ComfyUI does not start."""
    for name in USER_FOLDERS:
        folder = layout.comfyui / name
        if not os.path.lexists(folder):
            files.make_folder(folder)


def _change(layout: Layout, image: Image, plan: Plan, volume: Volume, advance: Callable[[int], None]) -> Core:
    old = volume.here
    edited: tuple[str, ...] = ()
    if old is not None and plan.action not in ("repair", "keep"):
        edited = releases.changes(old, layout.comfyui).users
    copied = 0
    if plan.action == "return":
        switch.go_back(layout, image, plan, volume)
    else:
        copied = switch.bring_in(layout, image, plan, volume, advance)
    problems = _told_edits(layout, old, edited, plan) if edited and old is not None else ()
    tree = image.tree if plan.mode == "link" else layout.comfyui
    trial = plan.action == "upgrade" and old is not None and old.mode == plan.mode == "move"
    return Core(plan, tree, layout.comfyui, plan.release, copied, trial=trial, problems=problems)


def _from_image(layout: Layout, image: Image, problem: Problem) -> Core:
    """Run the image's core over the user's folders, whatever state the volume's own is in."""
    make_user_folders(layout)
    plan = plans.Plan("image", image.release, "link", "the volume could not be changed")
    return Core(plan, image.tree, layout.comfyui, image.release, problems=(problem,))


def _failed(error: OSError, plan: Plan, layout: Layout) -> StorageError:
    return files.storage_error(error, f"cannot {plan.action} {layout.comfyui}")


def _unfinished(error: OSError, layout: Layout) -> Problem:
    told = files.storage_error(error, f"cannot finish what was begun in {layout.root}")
    return Problem(told.code, told.message, told.hint)


def _told_edits(layout: Layout, old: Release, edited: tuple[str, ...], plan: Plan) -> tuple[Problem, ...]:
    kept = old.mode == "move" and plan.action in ("upgrade", "return")
    folder = (layout.releases if kept else layout.edits) / old.name
    named = ", ".join(edited[:5]) + (f" and {len(edited) - 5} more" if len(edited) > 5 else "")
    hint = "compare them with the new ones; they stay there" + (", and come back with a rollback" if kept else "")
    return (Problem("edited-core", f"core files that were changed by hand are kept in {folder}: {named}", hint),)


def _keep_state(layout: Layout, image: Image, release: str) -> state.State:
    """Note what holds now; an upgrade that has not been ready yet has one more attempt behind it."""
    found = state.read(layout.state)
    attempts = found.attempts + 1 if found is not None and found.attempts and found.release == release else 0
    previous = found.previous if found is not None else ""
    now = state.State(release, image.environment, str(layout.root), previous, attempts)
    state.write(layout.state, now)
    return now


def _reason(layout: Layout) -> str:
    found = plans.read_choice(layout)
    return found.reason if found is not None else ""

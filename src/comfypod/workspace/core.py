"""Carrying out a plan: make the core of a workspace that of one release, or leave everything as it was."""

from __future__ import annotations

import contextlib
import errno
import os
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict

from comfypod import files
from comfypod import release as releases
from comfypod.errors import InstallError, Problem, StorageError
from comfypod.release import USER_FOLDERS
from comfypod.workspace import database, journal, state, switch
from comfypod.workspace import plan as plans
from comfypod.workspace.adopt import adoptions
from comfypod.workspace.switch import Image, tidy

if TYPE_CHECKING:
    from collections.abc import Callable

    from comfypod.podfile import PodFile
    from comfypod.workspace.layout import Layout
    from comfypod.workspace.plan import Plan, Volume


# What symlink(2) says where the file system has none.
_NO_LINKS = frozenset({errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS})


@dataclass(frozen=True, slots=True)
class Core:
    """Where ComfyUI's core and the user's folders are, and what was done for that.

    `trial` says that this release has not been ready yet after an upgrade, and that there is one to go back to.
    `alone` says that no other pod uses the workspace.
    """

    plan: Plan
    core: Path
    base: Path
    release: str
    bytes: int = 0
    seconds: float = 0.0
    trial: bool = False
    alone: bool = True
    problems: tuple[Problem, ...] = ()

    @property
    def version(self) -> str:
        """ComfyUI's version."""
        return self.release.rpartition("-")[0]


def image_of(pod: PodFile) -> Image:
    """Return what an image or the host's store brings."""
    return Image(pod.release, Path(pod.comfyui_path), pod.environment_key)


class Wanted(TypedDict):
    """What the settings and the disk say of the core."""

    persist: str
    upgrade: str
    adopt: str
    network: bool


def plan_for(
    layout: Layout, image: Image, *, persist: str, upgrade: str, adopt: str = "report", network: bool
) -> tuple[Plan, Volume]:
    """Return what a boot would do now, and what it goes by; nothing is changed.

    Raises:
        StorageError: a newer comfypod wrote the workspace, or what is there cannot be used.
    """
    volume = plans.look(layout)
    if adopt == "auto" and not volume.asked:
        volume = replace(volume, asked="adopt")
    if os.path.lexists(layout.comfyui) and not layout.comfyui.is_dir():
        adoptable = volume.found is not None and volume.found.core
        if not (adoptable and volume.asked == "adopt"):
            hint = "`comfypod workspace adopt --yes` sets it aside, or move it away" if adoptable else "move it away"
            raise StorageError(f"{layout.comfyui} is there and is no folder", f"{hint}; nothing was written")
    plan = plans.decide(volume, image.release, persist=persist, upgrade=upgrade, network=network)
    links = plan.action == "keep" and plan.mode == "link"
    if links and not switch.leads(layout.comfyui / "main.py", image.tree / "main.py"):
        return replace(plan, action="convert", reason="its links lead elsewhere"), volume
    if choice := plans.after_attempts(plan, volume, image.release):
        volume = replace(volume, choice=choice)
        plan = plans.decide(volume, image.release, persist=persist, upgrade=upgrade, network=network)
    return plan, volume


def changes(layout: Layout, image: Image, wanted: Wanted) -> bool:
    """Whether a boot would change the core now, so that it must be alone.

    Raises:
        StorageError: a newer comfypod wrote the workspace, or what is there cannot be used.
        OSError: it cannot be read.
    """
    if journal.read(layout) is not None:
        return True
    plan, _ = plan_for(layout, image, **wanted)
    return plan.action not in ("keep", "image")


def join(layout: Layout, image: Image, host: str, wanted: Wanted) -> Core:
    """Use a workspace beside the pod of another host, changing neither its core nor its records.

    Raises:
        StorageError: a newer comfypod wrote the workspace, or what is there cannot be used.
        OSError: it cannot be read.
    """
    plan, volume = plan_for(layout, image, **wanted)
    told = f"the pod on {host} uses this workspace as well; each shows its own queue, and this one keeps no database"
    problem = Problem("shared", told, "give each pod a workspace of its own where that matters")
    if plan.action == "keep" and journal.read(layout) is None:
        tree = layout.comfyui if plan.mode == "move" else image.tree
        return Core(plan, tree, layout.comfyui, plan.release, alone=False, problems=(problem,))
    here = volume.here.name if volume.here is not None else "its own core"
    reason = f"the pod on {host} uses {here}"
    plan = plans.Plan("image", image.release, "link", reason)
    told = f"{told}; ComfyUI runs from the image: {image.release} can take its place once that pod has stopped"
    problem = replace(problem, message=told)
    make_user_folders(layout)
    return Core(plan, image.tree, layout.comfyui, image.release, alone=False, problems=(problem,))


def bring(
    layout: Layout, image: Image, *, persist: str, upgrade: str, adopt: str = "report", network: bool,
    advance: Callable[[int], None],
) -> Core:  # fmt: skip
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
        left = recover(layout)
    except OSError as error:
        if not layout.comfyui.is_dir():
            raise files.storage_error(error, f"cannot finish what was begun in {layout.root}") from error
        return _from_image(layout, image, _unfinished(error, layout))
    wanted: Wanted = {"persist": persist, "upgrade": upgrade, "adopt": adopt, "network": network}
    plan, volume = plan_for(layout, image, **wanted)
    if volume.asked.startswith("undo"):
        try:
            left = (*left, *_undone(layout, image, volume.asked))
        except OSError as error:
            return _from_image(layout, image, _unfinished(error, layout))
        plan, volume = plan_for(layout, image, **wanted)
    core = carry_out(layout, image, plan, volume, advance)
    if volume.asked == "adopt" and volume.found is not None and core.plan.action not in ("adopt", "image"):
        # The core was to be changed first, and has been.
        left = (*left, *core.problems)
        plan, volume = plan_for(layout, image, **wanted)
        core = carry_out(layout, image, plan, volume, advance)
    make_user_folders(layout)
    left = (*left, *_told_found(layout, plan, volume, adopt))
    return replace(core, seconds=time.monotonic() - started, problems=(*left, *core.problems))


def undo(layout: Layout, number: int, environment: str) -> tuple[Problem, ...]:
    """Undo an adoption; return what stays as users have changed it since.

    Raises:
        OSError: the disk failed; the next boot goes on.
    """
    adopted = adoptions(layout)[number]
    switch.give_back(layout, number, adopted, environment)
    aside = layout.adopted / str(number)
    left = [name for name in adopted.moved if os.path.lexists(aside / layout.comfyui.name / name)]
    return tuple(
        Problem("adoption", f"{layout.comfyui / name} was changed since, and stays", f"the old one is in {aside}")
        for name in left
    )


def _undone(layout: Layout, image: Image, asked: str) -> tuple[Problem, ...]:
    """Undo the adoption that was asked to be undone while a pod ran, once."""
    number = asked.partition(" ")[2]
    known = number.isdecimal() and int(number) in adoptions(layout)
    problems = undo(layout, int(number), image.environment) if known else ()
    layout.adopting.unlink(missing_ok=True)
    return problems


def _told_found(layout: Layout, plan: Plan, volume: Volume, adopt: str) -> tuple[Problem, ...]:
    """Say what could be adopted; forget that it was asked for once it is done."""
    if volume.asked == "adopt" and (volume.found is None or plan.action == "adopt"):
        with contextlib.suppress(OSError):
            layout.adopting.unlink(missing_ok=True)
    if volume.found is None or plan.action == "adopt" or adopt == "off":
        return ()
    hint = "`comfypod workspace adopt` shows what that would do; COMFYPOD_ADOPT=off says nothing of it"
    return (Problem("adoptable", f"{layout.root} has what can be adopted: {volume.found.told()}", hint),)


def recover(layout: Layout) -> tuple[Problem, ...]:
    """Finish or undo what a killed boot left open, drop what is kept no longer; return what is wrong with the latter.

    Raises:
        StorageError: a newer comfypod wrote the workspace.
        OSError: the disk failed; the next call goes on.
    """
    state.read(layout.state)
    for folder in (layout.releases, layout.edits, layout.staging):
        if folder.is_symlink():
            raise OSError(errno.ELOOP, "a link stands where a folder is needed", str(folder))
    journal.recover(layout)
    return tidied(layout)


def tidied(layout: Layout) -> tuple[Problem, ...]:
    """Drop what is kept no longer; return what is wrong with that, which is no reason not to start."""
    try:
        tidy(layout)
    except OSError as error:
        return files.storage_error(error, f"cannot remove what {layout.releases} keeps no longer").problems
    return ()


def carry_out(layout: Layout, image: Image, plan: Plan, volume: Volume, advance: Callable[[int], None]) -> Core:
    """Carry out a plan, and keep the state that it leads to.

    Raises:
        StorageError: an empty volume could not be seeded.
    """
    if plan.action in ("image", "keep"):
        return _as_it_is(layout, image, plan, volume)
    try:
        if volume.choice is not None and volume.choice != plans.read_choice(layout):
            plans.write_choice(layout, volume.choice)
        core = _change(layout, image, plan, volume, advance)
        core = replace(core, problems=(*core.problems, *tidied(layout)))
    except (OSError, StorageError) as error:
        if plan.mode == "link" and isinstance(error, OSError) and error.errno in _NO_LINKS:
            return _without_links(layout, image, plan, volume, advance)
        told = error if isinstance(error, StorageError) else _failed(error, plan, layout)
        if plan.action == "seed":
            raise told from error
        return _from_image(layout, image, told.problem)
    return core


def _without_links(layout: Layout, image: Image, plan: Plan, volume: Volume, advance: Callable[[int], None]) -> Core:
    """Put files on a volume whose disk refuses links (exFAT, some network disks), or keep those that are there."""
    reason = f"{layout.root} takes no links"
    if volume.here is not None and volume.here.mode == "move" and volume.here.name == plan.release:
        return carry_out(layout, image, replace(plan, action="keep", mode="move", reason=reason), volume, advance)
    return carry_out(layout, image, replace(plan, mode="move", reason=f"{plan.reason}; {reason}"), volume, advance)


def go_back(layout: Layout, instead_of: str, environment: str, reason: str) -> Core:
    """Put the kept release in the place of one that does not work; images that bring `instead_of` do not bring it back.

    Raises:
        StorageError: there is none to go back to, or the disk failed.
    """
    try:
        recover(layout)
        volume = plans.look(layout)
        ensure_way_back(layout, volume)
        plans.write_choice(layout, plans.Choice(volume.kept, instead_of, reason))
        plan = plans.Plan("return", volume.kept, "move", reason)
        problems = _told_edits(layout, plan, volume)
        switch.go_back(layout, environment, plan, volume)
        problems = (*problems, *tidied(layout))
    except OSError as error:
        raise files.storage_error(error, f"cannot go back in {layout.comfyui}") from error
    return Core(plan, layout.comfyui, layout.comfyui, plan.release, problems=problems)


def leaving(layout: Layout, plan: Plan, volume: Volume) -> tuple[str, ...]:
    """Return the user's changes of the core that leave with it when the plan is carried out."""
    if volume.here is None or plan.action not in ("upgrade", "return", "convert"):
        return ()
    return releases.changes(volume.here, layout.comfyui).users


def ensure_way_back(layout: Layout, volume: Volume) -> None:
    """Refuse to go back where nothing is kept.

    Raises:
        StorageError: there is no release to go back to.
    """
    if volume.here is None or not volume.kept:
        hint = "with links the image before has it; `comfypod workspace status` shows what is kept"
        raise StorageError(f"{layout.root} keeps no release to go back to", hint)


def count(layout: Layout, core: Core) -> Core:
    """Count this boot against an upgrade that is on trial, until `settle` or `forgive`."""
    if not core.trial:
        return core
    found = state.read(layout.state)
    if found is None:
        return core
    try:
        state.write(layout.state, replace(found, attempts=found.attempts + 1))
    except OSError as error:
        return replace(core, problems=(*core.problems, _unwritten(error, layout)))
    return core


def retry(layout: Layout) -> None:
    """Let an upgrade have all its attempts again.

    Raises:
        OSError: the disk failed.
    """
    if (found := state.read(layout.state)) is not None and found.attempts > 1:
        state.write(layout.state, replace(found, attempts=1))


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


def _as_it_is(layout: Layout, image: Image, plan: Plan, volume: Volume) -> Core:
    """Change nothing but the record of what holds, which is no reason not to start."""
    found = state.read(layout.state)
    release = plan.release if plan.action == "keep" else ""
    attempts = found.attempts if found is not None and found.release == release else 0
    problems: tuple[Problem, ...] = ()
    try:
        if plan.action == "image":
            database.keep(layout)
        state.write(layout.state, state.State(release, image.environment, str(layout.root), volume.kept, attempts))
    except OSError as error:
        problems = (_unwritten(error, layout),)
    tree = layout.comfyui if plan.action == "keep" and plan.mode == "move" else image.tree
    trial = attempts > 0 and bool(volume.kept)
    return Core(plan, tree, layout.comfyui, plan.release, trial=trial, problems=problems)


def _change(layout: Layout, image: Image, plan: Plan, volume: Volume, advance: Callable[[int], None]) -> Core:
    problems = _told_edits(layout, plan, volume)
    copied, forward = 0, plan.release == image.release
    if plan.action == "return":
        switch.go_back(layout, image.environment, plan, volume, trial=forward)
    else:
        copied = switch.bring_in(layout, image, plan, volume, advance)
    tree = image.tree if plan.mode == "link" else layout.comfyui
    trial = forward and plans.keeps(plan, volume)
    return Core(plan, tree, layout.comfyui, plan.release, copied, trial=trial, problems=problems)


def _from_image(layout: Layout, image: Image, problem: Problem) -> Core:
    """Run the image's core over the user's folders, whatever state the volume's own is in."""
    make_user_folders(layout)
    plan = plans.Plan("image", image.release, "link", "the volume could not be changed")
    return Core(plan, image.tree, layout.comfyui, image.release, problems=(problem,))


def _failed(error: OSError, plan: Plan, layout: Layout) -> StorageError:
    return files.storage_error(error, f"cannot {plan.action} {layout.comfyui}")


def _unfinished(error: OSError, layout: Layout) -> Problem:
    return files.storage_error(error, f"cannot finish what was begun in {layout.root}").problem


def _unwritten(error: OSError, layout: Layout) -> Problem:
    return files.storage_error(error, f"cannot write {layout.state}").problem


def _told_edits(layout: Layout, plan: Plan, volume: Volume) -> tuple[Problem, ...]:
    """Say which of the user's changes leave with the core that is there."""
    old, edited = volume.here, leaving(layout, plan, volume)
    if old is None or not edited:
        return ()
    kept = plans.keeps(plan, volume)
    folder = (layout.releases if kept else layout.edits) / old.name
    named = ", ".join(edited[:5]) + (f" and {len(edited) - 5} more" if len(edited) > 5 else "")
    hint = "compare them with the new ones; they stay there" + (", and come back with a rollback" if kept else "")
    return (Problem("edited-core", f"core files that were changed by hand are kept in {folder}: {named}", hint),)

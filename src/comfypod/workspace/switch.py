"""Switching: the core of one release put in the place of another's, staged beside it and switched by renames."""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from comfypod import copying, files
from comfypod import release as releases
from comfypod.errors import StorageError
from comfypod.log import human_bytes
from comfypod.release import CACHE, MARK, Release
from comfypod.workspace import adopt, database, journal, state
from comfypod.workspace import plan as plans
from comfypod.workspace.adopt import Adoption
from comfypod.workspace.journal import Move, Transaction, free_name

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from comfypod.workspace.layout import Layout
    from comfypod.workspace.plan import Plan, Volume

_SLACK = 16 << 20
_OVERHEAD = 64
# What `link` brings into the user's folders: nodes and pictures that ComfyUI has from the start, no placeholders.
_SMALL_SEEDS = ("custom_nodes", "input")


@dataclass(frozen=True, slots=True)
class Image:
    """What the image or the store brings: a release and where its tree is."""

    release: str
    tree: Path
    environment: str


def bring_in(layout: Layout, image: Image, plan: Plan, volume: Volume, advance: Callable[[int], None]) -> int:
    """Stage what the image brings and switch to it; return the bytes copied.

    Raises:
        StorageError: there is too little room; nothing was written.
        OSError: the disk failed. Before the switch all is as it was; after that the next `journal.recover` goes on.
    """
    old, brought = volume.here, releases.pristine(image.tree, image.release)
    new = replace(brought, mode=plan.mode, files=brought.files if plan.mode == "move" else {})
    tops = _tops(image, new, plan, volume)
    adopted = _adoption(layout, new, plan, volume) if plan.action == "adopt" else None
    seeds = _seeds(layout, brought, old, plan)
    if adopted is not None:
        seeds = [name for name in seeds if name.partition("/")[0] not in adopted.links]
    if plan.mode == "move":
        _ensure_room(layout, image.tree, tops)
    keeps = plans.keeps(plan, volume)
    if plan.action != "adopt":
        _make_way(layout, old)
    previous = _previous(plan, volume)
    after = _after(layout, image, plan, previous, attempts=1 if keeps else 0)
    with _undone_on_error(layout):
        journal.begin(layout, Transaction(plan.action, (), after))
        staged = _stage(layout, image, new, tops, seeds, advance)
        moves: list[Move] = []
        if adopted is not None:
            moves += _stage_adoption(layout, adopted)
        if layout.comfyui.exists():
            moves += _moves(layout, image, plan, old, new, tops)
            staged_names = [*seeds, *(adopted.links if adopted is not None else ())]
            moves += [Move(_staged(layout, name), f"{layout.comfyui.name}/{name}") for name in staged_names]
        else:
            moves.append(Move(_name(layout, layout.staging / layout.comfyui.name), layout.comfyui.name))
        copies: list[Move] = []
        if plan.action in ("upgrade", "adopt", "seed"):
            known = layout.comfyui if old is not None and old.mode == "move" else None
            copies = database.change(layout, known, image.tree)
        moves += copies
        change = Transaction(plan.action, tuple(moves), after)
        advance(staged)
        change = journal.commit(layout, change, copied=plan.mode == "move" or bool(seeds or copies or adopted))
    journal.finish(layout, change)
    return staged


def _previous(plan: Plan, volume: Volume) -> str:
    """Return which release is kept afterwards."""
    old, keeps = volume.here, plans.keeps(plan, volume)
    previous = old.name if keeps and old is not None else volume.kept
    if plan.release == previous or plan.mode == "link":
        return ""
    # What has never been ready is nothing to go back to.
    return volume.kept if keeps and volume.attempts and volume.kept else previous


def _adoption(layout: Layout, new: Release, plan: Plan, volume: Volume) -> Adoption:
    """Return what the adoption of what was found moves aside and links to."""
    found = volume.found
    assert found is not None  # noqa: S101 - planned so
    core = adopt.core_names(new, layout) if found.core and layout.comfyui.exists() else ()
    replaced = [name for name in found.folders if os.path.lexists(layout.comfyui / name)]
    return Adoption(found.kind, plan.release, (*core, *replaced), found.folders, found.models, found.nodes)


def _stage_adoption(layout: Layout, adopted: Adoption) -> list[Move]:
    """Stage links and record; return the renames that set aside what stands in `ComfyUI/`."""
    place = layout.adopted / str(adopt.next_number(layout))
    here = layout.comfyui.name
    for name, target in adopted.links.items():
        (layout.staging / here / name).symlink_to(Path("..", target))
    (layout.staging / adopt.RECORD).write_bytes(adopted.encode())
    moves = [Move(f"{here}/{name}", _name(layout, place / here / name)) for name in adopted.moved]
    if layout.comfyui.is_symlink():
        moves.append(Move(here, _name(layout, place / here)))
    return [*moves, Move(_name(layout, layout.staging / adopt.RECORD), _name(layout, place / adopt.RECORD))]


def give_back(layout: Layout, number: int, adopted: Adoption, environment: str) -> None:
    """Undo an adoption: what was set aside is put back, and the links that took its place go.

    The core that stands there is kept as a release when another's comes back. What users have put in the place of a
    link stays.

    Raises:
        OSError: the disk failed.
    """
    here, old, place = layout.comfyui.name, releases.read(layout.comfyui), layout.adopted / str(number)
    found = state.read(layout.state)
    moves: list[Move] = []
    foreign = any(name not in adopted.links for name in adopted.moved)
    if foreign and old is not None:
        _make_way(layout, old)
        names = [name for name in sorted({*old.entries, CACHE}) if os.path.lexists(layout.comfyui / name)]
        moves += [Move(f"{here}/{name}", _way_out(layout, old, name)) for name in names]
    for name, target in adopted.links.items():
        if leads(layout.comfyui / name, Path("..", target)):
            moves.append(Move(f"{here}/{name}", _name(layout, layout.staging / "old" / name)))
    leaving = {move.source for move in moves}
    for name in adopted.moved:
        free = f"{here}/{name}" in leaving or not os.path.lexists(layout.comfyui / name)
        moves += [Move(_name(layout, place / here / name), f"{here}/{name}")] if free else []
    moves.append(Move(_name(layout, place / adopt.RECORD), _name(layout, place / adopt.UNDONE)))
    kept = found.previous if found is not None else ""
    gone = old.name if foreign and old is not None and old.mode == "move" else kept
    release = "" if foreign or old is None else old.name
    after = state.State(release, environment, str(layout.root), gone, 0)
    with _undone_on_error(layout):
        journal.begin(layout, Transaction("give back", (), after))
        copies = database.change(layout, layout.comfyui, place / here) if foreign else []
        change = Transaction("give back", (*moves, *copies), after)
        change = journal.commit(layout, change, copied=bool(copies))
    journal.finish(layout, change)


def go_back(layout: Layout, environment: str, plan: Plan, volume: Volume, *, trial: bool = False) -> None:
    """Put the kept release in the place of the one that is here, which is kept then.

    Raises:
        OSError: the disk failed.
    """
    old, back = volume.here, releases.read(layout.releases / volume.kept)
    assert old is not None and back is not None  # noqa: S101, PT018 - planned so
    _make_way(layout, old)
    previous = old.name if plans.keeps(plan, volume) else ""
    after = state.State(back.name, environment, str(layout.root), previous, 1 if trial and previous else 0)
    with _undone_on_error(layout):
        journal.begin(layout, Transaction(plan.action, (), after))
        moves = database.change(layout, layout.comfyui, layout.releases / back.name)
        change = Transaction(plan.action, (*_return(layout, old, back), *moves), after)
        change = journal.commit(layout, change, copied=bool(moves))
    journal.finish(layout, change)


def _tops(image: Image, new: Release, plan: Plan, volume: Volume) -> list[str]:
    """Return the names at the top that are to be put there; bytecode comes along with the files that it belongs to."""
    if plan.action == "repair":
        return list(volume.missing)
    if plan.action == "adopt" and volume.here is not None:
        return []
    return [*new.entries, *([CACHE] if new.mode == "move" and (image.tree / CACHE).is_dir() else [])]


def tidy(layout: Layout) -> None:
    """Remove releases that are kept no longer; what a user had changed in them is kept.

    Raises:
        OSError: the disk failed; the next call goes on.
    """
    try:
        names = {entry.name for entry in os.scandir(layout.releases) if entry.is_dir(follow_symlinks=False)}
    except FileNotFoundError:
        return
    found = state.read(layout.state)
    for name in sorted(names - {found.previous if found is not None else min(names, default="")}):
        _drop(layout, name)


@contextlib.contextmanager
def _undone_on_error(layout: Layout) -> Iterator[None]:
    """Remove what was staged when staging is given up, so that nobody waits for the next boot to have the room back."""
    with contextlib.ExitStack() as undo:
        undo.callback(_unstage, layout)
        yield
        undo.pop_all()


def _unstage(layout: Layout) -> None:
    with contextlib.suppress(OSError):
        layout.journal.unlink(missing_ok=True)
        journal.clear(layout)


def _stage(
    layout: Layout, image: Image, new: Release, tops: list[str], seeds: list[str], advance: Callable[[int], None]
) -> int:
    place = layout.staging / layout.comfyui.name
    place.mkdir(parents=True)
    jobs: list[copying.Job] = []
    for name in tops:
        source = image.tree / name
        if name == MARK:
            (place / MARK).write_bytes(new.encode())
        elif new.mode == "link" or source.is_symlink():
            (place / name).symlink_to(source if new.mode == "link" else source.readlink())
        elif source.is_dir():
            jobs += copying.make_folders(source, place / name)
        else:
            jobs.append(copying.Job(str(source), str(place / name)))
    for name in seeds:
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        jobs.append(copying.Job(str(image.tree / name), str(place / name)))
    return copying.copy_files(jobs, advance)


def _moves(
    layout: Layout, image: Image, plan: Plan, old: Release | None, new: Release, tops: list[str]
) -> Iterator[Move]:
    """Yield the renames that replace the old core by the new one, name by name."""
    here = layout.comfyui.name
    outgoing = {*old.entries, CACHE} if old is not None and plan.action not in ("repair", "adopt") else set()
    for name in sorted(outgoing.union(tops)):
        place = layout.comfyui / name
        if new.mode == "link" and name in tops and name != MARK and leads(place, image.tree / name):
            continue
        if os.path.lexists(place) and plan.action != "adopt":
            ours = name in outgoing and old is not None
            aside = _name(layout, free_name(layout.edits / new.name / name))
            yield Move(f"{here}/{name}", _way_out(layout, old, name) if ours and old is not None else aside)
        if name in tops:
            yield Move(_staged(layout, name), f"{here}/{name}")


def _return(layout: Layout, old: Release, back: Release) -> Iterator[Move]:
    """Yield the renames that put a kept release in the place of the one that is here."""
    here, folder = layout.comfyui.name, layout.releases / back.name
    for name in sorted({*old.entries, *back.entries, CACHE}):
        place = layout.comfyui / name
        if os.path.lexists(place):
            ours = name in old.entries or name == CACHE
            aside = _name(layout, free_name(layout.edits / back.name / name))
            yield Move(f"{here}/{name}", _way_out(layout, old, name) if ours else aside)
        if os.path.lexists(folder / name):
            yield Move(_name(layout, folder / name), f"{here}/{name}")


def _make_way(layout: Layout, old: Release | None) -> None:
    """Drop what is kept under the name of the release that is here, as it will be put there itself."""
    if old is not None and (layout.releases / old.name).is_dir():
        _drop(layout, old.name)


def _way_out(layout: Layout, old: Release, name: str) -> str:
    """Return where an entry of the old core goes: links are ours to delete, files are kept."""
    if old.mode == "move":
        return _name(layout, layout.releases / old.name / name)
    place = layout.comfyui / name
    if name in (MARK, CACHE) or (place.is_symlink() and place.readlink().name == name):
        return _name(layout, layout.staging / "old" / name)
    return _name(layout, free_name(layout.edits / old.name / name))


def _seeds(layout: Layout, new: Release, old: Release | None, plan: Plan) -> list[str]:
    """Return the files for the user's folders that this release is the first to bring, where they can be put.

    What the release before had brought and a user has deleted does not come back.
    """
    if plan.action in ("repair", "convert") or (plan.action == "adopt" and old is not None):
        return []
    known = set(old.seeds) if old is not None else set()
    if old is not None and old.mode == "link":
        return []
    names = [name for name in new.seeds if name not in known]
    if plan.mode == "link":
        names = [name for name in names if name.partition("/")[0] in _SMALL_SEEDS]
    if not layout.comfyui.exists():
        return names
    return [name for name in names if _free(layout, name) and not os.path.lexists(layout.comfyui / name)]


def _is_ours(layout: Layout, folder: Path) -> bool:
    """Whether a folder of the user's is a plain one, and mounted together with the workspace."""
    mounts = plans.mounts_below(layout)
    return (
        not folder.is_symlink()
        and folder.is_dir()
        and not any(point == folder or point in folder.parents for point in mounts)
    )


def _free(layout: Layout, name: str) -> bool:
    """Whether nothing but folders stands on the way to a name, and the last one that is there lets us write."""
    parents = name.split("/")[:-1]
    places = [layout.comfyui.joinpath(*parents[: depth + 1]) for depth in range(len(parents))]
    there = [place for place in places if os.path.lexists(place)]
    if not all(_is_ours(layout, place) for place in there):
        return False
    return not there or os.access(there[-1], os.W_OK | os.X_OK)


def leads(link: Path, target: Path) -> bool:
    """Whether a name is a link to exactly this target."""
    try:
        return link.readlink() == target
    except OSError:
        return False


def _place_for(folder: Path, name: str) -> Path:
    """Return where a file can be kept: in the folder, or in its first sibling where nothing stands in the way."""
    number, place = 0, folder / name
    while (
        os.path.lexists(place) or not files.nearest_folder(place).is_dir() or files.nearest_folder(place).is_symlink()
    ):
        number += 1
        place = folder.with_name(f"{folder.name}.{number}") / name
    return place


def _drop(layout: Layout, name: str) -> None:
    """Delete a kept release but for what a user had changed in it."""
    folder = layout.releases / name
    found = releases.read(folder)
    if found is None and any(folder.iterdir()):
        journal.set_aside(layout, folder, name)
        return
    for path in releases.changes(found, folder).users if found is not None else ():
        place = _place_for(layout.edits / name, path)
        place.parent.mkdir(parents=True, exist_ok=True)
        (folder / path).rename(place)
    layout.staging.mkdir(exist_ok=True)
    folder.rename(free_name(layout.staging / name))
    journal.clear(layout)


def _ensure_room(layout: Layout, tree: Path, tops: list[str]) -> None:
    needed = sum(files.tree_bytes(tree / name) for name in tops if name != MARK) + _SLACK
    left = files.room(layout.root)
    if left.bytes < needed:
        raise StorageError(
            f"{layout.root} has {human_bytes(left.bytes)} left, ComfyUI needs {human_bytes(needed)}",
            "free some space or choose another workspace; nothing was written",
        )
    inodes = sum(files.tree_entries(tree / name) for name in tops) + _OVERHEAD
    if left.inodes is not None and left.inodes < inodes:
        raise StorageError(
            f"{layout.root} has {left.inodes} inodes left, ComfyUI needs {inodes}",
            "delete small files or use a file system with more inodes; nothing was written",
        )


def _after(layout: Layout, image: Image, plan: Plan, previous: str, *, attempts: int) -> state.State:
    return state.State(plan.release, image.environment, str(layout.root), previous, attempts)


def _name(layout: Layout, path: Path) -> str:
    return path.relative_to(layout.root).as_posix()


def _staged(layout: Layout, name: str) -> str:
    return _name(layout, layout.staging / layout.comfyui.name / name)

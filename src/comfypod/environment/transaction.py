"""A change of a layer that is wholly done or has not happened, whatever is killed.

Packages are installed into a folder beside the layer's, with the same names below it. Only once all of them are there
and have been checked, what has to go is noted (`installing.json`), which decides: from there `recover` goes forward,
before it throws the folder away. Every step may be repeated.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from comfypod import files
from comfypod.environment import dists, requests
from comfypod.errors import BusyError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from comfypod.environment.dists import Dist
    from comfypod.environment.layer import Layer
    from comfypod.environment.requests import Request
    from comfypod.workspace.layout import Layout

_LIMIT = 1 << 26
_LOCK_SECONDS = 30.0
_OURS = (".lock", "CACHEDIR.TAG", ".gitignore")


@dataclass(frozen=True, slots=True)
class Switch:
    """What is left to do: files to take away (below the layer's root), what is said of it, requests that hold then."""

    said: str
    gone: tuple[str, ...]
    requests: tuple[Request, ...]


@contextlib.contextmanager
def alone(layer: Layer) -> Iterator[tuple[int, ...]]:
    """Keep other installers of ours out, and wait for one that was killed a moment ago; yield what holds the lock.

    Raises:
        BusyError: another one is at work.
    """
    lock, deadline = files.FolderLock(layer.root / "installing.lock"), time.monotonic() + _LOCK_SECONDS
    while True:
        try:
            lock.acquire()
            break
        except BusyError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)
    try:
        yield lock.descriptors
    finally:
        lock.release()


def folder_of(layer: Layer) -> Path:
    """Where packages wait, and what is told to an installer."""
    return layer.root / "installing"


def prefix_of(layer: Layer) -> Path:
    """What takes the layer's place while packages wait."""
    return folder_of(layer) / "prefix"


def site_of(layer: Layer) -> Path:
    """The site-packages folder of packages that wait."""
    return prefix_of(layer) / layer.site.relative_to(layer.root)


def begin(layer: Layer) -> Path:
    """Make the folder for what is installed next, empty; return it."""
    clear(layer)
    folder_of(layer).mkdir()
    return folder_of(layer)


def clear(layer: Layer) -> None:
    """Throw away what was installed and will not be put in place; what is noted stays."""
    if not os.path.lexists(_note(layer)):
        files.remove_tree(folder_of(layer))


def commit(layer: Layer, layout: Layout, said: str, asked: tuple[Request, ...]) -> None:
    """Put in place what waits, and note what was asked for.

    Raises:
        OSError: the disk failed; `recover` undoes or finishes.
    """
    for name in _OURS:
        (prefix_of(layer) / name).unlink(missing_ok=True)
    fresh = dists.scan(site_of(layer))
    switch = Switch(said, tuple(_leaving(layer, fresh)), asked)
    files.sync_filesystem(folder_of(layer))
    files.write_atomic(_note(layer), json.dumps(asdict(switch)).encode())
    _finish(layer, layout, switch)


def recover(layer: Layer, layout: Layout) -> tuple[str, ...]:
    """Undo an install that was killed, or finish it where all of it was there; return what was done, a line each.

    Where nothing was under way this is two looks at names.

    Raises:
        OSError: the disk failed.
        BusyError: an install is under way.
    """
    if not (os.path.lexists(_note(layer)) or os.path.lexists(folder_of(layer))):
        return ()
    with alone(layer):
        return settle(layer, layout)


def settle(layer: Layer, layout: Layout) -> tuple[str, ...]:
    """Do what `recover` does, where the caller is alone with the layer.

    Raises:
        OSError: the disk failed.
    """
    switch = _read(layer)
    if switch is not None:
        _finish(layer, layout, switch)
        return (f"finished what was being installed: {switch.said}",)
    left = os.path.lexists(folder_of(layer))
    _note(layer).unlink(missing_ok=True)
    clear(layer)
    return ("undid an install that did not get to its end",) if left else ()


def _note(layer: Layer) -> Path:
    return layer.root / "installing.json"


def _read(layer: Layer) -> Switch | None:
    try:
        body: Any = json.loads(files.read_small(_note(layer), _LIMIT))
        asked = tuple(row for row in map(requests.from_row, body["requests"]) if row is not None)
        return Switch(str(body["said"]), tuple(name for name in body["gone"] if _is_inside(name)), asked)
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None


def _is_inside(name: Any) -> bool:
    """Whether a row of a note is what `_files` yields, and not something that was planted."""
    if not isinstance(name, str) or os.path.normpath(name) != name:
        return False
    return not name.startswith(("..", os.sep)) and not dists.is_ours(name)


def _finish(layer: Layer, layout: Layout, switch: Switch) -> None:
    for name in switch.gone:
        _discard(layer, name)
    if files.is_folder(folder_of(layer)) and files.is_folder(prefix_of(layer)):
        _merge(prefix_of(layer), layer.root)
        # Renames are durable before the note that tells of them is gone.
        files.sync_filesystem(layer.root)
    requests.add(layout, switch.requests)
    _note(layer).unlink(missing_ok=True)
    files.remove_tree(folder_of(layer))


def _merge(source: Path, target: Path) -> None:
    """Move what is in a folder into another one, each folder that is new there by one rename."""
    with os.scandir(source) as found:
        entries = sorted(found, key=lambda entry: entry.name)
    for entry in entries:
        place = target / entry.name
        there = os.path.lexists(place)
        if there and files.is_folder(place) and entry.is_dir(follow_symlinks=False):
            _merge(Path(entry.path), place)
            continue
        if there and (files.is_folder(place) or entry.is_dir(follow_symlinks=False)):
            files.remove_tree(place)
        os.rename(entry.path, place)  # noqa: PTH104 - as scandir has it


def _leaving(layer: Layer, fresh: dict[str, Dist]) -> list[str]:
    """Return the files of what is replaced that nothing takes the place of."""
    prefix = prefix_of(layer)
    before = dists.among(os.listdir(layer.site))
    names = {name for dist in before if dist.name in fresh for name in _files(layer, dist)}
    return sorted(name for name in names if not os.path.lexists(prefix / name))


def _files(layer: Layer, dist: Dist) -> Iterator[str]:
    """Yield what a distribution has in a layer, bytecode too, below its root."""
    base = layer.site.relative_to(layer.root)
    for name in {*dists.recorded(layer.site, dist), *_named(layer.site / dist.info, dist.info)}:
        path = os.path.normpath(base / name)
        if path.startswith(("..", os.sep)) or dists.is_ours(path):
            continue
        yield path
        if path.endswith(".py"):
            cache = layer.root / Path(path).parent / "__pycache__"
            stem = Path(path).stem
            yield from (str(each.relative_to(layer.root)) for each in cache.glob(f"{stem}.*.pyc"))


def _named(folder: Path, base: str) -> Iterable[str]:
    return [f"{base}/{path.relative_to(folder)}" for path in folder.rglob("*") if not files.is_folder(path)]


def _discard(layer: Layer, name: str) -> None:
    """Remove a file, and the folders that it leaves empty; never through a link that leads out of the layer."""
    path = layer.root / name
    folder = path.parent
    if not (files.is_folder(folder) and folder.resolve().is_relative_to(layer.root.resolve())):
        return
    if os.path.lexists(path) and not files.is_folder(path):
        path.unlink()
    with contextlib.suppress(OSError):
        while folder not in (layer.root, layer.site, layer.root / "bin"):
            folder.rmdir()
            folder = folder.parent

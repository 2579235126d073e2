"""The packaged ComfyUI-Manager: its policy, a legacy clone beside it, and what it would run by itself at its start."""

from __future__ import annotations

import json
import os
from itertools import pairwise
from typing import TYPE_CHECKING

from comfypod.errors import Problem, StorageError
from comfypod.files import make_folder, read_small, storage_error, write_atomic
from comfypod.nodes.policy import NEWEST, merge, parse, render, rules_of
from comfypod.workspace.aside import put_aside

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence
    from pathlib import Path

    from comfypod.workspace.layout import Layout

_ENABLED = frozenset({"--enable-manager", "--enable-manager-legacy-ui"})
_CLONE = "comfyui-manager"
# Read and run at each start of ComfyUI by Manager's prestartup_script.py; and read there.
_SCRIPTS = ("restore-snapshot.json", "install-scripts.txt")
_LISTS = ("pip_overrides.json", "pip_blacklist.list")
_LONGEST = 1 << 16


def in_use(arguments: Collection[str]) -> bool:
    """Whether ComfyUI is started with the packaged Manager."""
    return not _ENABLED.isdisjoint(arguments)


def user_folder(layout: Layout, arguments: Sequence[str]) -> Path:
    """Return ComfyUI's user folder, as its arguments have it."""
    words = [part for word in arguments for part in word.split("=", 1)]
    chosen = next((after for word, after in pairwise(words) if word == "--user-directory"), None)
    return layout.comfyui / "user" if chosen is None else layout.comfyui / chosen


def folder_of(user: Path) -> Path:
    """Return where Manager keeps what is its own, below ComfyUI's user folder."""
    return user / "__manager"


def apply(
    layout: Layout, user: Path, nodes: Path, version: str, policy: str, *, offline: bool = False
) -> tuple[Problem, ...]:
    """Have Manager's `config.ini` say what the policy says, before ComfyUI starts; return what had to be changed.

    The user's own keys stay. A file that Manager would not read is set aside, and what can be read of it taken over.

    Raises:
        StorageError: the disk refused; Manager must not be started then.
    """
    rules, known = rules_of(version, policy, offline=offline)
    problems = [] if known else [_unknown(version)]
    folder = folder_of(user)
    if os.path.lexists(folder) and not folder.is_dir():
        problems.append(_set_aside(layout, folder, "node-policy", "ComfyUI-Manager needs a folder here"))
    path = folder / "config.ini"
    found, why = _found(path)
    merged = merge(_older(user, nodes) if found is None else found, _ours(layout), rules)
    if why:
        problems.append(_set_aside(layout, path, "node-policy", why))
    try:
        if why or merged.keys != found:
            make_folder(folder)
            write_atomic(path, render(merged.keys, rules))
        _remember(layout, merged.ours)
    except OSError as error:
        raise storage_error(error, "cannot write ComfyUI-Manager's policy") from error
    return (*problems, *(_tightened(policy, key, value, merged.keys[key]) for key, value in merged.weak.items()))


def _found(path: Path) -> tuple[dict[str, str] | None, str]:
    """Return the keys that are there, None where there is no file, and why the file cannot stay."""
    if not os.path.lexists(path):
        return None, ""
    try:
        found, sound = parse(read_small(path, _LONGEST))
    except OSError as error:
        return {}, f"it cannot be read: {error.strerror}"
    if path.is_symlink():
        return found, "it is a link"
    return found, "" if sound else "Manager would not read it"


def _older(user: Path, nodes: Path) -> dict[str, str]:
    """Return the keys of the first file in a place where an older Manager had it; that file stays."""
    for place in (user / "default" / "ComfyUI-Manager", *clones(nodes)):
        try:
            found, _ = parse(read_small(place / "config.ini", _LONGEST))
        except OSError:
            continue
        if found:
            return found
    return {}


def _ours(layout: Layout) -> dict[str, str]:
    try:
        body = json.loads(read_small(layout.manager))
    except (OSError, ValueError, RecursionError):
        return {}
    return {key: value for key, value in body.items() if isinstance(value, str)} if isinstance(body, dict) else {}


def _remember(layout: Layout, ours: Mapping[str, str]) -> None:
    if ours != _ours(layout):
        write_atomic(layout.manager, (json.dumps(dict(ours), indent=1) + "\n").encode())


def _unknown(version: str) -> Problem:
    told = f"ComfyUI-Manager {version} is not known; it is held to the policy `locked` of {NEWEST}"
    return Problem("node-policy", told, "use a comfypod that knows it, or the ComfyUI-Manager of the lock")


def _tightened(policy: str, key: str, value: str, fill: str) -> Problem:
    told = f"ComfyUI-Manager's {key} was {value[:80]!r}; the policy `{policy}` makes it {fill!r}"
    return Problem("node-policy", told, "COMFYPOD_NODE_POLICY chooses the policy")


def clones(nodes: Path) -> list[Path]:
    """Return the folders in `custom_nodes` that are a Manager of the old kind, by name or by contents."""
    try:
        names = sorted(os.listdir(nodes))
    except OSError:
        return []
    folders = [nodes / name for name in names if not name.endswith(".disabled")]
    return [path for path in folders if path.is_dir() and _is_manager(path)]


def _is_manager(path: Path) -> bool:
    return path.name.casefold() == _CLONE or (path / "glob" / "manager_core.py").is_file()


def set_clones_aside(layout: Layout, nodes: Path) -> tuple[Problem, ...]:
    """Leave the packaged Manager alone: a clone is set aside. Its settings have been taken over by `apply`."""
    return _each_aside(layout, clones(nodes), "legacy-manager", "the image's ComfyUI-Manager is in use")


def set_scripts_aside(layout: Layout, user: Path) -> tuple[Problem, ...]:
    """Keep Manager from running what lies there at boot: it was planted, or asked for in a pod that is gone.

    Once in a boot: what a person asks Manager for is run by the restart that they ask for next, which is no boot.
    """
    folder = folder_of(user)
    scripts = [path for path in (folder / "startup-scripts" / name for name in _SCRIPTS) if os.path.lexists(path)]
    lists = [path for path in (folder / name for name in _LISTS) if not _is_harmless(path)]
    return (
        *_each_aside(layout, scripts, "startup-script", "ComfyUI-Manager would have run it by itself"),
        *_each_aside(layout, lists, "startup-script", "it would have ended ComfyUI at its start"),
    )


def _is_harmless(path: Path) -> bool:
    """Whether Manager comes past one of its lists, which it reads with no provision for failing."""
    try:
        data = read_small(path)
        return path.suffix != ".json" or isinstance(json.loads(data.decode("utf-8", "ignore")), dict)
    except FileNotFoundError:
        return not path.is_symlink()
    except (OSError, ValueError, RecursionError):
        return False


def _each_aside(layout: Layout, paths: Collection[Path], code: str, why: str) -> tuple[Problem, ...]:
    problems = []
    for path in paths:
        try:
            problems.append(_set_aside(layout, path, code, why))
        except StorageError as error:
            problems.append(Problem(code, error.message, error.hint))
    return tuple(problems)


def _set_aside(layout: Layout, path: Path, code: str, why: str) -> Problem:
    if not path.is_relative_to(layout.root):
        raise StorageError(f"{path} is in the way: {why}", "move it away; it is not in the workspace")
    place = put_aside(layout, path, why)
    return Problem(code, f"{path} was set aside: {why}", f"nothing of it is lost; to have it back, move {place} there")

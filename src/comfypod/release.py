"""A release: one ComfyUI tree, named for good, with the digest of every file; and what a folder holds of one."""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

from comfypod import files

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

Mode = Literal["move", "link"]
MARK = ".comfypod-release.json"
# Belongs to the files beside it and is no contents: Python makes it anew.
CACHE = "__pycache__"
USER_FOLDERS = ("custom_nodes", "input", "models", "output", "user")
_LINK = "-> "
_LIMIT = 1 << 24
_LONGEST = 255
# Also half-written ones, which have a number at the end.
_BYTECODE = re.compile(r"(?:\A|/)__pycache__/[^/]+\.pyc(?:\.\d+)?\Z")


@dataclass(frozen=True, slots=True)
class Release:
    """What a tree of this release consists of.

    `entries` are the names at its top that are core, the mark among them. `files` are all its files by relative name,
    those in the user's folders too: their SHA-256, or `-> target` for a link. A volume whose core is links (`mode`)
    has no `files`.
    """

    name: str
    entries: tuple[str, ...]
    files: Mapping[str, str]
    mode: Mode = "move"

    @property
    def version(self) -> str:
        """ComfyUI's version."""
        return self.name.rpartition("-")[0]

    @property
    def seeds(self) -> tuple[str, ...]:
        """The files that it brings for the user's folders."""
        return tuple(name for name in self.files if name.partition("/")[0] in USER_FOLDERS)

    def encode(self) -> bytes:
        """Render as JSON, the same bytes for the same release."""
        body = {"release": self.name, "mode": self.mode, "entries": self.entries, "files": dict(self.files)}
        return (json.dumps(body, indent=0, sort_keys=True) + "\n").encode("utf-8", "surrogateescape")


@dataclass(frozen=True, slots=True)
class Changes:
    """How the core in a folder differs from its release: relative names, each sorted."""

    edited: tuple[str, ...] = ()
    added: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()

    @property
    def users(self) -> tuple[str, ...]:
        """What a user made."""
        return tuple(sorted((*self.edited, *self.added)))


def describe(root: Path, name: str) -> Release:
    """Take the digests of a tree as it was built; ComfyUI's takes 0.1 s."""
    found = {path: _fingerprint(root, path) for path in _content(root) if not _is_baked(root, path)}
    top = {path.partition("/")[0] for path in found} - set(USER_FOLDERS)
    return Release(name, tuple(sorted({*top, MARK})), found)


def read(root: Path) -> Release | None:
    """Return the release that the mark in a folder names; None where there is no mark that can be believed."""
    try:
        body: Any = json.loads(files.read_small(root / MARK, _LIMIT).decode("utf-8", "surrogateescape"))
        release = Release(body["release"], tuple(body["entries"]), dict(body["files"]), body["mode"])
        return release if _is_sound(release) else None
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None


def pristine(root: Path, name: str) -> Release:
    """Return the release of an image's or a store's tree: as its mark says, or by looking at it.

    Raises:
        OSError: the tree cannot be read.
    """
    found = read(root)
    return found if found is not None and found.name == name else describe(root, name)


def changes(release: Release, root: Path) -> Changes:
    """Compare the core in a folder with its release, by contents."""
    if release.mode == "link":
        return _changes_of_links(release, root)
    wanted = {name: value for name, value in release.files.items() if name.partition("/")[0] not in USER_FOLDERS}
    tops = tuple(name for name in release.entries if name != MARK)
    found = {path: _fingerprint(root, path) for top in tops for path in _content(root, top)}
    return Changes(
        tuple(sorted(name for name in wanted.keys() & found.keys() if wanted[name] != found[name])),
        tuple(sorted(found.keys() - wanted.keys())),
        tuple(sorted(wanted.keys() - found.keys())),
    )


def missing_entries(release: Release, root: Path) -> tuple[str, ...]:
    """Return the entries that are not there at all; one look at the folder, whatever the size of the core."""
    try:
        there = set(os.listdir(root))
    except FileNotFoundError:
        there = set()
    return tuple(name for name in release.entries if name not in there)


def _changes_of_links(release: Release, root: Path) -> Changes:
    tops = [name for name in release.entries if name != MARK]
    own = [name for name in tops if os.path.lexists(root / name) and not (root / name).is_symlink()]
    return Changes(tuple(own), (), tuple(name for name in missing_entries(release, root) if name in tops))


def _is_sound(release: Release) -> bool:
    """Whether a mark, which anyone may have written, names nothing outside its folder."""
    names = (*release.entries, *release.files)
    return (
        all(isinstance(text, str) for text in (release.name, *names, *release.files.values()))
        and is_name(release.name)
        and release.mode in get_args(Mode)
        and not {"", ".", "..", *USER_FOLDERS}.intersection(release.entries)
        and not any("/" in name for name in release.entries)
        and not any(part in ("", ".", "..") for name in release.files for part in name.split("/"))
        and not any(b"\0" in os.fsencode(name) or len(os.fsencode(name.split("/")[-1])) > _LONGEST for name in names)
    )


def is_name(text: str) -> bool:
    """Whether this can be a release's name, and so that of a folder of ours."""
    return 0 < len(text) < 200 and text[0] != "." and not any(char in text for char in "/\0\n")


def _content(root: Path, top: str = "") -> Iterator[str]:
    """Yield files and links of a tree, relative to `root`, without bytecode."""
    start = root / top
    if files.is_folder(start):
        found = files.content_paths(start, frozenset())
        yield from (f"{top}/{name}" if top else name for name in found if name != MARK and not _BYTECODE.search(name))
    elif os.path.lexists(start) and top != CACHE:
        yield top


def _fingerprint(root: Path, name: str) -> str:
    path = root / name
    if path.is_symlink():
        return f"{_LINK}{path.readlink()}"
    return files.sha256_file(path) if path.is_file() else "special"


def _is_baked(root: Path, name: str) -> bool:
    """Whether this is a link to a node of the image; those are found where they are."""
    return name.partition("/")[0] in USER_FOLDERS and (root / name).is_symlink()

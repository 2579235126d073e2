"""Getting a node's files into a folder of the staging area: from Git, or as an archive of the registry."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from comfypod import fetch, files, git, registry
from comfypod.errors import IntegrityError, SourceError
from comfypod.nodes.record import asked_by
from comfypod.requirements import entries, without_options
from comfypod.unpack import unpack

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from comfypod.nodes.record import Entry
    from comfypod.nodes.site import Site
    from comfypod.wish import Wish

# By this file ComfyUI-Manager knows which files are the registry's.
_TRACKING = ".tracking"


@dataclass(frozen=True, slots=True)
class Staged:
    """A node that is whole and not in place: its wish, its folder, what is to be recorded, what it requires."""

    wish: Wish
    path: Path
    entry: Entry
    lines: tuple[str, ...]


def obtain(site: Site, wish: Wish, locked: str, archives: Mapping[str, str]) -> Staged:
    """Fetch a node into the staging area; `locked` is the commit or version that it has to be, empty for any.

    Raises:
        SourceError: it is not reachable, or there is no such commit or version.
        IntegrityError: an archive is another than the one that was fetched before, or would leave its folder.
        OSError: the disk failed.
    """
    work = site.layout.staging / f"node-{wish.name}"
    files.remove_tree(work)
    work.mkdir(parents=True)
    path = work / wish.name
    entry = asked_by(wish, "installing")
    if wish.registry:
        entry = _from_registry(site, replace(wish, version=locked or wish.version), work, path, archives, entry)
    else:
        entry = replace(entry, commit=git.clone(wish.git, locked or wish.ref, path))
    lines = requirements(path)
    digest = hashlib.sha256("\n".join(lines).encode()).hexdigest()
    return Staged(wish, path, replace(entry, digest=files.tree_facts(path).digest, requirements=digest), lines)


def _from_registry(site: Site, wish: Wish, work: Path, path: Path, archives: Mapping[str, str], entry: Entry) -> Entry:
    version, url = registry.find(site.registry, wish.registry, wish.version)
    archive = work / "archive"
    fetch.download(url, archive)
    digest, known = files.sha256_file(archive), archives.get(f"{wish.registry}@{version}")
    if known is not None and digest != known:
        raise IntegrityError(
            f"the registry's archive of {wish} has sha256 {digest}, and had {known} when it was fetched first",
            "do not use it; ask its author, or take another version",
        )
    tree = unpack(archive, work / "unpacked")
    names = list(files.content_paths(tree))
    if _TRACKING not in names:
        (tree / _TRACKING).write_text("\n".join(names), "utf-8")
    tree.rename(path)
    return replace(entry, version=version, archive=digest)


def requirements(path: Path) -> tuple[str, ...]:
    """Return what a node's `requirements.txt` asks for, without options, which would name other places to fetch from.

    Raises:
        SourceError: it cannot be read.
    """
    try:
        text = files.read_small(path / "requirements.txt").decode("utf-8-sig")
    except FileNotFoundError:
        return ()
    except (OSError, UnicodeDecodeError) as error:
        raise SourceError(f"its requirements.txt cannot be read: {error}") from error
    return tuple(without_options(entry) for entry in entries(text) if not entry.startswith("-"))

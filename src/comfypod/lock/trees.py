"""ComfyUI and custom nodes at lock time: what they are now, pinned by their contents, and what they require."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgspec

from comfypod import fetch, git, registry
from comfypod.errors import LockError, SourceError
from comfypod.files import sha256_file
from comfypod.lock.schema import LockedComfyUI, LockedNode
from comfypod.lock.sources import default_sources, obtain
from comfypod.registry import DEFAULT as PUBLIC_REGISTRY
from comfypod.requirements import entries, without_options

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from comfypod.log import Console
    from comfypod.manifest.schema import ComfyUI, Node

_MANAGER_FILE = "manager_requirements.txt"
_VERSION = re.compile(r"""^__version__\s*=\s*["']([^"']+)["']""", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Site:
    """Where trees are fetched: relative sources start at `base`, `scratch` is thrown away, `index` is asked.

    `registry` is that of custom nodes.
    """

    base: Path
    scratch: Path
    index: str
    console: Console
    registry: str = PUBLIC_REGISTRY


def lock_comfyui(wanted: ComfyUI, digest: str | None, site: Site) -> tuple[LockedComfyUI, tuple[str, ...]]:
    """Fetch ComfyUI and return it locked, with its requirements; `digest` is what an earlier lock says it must be.

    What its tree asks for ComfyUI-Manager is among the requirements where the manager is wanted.

    Raises:
        SourceError: no source answered.
        IntegrityError: the contents are not those of the earlier lock.
        LockError: the tree is of another version, or not ComfyUI.
    """
    sources = wanted.source or default_sources(wanted.version)
    tree = site.scratch / "comfyui"
    site.console.line(f"ComfyUI {wanted.version}")
    got = obtain(
        sources, tree, digest=digest, base=site.base, scratch=site.scratch, index=site.index, console=site.console
    )
    found = _tree_version(tree)
    if found != wanted.version:
        raise LockError(
            f"the tree is ComfyUI {found or 'of no known version'}, comfypod.toml says {wanted.version}",
            "write that version into [comfyui], or mend its sources",
        )
    locked = LockedComfyUI(
        version=wanted.version, digest=got.facts.digest, files=got.facts.files, bytes=got.facts.bytes, sources=sources
    )
    requirements = _requirements(tree, "ComfyUI", site.console)
    if wanted.manager:
        requirements += _requirements(tree, "ComfyUI", site.console, _MANAGER_FILE)
    return locked, requirements


def _tree_version(tree: Path) -> str | None:
    try:
        found = _VERSION.search((tree / "comfyui_version.py").read_text("utf-8"))
    except (OSError, UnicodeDecodeError):
        return None
    return found[1] if found else None


def lock_node(wanted: Node, previous: LockedNode | None, site: Site) -> LockedNode:
    """Fetch or copy a node and return it locked; its commit stays as in `previous` when address and reference do.

    Raises:
        SourceError: the repository is not reachable or has no such reference, or there is no such folder.
        IntegrityError: the commit or the folder has other contents than before.
        LockError: its requirements cannot be locked.
    """
    kept = previous if previous is not None and previous.asked == wanted.source else None
    site.console.line(f"node {wanted.name}")
    found = kept or _named(wanted, site)
    tree = site.scratch / f"node-{wanted.name}"
    got = obtain(
        (found.source,), tree, digest=found.digest or None,
        base=site.base, scratch=site.scratch, index=site.index, console=site.console,
    )  # fmt: skip
    requirements = _requirements(tree, f"node {wanted.name}", site.console)
    return msgspec.structs.replace(found, digest=got.facts.digest, requirements=requirements)


def _named(wanted: Node, site: Site) -> LockedNode:
    """Return what a node is now; its contents are not known yet."""
    known = LockedNode(wanted.name, wanted.git or "", wanted.ref or "", "", "", path=wanted.path or "")
    if wanted.registry:
        version, url = registry.find(site.registry, wanted.registry, wanted.version or "")
        archive = site.scratch / f"archive-{wanted.name}"
        fetch.download(url, archive)
        digest = sha256_file(archive)
        return msgspec.structs.replace(known, url=url, ref=version, registry=wanted.registry, archive=digest)
    return known if wanted.path else msgspec.structs.replace(known, commit=_commit(known.name, known.url, known.ref))


def _commit(name: str, url: str, ref: str) -> str:
    try:
        return git.resolve(url, ref)
    except SourceError as error:
        raise SourceError(f"node {name}: {error.message}", error.hint) from error


def _requirements(tree: Path, owner: str, console: Console, name: str = "requirements.txt") -> tuple[str, ...]:
    path = tree / name
    if not path.is_file():
        return ()
    try:
        text = path.read_text("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise LockError(f"{owner}: its {name} cannot be read: {error}", "mend it, or leave it out") from error
    return tuple(requirement_lines(text, owner, console, name))


def requirement_lines(text: str, owner: str, console: Console, name: str = "requirements.txt") -> Iterator[str]:
    """Yield the requirements of a requirements.txt without comments, options and hashes; `name` is for messages.

    Raises:
        LockError: it refers to another file or an editable folder.
    """
    for entry in entries(text):
        if re.match(r"(-r|-c|-e|--requirement|--constraint|--editable)\b", entry):
            raise LockError(
                f"{owner}: {entry!r} in its {name} cannot be locked",
                "leave the node out, or write what it needs into [python] packages and take a mended fork",
            )
        if entry.startswith("-"):
            console.line(f"  {owner}: the option {entry!r} in its {name} is left out")
        else:
            yield without_options(entry)

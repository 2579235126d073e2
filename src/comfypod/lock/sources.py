"""Getting the tree that the lock names from whichever of its sources still has it."""

from __future__ import annotations

import contextlib
import re
import shutil
import tempfile
import time
import tomllib
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urljoin

import msgspec

from comfypod import fetch, files, git
from comfypod.download.address import shown
from comfypod.errors import HostError, IntegrityError, SourceError
from comfypod.log import human_bytes
from comfypod.manifest.values import ArchiveSource, GitSource, PathSource, SdistSource
from comfypod.unpack import unpack

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from comfypod.log import Console
    from comfypod.manifest.values import Source

    _Refusal = tuple[Source, SourceError | IntegrityError | HostError]

_PUBLIC_INDEX = "https://pypi.org/simple"
_INDEX_JSON = "application/vnd.pypi.simple.v1+json"
_REPOSITORY = "https://github.com/comfyanonymous/ComfyUI"
_SDIST_SUFFIXES = (".tar.gz", ".zip")


@dataclass(frozen=True, slots=True)
class Obtained:
    """A tree that is there: which source gave it, and its contents."""

    source: Source
    facts: files.TreeFacts


@dataclass(frozen=True, slots=True)
class _Place:
    """Where relative paths start, which index to ask, whom to tell."""

    base: Path
    index: str
    console: Console


def index_url(environ: Mapping[str, str]) -> str:
    """Return the package index that the environment names, with the login that it may have; `fetch` hides it."""
    names = ("UV_DEFAULT_INDEX", "UV_INDEX_URL", "PIP_INDEX_URL")
    url = next((environ[name] for name in names if environ.get(name)), _PUBLIC_INDEX)
    return re.sub(r"\A[\w.-]+=(?=https?://)", "", url).rstrip("/")


def default_sources(version: str) -> tuple[Source, ...]:
    """Return where a version of ComfyUI is known to be: a source distribution if any, Git, the tag's archive."""
    text = resources.files("comfypod.resources").joinpath("comfyui.toml").read_text("utf-8")
    sdists = tuple(
        SdistSource(row["package"], row["package_version"], row["sha256"], "vendor/ComfyUI")
        for row in tomllib.loads(text)["tree"]
        if row["version"] == version
    )
    return (
        *sdists,
        GitSource(f"{_REPOSITORY}.git", f"v{version}"),
        ArchiveSource(f"{_REPOSITORY}/archive/refs/tags/v{version}.tar.gz"),
    )


def describe(source: Source) -> str:
    """Name a source in a line."""
    match source:
        case GitSource():
            return f"{shown(source.url)} at {source.ref}"
        case ArchiveSource():
            return shown(source.url)
        case SdistSource():
            return f"{source.package} {source.version} from the package index"
        case PathSource():
            return f"the folder {source.path}"


def obtain(
    sources: Sequence[Source],
    target: Path,
    *,
    digest: str | None,
    base: Path,
    scratch: Path,
    index: str,
    console: Console,
) -> Obtained:
    """Put a tree into the new folder `target`, from the first source that has it.

    `digest` is what the contents must be (None: whatever comes); relative paths start at `base`; `scratch` is a folder
    on the file system of `target`. Nothing is left at `target` unless it is whole.

    Raises:
        IntegrityError: a source answered with other contents, and no source with the right ones.
        SourceError: no source answered.
        StorageError: the disk forbids it.
    """
    refused: list[_Refusal] = []
    place = _Place(base, index, console)
    for source in sources:
        console.line(f"  trying {describe(source)}")
        try:
            return Obtained(source, _attempt(source, target, digest, scratch, place))
        except (SourceError, IntegrityError, HostError) as error:
            console.line(f"  refused: {error.message}")
            refused.append((source, error))
        except OSError as error:
            raise files.storage_error(error, f"cannot store what {describe(source)} gives") from error
    raise _all_failed(refused)


def _attempt(source: Source, target: Path, digest: str | None, scratch: Path, place: _Place) -> files.TreeFacts:
    started = time.monotonic()
    with tempfile.TemporaryDirectory(dir=scratch, prefix="tree-") as work:
        tree = _deliver(source, Path(work), place)
        facts = files.tree_facts(tree)
        if digest is not None and facts.digest != digest:
            raise IntegrityError(f"its contents are {facts.digest}, the lock says {digest}")
        files.strip_tree(tree)
        tree.rename(target)
    seconds = time.monotonic() - started
    place.console.line(f"  got {facts.files} files, {human_bytes(facts.bytes)} in {seconds:.1f} s")
    return facts


def _all_failed(refused: Sequence[_Refusal]) -> SourceError | IntegrityError:
    reasons = "".join(f"\n  {describe(source)}: {error.message}" for source, error in refused)
    if any(isinstance(error, IntegrityError) for _, error in refused):
        hint = "nothing was kept; if the change is known to be right, run `comfypod lock --upgrade` with its name"
        return IntegrityError(f"no source has the contents that the lock names:{reasons}", hint)
    return SourceError(f"no source could be reached:{reasons}", "check the network, or add a source that is reachable")


def _deliver(source: Source, work: Path, place: _Place) -> Path:
    """Return the source's tree, somewhere below the folder `work`."""
    match source:
        case GitSource():
            tree = _clone(source, work / "tree", place.console)
        case ArchiveSource():
            tree = _download(source.url, work, source.sha256, None, place.console)
        case SdistSource():
            url, size = _find_sdist(source, place.index)
            tree = _download(url, work, source.sha256, size, place.console)
        case PathSource():
            return _copy(place.base / source.path, work / "tree")
    inner = tree / (source.subdir or ".")
    if not inner.is_dir() or not inner.resolve().is_relative_to(work.resolve()):
        raise SourceError(f"it has no folder {source.subdir}")
    return inner.resolve()


def _clone(source: GitSource, tree: Path, console: Console) -> Path:
    with console.progress("fetching") as advance:

        def tick() -> None:
            # Git removes its temporary files while they are being counted.
            with contextlib.suppress(FileNotFoundError):
                advance(files.tree_bytes(tree.parent))

        git.export(source.url, source.ref, tree, tick)
    return tree


def _download(url: str, work: Path, sha256: str | None, size: int | None, console: Console) -> Path:
    archive = work / "archive"
    with console.progress("downloading", size) as advance:
        fetch.download(url, archive, sha256=sha256, advance=advance)
    return unpack(archive, work / "unpacked")


class _ListedFile(msgspec.Struct):
    filename: str
    url: str
    size: int | None = None


class _Listing(msgspec.Struct):
    files: tuple[_ListedFile, ...]


def _find_sdist(source: SdistSource, index: str) -> tuple[str, int | None]:
    """Return address and size of a source distribution by the index's JSON (PEP 691)."""
    page = f"{index}/{normal(source.package)}/"
    try:
        listing = msgspec.convert(fetch.get_json(page, _INDEX_JSON), _Listing)
    except msgspec.ValidationError as error:
        raise SourceError(f"{shown(page)} is not a list of files: {error}") from error
    wanted = normal(f"{source.package}-{source.version}")
    for listed in listing.files:
        stem = next((listed.filename.removesuffix(end) for end in _SDIST_SUFFIXES if listed.filename.endswith(end)), "")
        if normal(stem) == wanted:
            return urljoin(page, listed.url), listed.size
    raise SourceError(f"{shown(page)} lists no source distribution of version {source.version}")


def normal(name: str) -> str:
    """Return a package's name as indices compare it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def _copy(folder: Path, tree: Path) -> Path:
    if not folder.is_dir():
        raise SourceError(f"{folder} is not a folder")
    tree.mkdir()
    for name in files.content_paths(folder):
        path = tree / name
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(folder / name, path, follow_symlinks=False)
    return tree

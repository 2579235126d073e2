"""Writes a record (`bundle.py`) of modules that were imported: place, name and the bytecode beside each source."""

from __future__ import annotations

import contextlib
import json
import marshal
import os
import site
import sys
import zlib
from importlib.machinery import EXTENSION_SUFFIXES, SOURCE_SUFFIXES, ExtensionFileLoader, FileFinder, SourceFileLoader
from importlib.util import MAGIC_NUMBER, cache_from_source, source_hash
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

# A gap that costs less to read than another request.
_GAP = 256 << 10
# ComfyUI's own modules that an image's record goes without: all of it is fetched again with each ComfyUI, and it is the
# number of files that costs time, not their size.
_LARGE = 32 << 10
_HEADER = 16


class Source(NamedTuple):
    """A module that was imported: the folder that it was found in, its last name, its file below that folder."""

    folder: str
    name: str
    file: str
    package: bool
    code: bool


def sources(modules: Iterable[Any]) -> Iterator[Source]:
    """Yield the modules that Python's own finders have found in a folder, in the order of their import."""
    for module in modules:
        # Not getattr: some modules import others when they are asked for a name.
        spec = getattr(module, "__dict__", {}).get("__spec__")
        origin = getattr(spec, "origin", None)
        if spec is None or not getattr(spec, "has_location", False) or not isinstance(origin, str):
            continue
        name = spec.name.rpartition(".")[2]
        package = spec.submodule_search_locations is not None
        stem = os.path.join(name, "__init__") if package else name
        for suffix in (*SOURCE_SUFFIXES, *EXTENSION_SUFFIXES):
            if origin.endswith(f"{os.sep}{stem}{suffix}"):
                file = f"{stem}{suffix}"
                yield Source(origin[: -len(file) - 1], name, file, package, suffix in SOURCE_SUFFIXES)
                break


def bytecode(path: str) -> tuple[bytes, tuple[int, int, bytes]]:
    """Return the bytecode of a source, and its time, size and digest as far as Python compares them.

    Raises:
        OSError: it cannot be read.
        ValueError: it has none that Python would use. Also where it does not compile.
    """
    facts = os.stat(path)
    with open(cache_from_source(path), "rb") as handle:
        data = handle.read()
    kind = int.from_bytes(data[4:8], "little")
    if data[:4] != MAGIC_NUMBER or kind > 3:
        raise ValueError(path)
    if kind & 1:
        with open(path, "rb") as handle:
            digest = source_hash(handle.read())
        if digest != data[8:_HEADER]:
            raise ValueError(path)
        return data[_HEADER:], (0, 0, digest)
    wanted = (int(facts.st_mtime) & 0xFFFFFFFF, facts.st_size & 0xFFFFFFFF)
    if wanted != (int.from_bytes(data[8:12], "little"), int.from_bytes(data[12:_HEADER], "little")):
        raise ValueError(path)
    return data[_HEADER:], (int(facts.st_mtime), facts.st_size, b"")


class Writer:
    """Puts a record together, of the format `form`. `core` is ComfyUI's tree, `base` a `bundle.Part` to go without.

    What is in the environment, and in the standard library of this very build of Python, stays as it is.

    `covered` is bytecode that is in it, `compared` are sources that a start will read to compare them, `borrowed` are
    parts of the base, each offset and length, `structures` what transformers has found out (`structure.py`). Equal
    starts give equal records, whatever order a disk lists names in.
    """

    def __init__(self, form: int, core: str | None = None, base: Any = None) -> None:
        self._form = form
        self._sites = tuple(place for place in site.getsitepackages() if os.path.isdir(place))
        self.core, self._base = core, base
        self._fixed = (*self._sites, os.path.dirname(os.__file__))
        self._found: dict[str, Source] = {}
        self._codes: dict[str, tuple[bytes, tuple[int, int, bytes]]] = {}
        self.covered: set[str] = set()
        self.compared: list[str] = []
        self.borrowed: list[list[int]] = []
        self.structures: dict[str, bytes] = {}

    def add(self, source: Source) -> None:
        """Take a module in, unless it is from elsewhere or Python would not use its bytecode."""
        path = os.path.join(source.folder, source.file)
        own = self._is_own(source)
        if not own and not is_below(source.folder, self._fixed):
            return
        if source.code:
            try:
                self._codes[path] = bytecode(path)
            except (OSError, ValueError):
                return
            if own and self._base and len(self._codes[path][0]) > _LARGE:
                del self._codes[path]
                return
            self.covered.add(cache_from_source(path))
            if own and self._codes[path][1][-1]:
                self.compared.append(path)
        if not own and self._borrows(source, path):
            self._codes.pop(path, None)
        else:
            self._found[path] = source

    def _is_own(self, source: Source) -> bool:
        return self.core is not None and is_below(source.folder, (self.core,))

    def _borrows(self, source: Source, path: str) -> bool:
        """Whether the base has the very same module."""
        known = self._base and self._base.folders.get(source.folder, {}).get(source.name)
        if not known or tuple(known[:2]) != (source.file, source.package) or (known[2] is None) == source.code:
            return False
        if source.code:
            data, facts = self._codes[path]
            if (len(data), zlib.crc32(data), *facts) != tuple(known[2][1:]):
                return False
            self.borrowed.append([self._base.begin + known[2][0], known[2][1]])
        return True

    def _index(self) -> tuple[dict[str, dict[str, Any]], dict[str, Any]]:
        """Return the modules of the image by folder and name, and the sources of ComfyUI's own tree."""
        entries, offset = dict[str, Any](), 0
        for path, (data, facts) in sorted(self._codes.items()):
            entries[path] = (offset, len(data), zlib.crc32(data), *facts)
            offset += len(data)
        folders: dict[str, dict[str, Any]] = {}
        sources: dict[str, Any] = {}
        for path, source in sorted(self._found.items()):
            if source.code and path not in entries:
                continue
            if not self._is_own(source):
                folders.setdefault(source.folder, {})[source.name] = (source.file, source.package, entries.get(path))
            elif source.code:
                sources[path[len(self.core or "") + 1 :]] = entries[path]
        return folders, sources

    def _own_structures(self) -> dict[str, bytes]:
        known = self._base.structures if self._base else {}
        return {name: found for name, found in sorted(self.structures.items()) if known.get(name) != found}

    def base_parts(self) -> list[Any]:
        """Return what a start reads of the base, as a part of a file."""
        if not self._base:
            return []
        return [[self._base.path, merged([[0, self._base.begin], *self.borrowed])]]

    def write(self, path: str, environment: str = "") -> None:
        """Write the record, whole or not at all.

        Raises:
            OSError: the disk failed.
        """
        # This version of marshal's format has no references, so that equal values are equal bytes.
        index = marshal.dumps((*self._index(), self._own_structures()), 2)
        codes = [data for _, (data, _) in sorted(self._codes.items())]
        body = {
            "format": self._form, "environment": environment, "core": self.core, "python": sys.version,
            "base": self._base and {"path": self._base.path, "index": self._base.head["index"]},
            "sites": {place: int(os.stat(place).st_mtime) for place in self._sites},
            "index": [0, len(index), zlib.crc32(index)], "codes": len(index), "size": len(index) + sum(map(len, codes)),
        }  # fmt: skip
        write(path, [json.dumps(body).encode(), b"\n", index, *codes])


def holds(base: Any) -> bool:
    """Tell whether Python would find all that is in a `bundle.Part` where that says, with the same bytecode.

    An image's layers that came after it might have put something in front of that, or in its place.
    """
    kinds = ((ExtensionFileLoader, EXTENSION_SUFFIXES), (SourceFileLoader, SOURCE_SUFFIXES))
    for folder, names in base.folders.items():
        finder = FileFinder(folder, *kinds)
        for name, (file, _, entry) in names.items():
            spec, path = finder.find_spec(name), os.path.join(folder, file)
            if spec is None or spec.origin != path or (entry is not None and not _is_same(path, entry)):
                return False
    return True


def _is_same(path: str, entry: tuple[Any, ...]) -> bool:
    try:
        data, facts = bytecode(path)
    except (OSError, ValueError):
        return False
    return (len(data), zlib.crc32(data), *facts) == tuple(entry[1:])


def merged(parts: Iterable[list[int]]) -> list[list[int]]:
    """Join parts of a file, each offset and length, that lie close together."""
    joined: list[list[int]] = []
    for offset, length in sorted(parts):
        if joined and offset <= sum(joined[-1]) + _GAP:
            joined[-1][1] = max(joined[-1][1], offset + length - joined[-1][0])
        else:
            joined.append([offset, length])
    return joined


def write(path: str, parts: Iterable[bytes]) -> None:
    """Write a file, whole or not at all.

    Raises:
        OSError: the disk failed.
    """
    staged = f"{path}.{os.getpid()}"
    try:
        with open(staged, "wb") as handle:
            handle.writelines(parts)
            handle.flush()
            os.fsync(handle.fileno())
        os.rename(staged, path)
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(staged)


def is_below(folder: str, roots: Iterable[str]) -> bool:
    """Tell whether a path is one of some, or below one."""
    return any(folder == root or folder.startswith(f"{root}{os.sep}") for root in roots)

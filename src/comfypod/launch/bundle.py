"""Takes what ComfyUI imports from one file, so that a start on a cold disk reads a few large pieces, not thousands.

That file is a record (`record.py`): a line of JSON, an index, and the bytecode of every module that a start has
imported; in an image, what other starts over the same packages have in common with it is a second file
(`packages.py`). Where a module lies in the image, whose contents do not change, it is found by its name and folder
without a look at the disk. Elsewhere Python finds it, and takes its code from here when Python itself would believe in
bytecode of that source. Finders ask in the usual order, loaders are Python's own, and what is not here is Python's
affair.
"""

from __future__ import annotations

import _imp
import contextlib
import json
import marshal
import os
import sys
import zlib
from importlib.machinery import (
    BYTECODE_SUFFIXES,
    EXTENSION_SUFFIXES,
    SOURCE_SUFFIXES,
    ExtensionFileLoader,
    FileFinder,
    SourceFileLoader,
    SourcelessFileLoader,
)
from importlib.util import source_hash, spec_from_file_location
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import CodeType

FORMAT = 3
# The file beside a record that says what to read ahead.
AHEAD = ".ahead"
NONE = "it is no record of this comfypod's"
_LONGEST_HEAD = 1 << 16
_LONGEST_INDEX = 1 << 26


class Entry(NamedTuple):
    """The bytecode of one source file: where it is, and what the source must be like for it to count.

    `mtime` and `size` are those that Python compares, or `digest` where it compares contents.
    """

    offset: int
    length: int
    crc: int
    mtime: int
    size: int
    digest: bytes


class Found(NamedTuple):
    """What an import finds in a folder of the image: its file, and its bytecode unless it is an extension."""

    file: str
    package: bool
    entry: Entry | None


def install(path: str, environment: str, core: str, structured: Callable[[dict[str, bytes]], object]) -> str:
    """Have imports take from a record what fits; return why none of it does, or nothing.

    `environment` is the key of the packages that it has to be of, `core` the folder of the ComfyUI that starts.
    `structured` gets what the record knows of transformers (`structure.py`).
    """
    try:
        bundle = _Bundle(path, environment, core)
    except OSError as error:
        return f"cannot be read: {error.strerror}"
    except (ValueError, TypeError, KeyError, EOFError) as error:
        return str(error) if isinstance(error, ValueError) else NONE
    sys.path_hooks.insert(0, bundle.finder)
    for folder in list(sys.path_importer_cache):
        if bundle.knows(folder):
            del sys.path_importer_cache[folder]
    structured(bundle.structures)
    return ""


def head(handle: int) -> tuple[dict[str, Any], int]:
    """Return what the first line of a record says, and where the rest begins.

    Raises:
        OSError: the disk failed.
        ValueError: it is none, of another format, or cut.
    """
    line = os.pread(handle, _LONGEST_HEAD, 0).partition(b"\n")[0]
    try:
        body = json.loads(line)
    except (ValueError, RecursionError):
        body = None
    if not isinstance(body, dict) or body.get("format") != FORMAT:
        raise ValueError(NONE)
    if os.fstat(handle).st_size != len(line) + 1 + body["size"]:
        raise ValueError("it is cut")
    return body, len(line) + 1


def section(handle: int, begin: int, place: list[int]) -> bytes:
    """Return one part of a record.

    Raises:
        OSError: the disk failed.
        ValueError: it is damaged.
    """
    if len(place) != 3:
        raise ValueError(NONE)
    offset, length, crc = place
    data = os.pread(handle, min(length, _LONGEST_INDEX), begin + offset)
    if len(data) != length or zlib.crc32(data) != crc:
        raise ValueError("it is damaged")
    return data


class Part:
    """One file of a record: that of the start, or what it has in common with every start over the same packages.

    Raises:
        OSError: the disk failed.
        ValueError: it is none, cut, damaged, or of another Python.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self._handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        with contextlib.ExitStack() as undo:
            undo.callback(self.close)
            self.head, begin = head(self._handle)
            if self.head["python"] != sys.version or sys.flags.optimize:
                raise ValueError("it is of another Python")
            # As Python does with its own bytecode.
            self.folders, self.sources, self.structures = marshal.loads(  # noqa: S302
                section(self._handle, begin, self.head["index"])
            )
            # Where the bytecode begins.
            self.begin = begin + self.head["codes"]
            os.posix_fadvise(self._handle, self.begin, 0, os.POSIX_FADV_SEQUENTIAL)
            undo.pop_all()

    def close(self) -> None:
        """Have it no more."""
        os.close(self._handle)

    def code(self, entry: Entry) -> bytes | None:
        """Return bytecode, None where it cannot be read or is damaged."""
        try:
            data = os.pread(self._handle, entry.length, self.begin + entry.offset)
        except OSError:
            return None
        return data if len(data) == entry.length and zlib.crc32(data) == entry.crc else None


class _Bundle:
    """A record that fits this start.

    Raises:
        OSError: the disk failed.
        ValueError: it does not fit.
    """

    def __init__(self, path: str, environment: str, core: str) -> None:
        self._core, self._parts = core, [Part(path)]
        with contextlib.ExitStack() as undo:
            undo.callback(self.close)
            self._own, body = self._parts[0], self._parts[0].head
            if body["environment"] != environment:
                raise ValueError("it is of other packages")
            if any(int(os.stat(place).st_mtime) != mtime for place, mtime in body["sites"].items()):
                raise ValueError("the image's packages have changed since it was made")
            if body["base"]:
                self._parts.append(Part(body["base"]["path"]))
                if self._parts[1].head["index"] != body["base"]["index"]:
                    raise ValueError("the rest of it is of something else")
            undo.pop_all()
        self.structures = {name: found for part in self._parts for name, found in part.structures.items()}

    def close(self) -> None:
        """Have none of it."""
        for part in self._parts:
            part.close()

    def knows(self, folder: str) -> bool:
        """Whether imports from a folder are ours to find or to load."""
        return bool(self._known(folder)) or folder == self._core or folder.startswith(f"{self._core}{os.sep}")

    def _known(self, folder: str) -> list[tuple[dict[str, Any], Part]]:
        return [(part.folders[folder], part) for part in self._parts if folder in part.folders]

    def finder(self, folder: str) -> FileFinder:
        """Return what looks for modules in a folder (sys.path_hooks).

        Raises:
            ImportError: it is none of ours.
        """
        if known := self._known(folder):
            return _Finder(folder, known)
        if self.knows(folder) and os.path.isdir(folder):
            return FileFinder(folder, *_loaders(self._source_loader))
        raise ImportError(folder)

    def _source_loader(self, name: str, path: str) -> SourceFileLoader:
        """Make the loader of a source of ComfyUI's own, which anybody may have changed."""
        loader = SourceFileLoader(name, path)
        found = self._own.sources.get(path[len(self._core) + 1 :])
        if found is not None:
            _lend(loader, Entry(*found), self._own, compare=True)
        return loader


def _lend(loader: SourceFileLoader, entry: Entry, part: Part, *, compare: bool) -> None:
    """Have a loader take its bytecode from a record, once; it is like any other then."""

    def get_code(name: str) -> CodeType | None:
        del loader.get_code
        data = part.code(entry) if not compare or _is_of(loader, entry) else None
        if data is None:
            return loader.get_code(name)
        code: CodeType = marshal.loads(data)  # noqa: S302 - as Python does
        _imp._fix_co_filename(code, loader.path)  # type: ignore[attr-defined]
        return code

    loader.get_code = get_code  # type: ignore[method-assign,assignment]


def _is_of(loader: SourceFileLoader, entry: Entry) -> bool:
    """Whether bytecode is that of a loader's source, by what Python itself would compare."""
    try:
        if entry.digest:
            return source_hash(loader.get_data(loader.path)) == entry.digest
        facts = loader.path_stats(loader.path)
    except OSError:
        return False
    return (int(facts["mtime"]), facts["size"]) == (entry.mtime, entry.size)


def _loaders(source: Any) -> tuple[tuple[Any, list[str]], ...]:
    return (
        (ExtensionFileLoader, EXTENSION_SUFFIXES), (source, SOURCE_SUFFIXES), (SourcelessFileLoader, BYTECODE_SUFFIXES)
    )  # fmt: skip


class _Finder(FileFinder):
    """Finds by name what is known to be in a folder of the image; Python looks for the rest."""

    def __init__(self, folder: str, known: list[tuple[dict[str, Any], Part]]) -> None:
        super().__init__(folder, *_loaders(SourceFileLoader))
        self._known = known

    def find_spec(self, fullname: str, target: Any = None) -> Any:
        """Return the spec of a module (importlib.abc.PathEntryFinder)."""
        name = fullname.rpartition(".")[2]
        names, part = next(((names, part) for names, part in self._known if name in names), (None, None))
        if names is None or part is None:
            return super().find_spec(fullname, target)
        found = Found(*names[name])
        path = f"{self.path}{os.sep}{found.file}"
        if found.entry is None:
            return spec_from_file_location(fullname, path, loader=ExtensionFileLoader(fullname, path))
        loader = SourceFileLoader(fullname, path)
        _lend(loader, Entry(*found.entry), part, compare=False)
        places = [os.path.dirname(path)] if found.package else None
        return spec_from_file_location(fullname, path, loader=loader, submodule_search_locations=places)

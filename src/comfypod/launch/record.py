"""Starts ComfyUI once, to note what a start touches, and writes that to a record; `bundle.py` says what for.

`python record.py RECORD ENVIRONMENT MAIN_PY ARGUMENT...` runs `MAIN_PY` until it listens on its `--port` and ends
then. What boot is to read ahead is written to a file beside the record. It runs alone: without custom nodes of
anybody's, from the image's tree. What is noted there are names; the bytecode is that on the disk beside each source.
"""

from __future__ import annotations

import array
import contextlib
import json
import marshal
import mmap
import os
import runpy
import site
import sys
import zlib
from importlib.machinery import EXTENSION_SUFFIXES, SOURCE_SUFFIXES
from importlib.util import MAGIC_NUMBER, cache_from_source, source_hash, spec_from_file_location
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

_PAGE = mmap.PAGESIZE
_PRESENT = 1 << 63
# A gap, or the rest of a file, that costs less to read than another request.
_GAP = 256 << 10
_SMALL = 1 << 20
_LARGEST_READ = 16 << 20
_HEADER = 16
_UNREAL = ("/proc/", "/sys/", "/dev/", "/run/", "/memfd:")


def _neighbour(name: str) -> Any:
    path = os.path.join(os.path.dirname(os.path.abspath(__file__)), f"{name}.py")
    spec = spec_from_file_location(f"_comfypod_{name}", path)
    assert spec is not None and spec.loader is not None  # noqa: S101, PT018
    module = sys.modules[spec.name] = type(sys)(spec.name)
    spec.loader.exec_module(module)
    return module


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
    """Puts a record together. `sites` are the environment's folders of packages, `core` is ComfyUI's tree.

    What is in those, and in the standard library of this very build of Python, stays as it is.

    `covered` is bytecode that is in it, `compared` are sources that a start will read to compare them. Equal starts
    give equal records, whatever order a disk lists names in.
    """

    def __init__(self, sites: Iterable[str], core: str) -> None:
        self._sites, self._core = tuple(sites), core
        self._fixed = (*self._sites, os.path.dirname(os.__file__))
        self._found: dict[str, Source] = {}
        self._codes: dict[str, tuple[bytes, tuple[int, int, bytes]]] = {}
        self.covered: set[str] = set()
        self.compared: list[str] = []

    def add(self, source: Source) -> None:
        """Take a module in, unless it is from elsewhere or Python would not use its bytecode."""
        path = os.path.join(source.folder, source.file)
        own = _below(source.folder, (self._core,))
        if not own and not _below(source.folder, self._fixed):
            return
        if source.code:
            try:
                self._codes[path] = bytecode(path)
            except (OSError, ValueError):
                return
            self.covered.add(cache_from_source(path))
            if own and self._codes[path][1][-1]:
                self.compared.append(path)
        self._found[path] = source

    def _index(self) -> tuple[dict[str, dict[str, Any]], dict[str, Any]]:
        """Return the modules of the image by folder and name, and the sources of ComfyUI's own tree."""
        entries, offset = dict[str, Any](), 0
        for path, (data, facts) in sorted(self._codes.items()):
            entries[path] = (offset, len(data), zlib.crc32(data), *facts)
            offset += len(data)
        folders: dict[str, dict[str, Any]] = {}
        sources: dict[str, Any] = {}
        for path, source in sorted(self._found.items()):
            if not _below(source.folder, (self._core,)):
                folders.setdefault(source.folder, {})[source.name] = (source.file, source.package, entries.get(path))
            elif path in entries:
                sources[path[len(self._core) + 1 :]] = entries[path]
        return folders, sources

    def write(self, path: str, environment: str, structures: dict[str, bytes]) -> None:
        """Write the record, whole or not at all.

        Raises:
            OSError: the disk failed.
        """
        # This version of marshal's format has no references, so that equal values are equal bytes.
        index = marshal.dumps((*self._index(), dict(sorted(structures.items()))), 2)
        codes = [data for _, (data, _) in sorted(self._codes.items())]
        body = {
            **_head(environment), "core": self._core, "python": sys.version,
            "sites": {place: int(os.stat(place).st_mtime) for place in self._sites},
            "index": [0, len(index), zlib.crc32(index)], "codes": len(index), "size": len(index) + sum(map(len, codes)),
        }  # fmt: skip
        _write(path, [json.dumps(body).encode(), b"\n", index, *codes])


def write_ahead(path: str, environment: str, core: str, parts: list[Any]) -> None:
    """Write what to read ahead beside the record at `path`: not all of that is the same in each start.

    Raises:
        OSError: the disk failed.
    """
    body = {**_head(environment), "core": core, "parts": parts}
    _write(f"{path}{_neighbour('bundle').AHEAD}", [json.dumps(body).encode()])


def _head(environment: str) -> dict[str, Any]:
    return {"format": _neighbour("bundle").FORMAT, "environment": environment}


def _write(path: str, parts: Iterable[bytes]) -> None:
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


def _below(folder: str, roots: Iterable[str]) -> bool:
    return any(folder == root or folder.startswith(f"{root}{os.sep}") for root in roots)


def _mappings() -> Iterator[tuple[str, tuple[int, int, int]]]:
    """Yield the files that are mapped (proc(5)): where from and to, and from which offset of the file."""
    with open("/proc/self/maps", encoding="utf-8", errors="surrogateescape") as handle:
        for line in handle.read().splitlines():
            span, _, offset, _, inode, *path = line.split(maxsplit=5)
            if inode != "0" and path and not path[0].endswith(" (deleted)"):
                begin, _, end = span.partition("-")
                yield path[0], (int(begin, 16), int(end, 16), int(offset, 16))


def mapped() -> dict[str, list[list[int]]]:
    """Return which parts of which files this process has had in its memory; nothing where the kernel does not tell."""
    found: dict[str, list[list[int]]] = {}
    try:
        with open("/proc/self/pagemap", "rb", buffering=0) as handle:
            for path, (begin, end, base) in _mappings():
                pages = array.array("Q", os.pread(handle.fileno(), (end - begin) // _PAGE * 8, begin // _PAGE * 8))
                there = [base + number * _PAGE for number, page in enumerate(pages) if page & _PRESENT]
                found.setdefault(path, []).extend([at, _PAGE] for at in there)
    except (OSError, ValueError):
        return {}
    return {path: merged(parts) for path, parts in found.items() if parts}


def merged(parts: Iterable[list[int]]) -> list[list[int]]:
    """Join parts of a file, each offset and length, that lie close together."""
    joined: list[list[int]] = []
    for offset, length in sorted(parts):
        if joined and offset <= sum(joined[-1]) + _GAP:
            joined[-1][1] = max(joined[-1][1], offset + length - joined[-1][0])
        else:
            joined.append([offset, length])
    return joined


class _Opened:
    """Notes which files are opened and which libraries loaded, in that order, from now on (sys.addaudithook)."""

    def __init__(self) -> None:
        self.paths: dict[str, None] = {}
        self.over = False
        sys.addaudithook(self._hear)

    def _hear(self, event: str, words: tuple[Any, ...]) -> None:
        if self.over:
            return
        if event == "open" and isinstance(words[0], str) and os.path.isabs(words[0]):
            self.paths.setdefault(words[0])
        elif event == "ctypes.dlopen" or (event == "import" and words[1] is not None):
            # Before this one is loaded, those that came with the last one are noted: the hook is called first.
            self.note_libraries()

    def note_libraries(self) -> None:
        """Note libraries that were loaded since."""
        before, self.over = self.over, True
        with contextlib.suppress(OSError):
            # The kernel places them downwards.
            for path in reversed(list(dict.fromkeys(path for path, _ in _mappings()))):
                self.paths.setdefault(path)
        self.over = before


def whole(paths: Iterable[str]) -> dict[str, list[list[int]]]:
    """Return files that were read as one part each, but for large ones."""
    found = {}
    for path in paths:
        try:
            size = os.stat(path).st_size if os.path.isfile(path) else 0
        except (OSError, ValueError):
            continue
        if 0 < size <= _LARGEST_READ:
            found[path] = [[0, size]]
    return found


def _parts(read: list[list[int]] | None, used: list[list[int]] | None) -> list[list[int]] | None:
    """Return what to read of a file: the parts of a library that were used, all of what is small or was opened."""
    small = read is not None and read[0][1] <= _SMALL
    return read if small or used is None else used


def note(path: str, environment: str, opened: _Opened, core: str, structures: dict[str, bytes]) -> None:
    """Write the record of this process, which works in a folder of its own.

    Raises:
        OSError: the disk failed.
    """
    opened.note_libraries()
    opened.over = True
    writer = Writer([place for place in site.getsitepackages() if os.path.isdir(place)], core)
    for source in sources(list(sys.modules.values())):
        writer.add(source)
    noted = dict.fromkeys([*opened.paths, *sorted(writer.compared)])
    read, used = whole(noted), mapped()
    known = [folder if os.path.isdir(folder) else os.path.dirname(folder) for folder in structures]
    ours = (os.getcwd(), os.path.dirname(os.path.abspath(__file__)))
    parts = [
        [each, found]
        for each in noted
        if each not in writer.covered and not _below(each, ours) and not each.startswith(_UNREAL)
        and not (each.endswith(".py") and _below(each, known))
        and (found := _parts(read.get(each), used.get(each)))
    ]  # fmt: skip
    write_ahead(path, environment, core, parts)
    writer.write(path, environment, structures)


def main() -> None:
    """Run ComfyUI up to where it serves."""
    path, environment = sys.argv[1:3]
    del sys.argv[:3]
    # Whoever uses the machine meanwhile goes first.
    os.nice(19)
    core = sys.path[0] = os.path.dirname(os.path.realpath(sys.argv[0]))
    opened = _Opened()
    structures, structure = dict[str, bytes](), _neighbour("structure")
    _neighbour("imports").At(structure.MODULE, after=lambda module: structure.learn(module, structures))

    def served() -> None:
        note(path, environment, opened, core, structures)
        sys.stdout.flush()
        os._exit(0)

    _neighbour("collector").rest_until_served(sys.argv, served)
    runpy.run_path(sys.argv[0], run_name="__main__")


if __name__ == "__main__":
    main()

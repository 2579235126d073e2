"""Starts ComfyUI once, to note what a start touches, and writes that to a record; `bundle.py` says what for.

`python record.py RECORD ENVIRONMENT BASE MAIN_PY ARGUMENT...` runs `MAIN_PY` until it listens on its `--port` and ends
then. What boot is to read ahead is written to a file beside the record. It runs alone: without custom nodes of
anybody's, from the image's tree. What is noted there are names; the bytecode is that on the disk beside each source.
"""

from __future__ import annotations

import array
import contextlib
import json
import mmap
import os
import runpy
import sys
from importlib.util import spec_from_file_location
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

_PAGE = mmap.PAGESIZE
_PRESENT = 1 << 63
# A file of which the rest costs less to read than another request.
_SMALL = 1 << 20
_LARGEST_READ = 16 << 20
_UNREAL = ("/proc/", "/sys/", "/dev/", "/run/", "/memfd:")


def _neighbour(name: str) -> Any:
    path = os.path.join(os.path.dirname(os.path.abspath(__file__)), f"{name}.py")
    spec = spec_from_file_location(f"_comfypod_{name}", path)
    assert spec is not None and spec.loader is not None  # noqa: S101, PT018
    module = sys.modules[spec.name] = type(sys)(spec.name)
    spec.loader.exec_module(module)
    return module


_WRITER = _neighbour("writer")


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
    return {path: _WRITER.merged(parts) for path, parts in found.items() if parts}


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


def ahead(writer: Any, opened: _Opened) -> list[Any]:
    """Return what to read ahead for such a start, which works in a folder of its own: files and their parts."""
    noted = dict.fromkeys([*opened.paths, *sorted(writer.compared)])
    read, used = whole(noted), mapped()
    known = [folder if os.path.isdir(folder) else os.path.dirname(folder) for folder in writer.structures]
    ours = (os.getcwd(), os.path.dirname(os.path.abspath(__file__)))
    found: list[Any] = writer.base_parts()
    return found + [
        [each, parts]
        for each in noted
        if each not in writer.covered and not _WRITER.is_below(each, ours) and not each.startswith(_UNREAL)
        and not (each.endswith(".py") and _WRITER.is_below(each, known))
        and (parts := _parts(read.get(each), used.get(each)))
    ]  # fmt: skip


def main() -> None:
    """Run ComfyUI up to where it serves."""
    path, environment, base = sys.argv[1:4]
    del sys.argv[:4]
    # Whoever uses the machine meanwhile goes first.
    os.nice(19)
    core = sys.path[0] = os.path.dirname(os.path.realpath(sys.argv[0]))
    bundle, structure = _neighbour("bundle"), _neighbour("structure")
    writer = _WRITER.Writer(bundle.FORMAT, core, bundle.Part(base) if base else None)
    opened = _Opened()
    _neighbour("imports").At(structure.MODULE, after=lambda module: structure.learn(module, writer.structures))

    def served() -> None:
        opened.note_libraries()
        opened.over = True
        for source in _WRITER.sources(list(sys.modules.values())):
            writer.add(source)
        parts = ahead(writer, opened)
        body = {"format": bundle.FORMAT, "environment": environment, "core": core, "parts": parts}
        _WRITER.write(f"{path}{bundle.AHEAD}", [json.dumps(body).encode()])
        writer.write(path, environment)
        sys.stdout.flush()
        os._exit(0)

    _neighbour("collector").rest_until_served(sys.argv, served)
    runpy.run_path(sys.argv[0], run_name="__main__")


if __name__ == "__main__":
    main()

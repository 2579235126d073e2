"""Starts ComfyUI once, to note what a start touches, and writes that to a record; `bundle.py` says what for.

`python record.py RECORD ENVIRONMENT BASE MAIN_PY ARGUMENT...` runs `MAIN_PY` until it listens on its `--port` and ends
then. What boot is to read ahead is written to a file beside the record. It runs alone: without custom nodes of
anybody's, from the image's tree. What is noted there are names; the bytecode is that on the disk beside each source.
`python record.py RECORD` records what the packages offer (`packages.py`), which a start can have as its `BASE`.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import runpy
import sys
import threading
from importlib.util import spec_from_file_location
from typing import Any

# A file of which the rest costs less to read than another request.
_SMALL = 1 << 20
_LARGEST_READ = 16 << 20
_HERE = {None, "", "localhost", "127.0.0.1", "::1", "0.0.0.0", b"127.0.0.1", b"localhost"}  # noqa: S104
_UNREAL = ("/proc/", "/sys/", "/dev/", "/run/", "/memfd:")


def _neighbour(name: str) -> Any:
    path = os.path.join(os.path.dirname(os.path.abspath(__file__)), f"{name}.py")
    spec = spec_from_file_location(f"_comfypod_{name}", path)
    assert spec is not None and spec.loader is not None  # noqa: S101, PT018
    module = sys.modules[spec.name] = type(sys)(spec.name)
    spec.loader.exec_module(module)
    return module


_WRITER = _neighbour("writer")


class _Opened:
    """Notes which files are opened and which libraries loaded, in that order, from now on (sys.addaudithook).

    What other threads do is left out, as how far they come differs from start to start; nobody reaches the network.
    """

    def __init__(self) -> None:
        self.files: set[str] = set()
        self.libraries: dict[str, None] = {}
        self.elsewhere: set[str] = set()
        self.over = False
        self._thread, self._imported = threading.get_ident(), set[str]()
        sys.addaudithook(self._hear)

    def _hear(self, event: str, words: tuple[Any, ...]) -> None:
        if event == "socket.getaddrinfo" and words[0] not in _HERE:
            raise OSError(errno.ENETUNREACH, "a start is recorded without a network")
        if self.over:
            return
        if threading.get_ident() != self._thread:
            if event == "import" and words[0] not in self._imported:
                self.elsewhere.add(words[0])
        elif event == "open" and isinstance(words[0], str) and os.path.isabs(words[0]):
            self.files.add(words[0])
        elif event in {"ctypes.dlopen", "import"}:
            if event == "import":
                self._imported.add(words[0])
                self.elsewhere.discard(words[0])
            if event != "import" or words[1] is not None:
                # Before this one is loaded, those that came with the last one are noted: the hook is called first.
                self.note_libraries()

    def note_libraries(self) -> None:
        """Note libraries that were loaded since (proc(5)); where the kernel has placed them is chance."""
        before, self.over = self.over, True
        with contextlib.suppress(OSError), open("/proc/self/maps", "rb") as file:
            lines = [line.split(maxsplit=5) for line in file.read().split(b"\n")]
            found = {os.fsdecode(line[5]) for line in lines if len(line) == 6 and line[4] != b"0"}
            self.libraries.update(dict.fromkeys(sorted(found - self.libraries.keys())))
        self.over = before


def ahead(writer: Any, opened: _Opened) -> list[Any]:
    """Return what to read ahead for such a start, which works in a folder of its own: files and their parts.

    Of large libraries only parts are used, which the kernel knows of each process (`boot/pages.py`): none stand here.
    Other files are sorted, as some are opened in the order that a disk lists them in.
    """
    known = [folder if os.path.isdir(folder) else os.path.dirname(folder) for folder in writer.structures]
    ours = (os.getcwd(), os.path.dirname(os.path.abspath(__file__)))
    found: list[Any] = writer.base_parts()
    others = (opened.files | set(writer.compared)) - opened.libraries.keys() - writer.covered
    for each in (*opened.libraries, *sorted(others)):
        ends = each.endswith(".py") and _WRITER.is_below(each, known)
        if ends or _WRITER.is_below(each, ours) or each.startswith(_UNREAL):
            continue
        with contextlib.suppress(OSError, ValueError):
            size = os.stat(each).st_size if os.path.isfile(each) else 0
            if each in opened.libraries and size > _SMALL:
                found.append([each, []])
            elif 0 < size <= _LARGEST_READ:
                found.append([each, [[0, size]]])
    return found


def _base(path: str) -> Any:
    """Return the record of packages, None where there is none or it does not hold any more."""
    part = _neighbour("bundle").Part(path) if path else None
    return part if part is None or _WRITER.holds(part) else None


def _record_packages(path: str) -> None:
    # Names of this folder are none that are asked for.
    del sys.path[0]
    structure, made = _neighbour("structure"), _WRITER.Writer(_neighbour("bundle").FORMAT)
    _neighbour("imports").At(structure.MODULE, after=lambda module: structure.learn(module, made.structures))
    _neighbour("packages").import_all()
    for source in _WRITER.sources(list(sys.modules.values())):
        made.add(source)
    made.write(path)
    sys.stdout.flush()
    # Some of them leave threads behind.
    os._exit(0)


def _record_start() -> None:
    """Run ComfyUI up to where it serves."""
    path, environment, base = sys.argv[1:4]
    del sys.argv[:4]
    # Whoever uses the machine meanwhile goes first.
    os.nice(19)
    core = sys.path[0] = os.path.dirname(os.path.realpath(sys.argv[0]))
    bundle, structure = _neighbour("bundle"), _neighbour("structure")
    writer = _WRITER.Writer(bundle.FORMAT, core, _base(base))
    opened = _Opened()
    _neighbour("imports").At(structure.MODULE, after=lambda module: structure.learn(module, writer.structures))

    def served() -> None:
        opened.note_libraries()
        opened.over, elsewhere = True, opened.elsewhere
        for source in _WRITER.sources([module for name, module in list(sys.modules.items()) if name not in elsewhere]):
            writer.add(source)
        parts = ahead(writer, opened)
        body = {"format": bundle.FORMAT, "environment": environment, "core": core, "parts": parts}
        _WRITER.write(f"{path}{bundle.AHEAD}", [json.dumps(body).encode()])
        writer.write(path, environment)
        sys.stdout.flush()
        os._exit(0)

    _neighbour("collector").rest_until_served(sys.argv, served)
    runpy.run_path(sys.argv[0], run_name="__main__")


def main() -> None:
    """Record packages or a start."""
    if len(sys.argv) == 2:
        _record_packages(sys.argv[1])
    else:
        _record_start()


if __name__ == "__main__":
    main()

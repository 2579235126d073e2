"""Starts ComfyUI once, to note what a start touches, and writes that to a record; `bundle.py` says what for.

`python record.py RECORD ENVIRONMENT BASE MAIN_PY ARGUMENT...` runs `MAIN_PY` until it listens on its `--port` and ends
then. What boot is to read ahead is written to a file beside the record. It runs alone: without custom nodes of
anybody's, from the image's tree. What is noted there are names; the bytecode is that on the disk beside each source.
"""

from __future__ import annotations

import contextlib
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

    What other threads do is left out: how far they come differs from start to start.
    """

    def __init__(self) -> None:
        self.paths: dict[str, None] = {}
        self.libraries: set[str] = set()
        self.over = False
        self._thread = threading.get_ident()
        sys.addaudithook(self._hear)

    def _hear(self, event: str, words: tuple[Any, ...]) -> None:
        if self.over or threading.get_ident() != self._thread:
            return
        if event == "open" and isinstance(words[0], str) and os.path.isabs(words[0]):
            self.paths.setdefault(words[0])
        elif event == "ctypes.dlopen" or (event == "import" and words[1] is not None):
            # Before this one is loaded, those that came with the last one are noted: the hook is called first.
            self.note_libraries()

    def note_libraries(self) -> None:
        """Note libraries that were loaded since (proc(5)); where the kernel has placed them is chance."""
        before, self.over = self.over, True
        with contextlib.suppress(OSError), open("/proc/self/maps", encoding="utf-8", errors="surrogateescape") as file:
            lines = [line.split(maxsplit=5) for line in file.read().splitlines()]
            found = {line[5] for line in lines if len(line) == 6 and line[4] != "0"} - self.libraries
            self.libraries |= found
            self.paths.update(dict.fromkeys(path for path in sorted(found) if path not in self.paths))
        self.over = before


def ahead(writer: Any, opened: _Opened) -> list[Any]:
    """Return what to read ahead for such a start, which works in a folder of its own: files and their parts.

    Of large libraries only parts are used, which the kernel knows of each process (`boot/pages.py`): none stand here.
    """
    noted = dict.fromkeys([*opened.paths, *sorted(writer.compared)])
    known = [folder if os.path.isdir(folder) else os.path.dirname(folder) for folder in writer.structures]
    ours = (os.getcwd(), os.path.dirname(os.path.abspath(__file__)))
    found: list[Any] = writer.base_parts()
    for each in noted:
        ends = each.endswith(".py") and _WRITER.is_below(each, known)
        if each in writer.covered or ends or _WRITER.is_below(each, ours) or each.startswith(_UNREAL):
            continue
        with contextlib.suppress(OSError, ValueError):
            size = os.stat(each).st_size if os.path.isfile(each) else 0
            if each in opened.libraries and size > _SMALL:
                found.append([each, []])
            elif 0 < size <= _LARGEST_READ:
                found.append([each, [[0, size]]])
    return found


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

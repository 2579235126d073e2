"""Asks pip ahead what ComfyUI-Manager asks it at each start, so that ComfyUI does not wait for it.

That is `python -m pip` five times, one after the other, with nothing else done meanwhile (`security_check.py`,
`manager_util.py` and `prestartup_script.py` of comfyui-manager 4.2). pip runs here while ComfyUI imports, for the very
same words; its modules are imported once for all of them. What it says counts for the same words, folder and
environment, and only as long as no folder of packages changes; otherwise pip is asked when ComfyUI asks.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import os
import runpy
import subprocess
import sys
import threading
from typing import Any

OPTION = "--enable-manager"
_QUESTIONS = (("--version",), ("freeze",), ("show", "anthropic"), ("list",))
_MODULES = (
    "pip._internal.cli.autocompletion", "pip._internal.commands.freeze", "pip._internal.commands.list",
    "pip._internal.commands.show", "pip._internal.metadata.importlib",
)  # fmt: skip
# What changes how pip is found, what it finds and how it says so.
_MATTERS = ("HOME", "LANG", "LC_", "PATH", "PIP_", "PYTHON", "VIRTUAL_ENV", "XDG_")
_UNDERSTOOD = frozenset({"text", "universal_newlines", "stderr", "timeout"})


class _Question:
    """One of them. Once `over`, `code` is pip's exit code, None where it has none, and `said` and `wrong` its words."""

    def __init__(self) -> None:
        self.over = threading.Event()
        self.code: int | None = None
        self.said, self.wrong = b"", b""
        # Of standard output and error; no pipes, which would have to be emptied meanwhile.
        self.files = [os.memfd_create(name) for name in ("said", "wrong")]

    def end(self, code: int | None = None) -> None:
        """Keep what was said, and no file."""
        self.said, self.wrong = (os.pread(file, os.fstat(file).st_size, 0) for file in self.files)
        self.code = code
        for file in self.files:
            os.close(file)
        self.over.set()


class Inquiries:
    """Stands before `subprocess.check_output` until `end`."""

    def __init__(self) -> None:
        self._plain = subprocess.check_output
        # What lies in the folder of the program itself is on no path of pip's.
        self._places = [place for place in sys.path[1:] if os.path.isdir(place)]
        self._facts = self._look()
        self._questions = [_Question() for _ in _QUESTIONS]

    def begin(self) -> None:
        """Ask, in a thread."""
        subprocess.check_output = self._check_output
        threading.Thread(target=self._ask, args=(self._questions,), daemon=True, name="inquiries").start()

    def end(self) -> None:
        """Stand there no more."""
        self._questions = []
        if subprocess.check_output == self._check_output:
            subprocess.check_output = self._plain

    def _ask(self, questions: list[_Question]) -> None:
        files = [file for question in questions for file in question.files]
        argv = [sys.executable, os.path.abspath(__file__), *map(str, files)]
        left = dict(enumerate(questions))
        with (
            contextlib.suppress(OSError, ValueError, KeyError),
            subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, pass_fds=files) as process,
        ):
            assert process.stdout is not None  # noqa: S101
            for line in process.stdout:
                number, code = map(int, line.split())
                left.pop(number).end(code)
        for question in left.values():
            question.end()

    def _look(self) -> Any:
        """Return what the answers depend on, None where that cannot be told."""
        try:
            folder, times = os.getcwd(), {place: os.stat(place).st_mtime_ns for place in self._places}
            entries = os.listdir(folder)
        except OSError:
            return None
        # pip looks there first, and ComfyUI makes and removes a folder of its own there.
        names = {name for name in entries if "." in name or name in sys.stdlib_module_names or name == "pip"}
        environ = {name: value for name, value in os.environ.items() if name.startswith(_MATTERS)}
        # ComfyUI-Manager puts Python's folder in front, which is there already.
        path = list(dict.fromkeys(environ.pop("PATH", "").split(os.pathsep)))
        return folder, times, names, environ, path

    def _check_output(self, *words: Any, **options: Any) -> Any:
        question = self._asked(words, options)
        if question is None:
            return self._plain(*words, **options)
        if options.get("stderr") is None:
            os.write(2, question.wrong)
        shown: Any = question.said
        if options.get("text") or options.get("universal_newlines"):
            shown = io.TextIOWrapper(io.BytesIO(question.said)).read()
        if question.code:
            raise subprocess.CalledProcessError(question.code, words[0], output=shown)
        return shown

    def _asked(self, words: tuple[Any, ...], options: dict[str, Any]) -> _Question | None:
        """Return what pip has said to just that, None where it was not asked, or might say something else now."""
        if len(words) != 1 or not _UNDERSTOOD.issuperset(options):
            return None
        if options.get("stderr") not in (None, subprocess.DEVNULL) or self._facts is None:
            return None
        for asked, question in zip(_QUESTIONS, self._questions, strict=False):
            if words[0] == [sys.executable, "-m", "pip", *asked]:
                if not question.over.wait(options.get("timeout")):
                    raise subprocess.TimeoutExpired(words[0], options["timeout"])
                return question if question.code is not None and self._look() == self._facts else None
        return None


def answer(files: list[int]) -> None:
    """Be pip for each question, in a child that has its modules already; print the number of each, and its exit code.

    `files` are what each says and what it says of errors, in turn.
    """
    if not sys.flags.safe_path:
        # As it is with `python -m`.
        sys.path[0] = os.getcwd()
    for name in _MODULES:
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    running = {}
    for number, words in enumerate(_QUESTIONS):
        pid = os.fork()
        if not pid:
            for place, file in enumerate(files[2 * number : 2 * number + 2], start=1):
                os.dup2(file, place)
            sys.argv[1:] = words
            runpy.run_module("pip", run_name="__main__", alter_sys=True)
            sys.exit()
        running[pid] = number
    while running:
        pid, status = os.wait()
        os.write(1, b"%d %d\n" % (running.pop(pid), os.waitstatus_to_exitcode(status)))


if __name__ == "__main__":
    answer([int(word) for word in sys.argv[1:]])

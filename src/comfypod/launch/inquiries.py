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
_INSTALLED = (".dist-info", ".egg-info", ".egg-link", ".pth")
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
        try:
            self.said, self.wrong = (os.pread(file, os.fstat(file).st_size, 0) for file in self.files)
            self.code = code
        finally:
            self.over.set()
            for file in self.files:
                os.close(file)


class Inquiries:
    """Stands before `subprocess.check_output` until `end`."""

    def __init__(self) -> None:
        self._plain = subprocess.check_output
        # What lies in the folder of the program itself is on no path of pip's.
        self._places = sys.path[1:]
        self._facts = self._look()
        self._questions = [_Question() for _ in _QUESTIONS]

    def begin(self) -> None:
        """Ask, in a thread."""
        threading.Thread(target=self._ask, args=(self._questions,), daemon=True, name="inquiries").start()
        subprocess.check_output = self._check_output

    def end(self) -> None:
        """Stand there no more."""
        self._questions = []
        if subprocess.check_output == self._check_output:
            subprocess.check_output = self._plain

    def _ask(self, questions: list[_Question]) -> None:
        files = [file for question in questions for file in question.files]
        argv = [sys.executable, os.path.abspath(__file__), *map(str, files)]
        try:
            with (
                contextlib.suppress(OSError, ValueError),
                subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, pass_fds=files) as process,
            ):
                assert process.stdout is not None  # noqa: S101
                for line in process.stdout:
                    number, code = map(int, line.split())
                    questions[number].end(code)
        finally:
            # Whoever waits for one waits for ever otherwise.
            for question in questions:
                if not question.over.is_set():
                    question.end()

    def _look(self) -> Any:
        """Return what the answers depend on, None where that cannot be told."""
        try:
            folder, environ = os.getcwd(), dict(os.environ)
            installed = [_installed(place) for place in self._places]
            entries = os.listdir(folder)
        except (OSError, KeyError, RuntimeError):
            return None
        # pip looks there first, and ComfyUI makes and removes a folder of its own there.
        names = {name for name in entries if "." in name or name in sys.stdlib_module_names or name == "pip"}
        environ = {name: value for name, value in environ.items() if name.startswith(_MATTERS)}
        # ComfyUI-Manager puts Python's folder in front, which is there already.
        path = list(dict.fromkeys(environ.pop("PATH", "").split(os.pathsep)))
        return folder, installed, names, environ, path, [_facts(place) for place in _settings(environ)]

    def _check_output(self, *words: Any, **options: Any) -> Any:
        question = self._asked(words, options)
        if question is None:
            return self._plain(*words, **options)
        if options.get("stderr") is None and question.wrong:
            with contextlib.suppress(OSError):
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
                # The caller's patience is for pip alone, which may be quicker without the others.
                heard = question.over.wait(options.get("timeout")) and question.code is not None
                return question if heard and self._look() == self._facts else None
        return None


def _facts(place: str) -> tuple[int, ...] | None:
    try:
        found = os.stat(place)
    except OSError:
        return None
    return found.st_size, found.st_mtime_ns, found.st_ctime_ns


def _installed(place: str) -> Any:
    """Return what tells when something is installed in a folder or removed: some file systems do not keep its time."""
    if not os.path.isdir(place):
        return _facts(place)
    return _facts(place), {name for name in os.listdir(place) if name.endswith(_INSTALLED)}


def _settings(environ: dict[str, str]) -> list[str]:
    """Return where pip may have its settings (pip's own documentation, "Configuration")."""
    home = environ.get("HOME", "")
    places = [environ.get("PIP_CONFIG_FILE", ""), "/etc/pip.conf", os.path.join(sys.prefix, "pip.conf")]
    own = environ.get("XDG_CONFIG_HOME") or os.path.join(home, ".config")
    return [*places, os.path.join(own, "pip", "pip.conf"), os.path.join(home, ".pip", "pip.conf")]


def answer(files: list[int]) -> None:
    """Be pip for each question, in a process that has its modules already, and print the number and exit code of each.

    `files` are what each says and what it says of errors, in turn. A child waits for each, so that it is told at once.
    """
    # pip is found as with `python -m`, from the folder on, and imports nothing else from there.
    front = [] if sys.flags.safe_path else [os.getcwd()]
    sys.path[: 0 if sys.flags.safe_path else 1] = front
    with contextlib.suppress(ImportError):
        importlib.import_module("pip")
    del sys.path[: len(front)]
    for number, words in enumerate(_QUESTIONS):
        if number == 1:
            # The first one needs none of them, and has little time.
            for name in _MODULES:
                with contextlib.suppress(ImportError):
                    importlib.import_module(name)
        if os.fork():
            continue
        if pid := os.fork():
            os.write(1, b"%d %d\n" % (number, os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])))
            os._exit(0)
        for place, file in enumerate(files[2 * number : 2 * number + 2], start=1):
            os.dup2(file, place)
        sys.argv[1:] = words
        sys.path[:0] = front
        runpy.run_module("pip", run_name="__main__", alter_sys=True)
        sys.exit()
    for _ in _QUESTIONS:
        os.wait()


if __name__ == "__main__":
    answer([int(word) for word in sys.argv[1:]])

"""What ComfyUI-Manager asks pip at its start, asked ahead: a main.py that asks it hears what it would hear without.

pip is a package in the folder, which `python -m pip` finds first; it notes each time that it runs.
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from typing import TYPE_CHECKING

import pytest

from comfypod.launch import inquiries
from tests.kit.launching import WAYS, launch

if TYPE_CHECKING:
    from pathlib import Path

    from tests.kit.launching import Way

_PIP = """
import os, sys
with open("ran", "a") as log:
    log.write(" ".join(sys.argv[1:]) + "\\n")
print("said", *sys.argv[1:], os.path.basename(sys.argv[0]), __name__, os.environ.get("PIP_KIT"), "\\r")
print("wrong", *sys.argv[1:], file=sys.stderr)
sys.exit(1 if "show" in sys.argv else 0)
"""
_MAIN = """
import cuda_malloc
import json, os, subprocess, sys

def ask(*words, **options):
    try:
        return repr(subprocess.check_output([sys.executable, "-m", "pip", *words], **options))
    except subprocess.CalledProcessError as error:
        return repr((error.returncode, error.cmd, error.output, error.stderr))

{before}
print(ask("--version", stderr=subprocess.DEVNULL, timeout=30))
print(ask("freeze", text=True))
print(ask("show", "anthropic", text=True, stderr=subprocess.DEVNULL))
print(ask("list", universal_newlines=True))
print(ask("list"), flush=True)
"""
_ASKED = ["--version", "freeze", "list", "show anthropic"]
_ASKED_PLAINLY = ["--version", "freeze", "list", "list", "show anthropic"]


def _started(
    folder: Path, way: Way, *, before: str = "", pip: str = _PIP, init: str = "", manager: bool = True
) -> tuple[str, str, list[str]]:
    """Start it in a folder of its own; return what it said, what of errors, and how often pip ran for what."""
    base = folder / way
    (base / "pip").mkdir(parents=True, exist_ok=True)
    (base / "pip" / "__main__.py").write_text(pip)
    (base / "pip" / "__init__.py").write_text(init)
    (base / "core").mkdir()
    (base / "core" / "cuda_malloc.py").touch()
    (base / "core" / "main.py").write_text(_MAIN.replace("{before}", before))
    words = ["--enable-manager"] if manager else []
    with launch(way, base / "core" / "main.py", *words, cwd=base) as process:
        said, wrong = process.communicate(timeout=60)
    assert process.returncode == 0, wrong
    return said, wrong, sorted(line for log in base.rglob("ran") for line in log.read_text().splitlines())


def test_what_pip_says_is_what_it_says_without_the_launcher(tmp_path: Path) -> None:
    (said, wrong, ran), *others = (_started(tmp_path, way) for way in WAYS)
    assert ran == _ASKED_PLAINLY
    assert "said freeze __main__.py __main__ None" in said
    assert wrong == "wrong freeze\nwrong list\nwrong list\n"
    assert others == [(said, wrong, _ASKED)] * 2


_CHANGES = {
    "the environment": "os.environ['PIP_KIT'] = 'changed'",
    "a module in the folder": "open('sitecustomize.py', 'w').close()",
    "a package in the folder": "os.mkdir('email')",
    "the folder": "os.mkdir('sub'); os.rename('pip', 'sub/pip'); os.chdir('sub')",
    "pip's settings": "open(os.environ['PIP_CONFIG_FILE'], 'w').close()",
    "what is installed": "os.mkdir(os.path.join(os.environ['PYTHONPATH'], 'a-1.0.dist-info'))",
}
# Until all of it has been asked.
_WAIT = """
import time
while not os.path.exists("ran") or len(open("ran").readlines()) < 4:
    time.sleep(0.05)
"""


@pytest.mark.parametrize("change", _CHANGES)
@pytest.mark.parametrize("way", ["launcher", "standby"])
def test_where_anything_has_changed_pip_is_asked_when_it_is_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: Way, change: str
) -> None:
    (tmp_path / "packages").mkdir()
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "packages"))
    monkeypatch.setenv("PIP_CONFIG_FILE", str(tmp_path / "pip.conf"))
    said, _, ran = _started(tmp_path, way, before=_WAIT + _CHANGES[change])
    assert ran == sorted(_ASKED + _ASKED_PLAINLY)
    assert ("changed" in said) == (change == "the environment")


@pytest.mark.parametrize(
    "before",
    ["os.mkdir('temp')", "os.environ['PATH'] = os.environ['PATH'].split(':')[0] + ':' + os.environ['PATH']"],
)
@pytest.mark.parametrize("way", ["launcher", "standby"])
def test_what_comfyui_and_its_manager_do_before_they_ask_changes_nothing(tmp_path: Path, way: Way, before: str) -> None:
    assert _started(tmp_path, way, before=_WAIT + before)[2] == _ASKED


@pytest.mark.parametrize(
    "pip",
    ["import os\nos._exit(3)", "raise ValueError('why')", "import os, signal\nos.kill(os.getpid(), signal.SIGKILL)"],
)
def test_a_pip_that_fails_fails_as_it_does_without_the_launcher(tmp_path: Path, pip: str) -> None:
    note = "open('ran', 'a').write('x\\n')\n"
    (said, _, ran), *others = (_started(tmp_path, way, pip=note + pip) for way in WAYS)
    assert [each[0] for each in others] == [said] * 2
    assert len(said.splitlines()) == 5
    assert [len(ran), *(len(each[2]) for each in others)] == [len(_ASKED_PLAINLY), len(_ASKED), len(_ASKED)]


def test_what_lies_in_the_folder_is_imported_by_no_pip_of_ours_either(tmp_path: Path) -> None:
    """pip takes the folder off the path before it imports anything: this one would break it."""
    internal = "import os, sys\nif sys.path[0] == os.getcwd(): sys.path.pop(0)\nimport pip._internal.commands.freeze\n"
    for way in WAYS:
        commands = tmp_path / way / "pip" / "_internal" / "commands"
        commands.mkdir(parents=True)
        for folder in (commands, commands.parent):
            (folder / "__init__.py").touch()
        (commands / "freeze.py").write_text("import token; token.EXACT_TOKEN_TYPES")
        (tmp_path / way / "token.py").write_text("open('imported', 'w').close()")
    (said, _, _), *others = (_started(tmp_path, way, pip=internal + _PIP) for way in WAYS)
    assert [(each[0], each[2]) for each in others] == [(said, _ASKED)] * 2
    assert list(tmp_path.rglob("imported")) == []


def test_the_first_question_does_not_wait_for_what_the_others_need(tmp_path: Path) -> None:
    """It is asked with a limit of a few seconds, after which ComfyUI-Manager takes pip for broken."""
    commands = tmp_path / "launcher" / "pip" / "_internal" / "commands"
    commands.mkdir(parents=True)
    for folder in (commands, commands.parent):
        (folder / "__init__.py").touch()
    (commands / "freeze.py").write_text("import time\nwhile 'version' not in open('asked').read(): time.sleep(0.05)")
    (tmp_path / "launcher" / "asked").touch()
    before = "ask('--version'); open('asked', 'w').write('version')"
    assert _started(tmp_path, "launcher", before=before)[2] == _ASKED


def test_a_limit_of_time_is_for_pip_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subprocess, "check_output", lambda *_, **__: b"plain")
    ours = inquiries.Inquiries()
    monkeypatch.setattr(ours, "_ask", lambda _: None)
    ours.begin()
    assert subprocess.check_output([sys.executable, "-m", "pip", "--version"], timeout=0.1) == b"plain"
    ours.end()


@pytest.mark.parametrize("error", [OSError, RuntimeError])
def test_whatever_ends_the_questioner_nobody_waits_for_it(
    monkeypatch: pytest.MonkeyPatch, error: type[Exception]
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(subprocess, "check_output", lambda *_, **__: b"plain")
    monkeypatch.setattr(subprocess, "Popen", fail)
    monkeypatch.setattr(threading, "excepthook", lambda _: None)
    ours = inquiries.Inquiries()
    ours.begin()
    assert subprocess.check_output([sys.executable, "-m", "pip", "freeze"]) == b"plain"
    ours.end()
    assert subprocess.check_output.__name__ == "<lambda>"
    for thread in threading.enumerate():
        if thread.name == "inquiries":
            thread.join(30)


def test_where_nothing_was_answered_ahead_pip_is_asked_when_it_is_asked(tmp_path: Path) -> None:
    ends = "import os, sys\nif sys.argv[0].endswith('inquiries.py'): os._exit(1)\n"
    plain, ours = (_started(tmp_path, way, init=ends) for way in ("plain", "launcher"))
    assert ours == plain


@pytest.mark.parametrize("way", ["launcher", "standby"])
def test_nothing_is_asked_where_there_is_no_manager(tmp_path: Path, way: Way) -> None:
    before = "print(json.dumps(type(subprocess.check_output).__name__))"
    said, _, ran = _started(tmp_path, way, before=before, manager=False)
    assert json.loads(said.splitlines()[0]) == "function"
    assert ran == _ASKED_PLAINLY


def test_other_questions_and_other_options_are_not_ours(tmp_path: Path) -> None:
    before = """
print(ask("freeze", stderr=subprocess.STDOUT), ask("freeze", "--all"), ask("freeze", env={"PIP_KIT": "1"}))
print(subprocess.check_output(["echo", "a"]), subprocess.check_output("echo b", shell=True))
"""
    (said, _, _), *others = (_started(tmp_path, way, before=before) for way in WAYS)
    assert [each[0] for each in others] == [said] * 2

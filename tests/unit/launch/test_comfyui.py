"""The launcher as a process: what it starts must not notice it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from comfypod.boot.guardline import LAUNCHER, GuardLine
from comfypod.ports import choose_free

if TYPE_CHECKING:
    from pathlib import Path

_FACTS = """
import json, os, sys
print(json.dumps([__name__, __file__, sys.argv, sys.path[0], os.getcwd(), sys.modules["__main__"].__file__]))
"""


def _run(main: Path, *arguments: str, guarded: bool) -> subprocess.CompletedProcess[str]:
    line = GuardLine(lambda _: None)
    line.tell(5.0, {})
    before = [str(LAUNCHER), ",".join(map(str, line.descriptors))] if guarded else []
    return subprocess.run(
        [sys.executable, *before, str(main), *arguments],
        capture_output=True, text=True, pass_fds=line.descriptors, cwd=main.parent.parent, check=False, timeout=60,
    )  # fmt: skip


def test_a_program_sees_what_it_sees_without_the_launcher(tmp_path: Path) -> None:
    folder = tmp_path / "core"
    folder.mkdir()
    (folder / "main.py").write_text(_FACTS)
    (tmp_path / "link.py").symlink_to(folder / "main.py")
    for main in (folder / "main.py", tmp_path / "link.py"):
        plain, guarded = (_run(main, "--cpu", "a b", guarded=each) for each in (False, True))
        assert guarded.stdout == plain.stdout
        assert json.loads(plain.stdout)[0] == "__main__"


@pytest.mark.parametrize(
    ("code", "status"),
    [("raise SystemExit(7)", 7), ("import sys; sys.exit('why')", 1), ("1 / 0", 1), ("", 0),
     ("import os; os._exit(9)", 9),
     ("import os, signal; os.kill(os.getpid(), signal.SIGTERM)", -15), ("raise KeyboardInterrupt", -2)],
)  # fmt: skip
def test_a_program_ends_as_it_ends_without_the_launcher(tmp_path: Path, code: str, status: int) -> None:
    (tmp_path / "main.py").write_text(code)
    plain, guarded = (_run(tmp_path / "main.py", guarded=each) for each in (False, True))
    assert (plain.returncode, guarded.returncode) == (status, status)
    assert guarded.stderr.splitlines()[-1:] == plain.stderr.splitlines()[-1:]


def test_a_program_that_replaces_itself_comes_back_with_its_guard(tmp_path: Path) -> None:
    (tmp_path / "main.py").write_text(
        "import os, sys\n"
        "print(type(os.execv).__name__, flush=True)\n"
        "if 'again' not in sys.argv: os.execv(sys.executable, [sys.executable, *sys.argv, 'again'])\n"
    )
    assert _run(tmp_path / "main.py", guarded=False).stdout.split() == ["builtin_function_or_method"] * 2
    assert _run(tmp_path / "main.py", guarded=True).stdout.split() == ["function"] * 2


def test_what_comfyui_starts_does_not_hold_the_line_open(tmp_path: Path) -> None:
    (tmp_path / "main.py").write_text(
        "import os, subprocess, sys\nsubprocess.run([sys.executable, '-c', sys.argv[1]], close_fds=False)\n"
    )
    line = GuardLine(lambda _: None)
    orders, events = line.descriptors
    asks = f"import os; print(os.path.exists('/proc/self/fd/{events}'))"
    done = subprocess.run(
        [sys.executable, str(LAUNCHER), f"{orders},{events}", str(tmp_path / "main.py"), asks],
        capture_output=True, text=True, pass_fds=line.descriptors, env=dict(os.environ), check=False, timeout=60,
    )  # fmt: skip
    assert done.stdout == "False\n"


_COLLECTED = """
import gc, json, socket, sys
states = [gc.isenabled(), gc.get_freeze_count() > 0]
for port in (0, int(sys.argv[-1])):
    with socket.socket() as door:
        door.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        door.bind(("127.0.0.1", port))
        door.listen()
        states += [gc.isenabled(), gc.get_freeze_count() > 0]
print(json.dumps([*states, "listen" in vars(socket.socket)]))
"""


def test_the_collector_rests_until_comfyui_listens_on_its_own_port(tmp_path: Path) -> None:
    (tmp_path / "main.py").write_text(_COLLECTED)
    arguments = ("--port", "1", "--port", str(choose_free(20000, like=0)))
    done = [_run(tmp_path / "main.py", *arguments, guarded=each) for each in (True, False)]
    guarded, plain = ([int(state) for state in json.loads(each.stdout)] for each in done)
    assert guarded == [0, 0, 0, 0, 1, 1, 0]
    assert plain == [1, 0, 1, 0, 1, 0, 0]


def test_a_program_that_serves_on_no_port_keeps_its_collector(tmp_path: Path) -> None:
    (tmp_path / "main.py").write_text("import gc; print(gc.isenabled())")
    assert _run(tmp_path / "main.py", "--quick-test-for-ci", guarded=True).stdout == "True\n"

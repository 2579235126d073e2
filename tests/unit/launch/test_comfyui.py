"""The launcher as a process, at once and by a standby: what it starts must not notice it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from comfypod.boot.guardline import LAUNCHER, GuardLine
from comfypod.ports import choose_free
from tests.kit.launching import WAYS, launch

if TYPE_CHECKING:
    from tests.kit.launching import Way

_FACTS = """
import cuda_malloc
import json, os, sys
print(json.dumps([__name__, __file__, sys.argv, sys.path[0], os.getcwd(), sys.modules["__main__"].__file__]))
"""


def _run(main: Path, *arguments: str, way: Way = "launcher") -> subprocess.CompletedProcess[str]:
    (main.resolve().parent / "cuda_malloc.py").touch()
    with launch(way, main, *arguments, cwd=main.parent.parent) as process:
        said, wrong = process.communicate(timeout=60)
    return subprocess.CompletedProcess(process.args, process.returncode, said, wrong)


def test_a_program_sees_what_it_sees_without_the_launcher(tmp_path: Path) -> None:
    folder = tmp_path / "core"
    folder.mkdir()
    (folder / "main.py").write_text(_FACTS)
    (tmp_path / "link.py").symlink_to(folder / "main.py")
    for main in (folder / "main.py", tmp_path / "link.py"):
        plain, *others = (_run(main, "--cpu", "a b", way=way) for way in WAYS)
        assert [each.stdout for each in others] == [plain.stdout] * 2
        assert json.loads(plain.stdout)[0] == "__main__"


@pytest.mark.parametrize(
    ("code", "status"),
    [("raise SystemExit(7)", 7), ("import sys; sys.exit('why')", 1), ("1 / 0", 1), ("", 0),
     ("import os; os._exit(9)", 9),
     ("import os, signal; os.kill(os.getpid(), signal.SIGTERM)", -15), ("raise KeyboardInterrupt", -2)],
)  # fmt: skip
def test_a_program_ends_as_it_ends_without_the_launcher(tmp_path: Path, code: str, status: int) -> None:
    (tmp_path / "main.py").write_text(f"import cuda_malloc\n{code}")
    done = [_run(tmp_path / "main.py", way=way) for way in WAYS]
    assert [each.returncode for each in done] == [status] * 3
    assert len({tuple(each.stderr.splitlines()[-1:]) for each in done}) == 1


def test_a_program_that_replaces_itself_comes_back_with_its_guard(tmp_path: Path) -> None:
    (tmp_path / "main.py").write_text(
        "import cuda_malloc, os, sys\n"
        "print(type(os.execv).__name__, flush=True)\n"
        "if 'again' not in sys.argv: os.execv(sys.executable, [sys.executable, *sys.argv, 'again'])\n"
    )
    found = {way: _run(tmp_path / "main.py", way=way).stdout.split() for way in WAYS}
    assert found == {"plain": ["builtin_function_or_method"] * 2, "launcher": ["method"] * 2, "standby": ["method"] * 2}


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
import cuda_malloc
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
    arguments = ("--port", "1", "--port", str(choose_free(20000)))
    done = [_run(tmp_path / "main.py", *arguments, way=way) for way in WAYS]
    plain, *others = ([int(state) for state in json.loads(each.stdout)] for each in done)
    assert others == [[0, 0, 0, 0, 1, 1, 0]] * 2
    assert plain == [1, 0, 1, 0, 1, 0, 0]


def test_it_is_told_when_comfyui_listens_on_its_own_port_and_not_before(tmp_path: Path) -> None:
    (tmp_path / "main.py").write_text("import sys\nprint('main', flush=True)\nsys.stdin.read(1)\n" + _COLLECTED)
    (tmp_path / "cuda_malloc.py").touch()
    heard: list[str] = []
    line = GuardLine(lambda event: heard.append(event.state))
    words = [",".join(map(str, line.descriptors)), str(tmp_path / "main.py"), "--port", str(choose_free(20000))]
    with subprocess.Popen(
        [sys.executable, str(LAUNCHER), *words],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, pass_fds=line.descriptors,
    ) as process:  # fmt: skip
        assert process.stdout is not None
        process.stdout.readline()
        line.hear()
        before = list(heard)
        process.communicate(b"\n", timeout=60)
        line.hear()
    assert "listens" not in before
    assert heard == [*before, "listens"]


def test_a_program_that_serves_on_no_port_keeps_its_collector(tmp_path: Path) -> None:
    (tmp_path / "main.py").write_text("import gc; print(gc.isenabled())")
    assert _run(tmp_path / "main.py", "--quick-test-for-ci").stdout == "True\n"

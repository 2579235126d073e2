"""Custom nodes that do their worst while ComfyUI loads them; the stand-in loads them the way ComfyUI does."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Any

import pytest

from tests.kit.comfyui import Client
from tests.kit.door import Visitor
from tests.kit.pods import Site, booted
from tests.kit.standin import Orders

if TYPE_CHECKING:
    from pathlib import Path

    from tests.kit.pods import Running

_GOOD = "NODE_CLASS_MAPPINGS = {__name__.rpartition('/')[2]: object}\n"
_SEGFAULT = "import ctypes\nctypes.string_at(0)\n"
# Ends ComfyUI when all nodes are loaded, so that nothing says which it was.
_LATE = (
    "import os, threading, time\n"
    + _GOOD
    + """
def end():
    while 'http.server' not in __import__('sys').modules or not os.environ.get('STANDIN_ORDERS'):
        time.sleep(0.01)
    time.sleep(0.3)
    os._exit(7)

threading.Thread(target=end, daemon=True).start()
"""
)


def _node(site: Site, name: str, code: str | None = _GOOD) -> Path:
    folder = site.layout.comfyui / "custom_nodes" / name
    folder.mkdir(parents=True, exist_ok=True)
    if code is not None:
        (folder / "__init__.py").write_text(code)
    return folder


def _outcomes(status: dict[str, Any]) -> dict[str, str]:
    return {row["name"]: row["state"] for row in status["nodes"]}


def _reasons(status: dict[str, Any]) -> dict[str, str]:
    return {row["name"]: row["reason"] for row in status["nodes"] if row["reason"]}


def _loaded(pod: Running) -> set[str]:
    return set(json.loads(Client(f"http://127.0.0.1:{pod.site.port}").get("/object_info")))


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("raise ValueError('too\\nbad')", "ValueError: too bad"),
        ("import no_such_module", "ModuleNotFoundError: No module named 'no_such_module'"),
        ("import sys; sys.exit(3)", "it called sys.exit(3)"),
        ("raise KeyboardInterrupt", "KeyboardInterrupt"),
        (None, "it has no __init__.py: it is cloned by half, or no node"),
        (_GOOD + "async def comfy_entrypoint(): raise SystemExit", "it called sys.exit(None)"),
    ],
)
def test_c3_a_node_that_fails_is_named_and_the_others_load_in_the_same_start(
    tmp_path: Path, code: str | None, reason: str
) -> None:
    site = Site(tmp_path)
    for name in ("a", "z"):
        _node(site, name)
    _node(site, "hostile", code)
    with booted(site) as pod:
        status = pod.wait_for("ready")
        assert _outcomes(status) == {"a": "loaded", "hostile": "failed", "z": "loaded"}
        assert _reasons(status) == {"hostile": reason}
        assert any(f"the node hostile does not load: {reason}" in row["message"] for row in status["problems"])
        assert {"a", "z"} <= _loaded(pod)
        assert len(site.starts()) == 1
        assert pod.stop() == 0


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        (_SEGFAULT, "ComfyUI ended with signal 11 while it was loaded"),
        ("import os; os._exit(7)", "ComfyUI ended with 7 while it was loaded"),
        ("import os; os.kill(os.getpid(), 9)", "ComfyUI ended with signal 9 while it was loaded"),
    ],
)
def test_c3_a_node_that_ends_comfyui_is_left_out_from_the_next_start_on(tmp_path: Path, code: str, reason: str) -> None:
    site = Site(tmp_path)
    for name in ("a", "z"):
        _node(site, name)
    hostile = _node(site, "hostile", code)
    for boot, starts in enumerate((2, 1)):
        before = len(site.starts())
        with booted(site) as pod:
            status = pod.wait_for("ready")
            assert _outcomes(status) == {"a": "loaded", "hostile": "aside", "z": "loaded"}, boot
            assert _reasons(status) == {"hostile": reason}
            assert not status["services"][0]["safe_mode"]
            assert any("the node hostile is left out" in row["message"] for row in status["problems"])
            assert len(site.starts()) - before == starts
    (hostile / "__init__.py").write_text(_GOOD)
    with booted(site) as pod:
        status = pod.wait_for("ready")
        assert _outcomes(status)["hostile"] == "loaded"
        assert status["problems"] == []


@pytest.mark.parametrize(
    "code",
    [
        "import time\ntime.sleep(120)",
        "import time\nwhile True:\n try:\n  time.sleep(1)\n except Exception:\n  pass",
        "import socket\na, b = socket.socketpair()\na.recv(1)",
    ],
)
def test_c3_a_node_that_hangs_is_interrupted_and_left_out_later(tmp_path: Path, code: str) -> None:
    site = Site(tmp_path, settings={"node_seconds": "1"})
    _node(site, "a")
    _node(site, "hangs", code)
    for state in ("aside", "aside"):
        with booted(site) as pod:
            status = pod.wait_for("ready")
            assert _outcomes(status) == {"a": "loaded", "hangs": state}
            assert _reasons(status) == {"hangs": "it took longer than 1 s to load"}
    assert len(site.starts()) == 2


def test_c3_of_nodes_that_end_comfyui_later_on_the_culprits_are_found_and_left_out(tmp_path: Path) -> None:
    site = Site(tmp_path)
    for number in range(6):
        _node(site, f"good{number}")
    for name in ("good3x", "later"):
        _node(site, name, _LATE)
    with booted(site) as pod:
        deadline = time.monotonic() + 90
        while "aside" not in _outcomes(status := pod.wait_for("ready", 60)).values():
            assert time.monotonic() < deadline, status
            time.sleep(0.05)
        states = _outcomes(status)
        assert {name for name, state in states.items() if state == "aside"} == {"good3x", "later"}
        assert set(states.values()) == {"aside", "loaded"}
        assert not status["services"][0]["safe_mode"]
        # Three deaths, one start without any of them, then at most three halvings and a start with the rest for each.
        assert len(site.starts()) <= 3 + 1 + 2 * 4
    with booted(site) as pod:
        assert pod.wait_for("ready")["services"][0]["restarts"] == 0


def test_c3_where_it_is_not_the_nodes_one_start_tells_and_safe_mode_follows(tmp_path: Path) -> None:
    site = Site(tmp_path, Orders(die=7))
    _node(site, "innocent")
    with booted(site) as pod:
        status = pod.wait_for("failed", 60)
        assert ["--disable-all-custom-nodes" in start["argv"] for start in site.starts()] == [False] * 4 + [True] * 2
        assert [row["state"] for row in status["nodes"]] == ["present"]
        assert any(problem["code"] == "safe-mode" for problem in status["problems"])


def test_c3_a_node_that_hangs_out_of_pythons_reach_is_killed_with_comfyui_and_left_out(tmp_path: Path) -> None:
    site = Site(tmp_path, settings={"node_seconds": "1"})
    _node(site, "a")
    deaf = "import ctypes, signal\nsignal.pthread_sigmask(0, [signal.SIGALRM])\nctypes.PyDLL(None).sleep(120)"
    _node(site, "deaf", deaf)
    with booted(site) as pod:
        status = pod.wait_for("ready")
        assert _outcomes(status) == {"a": "loaded", "deaf": "aside"}
        assert _reasons(status) == {"deaf": "ComfyUI hung in the node deaf and was killed while it was loaded"}
        assert len(site.starts()) == 2


def test_a_node_that_is_aside_is_given_to_comfyui_again_by_the_page_and_its_folder_stays(tmp_path: Path) -> None:
    site = Site(tmp_path, settings={"listen": "0.0.0.0"})
    flag = tmp_path / "mended"
    folder = _node(site, "moody", f"import os\nif not os.path.exists({str(flag)!r}): os._exit(7)\n" + _GOOD)
    with booted(site) as pod:
        assert _outcomes(pod.wait_for("ready")) == {"moody": "aside"}
        assert sorted(path.name for path in folder.iterdir() if path.suffix == ".py") == ["__init__.py"]
        flag.touch()
        owner = Visitor(site.port, site.layout.token.read_text().strip())
        assert owner.ask("/_pod/do/node-on", "POST", b'{"node": "moody"}').json["ok"]
        assert owner.ask("/_pod/do/restart", "POST", b"{}").json["ok"]
        assert _outcomes(pod.wait_for("ready")) == {"moody": "loaded"}
        assert "moody" in owner.ask("/object_info").json
        assert owner.ask("/_pod/do/node-off", "POST", b'{"node": "moody"}').json["ok"]
        assert _outcomes(pod.status() or {}) == {"moody.disabled": "disabled"}


def test_a_prestartup_script_that_ends_comfyui_is_its_nodes_fault(tmp_path: Path) -> None:
    site = Site(tmp_path)
    node = _node(site, "early")
    (node / "prestartup_script.py").write_text("import os; os._exit(7)")
    with booted(site) as pod:
        assert _outcomes(pod.wait_for("ready")) == {"early": "aside"}
        assert len(site.starts()) == 2

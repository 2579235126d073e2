"""Restarts of ComfyUI through the standby, with real boots, real signals and the stand-in."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from comfypod import proc
from tests.kit.door import Visitor
from tests.kit.lab import until
from tests.kit.pods import Running, Site, booted
from tests.kit.wheels import build_wheel

if TYPE_CHECKING:
    from collections.abc import Callable


def _comfyui(pod: Running) -> dict[str, Any]:
    row: dict[str, Any] = (pod.status() or {})["services"][0]
    return row


def _view(pod: Running) -> tuple[str, int]:
    view = (pod.status() or {})["standby"]
    return view["state"], view["starts"]


def _standbys(pod: Running) -> list[int]:
    """Return the children of boot that are launched as ComfyUI is and do not serve."""
    lists = [path.read_text() for path in Path(f"/proc/{pod.process.pid}/task").glob("*/children")]
    pids = [int(pid) for pid in " ".join(lists).split()]
    launched = [pid for pid in pids if any(word.endswith("launch/comfyui.py") for word in proc.command_line(pid))]
    return [pid for pid in launched if pid != _comfyui(pod)["pid"]]


def _waiting(pod: Running, but: int = 0) -> int:
    until(lambda: _view(pod)[0] == "waiting" and _standbys(pod) != [but], "a standby")
    (pid,) = _standbys(pod)
    return pid


def _started_again(site: Site, pod: Running, before: int) -> int:
    """Wait for another ComfyUI that serves; return its pid."""
    until(lambda: len(site.starts()) > before, "another start")
    until(lambda: pod.probe("/readyz")[0] == 200, "ComfyUI again")
    return int(_comfyui(pod)["pid"])


def _on_the_page(site: Site, pod: Running) -> None:
    del pod
    assert Visitor(site.port).ask("/_pod/do/restart", "POST", b"{}").json["ok"]


def _by_manager(site: Site, pod: Running) -> None:
    del pod
    assert Visitor(site.port).ask("/manager/again").status in (502, 503)


def _by_a_crash(site: Site, pod: Running) -> None:
    del site
    os.kill(_comfyui(pod)["pid"], signal.SIGKILL)


@pytest.mark.parametrize(("way", "cause"), [(_on_the_page, 0), (_by_manager, 0), (_by_a_crash, -9)])
def test_a_restart_is_the_standbys_and_differs_from_a_start_in_nothing(
    tmp_path: Path, way: Callable[[Site, Running], None], cause: int
) -> None:
    site = Site(tmp_path)
    with booted(site) as pod:
        first = pod.wait_for("ready")["services"][0]["pid"]
        standby = _waiting(pod)
        listening = subprocess.run(["ss", "-Hltnp"], capture_output=True, text=True, check=True).stdout
        assert f"pid={standby}," not in listening
        assert len(site.starts()) == 1
        way(site, pod)
        assert _started_again(site, pod, 1) == standby != first
        (plain, through), row = site.starts(), _comfyui(pod)
        assert {**plain, "pid": standby} == through
        assert (row["restarts"], row["last_exit"]) == (1, cause or None)
        until(lambda: _view(pod)[1] == 1, "its count")
        assert (site.layout.logs / "comfyui.log").read_text().count("stand-in starts\n") == 2
        assert pod.stop() == 0


def test_a_standby_that_was_killed_is_not_missed(tmp_path: Path) -> None:
    site = Site(tmp_path)
    with booted(site) as pod:
        pod.wait_for("ready")
        os.kill(standby := _waiting(pod), signal.SIGKILL)
        until(lambda: _standbys(pod) == [], "its end")
        _on_the_page(site, pod)
        assert _started_again(site, pod, 1) != standby
        assert _view(pod) == ("none", 0)
        assert _comfyui(pod)["restarts"] == 1
        assert pod.stop() == 0


def test_without_nodes_a_plain_start_is_made(tmp_path: Path) -> None:
    site = Site(tmp_path)
    with booted(site) as pod:
        pod.wait_for("ready")
        standby = _waiting(pod)
        assert Visitor(site.port).ask("/_pod/do/safe-mode", "POST", b"{}").json["ok"]
        assert _started_again(site, pod, 1) != standby
        assert "--disable-all-custom-nodes" in site.starts()[-1]["argv"]
        assert _view(pod)[1] == 0
        assert _standbys(pod) == []
        assert pod.stop() == 0


@pytest.mark.slow
def test_a_standby_is_replaced_when_packages_change_and_not_used_before(tmp_path: Path) -> None:
    site = Site(tmp_path)

    def install(name: str) -> None:
        wheel = build_wheel(site.folder / "wheels", name, "1.0")
        python = site.layout.envs / (pod.status() or {})["environment"]["key"] / "bin" / "python"
        argv = ["uv", "pip", "install", "--quiet", "--offline", "--python", str(python), str(wheel)]
        subprocess.run(argv, check=True, timeout=60)

    with booted(site) as pod:
        pod.wait_for("ready")
        install("kit-one")
        first = _waiting(pod)
        install("kit-two")
        second = _waiting(pod, but=first)
        install("kit-three")
        _on_the_page(site, pod)
        assert _started_again(site, pod, 1) not in (first, second)
        assert _view(pod)[1] == 0
        assert pod.stop() == 0


def test_a_standby_starts_afresh_when_comfyuis_own_files_have_changed(tmp_path: Path) -> None:
    site = Site(tmp_path)
    with booted(site) as pod:
        pod.wait_for("ready")
        standby = _waiting(pod)
        main = site.layout.comfyui / "main.py"
        main.write_text(f"print('edited', flush=True)\n{main.read_text()}")
        _on_the_page(site, pod)
        assert _started_again(site, pod, 1) == standby
        assert (site.layout.logs / "comfyui.log").read_text().count("edited\n") == 1
        _waiting(pod)
        assert _view(pod)[1] == 0
        assert pod.stop() == 0


_SCRIPT = """
import os, pathlib
if (pathlib.Path(__file__).parent / "now").exists():
    os.environ["KIT_THREADS"] = "1"
"""


def test_a_start_script_that_changes_the_environment_this_time_has_the_standby_start_afresh(tmp_path: Path) -> None:
    site = Site(tmp_path)
    node = site.layout.comfyui / "custom_nodes" / "tuner"
    with booted(site) as pod:
        pod.wait_for("ready")
        assert pod.stop() == 0
    node.mkdir()
    (node / "__init__.py").write_text("import os\nprint('threads', os.environ.get('KIT_THREADS'), flush=True)\n")
    (node / "prestartup_script.py").write_text(_SCRIPT)
    with booted(site) as pod:
        pod.wait_for("ready")
        standby = _waiting(pod)
        (node / "now").touch()
        _on_the_page(site, pod)
        assert _started_again(site, pod, 3) == standby
        assert [start["pid"] for start in site.starts()[2:]] == [standby, standby]
        lines = (site.layout.logs / "comfyui.log").read_text().splitlines()
        assert [line for line in lines if line.startswith("threads")] == ["threads None", "threads 1"]
        _waiting(pod)
        assert _view(pod)[1] == 0
        assert pod.stop() == 0


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_a_standby_ends_with_its_boot(tmp_path: Path, signum: signal.Signals) -> None:
    site = Site(tmp_path)
    with booted(site) as pod:
        comfyui = pod.wait_for("ready")["services"][0]["pid"]
        standby = _waiting(pod)
        assert pod.stop(signum) == (-9 if signum is signal.SIGKILL else 0)
        until(lambda: proc.start_ticks(standby) is None, "its end")
        if signum is signal.SIGKILL:
            os.kill(comfyui, signal.SIGKILL)
        else:
            assert "left running" not in pod.output_so_far()


def test_switched_off_there_is_none_and_comfyui_replaces_itself_as_ever(tmp_path: Path) -> None:
    site = Site(tmp_path, settings={"standby": "off"})
    with booted(site) as pod:
        pid = pod.wait_for("ready")["services"][0]["pid"]
        assert _view(pod) == ("off", 0)
        _by_manager(site, pod)
        assert _started_again(site, pod, 1) == pid
        assert _comfyui(pod)["restarts"] == 0
        assert pod.stop() == 0

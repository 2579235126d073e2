"""The boot program as a real process around a stand-in ComfyUI."""

from __future__ import annotations

import http.client
import json
import signal
import socket
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import pytest

from comfypod import control, proc
from comfypod.workspace import run
from tests.kit import standin
from tests.kit.disks import tmpfs
from tests.kit.door import Visitor
from tests.kit.lab import until
from tests.kit.pods import Site, booted, comfypod
from tests.kit.standin import Orders

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


def test_an_empty_workspace_becomes_a_ready_pod(site: Site) -> None:
    with booted(site) as pod:
        status = pod.wait_for("ready")
        assert [stage["state"] for stage in status["stages"]] == ["done"] * 5
        assert status["services"][0]["state"] == "ready"
        assert status["comfyui"] == {"version": "1", "queue_running": 0, "queue_pending": 0, "queue_saved": 0}
        assert pod.probe("/livez") == (200, "live")
        assert pod.probe("/startupz") == (200, "started")
        assert pod.probe("/readyz") == (200, "ready")
        assert pod.probe("/elsewhere")[0] == 404
        assert (site.layout.comfyui / "link.py").is_symlink()
        assert pod.stop() == 0
    assert "ERROR" not in pod.output_so_far()
    assert "WARNING" not in pod.output_so_far()


def test_the_control_plane_answers_before_comfyui_does(tmp_path: Path) -> None:
    with booted(Site(tmp_path, Orders(slow=2.0))) as pod:
        status = pod.wait_for("starting")
        assert status["reasons"] == ["comfyui is starting"]
        assert pod.probe("/livez") == (200, "live")
        assert pod.probe("/startupz") == (503, "starting")
        assert pod.probe("/readyz") == (503, "starting")
        pod.wait_for("ready")


def test_a_second_boot_keeps_what_is_there(site: Site) -> None:
    with booted(site) as pod:
        pod.wait_for("ready")
    mine = site.layout.comfyui / "output" / "mine.png"
    mine.write_bytes(b"mine")
    with booted(site) as pod:
        status = pod.wait_for("ready")
    assert status["stages"][0]["detail"] == "ComfyUI 1 is in place"
    assert mine.read_bytes() == b"mine"


def test_e1_comfyui_exits_at_start(tmp_path: Path) -> None:
    site = Site(tmp_path, Orders(die=7))
    with booted(site) as pod:
        pod.wait_for("starting")
        assert pod.probe("/livez") == (200, "live")
        status = pod.wait_for("failed", 40)
        assert status["reasons"] == ["comfyui was given up after it ended with 7"]
        assert status["ready"] is False
        assert pod.probe("/livez") == (200, "live")
        assert pod.probe("/readyz") == (503, "failed")
        starts = site.starts()
        assert ["--disable-all-custom-nodes" in start["argv"] for start in starts] == [False] * 3 + [True] * 2
        assert any(problem["code"] == "safe-mode" for problem in status["problems"])
        assert pod.stop() == 7


def test_safe_mode_saves_a_pod_from_a_broken_node(tmp_path: Path) -> None:
    site = Site(tmp_path, Orders(die=3, heals_in_safe_mode=True))
    with booted(site) as pod:
        status = pod.wait_for("ready", 30)
        assert status["services"][0]["safe_mode"] is True
        assert status["services"][0]["restarts"] == 3
        assert "without custom nodes" in " ".join(problem["message"] for problem in status["problems"])
        assert pod.stop() == 0


def test_on_failure_exit_ends_the_boot_with_comfyuis_code(tmp_path: Path) -> None:
    site = Site(tmp_path, Orders(die=7), settings={"on_failure": "exit"})
    with booted(site) as pod:
        assert pod.process.wait(40) == 7
    assert not site.layout.run_record.exists()


def test_a_crash_after_ready_is_restarted(tmp_path: Path) -> None:
    site = Site(tmp_path, Orders(die_later=0.3))
    with booted(site) as pod:
        pod.wait_for("ready")
        site.obey(Orders())
        deadline = time.monotonic() + 10
        while len(site.starts()) < 2 and time.monotonic() < deadline:
            time.sleep(0.05)
        status = pod.wait_for("ready")
        assert status["services"][0]["restarts"] == 1
        assert status["services"][0]["last_exit"] == 9
        assert status["problems"] == []
        assert pod.stop() == 0


@pytest.mark.slow
def test_e4_comfyui_needs_three_minutes_to_start(tmp_path: Path) -> None:
    """Three real minutes, because what is shown is that no wait anywhere has an end before them."""
    with booted(Site(tmp_path, Orders(slow=180.0))) as pod:
        pod.wait_for("starting")
        began = time.monotonic()
        while time.monotonic() - began < 175:
            assert pod.probe("/startupz") == (503, "starting")
            assert pod.probe("/livez") == (200, "live")
            time.sleep(1.0)
        pod.wait_for("ready", 30)
        assert pod.probe("/startupz") == (200, "started")
        assert len(pod.site.starts()) == 1


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_e5_signal_when_idle(site: Site, signum: signal.Signals) -> None:
    with booted(site) as pod:
        pid = pod.wait_for("ready")["services"][0]["pid"]
        began = time.monotonic()
        assert pod.stop(signum) == 0
        assert time.monotonic() - began < 4
        assert "stand-in stopped server" in pod.output_so_far()
        assert proc.start_ticks(pid) is None
    assert run.read(site.layout.run_record) is None


def test_e5_signal_while_stopping_shows_not_ready_and_a_second_one_stops_at_once(tmp_path: Path) -> None:
    site = Site(tmp_path, Orders(stubborn=True))
    with booted(site, "--set", "stop_seconds=60") as pod:
        pid = pod.wait_for("ready")["services"][0]["pid"]
        pod.process.send_signal(signal.SIGTERM)
        pod.wait_for("stopping")
        assert pod.probe("/readyz") == (503, "stopping")
        assert pod.probe("/livez") == (200, "live")
        time.sleep(0.4)
        began = time.monotonic()
        pod.stop()
        assert time.monotonic() - began < 2
        assert proc.start_ticks(pid) is None


def test_one_ctrl_c_that_arrives_twice_is_one(site: Site) -> None:
    with booted(site) as pod:
        pod.wait_for("ready")
        pod.process.send_signal(signal.SIGINT)
        assert pod.stop(signal.SIGINT) == 0
        assert "again" not in pod.output_so_far()
        assert "stand-in stopped server" in pod.output_so_far()


def test_a_child_deaf_to_signals_is_killed_in_its_time(tmp_path: Path) -> None:
    with booted(Site(tmp_path, Orders(stubborn=True)), "--set", "stop_seconds=1") as pod:
        pod.wait_for("ready")
        began = time.monotonic()
        assert pod.stop() == 0
        assert 0.9 < time.monotonic() - began < 4


def test_two_boots_on_one_workspace(tmp_path: Path) -> None:
    first = Site(tmp_path)
    with booted(first) as pod:
        pod.wait_for("ready")
        second = Site(tmp_path)
        done = comfypod(*second.arguments(), env={"STANDIN_ORDERS": str(second.orders), "COMFYPOD_ON_FAILURE": "exit"})
        assert done.returncode == 9
        assert f"in use by the pod with pid {pod.process.pid}" in done.stdout
        assert "comfypod down" in done.stdout
        assert run.running(first.layout.run_record) is not None
        assert pod.probe("/readyz") == (200, "ready")


@pytest.mark.parametrize("which", ["port", "control_port"])
def test_a_busy_port_is_named(site: Site, which: str) -> None:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", getattr(site, which)))
        holder.listen()
        done = comfypod(*site.arguments("--set", "on_failure=exit"), env={"STANDIN_ORDERS": str(site.orders)})
    assert done.returncode == 9
    assert str(getattr(site, which)) in done.stdout
    assert f"--{which.replace('_', '-')}" in done.stdout
    assert not site.starts()


def test_what_a_killed_boot_left_running_is_ended_by_the_next(site: Site) -> None:
    with booted(site) as pod:
        orphan = pod.wait_for("ready")["services"][0]["pid"]
        pod.process.kill()
        pod.process.wait()
        assert proc.start_ticks(orphan) is not None
        with booted(site) as again:
            status = again.wait_for("ready")
            assert status["services"][0]["pid"] != orphan
            assert "ended 1 processes that a killed boot had left running" in again.output_so_far()
            assert proc.start_ticks(orphan) is None


@pytest.mark.parametrize("escape", [[], ["setsid"]], ids=["in its group", "in a session of its own"])
def test_a_helper_that_keeps_the_output_open_hides_no_death_and_holds_up_no_stop(site: Site, escape: list[str]) -> None:
    main = site.tree / "main.py"
    helper = f"import subprocess; subprocess.Popen({[*escape, 'sleep', '600']!r})\n"
    main.write_text(helper + main.read_text())
    site.obey(Orders(die_later=0.5))
    with booted(site) as pod:
        pod.wait_for("ready")
        site.obey(Orders())
        deadline = time.monotonic() + 10
        while len(site.starts()) < 2 and time.monotonic() < deadline:
            time.sleep(0.05)
        pod.wait_for("ready")
        began = time.monotonic()
        assert pod.stop() == 0
        assert time.monotonic() - began < 8
    assert proc.with_variable(f"{run.MARK}={site.layout.root}") == []


def test_a_reader_of_the_output_that_stalls_holds_up_nothing(site: Site) -> None:
    main = site.tree / "main.py"
    main.write_text(main.read_text().replace('print("stand-in starts", flush=True)', 'print("x" * 100 + "\\n" * 5000)'))
    with subprocess.Popen(
        [sys.executable, "-m", "comfypod", *site.arguments()], stdout=subprocess.PIPE, env=site.environ
    ) as process:
        deadline = time.monotonic() + 10
        while (control.status(site.control) or {}).get("phase") != "ready":
            assert time.monotonic() < deadline
            time.sleep(0.05)
        process.terminate()
        assert process.wait(10) == 0


@pytest.mark.root
def test_on_a_full_disk_a_running_pod_can_still_be_asked_and_stopped(site: Site) -> None:
    with tmpfs(site.layout.root, megabytes=24):
        with booted(site, "--set", "disk_floor=1M") as pod:
            pod.wait_for("ready")
        with pytest.raises(OSError, match="No space"):
            (site.layout.root / "filler").write_bytes(bytes(40_000_000))
        with booted(site) as pod:
            status = pod.wait_for("degraded")
            assert status["reasons"] == ["disk has 0 B free of at least 67.1 MB"]
            assert status["boot"]["seconds_to_ready"] is not None
            assert pod.probe("/startupz") == (200, "started")
            where = ("--workspace", str(site.layout.root))
            env = {"COMFYPOD_CONTROL_PORT": str(site.control_port)}
            assert comfypod("health", *where, env=env).returncode == 11
            assert comfypod("health", "--live", *where, env=env).stdout == "live\n"
            assert comfypod("down", *where, env=env).returncode == 0


@pytest.mark.root
def test_a5_a_volume_that_turns_read_only_in_mid_boot_ends_cleanly(site: Site) -> None:
    with tmpfs(site.layout.root, megabytes=24):
        with booted(site, "--set", "disk_floor=0") as pod:
            pod.wait_for("ready")
            subprocess.run(["mount", "-o", "remount,ro", str(site.layout.root)], check=False)
            assert pod.stop() == 0
        assert "Traceback" not in pod.output_so_far()


@pytest.mark.parametrize("name", ["state.json", "run.json", "token"])
@pytest.mark.parametrize("data", [b"", b"null", b"[" * 100_000, b'{"schema": 1e999}', bytes(40), b"\xff"], ids=repr)
def test_a_damaged_record_never_stops_a_boot(site: Site, name: str, data: bytes) -> None:
    site.layout.records.mkdir(parents=True)
    (site.layout.records / name).write_bytes(data)
    with booted(site) as pod:
        pod.wait_for("ready")
        assert pod.stop() == 0
    assert "Traceback" not in pod.output_so_far()


def test_a_page_that_rebinds_its_name_is_refused(site: Site) -> None:
    with booted(site) as pod:
        pod.wait_for("ready")
        for host, code in (("evil.example", 403), (f"127.0.0.1:{site.control_port}", 200), ("localhost", 200)):
            connection = http.client.HTTPConnection("127.0.0.1", site.control_port, timeout=5)
            connection.request("GET", "/livez", headers={"Host": host})
            assert connection.getresponse().status == code
            connection.close()


def test_a_volume_of_someone_elses_is_used_in_place(site: Site) -> None:
    foreign = site.layout.comfyui
    (foreign / "models").mkdir(parents=True)
    (foreign / "main.py").write_text("raise SystemExit('theirs')")
    with booted(site) as pod:
        status = pod.wait_for("ready")
        assert status["workspace"]["persist"] == "link"
        start = site.starts()[0]
        assert start["argv"][start["argv"].index("--base-directory") + 1] == str(foreign)
        assert (foreign / "custom_nodes").is_dir()
    assert (foreign / "main.py").read_text() == "raise SystemExit('theirs')"


def test_b5_a_volume_of_a_newer_schema_is_not_touched(site: Site) -> None:
    site.layout.records.mkdir(parents=True)
    site.layout.state.write_text(json.dumps({"schema": 99, "writer": "9.0"}))
    done = comfypod(*site.arguments("--set", "on_failure=exit"), env={"STANDIN_ORDERS": str(site.orders)})
    assert done.returncode == 8
    assert "was written by comfypod 9.0 with schema 99" in done.stdout
    assert [path.name for path in site.layout.root.rglob("*")] == [".comfypod", "state.json"]


def test_an_ipv6_control_plane_can_be_asked(site: Site) -> None:
    with booted(site, "--set", "control_listen=::1") as pod:
        record = None
        deadline = time.monotonic() + 10
        while record is None and time.monotonic() < deadline:
            record = run.running(site.layout.run_record)
        assert record is not None
        assert record.control == f"http://[::1]:{site.control_port}"
        while (status := control.status(record.control)) is None or not status["ready"]:
            assert time.monotonic() < deadline
        assert pod.stop() == 0


def test_no_secret_of_ours_reaches_comfyui_or_a_log(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    canary = "canary-7f3a"
    monkeypatch.setenv("COMFYPOD_TOKEN", canary)
    monkeypatch.setenv("JUPYTER_PASSWORD", canary + "p")
    with booted(site) as pod:
        status = pod.wait_for("ready")
    assert canary not in json.dumps(site.starts())
    assert canary not in json.dumps(status)
    assert canary not in pod.output_so_far()
    for log in site.layout.logs.iterdir():
        assert canary not in log.read_text()


def test_boot_imports_the_standard_library_alone() -> None:
    code = (
        "import sys; sys.path.insert(0, 'src'); import comfypod.boot.main, comfypod.cli;"
        "files = [getattr(module, '__file__', None) or '' for module in sys.modules.values()];"
        "print([file for file in files if 'site-packages' in file])"
    )
    done = subprocess.run([sys.executable, "-S", "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_custom_nodes_folder_that_cannot_be_read_degrades_the_boot(site: Site) -> None:
    with booted(site) as pod:
        pod.wait_for("ready")
    nodes = site.layout.comfyui / "custom_nodes"
    nodes.rmdir()
    nodes.symlink_to("custom_nodes")
    with booted(site) as pod:
        status = pod.wait_for("ready")
        assert [stage["state"] for stage in status["stages"] if stage["name"] == "nodes"] == ["degraded"]
        assert "custom_nodes" in status["problems"][0]["message"]


def _upgraded(folder: Path, behaviour: Orders) -> Site:
    """Boot release 1 once, then let the pod be of release 2."""
    site = Site(folder)
    with booted(site) as pod:
        pod.wait_for("ready")
        assert pod.stop() == 0
    (site.tree / "comfyui_version.py").write_text('__version__ = "2"\n')
    site.pod_file = standin.pod_file(folder, site.tree, release="2")
    site.obey(behaviour)
    return site


def test_an_upgrade_whose_comfyui_does_not_start_is_taken_back_and_said(tmp_path: Path) -> None:
    site = _upgraded(tmp_path, Orders(die=7, heals_with_version="1"))
    with booted(site) as pod:
        status = pod.wait_for("ready", 30)
        assert status["comfyui"]["version"] == "1"
        assert status["workspace"]["release"].startswith("1-")
        (problem,) = [each for each in status["problems"] if each["code"] == "rolled-back"]
        assert "ComfyUI 2 did not start" in problem["message"]
        assert len(site.starts()) == 1 + 3 + 1
        assert pod.stop() == 0
    with booted(site) as pod:
        status = pod.wait_for("ready")
        assert (status["comfyui"]["version"], len(site.starts())) == ("1", 6)
        assert "did not start" not in pod.output_so_far()
        assert pod.stop() == 0


def test_the_pods_page_goes_back_to_the_release_before_once_and_later_boots_stay_there(tmp_path: Path) -> None:
    site = _upgraded(tmp_path, Orders())
    with booted(site) as pod:
        assert pod.wait_for("ready")["workspace"]["kept"].startswith("1-")
        owner = Visitor(site.port, site.layout.token.read_text().strip())
        assert "ComfyUI 1 starts" in owner.ask("/_pod/do/roll-back", "POST", b"{}").json["message"]
        status = pod.wait_for("ready")
        assert (status["comfyui"]["version"], status["workspace"]["kept"]) == ("1", "")
        refused = owner.ask("/_pod/do/roll-back", "POST", b"{}")
        assert (refused.status, refused.json["ok"]) == (409, False)
        assert pod.stop() == 0
    with booted(site) as pod:
        assert pod.wait_for("ready")["comfyui"]["version"] == "1"


def test_an_upgrade_that_was_ready_is_no_trial_any_more(tmp_path: Path) -> None:
    site = _upgraded(tmp_path, Orders())
    with booted(site) as pod:
        assert pod.wait_for("ready")["comfyui"]["version"] == "2"
        until(lambda: json.loads(site.layout.state.read_text())["attempts"] == 0, "the end of the trial on the volume")
        assert pod.stop() == 0


def test_an_upgrade_whose_boots_are_killed_is_taken_back_by_the_fourth(tmp_path: Path) -> None:
    """What kills boot itself kills it again and again: nobody would ever get to see a safe mode."""
    site = _upgraded(tmp_path, Orders(slow=60.0))
    for attempt in (1, 2, 3):
        with booted(site) as pod:
            pod.wait_for("starting")
            assert json.loads(site.layout.state.read_text())["attempts"] == attempt + 1
            pod.process.kill()
            pod.process.wait()
    site.obey(Orders())
    with booted(site) as pod:
        status = pod.wait_for("ready")
        assert status["comfyui"]["version"] == "1"
        assert "was not ready in 3 boots" in status["stages"][0]["detail"]
        assert pod.stop() == 0


def test_b1_an_upgrade_keeps_what_the_user_has_and_names_edited_core_files(tmp_path: Path) -> None:
    site = _upgraded(tmp_path, Orders())
    mine = site.layout.comfyui / "output" / "mine.png"
    mine.write_bytes(b"mine")
    (site.layout.comfyui / "comfy" / "__init__.py").write_text("edited")
    with booted(site) as pod:
        status = pod.wait_for("ready")
        assert "changed to ComfyUI 2" in status["stages"][0]["detail"]
        (problem,) = status["problems"]
        assert problem["code"] == "edited-core"
        assert "comfy/__init__.py" in problem["message"]
        assert pod.stop() == 0
    assert mine.read_bytes() == b"mine"

"""`comfypod up --engine host`, `down`, `status`, `logs`, `health` as a user runs them, around a stand-in ComfyUI."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

import pytest

from comfypod import proc
from comfypod.boot.policy import exit_code
from tests.kit.disks import tmpfs
from tests.kit.lab import Lab, until
from tests.kit.pods import ROOT
from tests.kit.standin import Orders

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    lab = Lab(tmp_path)
    yield lab
    lab.down()
    assert lab.children() == []


def test_from_an_empty_store_to_a_ready_pod_and_back(lab: Lab) -> None:
    done = lab.up("--json")
    body = json.loads(done.stdout)
    assert (done.returncode, body["status"], body["command"]) == (0, "success", "up")
    assert body["data"]["urls"] == {"comfyui": f"http://127.0.0.1:{lab.port}"}
    assert all(lab.objects().values())
    assert len(lab.objects()) == 2
    workspace = ("--workspace", str(lab.layout.root))
    status = lab.run("status", *workspace)
    assert status.returncode == 0
    assert status.stdout.startswith("ready: up ")
    assert json.loads(lab.run("status", "--json", *workspace).stdout)["data"]["phase"] == "ready"
    assert lab.run("health", "--live", *workspace).stdout == "live\n"
    assert lab.run("health", *workspace).returncode == 0
    assert lab.run("logs", *workspace).stdout.splitlines()[0] == "stand-in starts"
    assert "ready after" in lab.run("logs", "boot", *workspace).stdout
    assert lab.down().returncode == 0
    for verb in ("down", "status", "health"):
        over = lab.run(verb, *workspace)
        assert over.returncode == 12
        assert "comfypod up" in over.stdout
    assert lab.layout.boot_output.stat().st_mode & 0o777 == 0o600


def test_a_second_up_and_another_workspace_use_what_is_there(lab: Lab) -> None:
    assert lab.up().returncode == 0
    assert lab.down().returncode == 0
    made = {path: path.stat().st_mtime_ns for path in (lab.data / "store").glob("*/*/.complete")}
    again = lab.up()
    assert again.returncode == 0
    assert "preparing" not in again.stdout
    lab.down()
    other = lab.run(*lab.up_arguments("--detach"), "--workspace", str(lab.folder / "other"))
    assert other.returncode == 0
    assert (lab.folder / "other" / "ComfyUI" / "main.py").is_file()
    assert lab.run("down", "--workspace", str(lab.folder / "other")).returncode == 0
    assert {path: path.stat().st_mtime_ns for path in (lab.data / "store").glob("*/*/.complete")} == made


def test_arguments_after_two_dashes_reach_comfyui(lab: Lab) -> None:
    assert lab.up("--", "--cpu").returncode == 0
    start = json.loads((lab.folder / "starts").read_text().splitlines()[-1])
    assert start["argv"].count("--cpu") == 2


def test_two_ups_at_once_on_one_workspace_end_with_one_pod(lab: Lab) -> None:
    assert lab.up().returncode == 0
    lab.down()
    argv = [sys.executable, "-m", "comfypod", *lab.up_arguments("--detach")]
    env = {**os.environ, **lab.environ}
    both = [subprocess.Popen(argv, stdout=subprocess.PIPE, text=True, env=env, cwd=ROOT) for _ in range(2)]
    said = [process.communicate(timeout=60)[0] for process in both]
    assert sorted(process.returncode for process in both) == [0, 9], said
    assert (lab.status() or {})["ready"]


def test_a_manifest_without_its_lock_or_out_of_step_is_refused(lab: Lab) -> None:
    manifest = lab.folder / "comfypod.toml"
    manifest.write_text(manifest.read_text().replace('"jupyterlab"', '"jupyterlab", "bulk"'))
    done = lab.up()
    assert done.returncode == 4
    assert "jupyter.packages" in done.stdout
    assert "run `comfypod lock`" in done.stdout
    manifest.write_text("schema = 1\ncolour = 2\n")
    assert lab.up().returncode == 3


def test_two_ups_one_after_the_other_on_one_workspace(lab: Lab) -> None:
    assert lab.up().returncode == 0
    second = lab.run(*lab.up_arguments("--detach"))
    assert second.returncode == 9
    assert f"the workspace {lab.layout.root} is in use by the pod with pid" in second.stdout
    assert lab.status() is not None


def test_a_gpu_profile_without_a_gpu_is_refused_before_anything_is_fetched(lab: Lab) -> None:
    done = lab.up("--profile", "4090")
    assert done.returncode == 13
    assert "needs an NVIDIA GPU" in done.stdout
    assert "--profile cpu" in done.stdout
    assert lab.objects() == {}


def test_b5_up_leaves_a_volume_of_a_newer_schema_alone(lab: Lab) -> None:
    lab.layout.records.mkdir(parents=True)
    lab.layout.state.write_text(json.dumps({"schema": 99, "writer": "9.0"}))
    done = lab.up()
    assert done.returncode == 8
    assert "schema 99" in done.stdout
    assert [path.name for path in lab.layout.root.rglob("*")] == [".comfypod", "state.json"]


def test_a_busy_port_is_refused_before_anything_is_fetched(lab: Lab) -> None:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", lab.port))
        holder.listen()
        done = lab.up()
    assert done.returncode == 9
    assert f"{lab.port}" in done.stdout
    assert f"pid {os.getpid()}" in done.stdout
    assert "--port" in done.stdout
    assert lab.objects() == {}


def test_a_tampered_source_is_refused(lab: Lab) -> None:
    (lab.tree / "main.py").write_text("print('not what was locked')")
    done = lab.up()
    assert done.returncode == 6
    assert "sha256:" in done.stdout
    assert not any(lab.objects().values())
    assert not lab.layout.comfyui.exists()


def test_a_wheel_with_another_hash_is_refused_by_name(lab: Lab) -> None:
    def change(body: dict[str, Any]) -> None:
        for environment in body["environments"]:
            for package in environment["packages"]:
                if package["name"] == "torchvision":
                    package["wheels"][0]["sha256"] = "0" * 64

    lab.edit_lock(change)
    done = lab.up()
    assert done.returncode == 6
    assert "torchvision" in done.stdout
    assert not any("env" in name for name in lab.objects())
    assert not lab.layout.comfyui.exists()


def test_an_empty_store_with_no_network_says_so(lab: Lab) -> None:
    for wheel in lab.wheels.glob("*.whl"):
        wheel.unlink()
    for more in ((), ("--offline",)):
        done = lab.up(*more)
        assert done.returncode == 5, done.stdout
        assert "ERROR" in done.stdout
        assert not any("env" in name for name in lab.objects())


def test_a_broken_manifest_reports_every_problem_with_its_line(lab: Lab) -> None:
    manifest = lab.folder / "comfypod.toml"
    manifest.write_text(
        'schema = 1\nprofiles = ["cpu", 3]\nprofils = 1\n[comfyui]\nversion = 30\n'
        + '[[node]]\nname = "a"\ngit = "https://h/a.git"\nref = "v1"\n' * 2
    )
    done = lab.run("lock", "--manifest", str(manifest), "--json")
    body = json.loads(done.stdout)
    assert done.returncode == 3
    said = " ".join(f"{error['message']} {error['hint']}" for error in body["errors"])
    for words in ("profils", "profiles", "comfyui.version", "comfypod.toml:3:", "'a'"):
        assert words in said
    assert len(body["errors"]) >= 4


@pytest.mark.root
def test_too_small_a_disk_is_refused_before_the_first_byte(tmp_path: Path) -> None:
    lab = Lab(tmp_path)
    with tmpfs(lab.data, megabytes=1):
        (lab.data / "filler").write_bytes(bytes(900_000))
        done = lab.up()
        assert done.returncode == 8
        assert "needs" in done.stdout or "needed" in done.stdout
        assert not any(lab.objects().values())


@pytest.mark.root
@pytest.mark.parametrize("which", ["data", "workspace"])
def test_an_unwritable_disk_is_refused_with_a_remedy(tmp_path: Path, which: str) -> None:
    lab = Lab(tmp_path)
    folder = lab.data if which == "data" else lab.layout.root
    with tmpfs(folder, read_only=True):
        done = lab.up()
    assert done.returncode == 8
    assert "read-only" in done.stdout
    assert "choose another" in done.stdout or "COMFYPOD_DATA" in done.stdout
    assert lab.children() == []


def test_comfyui_that_dies_at_start_ends_up_with_its_last_words(lab: Lab) -> None:
    lab.obey(Orders(die=7))
    done = lab.up()
    assert done.returncode == 10
    assert "ended with 7" in done.stdout
    assert "stand-in dies" in done.stdout
    assert "comfyui.log" in done.stdout
    lab.obey(Orders())
    assert lab.up().returncode == 0


def test_a_pod_that_is_not_ready_in_time_goes_on_and_says_how_to_follow(lab: Lab) -> None:
    lab.obey(Orders(slow=3.0))
    done = lab.run(*lab.up_arguments("--detach", "--wait", "1.5"))
    assert done.returncode == 11
    assert "comfypod status" in done.stdout
    until(lambda: (lab.status() or {}).get("ready"), "ready")


def _environment_begun(lab: Lab) -> bool:
    return any((lab.data / "store").glob("comfyui-env/*/venv/lib"))


PHASES: dict[str, Callable[[Lab], bool]] = {
    "choosing a profile": lambda lab: "profile cpu" in lab.said(),
    "taking the source": lambda lab: any((lab.data / "store").glob("comfyui/*/*")),
    "installing packages": _environment_begun,
    "seeding": lambda lab: lab.layout.staging.exists(),
    "waiting for ComfyUI": lambda lab: (lab.status() or {}).get("phase") == "starting",
}


@pytest.mark.slow
@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize("detach", [True, False], ids=["detached", "foreground"])
def test_ctrl_c_in_every_phase_leaves_nothing_half_done(tmp_path: Path, phase: str, detach: bool) -> None:
    """Slow because every phase runs for real, is interrupted as by a terminal, and is then completed."""
    lab = Lab(tmp_path, Orders(slow=4.0), bulk_files=4000)
    (lab.tree / "models" / "large.bin").write_bytes(os.urandom(60_000_000))
    lab.run("lock", "--manifest", str(lab.folder / "comfypod.toml"), "--upgrade", "comfyui")
    with lab.started(*(["--detach"] if detach else [])) as process:
        until(lambda: PHASES[phase](lab) or process.poll() is not None, phase)
        assert process.poll() is None, lab.said()
        os.killpg(process.pid, signal.SIGINT)
        code = exit_code(process.wait(15))
    booting = not detach and phase in ("seeding", "waiting for ComfyUI")
    assert code == (0 if booting else 130), lab.said()
    assert "Traceback" not in lab.said()
    until(lambda: not lab.children(), "all programs ended", 5)
    assert all(lab.objects().values()), lab.objects()
    assert not lab.layout.staging.exists()
    lab.obey(Orders())
    again = lab.up()
    assert again.returncode == 0, again.stdout
    assert (lab.layout.comfyui / "models" / "large.bin").stat().st_size == 60_000_000
    assert lab.down().returncode == 0


@pytest.mark.parametrize("verb", ["up", "down"])
def test_what_a_killed_pod_left_running_is_ended(lab: Lab, verb: str) -> None:
    assert lab.up().returncode == 0
    status = lab.status() or {}
    os.kill(status["boot"]["pid"], signal.SIGKILL)
    until(lambda: lab.status() is None, "killed")
    assert proc.start_ticks(status["services"][0]["pid"]) is not None
    done = lab.up() if verb == "up" else lab.down()
    assert done.returncode == 0, done.stdout
    assert proc.start_ticks(status["services"][0]["pid"]) is None


def test_sigterm_in_the_middle_of_an_install_is_as_clean_as_ctrl_c(tmp_path: Path) -> None:
    lab = Lab(tmp_path, bulk_files=4000)
    with lab.started("--detach") as process:
        until(lambda: _environment_begun(lab), "installing")
        process.send_signal(signal.SIGTERM)
        assert process.wait(15) == 143
    until(lambda: not lab.children(), "all programs ended", 5)
    assert all(lab.objects().values())


def test_sigkill_in_the_middle_of_an_install_is_completed_by_the_next_up(tmp_path: Path) -> None:
    lab = Lab(tmp_path, bulk_files=4000)
    with lab.started("--detach") as process:
        until(lambda: _environment_begun(lab), "installing")
        process.kill()
        process.wait()
    until(lambda: not lab.children(), "all programs ended", 10)
    assert lab.up().returncode == 0
    assert all(lab.objects().values())
    assert lab.down().returncode == 0


def test_in_the_foreground_up_becomes_boot_and_ends_with_ctrl_c(lab: Lab) -> None:
    with lab.started() as process:
        until(lambda: (lab.status() or {}).get("ready"), "ready")
        began = time.monotonic()
        os.killpg(process.pid, signal.SIGINT)
        assert process.wait(10) == 0
        assert time.monotonic() - began < 5
    assert "ready after" in lab.said()
    assert "stopped" in lab.said().splitlines()

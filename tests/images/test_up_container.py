"""`comfypod up` and `down` with a real engine, around an image of the stand-in ComfyUI."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pytest

from comfypod import control
from comfypod.errors import HostError
from comfypod.host.start import WORKSPACE_LABEL, name_of
from comfypod.image import detect
from comfypod.podfile import GpuNeed
from comfypod.workspace.layout import Layout
from tests.kit import driver, standin_image
from tests.kit.lab import until
from tests.kit.pods import ROOT, comfypod, free_port
from tests.kit.standin import Orders

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from comfypod.image.engine import Engine
    from comfypod.image.facts import Container

# The address of the host on docker's own network, as other containers reach it.
_GATEWAY = "{{(index .IPAM.Config 0).Gateway}}"


@dataclass(frozen=True)
class Images:
    """Names of images: one that works, one whose ComfyUI dies, one whose ComfyUI never serves, one for a GPU."""

    works: str
    dies: str
    slow: str
    gpu: str


@pytest.fixture(scope="session")
def images(local: Engine, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Images]:
    folder, name = tmp_path_factory.mktemp("standin-images"), f"comfypod-standin-{os.getpid()}"
    need = GpuNeed("4090", "stand-in", ("8.9",), 525)
    found = Images(
        standin_image.build(local, folder, f"{name}:works"),
        standin_image.build(local, folder, f"{name}:dies", Orders(die=7)),
        standin_image.build(local, folder, f"{name}:slow", Orders(slow=3600)),
        standin_image.build(local, folder, f"{name}:gpu", need=need),
    )
    yield found
    for each in (found.works, found.dies, found.slow, found.gpu):
        local.remove_image(each)


@dataclass
class Host:
    """A machine with one workspace, and an engine that runs its pod."""

    folder: Path
    engine: Engine
    image: str
    port: int = field(default_factory=free_port)
    control_port: int = field(default_factory=free_port)
    environ: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.layout = Layout(self.folder / "workspace")

    def arguments(self, *more: str) -> list[str]:
        return [
            "up", "--engine", self.engine.name, "--image", self.image, "--workspace", str(self.layout.root),
            "--port", str(self.port), "--control-port", str(self.control_port), *more,
        ]  # fmt: skip

    def run(self, verb: str, *more: str) -> subprocess.CompletedProcess[str]:
        return comfypod(verb, "--workspace", str(self.layout.root), *more, env=self.environ)

    def up(self, *more: str, **environ: str) -> subprocess.CompletedProcess[str]:
        return comfypod(*self.arguments("--detach", "--wait", "30", *more), env={**self.environ, **environ})

    def down(self) -> subprocess.CompletedProcess[str]:
        return self.run("down")

    def start(self, *more: str) -> subprocess.Popen[str]:
        """Run `up` in a process group of its own, as a terminal does."""
        return subprocess.Popen(
            [sys.executable, "-m", "comfypod", *self.arguments(*more)], stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env={**os.environ, **self.environ}, cwd=ROOT,
            process_group=0,
        )  # fmt: skip

    @contextmanager
    def started(self, *more: str) -> Iterator[subprocess.Popen[str]]:
        """Run `up` as `start` does; killed at the end if it is left."""
        process = self.start(*more)
        try:
            yield process
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
            process.communicate()

    def status(self) -> dict[str, Any]:
        return control.status(f"http://127.0.0.1:{self.control_port}") or {}

    def container(self) -> Container | None:
        return self.engine.container(name_of(self.layout))

    def standin(self) -> dict[str, Any]:
        """Return what the stand-in saw when it started: arguments, environment, user."""
        done = self.engine.exec(name_of(self.layout), ["cat", "/opt/standin/starts"])
        found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        return found


@pytest.fixture
def host(tmp_path: Path, local: Engine, images: Images) -> Iterator[Host]:
    """A host whose test leaves no container behind, whatever went wrong in it."""
    host = Host(tmp_path, local, images.works)
    yield host
    left = host.container()
    if left is not None:
        local.remove(left.id)
    assert left is None


def _round_trip(host: Host) -> None:
    done = host.up("--json")
    body = json.loads(done.stdout)
    assert (done.returncode, body["status"]) == (0, "success"), done.stderr
    assert body["data"]["urls"] == {"comfyui": f"http://127.0.0.1:{host.port}"}
    found = host.container()
    assert found is not None
    assert found.running
    assert found.labels[WORKSPACE_LABEL] == str(host.layout.root)
    assert host.run("status").stdout.startswith("ready: up ")
    assert host.run("health").stdout == "ready\n"
    assert host.run("logs").stdout.splitlines()[0] == "stand-in starts"
    assert "ready after" in host.run("logs", "boot").stdout
    down = host.down()
    assert down.returncode == 0
    assert down.stdout.startswith("stopped in ")
    assert host.container() is None
    assert [host.run(verb).returncode for verb in ("down", "status", "health")] == [12, 12, 12]


def test_from_an_image_to_a_ready_pod_and_back(host: Host) -> None:
    _round_trip(host)
    assert host.up().returncode == 0
    assert host.status()["stages"][0]["detail"] == "ComfyUI 1 is in place"
    assert host.down().returncode == 0


def test_podman_does_the_same(tmp_path: Path, local: Engine, images: Images) -> None:
    try:
        podman = detect.find("podman", building=False)
    except HostError as error:
        pytest.skip(error.message)
    bundle = tmp_path / "image.tar"
    subprocess.run([local.program, "save", "--output", str(bundle), images.works], check=True)
    subprocess.run([podman.program, "load", "--quiet", "--input", str(bundle)], check=True, capture_output=True)
    host = Host(tmp_path, podman, f"localhost/{images.works}")
    try:
        _round_trip(host)
        with host.started() as process:
            until(lambda: host.status().get("ready"), "ready")
            os.killpg(process.pid, signal.SIGINT)
            assert process.wait(15) == 0
        assert host.container() is None
    finally:
        podman.remove(name_of(host.layout))
        podman.remove_image(host.image)


def test_nothing_listens_beyond_loopback_although_the_image_would(host: Host) -> None:
    assert host.up().returncode == 0
    settings = host.status()["settings"]
    assert {settings[name]["value"] for name in ("listen", "jupyter_listen", "control_listen")} == {"127.0.0.1"}
    program = host.engine.program
    gateway = subprocess.run(
        [program, "network", "inspect", "bridge", "--format", _GATEWAY], capture_output=True, text=True, check=True
    ).stdout.strip()
    for port in (host.port, host.control_port):
        code = f"import socket; print(socket.socket().connect_ex(({gateway!r}, {port})))"
        argv = [program, "run", "--rm", "--entrypoint", "python3", host.image, "-c", code]
        assert subprocess.run(argv, capture_output=True, text=True, check=True).stdout == "111\n"
    host.down()


def test_settings_arguments_and_secrets_reach_the_pod_and_no_process_list(host: Host) -> None:
    secret = host.folder / "password"
    secret.write_text("canary-two\n")
    done = host.up(
        "--", "--cpu", COMFYPOD_TOKEN="canary-one", JUPYTER_PASSWORD_FILE=str(secret), COMFYPOD_SAFE_MODE="on",
        COMFYPOD_WORKSPACE="/elsewhere", HTTPS_PROXY="http://127.0.0.1:9",
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    shown, seen = host.status()["settings"], host.standin()
    assert [shown[name]["value"] for name in ("token", "jupyter_password")] == ["given", "given"]
    assert shown["workspace"]["value"] == "/workspace"
    assert {"--cpu", "--disable-all-custom-nodes"} <= set(seen["argv"])
    assert seen["env"]["HTTPS_PROXY"] == "http://127.0.0.1:9"
    assert "canary" not in json.dumps(seen)
    format_ = "{{json .Path}} {{json .Args}} {{json .Config.Labels}}"
    said = subprocess.run(
        [host.engine.program, "inspect", "--format", format_, name_of(host.layout)],
        capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    assert "--set=comfyui_args=--cpu" in said
    assert "canary" not in said
    host.down()


@pytest.mark.root
@pytest.mark.parametrize(("given", "owner"), [({}, (1000, 1000)), ({"PUID": "2222", "PGID": "3333"}, (2222, 3333))])
def test_f1_files_belong_to_the_usual_user_or_to_the_one_that_is_named(
    host: Host, given: dict[str, str], owner: tuple[int, int]
) -> None:
    assert host.up(**given).returncode == 0
    assert tuple(host.standin()["uids"]) == (owner[0],) * 3
    root = host.layout.root
    found = {(path.lstat().st_uid, path.lstat().st_gid) for path in [root, *root.rglob("*")]}
    assert found == {owner}
    assert host.down().returncode == 0


def test_ctrl_c_in_the_foreground_stops_the_pod_in_order(host: Host) -> None:
    with host.started() as process:
        until(lambda: host.status().get("ready"), "ready")
        os.killpg(process.pid, signal.SIGINT)
        said = process.communicate(timeout=15)[0]
    assert process.returncode == 0
    assert "stand-in stopped server" in said
    assert said.splitlines()[-1] == "stopped"
    assert "Traceback" not in said


def test_the_foreground_ends_with_the_exit_code_of_boot(host: Host, images: Images) -> None:
    host.image = images.dies
    with host.started() as process:
        said = process.communicate(timeout=60)[0]
    assert process.returncode == 7
    assert "stand-in dies" in said


def test_down_ends_a_pod_of_the_foreground(host: Host) -> None:
    with host.started() as process:
        until(lambda: host.status().get("ready"), "ready")
        assert host.down().returncode == 0
        assert process.wait(15) == 0


def test_ctrl_c_while_detach_waits_leaves_no_container(host: Host, images: Images) -> None:
    host.image = images.slow
    with host.started("--detach") as process:
        until(lambda: host.status().get("phase") == "starting", "starting")
        os.killpg(process.pid, signal.SIGINT)
        assert process.wait(30) == 130
    assert host.container() is None


def test_a_pod_that_is_not_ready_in_time_goes_on(host: Host, images: Images) -> None:
    host.image = images.slow
    done = host.up("--wait", "1.5")
    assert done.returncode == 11
    assert "the pod is not ready after 2 s: comfyui is starting" in done.stdout
    assert host.down().returncode == 0


def test_comfyui_that_dies_at_start_ends_up_with_its_last_words(host: Host, images: Images) -> None:
    host.image = images.dies
    done = host.up()
    assert done.returncode == 10
    assert "ended with 7" in done.stdout
    assert "stand-in dies" in done.stdout
    assert str(host.layout.logs / "comfyui.log") in done.stdout
    assert host.container() is None


@pytest.mark.root
def test_f2_what_boot_says_against_a_workspace_comes_out_with_its_exit_code_and_its_name_here(host: Host) -> None:
    host.layout.root.mkdir()
    (host.layout.root / "mine").write_text("")
    os.chown(host.layout.root, 1234, 1234)
    done = host.up(PUID="2222")
    assert done.returncode == 8
    assert f"{host.layout.root} belongs to 1234:1234 (mode 0755) and cannot be written by 2222:2222" in done.stdout
    assert sorted(path.name for path in host.layout.root.iterdir()) == ["mine"]


def test_a_busy_port_is_refused_before_anything_starts(host: Host) -> None:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", host.port))
        holder.listen()
        done = host.up()
    assert done.returncode == 9
    assert f"port {host.port} is in use by" in done.stdout
    assert f"pid {os.getpid()}" in done.stdout
    assert list(host.layout.root.iterdir()) == []


def test_b5_a_workspace_of_a_newer_schema_is_left_alone(host: Host) -> None:
    host.layout.records.mkdir(parents=True)
    host.layout.state.write_text(json.dumps({"schema": 99, "writer": "9.0"}))
    done = host.up()
    assert done.returncode == 8
    assert "schema 99" in done.stdout
    assert [path.name for path in host.layout.root.rglob("*")] == [".comfypod", "state.json"]


@pytest.mark.parametrize("detach", [True, False], ids=["detached", "foreground"])
def test_two_ups_one_after_the_other(host: Host, detach: bool) -> None:
    assert host.up().returncode == 0
    with host.started(*(["--detach"] if detach else [])) as second:
        said = second.communicate(timeout=30)[0]
    assert second.returncode == 9
    assert f"the workspace {host.layout.root} is in use by the container {name_of(host.layout)}" in said
    assert "comfypod down" in said
    assert host.status()["ready"]
    assert host.down().returncode == 0


def test_two_ups_at_once_end_with_one_pod(host: Host) -> None:
    both = [host.start("--detach") for _ in range(2)]
    said = [process.communicate(timeout=60)[0] for process in both]
    assert sorted(process.returncode for process in both) == [0, 9], said
    assert host.status()["ready"]
    assert host.down().returncode == 0


@pytest.mark.parametrize("verb", ["up", "down"])
def test_a_container_that_was_killed_is_put_away(host: Host, verb: str) -> None:
    assert host.up().returncode == 0
    subprocess.run([host.engine.program, "kill", name_of(host.layout)], check=True, capture_output=True)
    assert host.run("status").returncode == 12
    if verb == "up":
        assert host.up().returncode == 0
    done = host.down()
    assert done.returncode == 0
    assert verb == "up" or "which had ended" in done.stdout


@pytest.mark.slow
def test_a_container_that_was_never_started_is_put_away(host: Host) -> None:
    """Slow because it waits for a start that does not come, as another `up` may be about to do it."""
    label = f"{WORKSPACE_LABEL}={host.layout.root}"
    argv = [host.engine.program, "create", "--name", name_of(host.layout), "--label", label, host.image]
    subprocess.run(argv, check=True, capture_output=True)
    done = host.up()
    assert done.returncode == 0
    assert "is created; waiting for it" in done.stdout
    assert host.down().returncode == 0


def test_a_container_of_that_name_that_is_not_ours_is_left_alone(host: Host) -> None:
    argv = [host.engine.program, "create", "--name", name_of(host.layout), host.image]
    subprocess.run(argv, check=True, capture_output=True)
    try:
        assert host.down().returncode == 12
        done = host.up()
        assert done.returncode == 13
        assert "comfypod did not make" in done.stdout
        assert host.container() is not None
    finally:
        host.engine.remove(name_of(host.layout))


def test_an_image_that_is_not_here_or_not_ours_is_refused(host: Host) -> None:
    host.image = "comfypod.invalid/none:1"
    done = host.up("--offline")
    assert (done.returncode, "--offline forbids fetching it" in done.stdout) == (13, True)
    done = host.up()
    assert (done.returncode, f"cannot fetch the image {host.image}" in done.stdout) == (5, True)
    host.image = standin_image.BASE
    done = host.up()
    assert (done.returncode, "comfypod did not build" in done.stdout) == (2, True)
    assert not host.layout.root.exists()


def test_e10_an_image_for_a_gpu_is_refused_without_one_and_runs_on_the_cpu_when_asked_to(
    host: Host, images: Images
) -> None:
    host.image = images.gpu
    done = host.up()
    assert done.returncode == 13
    assert "profile 4090 needs an NVIDIA GPU" in done.stdout
    assert "use an image of profile cpu" in done.stdout
    done = host.up(COMFYPOD_ALLOW_CPU="1")
    assert done.returncode == 0, done.stdout
    assert "WARNING profile 4090 needs an NVIDIA GPU" in done.stdout
    assert "--cpu" in host.standin()["argv"]
    assert host.down().returncode == 0


@pytest.mark.parametrize("detach", [True, False], ids=["detached", "foreground"])
def test_a_gpu_that_the_engine_refuses_comes_with_what_to_install(host: Host, images: Images, detach: bool) -> None:
    host.image = images.gpu
    host.environ = driver.environ(driver.build(host.folder), {})
    with host.started(*(["--detach"] if detach else [])) as process:
        said = process.communicate(timeout=60)[0]
    assert process.returncode == 13, said
    assert "install nvidia-container-toolkit" in said

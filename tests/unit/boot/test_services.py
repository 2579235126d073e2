from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest

from comfypod.boot.services import SAFE_MODE_ARGUMENT, Service, comfyui, jupyter
from comfypod.podfile import PodFile
from comfypod.settings import Settings, resolve
from comfypod.workspace.core import Core
from comfypod.workspace.plan import Plan
from tests.kit.pods import free_port

PYTHON = Path("/opt/venv/bin/python")
WORKSPACE = Path("/workspace")
POD = PodFile(
    profile="cpu", arch="x86_64", lock="0" * 64, comfyui_version="0.30.0", comfyui_digest="sha256:" + "a" * 64,
    comfyui_path="/opt/comfyui", environment_key="k", torch="2.0", python=str(PYTHON),
    jupyter="/opt/venv/bin/jupyter-lab", comfyui_args=("--cpu",),
)  # fmt: skip
LIVE = Path("/workspace/ComfyUI")
KEPT = Core(Plan("keep", "r", "move", ""), LIVE, LIVE, "r")
OTHER = Core(Plan("image", "r", "link", ""), Path("/opt/comfyui"), LIVE, "r")
TOKEN = "t0k3n"  # a value that is easy to find again


def settings_of(environ: dict[str, str] | None = None, **arguments: str) -> Settings:
    return resolve({"workspace": "/nowhere"}, environ or {}, arguments)


def lab_of(environ: dict[str, str] | None = None, **arguments: str) -> Service:
    service = jupyter(POD, settings_of(environ, **arguments), environ or {})
    assert service is not None
    return service


def test_comfyui_runs_from_the_volume_with_its_own_folders() -> None:
    service = comfyui(POD, settings_of(comfyui_args="--preview-method 'a b'"), KEPT, {})
    assert service.argv == (
        str(PYTHON), "/workspace/ComfyUI/main.py", "--cpu", "--preview-method", "a b", "--listen", "127.0.0.1",
        "--port", str(service.port), "--disable-auto-launch",
    )  # fmt: skip
    assert service.safe_argv == (*service.argv, SAFE_MODE_ARGUMENT)
    assert (service.cwd, service.critical, service.limits.has_safe_mode) == (LIVE, True, True)


def test_a_core_from_elsewhere_runs_over_the_folders_of_the_volume() -> None:
    argv = comfyui(POD, settings_of(), OTHER, {}).argv
    assert argv[1] == "/opt/comfyui/main.py"
    assert argv[argv.index("--base-directory") + 1] == str(LIVE)
    assert argv[argv.index("--database-url") + 1] == "sqlite:////workspace/ComfyUI/user/comfyui.db"
    assert "--base-directory" not in comfyui(POD, settings_of(), KEPT, {}).argv


def test_the_cpu_is_asked_for_once_and_the_images_own_folders_are_named() -> None:
    gpu_pod = replace(POD, comfyui_args=())
    assert "--cpu" not in comfyui(gpu_pod, settings_of(), KEPT, {}).argv
    assert comfyui(gpu_pod, settings_of(), KEPT, {}, cpu=True).argv.count("--cpu") == 1
    assert comfyui(POD, settings_of(), KEPT, {}, cpu=True).argv.count("--cpu") == 1
    argv = comfyui(POD, settings_of(), KEPT, {}, extra_paths=Path("/w/extra.yaml")).safe_argv
    assert argv[argv.index("--extra-model-paths-config") + 1] == "/w/extra.yaml"
    assert argv[-1] == SAFE_MODE_ARGUMENT


def test_safe_mode_that_was_asked_for_is_not_tried_twice() -> None:
    service = comfyui(POD, settings_of(safe_mode="on"), KEPT, {})
    assert service.argv == service.safe_argv
    assert service.argv.count(SAFE_MODE_ARGUMENT) == 1
    assert not service.limits.has_safe_mode


@pytest.mark.parametrize("listen", ["127.0.0.1", "0.0.0.0", "::"])
def test_services_answer_on_loopback_alone_at_ports_of_their_own(listen: str) -> None:
    settings = settings_of(listen=listen, auth="none")
    made = [comfyui(POD, settings, KEPT, {}), lab_of(listen=listen, auth="none")]
    assert {service.host for service in made} == {"127.0.0.1"}
    assert all(20000 <= service.port < 30000 for service in made)
    assert "--listen 127.0.0.1" in " ".join(made[0].argv)
    assert "--ServerApp.ip=127.0.0.1" in made[1].argv


def test_a_services_port_stays_the_same_and_is_never_that_of_the_other() -> None:
    port = free_port()
    lab = lab_of(port=str(port), jupyter_port=str(port % 20000 + 10000))
    first, second = (comfyui(POD, settings_of(port=str(port)), KEPT, {}) for _ in range(2))
    assert first.port == second.port != lab.port


def test_jupyterlab_knows_neither_the_token_nor_the_password() -> None:
    service = lab_of(
        {"COMFYPOD_TOKEN": TOKEN, "JUPYTER_TOKEN": "third", "JUPYTER_PASSWORD": "hunter22", "PATH": "/bin"}
    )
    told = " ".join((*service.argv, *service.env.values()))
    assert not [secret for secret in (TOKEN, "third", "hunter22") if secret in told]
    assert len(service.env["JUPYTER_TOKEN"]) == 48
    assert service.env["JUPYTER_TOKEN"] not in " ".join(service.argv)
    assert service.env["JUPYTER_TOKEN"] != lab_of().env["JUPYTER_TOKEN"]
    assert service.env["PATH"].startswith("/opt/venv/bin:")
    assert not service.critical


def test_jupyterlab_stands_below_its_path_and_runs_as_root_only_where_it_must() -> None:
    service = lab_of()
    assert "--ServerApp.base_url=/jupyter/" in service.argv
    assert service.path == "/jupyter/api"
    assert ("--allow-root" in service.argv) is (os.geteuid() == 0)
    assert "--ServerApp.port_retries=0" in service.argv


def test_a_config_in_the_home_has_no_say_where_jupyterlab_is_reached_from_outside() -> None:
    assert "JUPYTER_NO_CONFIG" not in lab_of().env
    lab = lab_of(jupyter_listen="0.0.0.0")
    assert lab.env["JUPYTER_NO_CONFIG"] == "1"
    assert "--ServerApp.jpserver_extensions=jupyter_server_terminals=True" in lab.argv


def test_there_is_no_jupyterlab_where_it_is_off_or_not_installed() -> None:
    assert jupyter(POD, settings_of(jupyter="off"), {}) is None
    assert jupyter(replace(POD, jupyter=None), settings_of(), {}) is None

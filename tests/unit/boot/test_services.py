from __future__ import annotations

import hashlib
import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from comfypod.boot.services import SAFE_MODE_ARGUMENT, Service, child_environ, comfyui, jupyter
from comfypod.podfile import PodFile
from comfypod.settings import Settings, resolve, secret_variables
from comfypod.workspace import run
from comfypod.workspace.core import Core
from comfypod.workspace.layout import Layout
from comfypod.workspace.plan import Plan

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
_NAMES = st.sampled_from(sorted(secret_variables())) | st.sampled_from(
    ["PATH", "HOME", "PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "HF_TOKEN", "LD_LIBRARY_PATH", "PYTHONSTARTUP"]
)


def settings_of(environ: dict[str, str] | None = None, **arguments: str) -> Settings:
    return resolve({"workspace": "/nowhere"}, environ or {}, arguments)


def lab_of(tmp_path: Path, environ: dict[str, str] | None = None, **arguments: str) -> Service:
    layout = Layout(tmp_path)
    layout.records.mkdir(exist_ok=True)
    service = jupyter(POD, settings_of(environ, **arguments), layout, TOKEN, environ or {})
    assert service is not None
    return service


@given(st.dictionaries(_NAMES | st.text("ABC_", min_size=1), st.text(min_size=1, max_size=9)))
def test_no_secret_and_no_python_setting_of_the_callers_reaches_a_child(environ: dict[str, str]) -> None:
    child = child_environ(environ, PYTHON, WORKSPACE)
    assert not secret_variables() & set(child)
    assert not {"PYTHONPATH", "PYTHONHOME", "PYTHONSTARTUP"} & set(child)
    ours = {"PATH", "VIRTUAL_ENV", "PYTHONUNBUFFERED", run.MARK, "PYTHONPATH", "PYTHONHOME", "PYTHONSTARTUP"}
    others = set(environ) - secret_variables() - ours
    assert {name: child[name] for name in others} == {name: environ[name] for name in others}


def test_programs_of_the_environment_come_first() -> None:
    child = child_environ({"PATH": "/usr/bin:/bin"}, PYTHON, WORKSPACE)
    assert child["PATH"] == "/opt/venv/bin:/usr/bin:/bin"
    assert child["VIRTUAL_ENV"] == "/opt/venv"
    assert child_environ({}, PYTHON, WORKSPACE)["PATH"] == f"/opt/venv/bin:{os.defpath}"


def test_comfyui_runs_from_the_volume_with_its_own_folders() -> None:
    service = comfyui(POD, settings_of(comfyui_args="--preview-method 'a b'"), KEPT, {})
    assert service.argv == (
        str(PYTHON), "/workspace/ComfyUI/main.py", "--cpu", "--preview-method", "a b", "--listen", "127.0.0.1",
        "--port", "8188", "--disable-auto-launch",
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


@pytest.mark.parametrize(("listen", "host"), [("127.0.0.1", "127.0.0.1"), ("0.0.0.0", "127.0.0.1"), ("::", "::1")])
def test_a_service_is_asked_where_this_machine_reaches_it(listen: str, host: str) -> None:
    service = comfyui(POD, settings_of(listen=listen, auth="none"), KEPT, {})
    assert service.argv[service.argv.index("--listen") + 1] == listen
    assert service.host == host
    assert service.url == ("http://[::1]:8188" if ":" in host else f"http://{host}:8188")


def test_jupyterlab_gets_its_token_by_environment_and_never_by_argument(tmp_path: Path) -> None:
    service = lab_of(tmp_path, {"COMFYPOD_TOKEN": "other", "JUPYTER_TOKEN": "third", "PATH": "/bin"})
    assert service.env["JUPYTER_TOKEN"] == TOKEN
    assert "COMFYPOD_TOKEN" not in service.env
    for secret in (TOKEN, "other", "third"):
        assert secret not in " ".join(service.argv)
    assert service.env["PATH"].startswith("/opt/venv/bin:")
    assert not service.critical
    assert not Layout(tmp_path).jupyter_config.exists()


@given(st.text(st.characters(exclude_categories=("Cs", "Cc")), min_size=1).map(str.strip).filter(bool))
def test_a_password_is_kept_as_the_hash_that_jupyterlab_checks(password: str) -> None:
    from tempfile import TemporaryDirectory

    with TemporaryDirectory() as folder:
        layout = Layout(Path(folder))
        layout.records.mkdir()
        service = jupyter(POD, replace(settings_of(), jupyter_password=password), layout, TOKEN, {})
        assert service is not None
        body = json.loads(layout.jupyter_config.read_text())
        assert layout.jupyter_config.stat().st_mode & 0o777 == 0o600
        assert f"--config={layout.jupyter_config}" in service.argv
    algorithm, salt, digest = body["PasswordIdentityProvider"]["hashed_password"].split(":")
    assert algorithm == "sha256"
    assert hashlib.new(algorithm, password.encode() + salt.encode("ascii")).hexdigest() == digest
    assert body["IdentityProvider"]["token"] == ""
    assert "JUPYTER_TOKEN" not in service.env


def test_a_password_stands_nowhere_in_the_clear_and_its_salt_is_new_each_time(tmp_path: Path) -> None:
    bodies = set()
    for _ in range(2):
        service = lab_of(tmp_path, {"JUPYTER_PASSWORD": "hunter22"})
        bodies.add(Layout(tmp_path).jupyter_config.read_text())
        assert "hunter22" not in " ".join((*service.argv, *service.env.values(), *bodies))
    assert len(bodies) == 2


def test_jupyterlab_says_yes_to_remote_access_and_root_only_where_needed(tmp_path: Path) -> None:
    near, far = lab_of(tmp_path), lab_of(tmp_path, listen="0.0.0.0", auth="none")
    assert "--ServerApp.allow_remote_access=True" not in near.argv
    assert "--ServerApp.allow_remote_access=True" in far.argv
    assert "--ServerApp.ip=0.0.0.0" in far.argv
    assert ("--allow-root" in near.argv) is (os.geteuid() == 0)
    assert "--ServerApp.port_retries=0" in near.argv


def test_jupyterlab_may_answer_where_comfyui_does_not(tmp_path: Path) -> None:
    service = lab_of(tmp_path, jupyter_listen="0.0.0.0")
    assert "--ServerApp.ip=0.0.0.0" in service.argv
    assert "--ServerApp.allow_remote_access=True" in service.argv
    assert service.host == "127.0.0.1"
    assert service.env["JUPYTER_TOKEN"] == TOKEN
    argv = comfyui(POD, settings_of(jupyter_listen="0.0.0.0"), KEPT, {}).argv
    assert argv[argv.index("--listen") + 1] == "127.0.0.1"


def test_there_is_no_jupyterlab_where_it_is_off_or_not_installed(tmp_path: Path) -> None:
    layout = Layout(tmp_path)
    assert jupyter(POD, settings_of(jupyter="off"), layout, TOKEN, {}) is None
    assert jupyter(replace(POD, jupyter=None), settings_of(), layout, TOKEN, {}) is None

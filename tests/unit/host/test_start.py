from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from comfypod.host.start import boot_command, environment, name_of, run_options
from comfypod.settings import resolve
from comfypod.workspace.layout import Layout

if TYPE_CHECKING:
    from pathlib import Path

    from comfypod.settings import Settings


def settings(tmp_path: Path, environ: dict[str, str] | None = None, **given: str) -> Settings:
    return resolve({"workspace": str(tmp_path), "on_failure": "exit"}, environ or {}, given)


def test_a_workspace_has_one_name_whatever_it_is_called(tmp_path: Path) -> None:
    (tmp_path / "ws").mkdir()
    (tmp_path / "link").symlink_to("ws")
    name = name_of(Layout(tmp_path / "ws"))
    assert name == name_of(Layout(tmp_path / "link"))
    assert name != name_of(Layout(tmp_path / "other"))
    assert len(name) == len("comfypod-") + 12


def test_the_engine_is_given_the_hosts_network_and_time_to_stop(tmp_path: Path) -> None:
    found = run_options(Layout(tmp_path / 'a,b:"c'), settings(tmp_path, stop_seconds="7", drain_seconds="5"))
    pairs = dict(zip(found[::2], found[1::2], strict=True))
    assert pairs["--mount"] == f'type=bind,"source={tmp_path}/a,b:""c",destination=/workspace'
    assert (pairs["--network"], pairs["--pull"], pairs["--restart"]) == ("host", "never", "no")
    assert pairs["--stop-timeout"] == "29"
    assert "io.comfypod.stop-seconds=29" in found


def test_addresses_are_decided_here_and_everything_else_is_handed_on(tmp_path: Path) -> None:
    given = {"port": "9000", "jupyter": "off", "workspace": "/here", "comfyui_args": "--preview-method auto"}
    found = boot_command(settings(tmp_path, {"COMFYPOD_CONTROL_PORT": "9001"}, **given), given, json_end=True)
    assert found[:3] == ("comfypod", "boot", "--json")
    assert set(found[3:]) == {
        "--set=port=9000", "--set=jupyter=off", "--set=comfyui_args=--preview-method auto", "--set=listen=127.0.0.1",
        "--set=jupyter_listen=127.0.0.1", "--set=jupyter_port=8888", "--set=control_listen=127.0.0.1",
        "--set=control_port=9001", "--set=on_failure=exit",
    }  # fmt: skip


def test_the_callers_settings_are_passed_and_what_is_the_hosts_is_not(tmp_path: Path) -> None:
    (tmp_path / "password").write_text("canary\n")
    environ = {
        "COMFYPOD_SAFE_MODE": "on", "COMFYPOD_NEW_SETTING": "1", "COMFYPOD_AUTH": "", "COMFYPOD_WORKSPACE": "/a",
        "COMFYPOD_DATA": "/b", "COMFYPOD_POD": "/c", "COMFYPOD_GIT_MIRRORS": "x=y", "HF_TOKEN": "hf", "HOME": "/root",
        "PATH": "/bin", "https_proxy": "http://p", "JUPYTER_TOKEN": "tok",
        "JUPYTER_PASSWORD_FILE": str(tmp_path / "password"), "PUID": "5",
    }  # fmt: skip
    assert environment(settings(tmp_path, environ), environ, podman=False) == {
        "COMFYPOD_SAFE_MODE": "on", "COMFYPOD_NEW_SETTING": "1", "HF_TOKEN": "hf", "https_proxy": "http://p",
        "PUID": "5", "COMFYPOD_TOKEN": "tok", "JUPYTER_PASSWORD": "canary",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("uid", "podman", "owner"),
    [
        (0, False, {}),
        (0, True, {}),
        (1234, False, {"PUID": "1234", "PGID": "77"}),
        (1234, True, {"PUID": "0", "PGID": "0"}),
    ],
)
def test_files_shall_belong_to_the_caller(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, uid: int, podman: bool, owner: dict[str, str]
) -> None:
    monkeypatch.setattr("os.geteuid", lambda: uid)
    monkeypatch.setattr("os.getegid", lambda: 77)
    assert environment(settings(tmp_path), {}, podman=podman) == owner
    given = {"PGID": "9"}
    assert environment(settings(tmp_path, given), given, podman=podman) == given

"""Packages of a volume, around a stand-in ComfyUI: what a boot does about them."""

from __future__ import annotations

import os
import re
import signal
import subprocess
from typing import TYPE_CHECKING, Any

import pytest

from tests.kit.lab import until
from tests.kit.pods import Running, Site, booted
from tests.kit.wheels import build_wheel

if TYPE_CHECKING:
    from pathlib import Path


def _python(status: dict[str, Any], site: Site) -> str:
    return str(site.layout.envs / status["environment"]["key"] / "bin" / "python")


def _installed(site: Site, pod: Running, name: str, version: str = "1.0") -> None:
    """Install a package as a person does in a terminal of the pod."""
    wheel = build_wheel(site.folder / "wheels", name, version)
    status = pod.status()
    assert status is not None
    argv = ["uv", "pip", "install", "--quiet", "--offline", "--python", _python(status, site), str(wheel)]
    subprocess.run(argv, check=True, timeout=60)


def _stubbed(site: Site) -> bool:
    return any('"stubs": 2' in path.read_text() for path in site.layout.envs.glob("*/layer.json"))


def test_comfyui_and_terminals_run_in_the_volumes_layer_under_its_constraints(tmp_path: Path) -> None:
    site = Site(tmp_path)
    with booted(site) as pod:
        status = pod.wait_for("ready")
        (start,) = site.starts()
        env = start["env"]
        layer = str(site.layout.envs / status["environment"]["key"])
        assert (env["VIRTUAL_ENV"], env["PATH"].split(os.pathsep)[0]) == (layer, f"{layer}/bin")
        assert env["PIP_CONSTRAINT"] == env["UV_CONSTRAINT"] == f"{layer}/constraints.txt"
        assert env["UV_CACHE_DIR"] == str(site.layout.cache / "uv")


def test_what_a_person_installs_is_there_at_the_next_boot_and_noted_as_asked_for(tmp_path: Path) -> None:
    site = Site(tmp_path)
    with booted(site) as pod:
        pod.wait_for("ready")
        until(lambda: _stubbed(site), "stubs")
        _installed(site, pod, "kit-extra")
        assert pod.stop() == 0
    with booted(site) as pod:
        status = pod.wait_for("ready")
        assert [(row["name"], row["state"]) for row in status["environment"]["changed"]] == [("kit-extra", "added")]
        assert '"kit-extra"' in site.layout.requests.read_text()


def test_b9_a_layer_of_another_python_is_found_and_made_again_for_this_one(tmp_path: Path) -> None:
    """Of the other Python there is its folder and no more: what a volume keeps of an image that is gone."""
    site = Site(tmp_path, facts={"environment_key": "one"})
    with booted(site) as pod:
        key = pod.wait_for("ready")["environment"]["key"]
        until(lambda: _stubbed(site), "stubs")
        _installed(site, pod, "kit-extra")
        assert pod.stop() == 0
    (ours,) = (site.layout.envs / key / "lib").iterdir()
    ours.rename(ours.with_name("python3.10"))
    for name in ("python", "python3", ours.name):
        program = site.layout.envs / key / "bin" / name
        program.unlink()
        program.symlink_to("/nowhere/python3.10")
    with booted(Site(tmp_path, facts={"environment_key": "two"}), "--set", "offline=on") as pod:
        status = pod.wait_for("ready")
        assert [(row["name"], row["state"]) for row in status["environment"]["changed"]] == [("kit-extra", "added")]
        assert status["problems"] == []
        assert "Traceback" not in (site.layout.logs / "boot.log").read_text()
    assert (ours.with_name("python3.10") / "site-packages" / "kit_extra.py").exists()


def test_b9_c9_under_another_key_the_layer_is_made_again_without_a_network_and_the_one_before_stays(
    tmp_path: Path,
) -> None:
    site = Site(tmp_path, facts={"environment_key": "one"})
    with booted(site) as pod:
        pod.wait_for("ready")
        until(lambda: _stubbed(site), "stubs")
        _installed(site, pod, "kit-extra")
        assert pod.stop() == 0
    (site.folder / "wheels" / "kit_extra-1.0-py3-none-any.whl").unlink()
    keys = set()
    # No boot under the first key has seen it yet.
    for key in ("two", "one", "two"):
        other = Site(tmp_path, facts={"environment_key": key})
        with booted(other, "--set", "offline=on") as pod:
            status = pod.wait_for("ready")
            keys.add(status["environment"]["key"])
            assert [row["name"] for row in status["environment"]["changed"]] == ["kit-extra"], status["problems"]
            assert pod.stop() == 0
    assert len(keys) == 2
    assert sorted(path.name for path in site.layout.envs.iterdir()) == sorted(keys)


def test_a_boot_with_nothing_changed_starts_no_program_but_its_services(tmp_path: Path) -> None:
    site = Site(tmp_path)
    with booted(site) as pod:
        pod.wait_for("ready")
        until(lambda: _stubbed(site), "stubs")
        _installed(site, pod, "kit-extra")
        assert pod.stop() == 0
    with booted(site) as pod:
        pod.wait_for("ready")
        assert pod.stop() == 0
    log = tmp_path / "strace.log"
    with booted(site, prefix=("strace", "-f", "-qq", "-e", "trace=execve", "-o", str(log))) as pod:
        os.kill(pod.wait_for("ready")["boot"]["pid"], signal.SIGTERM)
        assert pod.process.wait(30) == 0
    started = re.findall(r'execve\("[^"]*", \[(.*)\], .* = 0', log.read_text())
    assert [next(part for part in ("boot", "gateway", "launch") if part in words) for words in started] == [
        "boot", "gateway", "launch",
    ]  # fmt: skip


@pytest.mark.parametrize("how", ["a file in its place", "a marker of garbage"])
def test_whatever_lies_where_layers_are_the_pod_comes_up(tmp_path: Path, how: str) -> None:
    site = Site(tmp_path)
    with booted(site) as pod:
        key = pod.wait_for("ready")["environment"]["key"]
        assert pod.stop() == 0
    marker = site.layout.envs / key / "layer.json"
    if how == "a marker of garbage":
        marker.write_bytes(b"\xff[")
    else:
        site.layout.envs.rename(tmp_path / "away")
        site.layout.envs.write_text("")
    with booted(site) as pod:
        status = pod.wait_for("ready")
        assert bool(status["environment"]["key"]) == (how == "a marker of garbage")
        assert [problem["code"] for problem in status["problems"]] == ([] if marker.exists() else ["storage"])


@pytest.mark.parametrize("marker", [b"", b"[1]"])
def test_a_layer_whose_marker_is_lost_is_set_aside_with_what_a_person_has_installed(
    tmp_path: Path, marker: bytes
) -> None:
    site = Site(tmp_path)
    with booted(site) as pod:
        key = pod.wait_for("ready")["environment"]["key"]
        until(lambda: _stubbed(site), "stubs")
        _installed(site, pod, "kit-extra")
        assert pod.stop() == 0
    (site.layout.envs / key / "layer.json").write_bytes(marker)
    with booted(site) as pod:
        status = pod.wait_for("ready")
        assert any("its marker cannot be read" in problem["message"] for problem in status["problems"])
        assert list(site.layout.set_aside.rglob("kit_extra.py"))
        assert status["environment"]["key"] == key

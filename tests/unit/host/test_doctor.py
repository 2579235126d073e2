"""`doctor` says what each finding means for `up`, in text and as data."""

from __future__ import annotations

import json
import platform
import socket
from typing import TYPE_CHECKING

import msgspec
import pytest

from comfypod import gpu
from comfypod.errors import UsageError
from comfypod.host import doctor
from comfypod.host.prepare import prepare
from comfypod.log import Console
from comfypod.manifest.profiles import profile
from comfypod.workspace import run
from comfypod.workspace.layout import Layout
from tests.unit.host import tiny

if TYPE_CHECKING:
    from pathlib import Path

    from comfypod.lock.schema import Lock

_PORTS = {"--port": 0}


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UV_DEFAULT_INDEX", "http://127.0.0.1:9/simple")


@pytest.fixture
def lock(tmp_path: Path, wheels: Path) -> Lock:
    made = tiny.lock(tiny.tree(tmp_path / "source"), tiny.wheel(wheels, "one"))
    return msgspec.structs.replace(
        made, targets=tuple(msgspec.structs.replace(target, arch=platform.machine()) for target in made.targets)
    )


def _at(port: int) -> doctor.Addresses:
    return (("127.0.0.1", {"--port": port}),)


def _findings(tmp_path: Path, lock: Lock | None = None, profile: str = "cpu") -> dict[str, doctor.Finding]:
    found = doctor.examine(
        data=tmp_path / "data",
        workspace=tmp_path / "workspace",
        addresses=(("127.0.0.1", _PORTS),),
        lock=lock,
        profile=profile,
    )
    return {finding.name: finding for finding in found}


def test_everything_is_looked_at_and_nothing_is_changed(tmp_path: Path, lock: Lock) -> None:
    names = list(_findings(tmp_path, lock))
    assert names == [
        "gpu", "profile", "store", "disk", "ports", "network", "docker", "podman", "uv", "git", "python", "memory",
    ]  # fmt: skip
    assert not (tmp_path / "data").exists()
    assert not (tmp_path / "workspace").exists()


def test_no_network_is_a_problem_only_while_something_must_be_fetched(
    tmp_path: Path, lock: Lock, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = _findings(tmp_path, lock)
    assert (before["store"].state, before["network"].state) == ("note", "problem")
    assert "lacks ComfyUI 0.30.0, 1 package for ComfyUI" in before["store"].detail
    with monkeypatch.context() as patch:
        patch.delenv("UV_DEFAULT_INDEX")
        prepare(
            lock, profile("cpu"), platform.machine(), data=tmp_path / "data", base=tmp_path, offline=False,
            jupyter=True, console=Console(quiet=True),
        )  # fmt: skip
    after = _findings(tmp_path, lock)
    assert (after["store"].state, after["network"].state) == ("ok", "note")
    assert after["network"].meaning == "`up` needs no network: everything is there"


def test_a_profile_that_cannot_run_is_a_problem(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old = gpu.Survey("550.54", (gpu.Gpu("NVIDIA GeForce RTX 5090", 34_000_000_000, "12.0"),))
    monkeypatch.setattr(gpu, "probe", lambda: old)
    by_hand, automatic = _findings(tmp_path, profile="5090"), _findings(tmp_path, profile="auto")
    assert by_hand["profile"].state == "problem"
    assert "older than 570" in by_hand["profile"].detail
    assert automatic["profile"].state == "note"
    assert automatic["profile"].detail.startswith("cpu: NVIDIA driver 550.54 is older than 570")
    assert automatic["gpu"].state == "ok"


def test_an_unknown_profile_is_a_usage_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no profile 'h200'"):
        _findings(tmp_path, profile="h200")


def test_too_small_a_disk_names_both_sizes(tmp_path: Path, lock: Lock) -> None:
    huge = msgspec.structs.replace(lock.comfyui, bytes=10**18)
    found = _findings(tmp_path, msgspec.structs.replace(lock, comfyui=huge))
    assert found["disk"].state == "problem"
    assert "left; `up` needs " in found["disk"].detail


def test_a_finding_that_stops_up_ends_with_13_and_its_remedy(tmp_path: Path, lock: Lock) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        result = doctor.doctor(
            doctor.examine(data=tmp_path, workspace=tmp_path, addresses=_at(port), lock=lock, profile="cpu")
        )
    assert (result.exit_code, result.status) == (13, "error")
    assert [problem.code for problem in result.errors] == ["host", "host"]
    assert f"port {port} is in use by" in result.errors[0].message
    assert "--port" in result.errors[0].hint
    assert result.errors[1].message.startswith("network: http://127.0.0.1:9/simple/")
    body = json.loads(result.envelope())
    assert body["data"]["up"] is False
    assert {"name", "state", "detail", "meaning"} == set(body["data"]["findings"][0])


def test_a_good_machine_ends_with_0_in_aligned_columns(tmp_path: Path) -> None:
    result = doctor.doctor(
        doctor.examine(data=tmp_path, workspace=tmp_path, addresses=(("127.0.0.1", _PORTS),), profile="cpu")
    )
    assert (result.exit_code, result.status, result.errors) == (0, "success", ())
    lines = [line for line in result.text.splitlines() if not line.startswith(" ")]
    column = lines[0].index("  ", len("note   "))
    assert all(line[:7].strip() in {"ok", "note"} for line in lines)
    assert all(line[7:9] == "  " for line in lines)
    assert column > 0


def test_a_port_that_the_workspaces_own_pod_holds_is_no_problem(tmp_path: Path) -> None:
    layout = Layout(tmp_path)
    layout.records.mkdir()
    me = run.this_process()
    run.write(layout.run_record, run.RunRecord(me, ""))
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        found = doctor.examine(data=tmp_path, workspace=tmp_path, addresses=_at(port), lock=None, profile="cpu")
    assert [finding.state for finding in found if finding.name == "ports"] == ["note"]

"""Seeding under every fault: killed or refused at each durable step, on disks that are full, small or read-only."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from comfypod.files import tree_facts
from tests.kit.disks import tmpfs
from tests.kit.pods import Site, booted, comfypod

if TYPE_CHECKING:
    from collections.abc import Callable

# `layer.json` has the times of folders, and it is written once more when the pod is ready.
_VOLATILE = {"run.json", "boot.log", "comfyui.log", "layer.json", ".layer.json.new"}


def _contents(root: Path) -> dict[str, str]:
    """Return every file of a workspace with what is in it; the token by its length, as it is random.

    What a pod does once it is ready (the stubs of its layer) may be cut short by its stop, and is left out.
    """
    found = {}
    for path in sorted(root.rglob("*")):
        if path.name in _VOLATILE or {"__pycache__", "pods"}.intersection(path.parts) or ".dist-info" in str(path):
            continue
        name = str(path.relative_to(root))
        if path.is_symlink():
            found[name] = f"link {path.readlink()}"
        elif path.is_dir():
            found[name] = "folder"
        else:
            text = str(len(path.read_bytes())) if path.name == "token" else path.read_text("latin-1")
            found[name] = text.replace(str(root), "WORKSPACE")
    return found


def _booted_once(site: Site) -> None:
    with booted(site) as pod:
        pod.wait_for("ready")
        assert pod.stop() == 0


def _faulty_boot(site: Site, step: int, fault: str) -> tuple[str, str]:
    """Boot with a fault at one durable step; return what it printed and the note of that step."""
    notes = site.folder / "notes"
    notes.unlink(missing_ok=True)
    command = ("-m", "tests.kit.killer", str(step), fault, str(notes))
    with booted(site, "--set", "on_failure=exit", command=command) as pod:
        if fault == "kill":
            pod.process.wait(20)
        else:
            _until(lambda: pod.process.poll() is not None or (pod.status() or {}).get("phase") == "ready")
    lines = notes.read_text().splitlines()
    return pod.output_so_far(), lines[step - 1] if 0 < step <= len(lines) else ""


def _until(done: Callable[[], bool], seconds: float = 20.0) -> None:
    import time

    deadline = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def _count_steps(tmp_path: Path) -> tuple[int, dict[str, str]]:
    """Boot once with the counter on; return the steps up to readiness and the finished workspace's contents."""
    site = Site(_folder(tmp_path, "counted"))
    notes = site.folder / "notes"
    with booted(site, command=("-m", "tests.kit.killer", "0", "kill", str(notes))) as pod:
        pod.wait_for("ready")
        made = notes.read_text().splitlines()
        steps = next((number for number, line in enumerate(made) if ".dist-info" in line), len(made))
        pod.stop()
    _booted_once(site)
    return steps, _contents(site.layout.root)


def _folder(tmp_path: Path, name: str) -> Path:
    folder = tmp_path / name
    folder.mkdir()
    return folder


def _rebuilt(site: Site, expected: dict[str, str]) -> None:
    """Boot again and compare the workspace, file by file, with an uninterrupted one."""
    _booted_once(site)
    found = _contents(site.layout.root)
    assert found == expected


@pytest.mark.slow
def test_a1_kill_at_every_step(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Slow because no step is left out: each is killed once in a workspace of its own, then booted again."""
    steps, expected = _count_steps(tmp_path)
    killed = []
    for step in range(1, steps + 1):
        site = Site(_folder(tmp_path, f"kill{step}"))
        _, note = _faulty_boot(site, step, "kill")
        assert note, f"step {step} was never reached"
        killed.append(note.split()[1])
        _rebuilt(site, expected)
        shutil.rmtree(site.folder)
    assert len(killed) == steps
    assert {"mkdir", "create", "copy_file_range", "syncfs", "rename", "fsync", "symlink"} <= set(killed)
    with capsys.disabled():
        print(f"\nA1: {steps} kill points, each booted again: {', '.join(sorted(set(killed)))}")


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["ENOSPC", "EIO"])
def test_a3_disk_error_at_every_step(tmp_path: Path, fault: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Slow for the same reason as A1. Each boot ends with a sentence or comes up; the next one completes.

    A step of the core is refused with an error, one of the packages' layer with a warning: the pod runs without it.
    """
    steps, expected = _count_steps(tmp_path)
    of_core: list[bool] = []
    of_layer: list[bool] = []
    for step in range(1, steps + 1):
        site = Site(_folder(tmp_path, f"{fault}{step}"))
        output, note = _faulty_boot(site, step, fault)
        assert note, f"step {step} was never reached"
        assert "Traceback" not in output, note
        refused = "ERROR" in output
        warned = "WARNING" in output
        if "/envs" in note:
            of_layer.append(refused or warned)
        else:
            of_core.append(refused)
        if refused or warned:
            assert ("the disk is full" if fault == "ENOSPC" else "input/output error") in output, note
        if site.layout.comfyui.exists():
            assert tree_facts(site.layout.comfyui / "comfy").digest == tree_facts(site.tree / "comfy").digest
        _rebuilt(site, expected)
        shutil.rmtree(site.folder)
    assert sum(of_core) > len(of_core) / 2
    assert sum(of_layer) > len(of_layer) / 2
    with capsys.disabled():
        core, layer = f"{sum(of_core)} of {len(of_core)}", f"{sum(of_layer)} of {len(of_layer)}"
        print(
            f"\nA3: {fault}: {core} steps of the core and {layer} of the layer answered in a sentence, all booted again"
        )


@pytest.mark.root
def test_a3_too_small_a_disk_is_refused_before_the_first_byte(tmp_path: Path) -> None:
    site = Site(tmp_path)
    (site.tree / "big.bin").write_bytes(bytes(8_000_000))
    with tmpfs(site.layout.root, megabytes=4):
        done = comfypod(*site.arguments("--set", "on_failure=exit"), env={"STANDIN_ORDERS": str(site.orders)})
        assert done.returncode == 8
        assert "ComfyUI needs 24.8 MB" in done.stdout
        assert "4.2 MB left" in done.stdout
        assert not site.layout.comfyui.exists()
        assert not site.layout.staging.exists()


@pytest.mark.root
def test_a4_out_of_inodes(tmp_path: Path) -> None:
    site = Site(tmp_path)
    with tmpfs(site.layout.root, megabytes=64, inodes=12):
        done = comfypod(*site.arguments("--set", "on_failure=exit"), env={"STANDIN_ORDERS": str(site.orders)})
        assert done.returncode == 8
        assert "inodes left, ComfyUI needs" in done.stdout
        assert not site.layout.comfyui.exists()


@pytest.mark.root
def test_a5_a_read_only_workspace_is_refused_with_a_remedy(tmp_path: Path) -> None:
    site = Site(tmp_path)
    with tmpfs(site.layout.root, read_only=True):
        done = comfypod(*site.arguments("--set", "on_failure=exit"), env={"STANDIN_ORDERS": str(site.orders)})
    assert done.returncode == 8
    assert "read-only" in done.stdout
    assert "choose another folder" in done.stdout


@pytest.mark.root
def test_a_full_disk_keeps_the_pod_live_for_repair(tmp_path: Path) -> None:
    site = Site(tmp_path)
    (site.tree / "big.bin").write_bytes(bytes(8_000_000))
    with tmpfs(site.layout.root, megabytes=4), booted(site) as pod:
        status = pod.wait_for("failed")
        assert pod.probe("/livez") == (200, "live")
        assert pod.probe("/readyz") == (503, "failed")
        assert "ComfyUI needs" in status["reasons"][0]
        assert pod.stop() == 8


@pytest.mark.slow
def test_a10_ten_boots_in_a_row(tmp_path: Path) -> None:
    """Slow because it is ten real boots: nothing may grow but the logs."""
    site = Site(tmp_path)
    _booted_once(site)
    before = _contents(site.layout.root)
    for _ in range(9):
        with booted(site) as pod:
            pod.wait_for("ready")
            assert pod.stop() == 0
            assert "ERROR" not in pod.output_so_far()
    assert _contents(site.layout.root) == before

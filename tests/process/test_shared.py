"""Several pods of images on one volume: who prepares it, who waits, and what they may do to each other."""

from __future__ import annotations

import json
import os
import signal
import time
from typing import TYPE_CHECKING

import pytest

from comfypod.workspace.layout import Layout
from tests.kit import users
from tests.kit.lab import until
from tests.kit.pods import ROOT, Running, Site, booted, image_command, image_site
from tests.kit.standin import Orders

if TYPE_CHECKING:
    from collections.abc import Iterator
    from contextlib import AbstractContextManager
    from pathlib import Path

pytestmark = pytest.mark.root
# In the middle of a first run: some of the core is staged, nothing is in place.
_MIDDLE = 25


@pytest.fixture
def sites() -> Iterator[tuple[Site, Site]]:
    """Give places for two pods on one volume."""
    python = users.anyones_python()
    if python is None:
        pytest.skip("there is no Python here that every user may run")
    with users.common_folder() as folder:
        yield image_site(_made(folder / "a"), python), second_site(folder / "b", python, folder / "a")


def _made(folder: Path) -> Path:
    folder.mkdir()
    folder.chmod(0o777)
    return folder


def second_site(folder: Path, python: str, first: Path, **facts: object) -> Site:
    site = image_site(_made(folder), python, Orders(), **facts)
    site.layout = Layout(first / "workspace")
    return site


def boot(site: Site, fault: str = "") -> AbstractContextManager[Running]:
    environ = {"PYTHONPATH": f"{ROOT / 'src'}:{ROOT}:{users.libraries()}", "HOME": "/root"}
    return booted(site, command=image_command(site, fault=fault), environ=environ)


def detail(pod: Running) -> str:
    """Return what the status says of the first stage."""
    status = pod.status()
    return str(status["stages"][0]["detail"]) if status else ""


def test_a8_one_prepares_the_other_waits_and_shows_it_and_takes_over_when_the_first_is_killed(
    sites: tuple[Site, Site],
) -> None:
    first, second = sites
    notes = first.folder / "notes"
    with boot(first, f"{_MIDDLE}:stop:{notes}") as stopped:
        until(lambda: notes.exists() and len(notes.read_text().splitlines()) >= _MIDDLE, "the middle of the first run")
        assert not (second.layout.comfyui / "main.py").exists()
        with boot(second) as pod:
            until(lambda: "waiting for the pod on" in detail(pod), "the wait in the status")
            assert "which prepares the workspace" in detail(pod)
            assert pod.probe("/livez") == (200, "live")
            assert pod.probe("/readyz") == (503, "preparing")
            stopped.process.send_signal(signal.SIGKILL)
            status = pod.wait_for("ready")
            assert "seeded ComfyUI 1" in status["stages"][0]["detail"]
            assert {problem["code"] for problem in status["problems"]} == {"not-a-mount"}
            assert len(os.listdir(second.layout.pods)) == 1
            assert pod.stop() == 0
    assert os.listdir(second.layout.pods) == []
    assert (second.layout.comfyui / "main.py").read_bytes() == (second.tree / "main.py").read_bytes()
    assert not second.layout.journal.exists()


def test_a8_two_that_start_together_both_become_ready_and_one_of_them_seeds(sites: tuple[Site, Site]) -> None:
    first, second = sites
    with boot(first) as one, boot(second) as other:
        found = [one.wait_for("ready"), other.wait_for("ready")]
        told = sorted(status["stages"][0]["detail"].split(" ")[0] for status in found)
        assert told == ["ComfyUI", "seeded"]
        shared = next(status for status in found if status["stages"][0]["detail"].startswith("ComfyUI"))
        assert {problem["code"] for problem in shared["problems"]} == {"not-a-mount", "shared"}
        databases = [argv for site in sites for argv in [site.starts()[0]["argv"]] if "sqlite:///:memory:" in argv]
        assert len(databases) == 1
        assert one.stop() == 0
        assert other.probe("/readyz") == (200, "ready")
        assert other.stop() == 0
    assert os.listdir(second.layout.pods) == []


def test_a_pod_of_another_release_runs_from_its_image_while_one_is_there_and_upgrades_once_it_is_gone(
    sites: tuple[Site, Site],
) -> None:
    first, second = sites
    facts = json.loads(second.pod_file.read_text())
    facts |= {"comfyui_version": "2", "comfyui_digest": "sha256:" + "2".zfill(64)}
    second.pod_file.write_text(json.dumps(facts))
    with boot(first) as one:
        one.wait_for("ready")
        with boot(second) as other:
            status = other.wait_for("ready")
            assert "runs from" in status["stages"][0]["detail"]
            assert any("can take its place once that pod has stopped" in row["message"] for row in status["problems"])
            assert second.starts()[0]["argv"][0] != str(second.layout.comfyui / "main.py")
            assert other.stop() == 0
        assert one.probe("/readyz") == (200, "ready")
        assert one.stop() == 0
    with boot(second) as other:
        assert "changed to ComfyUI 2" in other.wait_for("ready")["stages"][0]["detail"]
        assert other.stop() == 0


def test_a_boot_that_is_stopped_while_it_waits_ends_at_once(sites: tuple[Site, Site]) -> None:
    first, second = sites
    notes = first.folder / "notes"
    with boot(first, f"{_MIDDLE}:stop:{notes}") as stopped:
        until(lambda: notes.exists() and len(notes.read_text().splitlines()) >= _MIDDLE, "the middle of the first run")
        with boot(second) as pod:
            until(lambda: "waiting for the pod on" in detail(pod), "the wait in the status")
            assert pod.stop(seconds=5) == 0
        assert len(os.listdir(second.layout.pods)) == 1
        stopped.process.send_signal(signal.SIGKILL)


@pytest.mark.slow
def test_a9_a_stale_lease_of_a_machine_that_is_gone_is_taken_over_by_a_real_boot(sites: tuple[Site, Site]) -> None:
    """Slow by the 45 seconds that it takes to be sure; its clock was a year ahead."""
    _, site = sites
    body = {"host": "gone", "phase": "preparing", "beat": 9, "machine": "m", "pid": 7, "started": 7, "namespace": "n"}
    site.layout.pods.mkdir(parents=True)
    ticket = site.layout.pods / "4"
    ticket.write_text(json.dumps(body))
    os.utime(ticket, (time.time() + 3e7,) * 2)
    for path in (site.layout.root, *site.layout.root.rglob("*")):
        os.chown(path, 1000, 1000)
    began = time.monotonic()
    with boot(site) as pod:
        until(lambda: "waiting for the pod on gone" in detail(pod), "the wait in the status")
        assert "seeded" in pod.wait_for("ready", 90)["stages"][0]["detail"]
        assert time.monotonic() - began > 40
        assert os.listdir(site.layout.pods) == ["5"]
        assert pod.stop() == 0

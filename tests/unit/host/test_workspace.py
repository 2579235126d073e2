from __future__ import annotations

import json
import os
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from comfypod import podfile
from comfypod.errors import BusyError, HostError, StorageError
from comfypod.host import workspace
from comfypod.log import Console
from comfypod.workspace import journal, run, state
from comfypod.workspace.journal import Move, Transaction
from comfypod.workspace.lease import Lease
from tests.kit import standin
from tests.kit.users import common_folder, in_child
from tests.kit.volumes import Volume, image

if TYPE_CHECKING:
    from pathlib import Path

    from comfypod.workspace.switch import Image

QUIET = Console(quiet=True)


@pytest.fixture
def one(tmp_path: Path) -> Image:
    return image(tmp_path, "1")


@pytest.fixture
def two(tmp_path: Path) -> Image:
    return image(tmp_path, "2")


@pytest.fixture
def volume(tmp_path: Path, one: Image) -> Volume:
    volume = Volume(tmp_path / "workspace")
    volume.boot(one)
    return volume


def brings(volume: Volume, brought: Image) -> None:
    """Let the workspace's `pod.json` be that of an image."""
    pod = podfile.load(standin.pod_file(volume.root.parent, brought.tree))
    version = brought.release.partition("-")[0]
    pod = replace(pod, comfyui_version=version, comfyui_digest="sha256:" + "0" * 64)
    volume.layout.pod_file.write_bytes(pod.encode())


def runs(volume: Volume) -> None:
    """Let it look as if a pod ran on the workspace: this process."""
    run.write(volume.layout.run_record, run.RunRecord(run.this_process(), "http://127.0.0.1:1"))


def test_status_shows_what_is_there_and_what_is_kept(volume: Volume, two: Image) -> None:
    found = workspace.status(volume.layout).data
    assert (found["release"], found["persist"], found["previous"], found["schema"]) == (
        "1-000000000000", "move", "", state.SCHEMA,
    )  # fmt: skip
    volume.write("main.py", "edited")
    volume.boot(two)
    result = workspace.status(volume.layout)
    assert (result.data["release"], result.data["previous"]) == ("2-000000000000", "1-000000000000")
    assert "kept        1-000000000000" in result.text
    json.dumps(dict(result.data))


def test_status_of_another_comfyui_says_so(volume: Volume) -> None:
    (volume.layout.comfyui / ".comfypod-release.json").unlink()
    assert "a ComfyUI that comfypod did not put there" in workspace.status(volume.layout).text


def test_what_is_no_workspace_is_said(tmp_path: Path) -> None:
    layout = Volume(tmp_path / "none").layout
    for verb in (workspace.status, workspace.rollback, workspace.verify):
        with pytest.raises(StorageError, match="is no workspace of comfypod's"):
            verb(layout)
    assert not layout.root.exists()


def test_plan_says_what_a_boot_does_and_changes_nothing(volume: Volume, two: Image) -> None:
    volume.write("comfy/__init__.py", "edited")
    brings(volume, two)
    before = volume.contents()
    found = workspace.plan(volume.layout)
    assert (found.data["action"], found.data["from"], found.data["release"]) == (
        "upgrade", "1-000000000000", "2-000000000000",
    )  # fmt: skip
    assert found.data["edits"] == ["comfy/__init__.py"]
    assert "1-000000000000 is kept for `comfypod workspace rollback`" in found.text
    assert volume.contents() == before
    assert volume.boot(two).plan.action == found.data["action"]


def test_plan_names_what_was_interrupted(volume: Volume, one: Image) -> None:
    brings(volume, one)
    left = Transaction("upgrade", (Move(".comfypod/staging/a", "ComfyUI/a"),), state.State("9-0", "", ""), staged=True)
    journal.begin(volume.layout, left)
    assert "finish: the upgrade to 9-0 that was interrupted; 1 names" in workspace.plan(volume.layout).text


def test_without_a_pod_file_there_is_nothing_to_plan_for(volume: Volume) -> None:
    with pytest.raises(HostError, match="nothing says which ComfyUI would boot") as caught:
        workspace.plan(volume.layout)
    assert "docker exec" in caught.value.hint


def test_rollback_goes_back_at_once_and_upgrade_forward_again(volume: Volume, one: Image, two: Image) -> None:
    brings(volume, two)
    assert workspace.upgrade(volume.layout, QUIET).data == {
        "release": two.release, "action": "upgrade", "done": True,
    }  # fmt: skip
    assert workspace.rollback(volume.layout).data["release"] == one.release
    assert volume.boot(two).release == one.release
    assert "`comfypod workspace rollback` left 2-000000000000" in workspace.status(volume.layout).text
    assert workspace.upgrade(volume.layout, QUIET).data["action"] == "return"
    assert volume.boot(two).release == two.release


def test_with_nothing_kept_there_is_no_way_back(volume: Volume) -> None:
    with pytest.raises(StorageError, match="keeps no release to go back to"):
        workspace.rollback(volume.layout)


def test_while_a_pod_runs_the_next_start_does_it(volume: Volume, one: Image, two: Image) -> None:
    volume.boot(two)
    brings(volume, two)
    runs(volume)
    done = workspace.rollback(volume.layout)
    assert (done.data["done"], "stop and start the pod" in done.text) == (False, True)
    assert "2" in (volume.layout.comfyui / "comfyui_version.py").read_text()
    assert volume.boot(two).release == one.release
    assert workspace.upgrade(volume.layout, QUIET).data["done"] is False
    assert volume.boot(two).release == two.release


def test_a_workspace_that_is_held_is_not_changed(volume: Volume, two: Image) -> None:
    brings(volume, two)
    lease = Lease(volume.layout.pods)
    lease.take()
    with pytest.raises(BusyError):
        workspace.upgrade(volume.layout, QUIET)
    lease.release()
    assert volume.boot(two).plan.action == "upgrade"


def test_verify_names_every_file_that_differs(volume: Volume, one: Image) -> None:
    assert workspace.verify(volume.layout).status == "success"
    volume.write("comfy/__init__.py", "edited")
    volume.write("comfy/mine.py")
    volume.write("output/mine.png")
    (volume.layout.comfyui / "main.py").unlink()
    found = workspace.verify(volume.layout)
    assert (found.status, found.exit_code) == ("partial", 6)
    assert (found.data["edited"], found.data["added"], found.data["missing"]) == (
        ["comfy/__init__.py"], ["comfy/mine.py"], ["main.py"],
    )  # fmt: skip
    brings(volume, one)
    assert workspace.upgrade(volume.layout, QUIET).data["action"] == "repair"
    assert workspace.verify(volume.layout).data["missing"] == []


@pytest.mark.root
def test_f1_roots_commands_leave_nothing_of_roots_on_a_users_volume() -> None:
    with common_folder() as folder:
        volume, two = Volume(folder / "workspace"), image(folder, "2")
        volume.boot(image(folder, "1"))
        volume.boot(two)
        brings(volume, two)
        for path in (volume.root, *volume.root.rglob("*")):
            os.chown(path, 12345, 12345, follow_symlinks=False)
        in_child(lambda: workspace.rollback(volume.layout).data["release"])
        assert "1" in (volume.layout.comfyui / "comfyui_version.py").read_text()
        assert {path.lstat().st_uid for path in volume.root.rglob("*")} == {12345}

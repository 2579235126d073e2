from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING

import pytest

from comfypod import files
from comfypod.boot.context import StageCancelledError
from comfypod.boot.health import StageView
from comfypod.boot.volume import prepare_workspace
from comfypod.errors import BusyError, StorageError
from comfypod.workspace import run, state
from tests.kit import users
from tests.unit.boot.contexts import context_of, prepared

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from comfypod.boot.context import Context


@pytest.fixture
def context(tmp_path: Path) -> Context:
    """A boot whose workspace is taken and seeded."""
    return prepared(tmp_path)


def test_a_workspace_is_taken_seeded_and_recorded(tmp_path: Path) -> None:
    context, view = context_of(tmp_path), StageView("workspace")
    told = prepare_workspace(context, view)
    assert told.startswith("seeded ComfyUI 1: ")
    assert view.detail.startswith("copied ")
    assert context.lease.held
    assert context.core is not None
    assert state.read(context.layout.state) == state.State(context.pod.release, "standin", str(context.layout.root))
    assert (context.token_made, context.layout.token.read_text().strip()) == (True, context.token)
    facts = context.health.workspace
    assert {"persist", "release", "schema", "free_bytes"} <= set(facts)
    assert (facts["persist"], facts["release"], facts["schema"]) == ("move", context.pod.release, state.SCHEMA)
    json.dumps(facts)
    context.lease.release()


def test_a_token_that_was_given_is_used_and_not_kept(tmp_path: Path) -> None:
    context = context_of(tmp_path, environ={"COMFYPOD_TOKEN": "mine"})
    prepare_workspace(context, StageView("workspace"))
    assert (context.token, context.token_made) == ("mine", False)
    assert not context.layout.token.exists()
    context.lease.release()


def test_a_boot_that_is_told_to_stop_puts_its_seeding_away(tmp_path: Path) -> None:
    context = context_of(tmp_path, cancelled=True)
    with pytest.raises(StageCancelledError):
        prepare_workspace(context, StageView("workspace"))
    assert not context.layout.comfyui.exists()
    assert not context.layout.staging.exists()
    context.lease.release()


def test_a_workspace_in_use_is_refused_untouched(context: Context, tmp_path: Path) -> None:
    before = {path: path.lstat().st_mtime_ns for path in context.layout.root.rglob("*")}
    with pytest.raises(BusyError, match="is in use") as caught:
        prepare_workspace(context_of(tmp_path), StageView("workspace"))
    assert "comfypod down" in caught.value.hint
    assert {path: path.lstat().st_mtime_ns for path in context.layout.root.rglob("*")} == before
    context.lease.release()


def test_a_workspace_that_cannot_be_made_is_a_storage_error(tmp_path: Path) -> None:
    (tmp_path / "workspace").write_text("a file")
    with pytest.raises(StorageError, match="a file stands where a folder is needed"):
        prepare_workspace(context_of(tmp_path), StageView("workspace"))


def test_without_file_locks_a_boot_that_is_alive_still_holds_the_workspace(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Doubled: a file system that refuses flock(2) cannot be mounted here."""
    monkeypatch.setattr(files, "try_lock", lambda _handle, **_: None)
    first = prepared(tmp_path)
    run.write(first.layout.run_record, run.RunRecord(run.this_process(), "http://127.0.0.1:1"))
    with pytest.raises(BusyError, match=f"in use by the pod with pid {os.getpid()}"):
        prepare_workspace(context_of(tmp_path), StageView("workspace"))
    first.lease.release()
    prepared(tmp_path).lease.release()


MOUNTS = "21 1 0:20 / / rw - overlay overlay rw\n22 21 0:21 / /proc rw - proc proc rw\n"


@pytest.fixture
def folder() -> Iterator[Path]:
    with users.common_folder() as folder:
        yield folder


def booted(folder: Path, mounted: str = "") -> tuple[str, list[str], list[str], str]:
    """Run the stage as an image does, in a process of its own; return detail, problems and their messages."""
    row = f"30 21 8:1 /data {mounted} rw shared:5 - ext4 /dev/sda1 rw\n" if mounted else ""
    (folder / "mounts").write_text(MOUNTS + row)

    def work() -> tuple[str, list[str], list[str], str]:
        context = context_of(folder, engine="image")
        detail = prepare_workspace(context, StageView("workspace"))
        problems = context.health.problems
        return detail, [each.code for each in problems], [each.message for each in problems], context.environ["HOME"]

    return users.in_child(work)


@pytest.mark.root
def test_a7_a_workspace_that_goes_with_the_container_is_reported(folder: Path) -> None:
    root = folder / "workspace"
    _, codes, messages, _ = booted(folder)
    assert codes == ["not-a-mount"]
    assert messages == [f"{root} is not on a volume: what is written there is lost with the container"]
    for point in (root, folder, str(folder).replace("-", "\\055")):
        assert booted(folder, str(point))[1] == []


@pytest.mark.root
def test_a7_only_a_part_of_the_workspace_on_a_volume_is_said(folder: Path) -> None:
    models = folder / "workspace" / "ComfyUI" / "models"
    assert booted(folder, str(models))[2][0].endswith(f"lost with the container, but for {models}")
    assert booted(folder, f"{folder}/works")[1] == ["not-a-mount"]


@pytest.mark.root
def test_the_images_link_is_pointed_at_the_volume_with_roots_rights(folder: Path) -> None:
    (folder / "link").symlink_to("/opt/comfyui")
    folder.chmod(0o755)
    (folder / "workspace").mkdir()
    detail, _, _, home = booted(folder, str(folder))
    assert (folder / "link").readlink() == folder / "workspace" / "ComfyUI"
    assert (folder / "workspace").stat().st_uid == 1000
    assert home == str(folder / "workspace" / ".comfypod" / "home")
    assert detail.startswith("seeded ComfyUI 1")


@pytest.mark.root
def test_a_folder_in_the_place_of_the_link_is_kept_and_reported(folder: Path) -> None:
    (folder / "link").mkdir()
    _, codes, messages, _ = booted(folder, str(folder))
    assert codes == ["link"]
    assert messages == [f"{folder / 'link'} is there and is no link"]
    assert (folder / "link").is_dir()


def test_f9_folders_without_a_comfyui_get_one_and_a_foreign_one_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "workspace" / "ComfyUI" / "models").mkdir(parents=True)
    context = context_of(tmp_path)
    assert "seeded ComfyUI 1" in prepare_workspace(context, StageView("workspace"))
    assert (context.layout.comfyui / "custom_nodes").is_dir()
    context.lease.release()
    (context.layout.comfyui / ".comfypod-release.json").unlink()
    context = context_of(tmp_path)
    assert "that comfypod did not put there" in prepare_workspace(context, StageView("workspace"))
    context.lease.release()


def test_on_a_host_nobody_becomes_somebody_else(tmp_path: Path) -> None:
    context = prepared(tmp_path)
    assert os.getresuid() == (os.getuid(),) * 3
    assert (context.identity.uid, context.identity.problem) == (os.geteuid(), None)
    assert context.health.identity == {"uid": os.geteuid(), "gid": os.getegid(), "reason": context.identity.told}
    assert not (tmp_path / "link").exists()
    context.lease.release()

from __future__ import annotations

import io
import json
import os
import socket
import sys
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from comfypod import files, podfile
from comfypod.boot.health import Health, StageView
from comfypod.boot.stages import (
    STAGES,
    Context,
    StageCancelledError,
    check_environment,
    check_models,
    check_port,
    list_nodes,
    prepare_workspace,
)  # fmt: skip
from comfypod.errors import BusyError, InstallError, StorageError
from comfypod.log import Console
from comfypod.podfile import LockedModel
from comfypod.settings import resolve
from comfypod.workspace import run, state
from comfypod.workspace.layout import Layout
from tests.kit import standin
from tests.kit.pods import free_port

if TYPE_CHECKING:
    from pathlib import Path


def context_of(
    tmp_path: Path, *, cancelled: bool = False, environ: dict[str, str] | None = None, **pod: Any
) -> Context:
    tree = tmp_path / "pristine"
    if not tree.exists():
        standin.tree(tree)
    facts = replace(podfile.load(standin.pod_file(tmp_path, tree)), **pod)
    layout = Layout(tmp_path / "workspace")
    settings = resolve({"workspace": str(layout.root), "port": str(free_port())}, environ or {}, {})
    console, lock = Console(io.StringIO()), files.FolderLock(layout.lock)
    return Context(facts, settings, layout, Health(facts, 0.0), console, lambda: cancelled, lock, lambda: None)


@pytest.fixture
def context(tmp_path: Path) -> Context:
    """A boot whose workspace is taken and seeded."""
    context = context_of(tmp_path)
    prepare_workspace(context, StageView("workspace"))
    return context


def test_what_comes_before_comfyui_stops_a_boot_and_what_it_can_do_without_does_not() -> None:
    policies = {stage.name: stage.policy for stage in STAGES}
    assert policies == {
        "workspace": "stop", "port": "stop", "environment": "stop", "nodes": "degrade", "models": "degrade",
    }  # fmt: skip
    assert STAGES[0].name == "workspace"


def test_a_workspace_is_taken_seeded_and_recorded(tmp_path: Path) -> None:
    context, view = context_of(tmp_path), StageView("workspace")
    told = prepare_workspace(context, view)
    assert told.startswith("seeded ComfyUI 1: ")
    assert view.detail.startswith("copied ")
    assert context.lock.held
    assert context.seeded is not None
    assert state.read(context.layout.state) == state.State(context.pod.release, "standin", str(context.layout.root))
    assert (context.token_made, context.layout.token.read_text().strip()) == (True, context.token)
    facts = context.health.workspace
    assert {"persist", "release", "schema", "free_bytes"} <= set(facts)
    assert (facts["persist"], facts["release"], facts["schema"]) == ("move", context.pod.release, state.SCHEMA)
    json.dumps(facts)
    context.lock.release()


def test_a_token_that_was_given_is_used_and_not_kept(tmp_path: Path) -> None:
    context = context_of(tmp_path, environ={"COMFYPOD_TOKEN": "mine"})
    prepare_workspace(context, StageView("workspace"))
    assert (context.token, context.token_made) == ("mine", False)
    assert not context.layout.token.exists()
    context.lock.release()


def test_a_boot_that_is_told_to_stop_puts_its_seeding_away(tmp_path: Path) -> None:
    context = context_of(tmp_path, cancelled=True)
    with pytest.raises(StageCancelledError):
        prepare_workspace(context, StageView("workspace"))
    assert not context.layout.comfyui.exists()
    assert not context.layout.staging.exists()
    context.lock.release()


def test_a_workspace_in_use_is_refused_untouched(context: Context, tmp_path: Path) -> None:
    before = {path: path.lstat().st_mtime_ns for path in context.layout.root.rglob("*")}
    with pytest.raises(BusyError, match="is in use") as caught:
        prepare_workspace(context_of(tmp_path), StageView("workspace"))
    assert "comfypod down" in caught.value.hint
    assert {path: path.lstat().st_mtime_ns for path in context.layout.root.rglob("*")} == before
    context.lock.release()


def test_a_workspace_that_cannot_be_made_is_a_storage_error(tmp_path: Path) -> None:
    (tmp_path / "workspace").write_text("a file")
    with pytest.raises(StorageError, match="a file stands where a folder is needed"):
        prepare_workspace(context_of(tmp_path), StageView("workspace"))


def test_a_port_that_is_taken_is_refused(tmp_path: Path) -> None:
    context = context_of(tmp_path)
    assert check_port(context, StageView("port")) == f"127.0.0.1:{context.settings.port} is free"
    with (
        socket.create_server(("127.0.0.1", context.settings.port)),
        pytest.raises(BusyError, match=str(context.settings.port)) as caught,
    ):
        check_port(context, StageView("port"))
    assert "--port" in caught.value.hint


@pytest.mark.parametrize("kind", ["missing", "not a program", "a dangling link"])
def test_an_environment_without_its_python_is_not_believed_in(tmp_path: Path, kind: str) -> None:
    python = tmp_path / "python"
    if kind == "not a program":
        python.write_text("")
    elif kind == "a dangling link":
        python.symlink_to("/no/such/python")
    with pytest.raises(InstallError, match=f"{python} is missing"):
        check_environment(context_of(tmp_path, python=str(python)), StageView("environment"))
    assert check_environment(context_of(tmp_path, python=sys.executable), StageView("environment")) == "torch 0"


def test_custom_nodes_are_listed_as_comfyui_finds_them(context: Context) -> None:
    folder = context.layout.comfyui / "custom_nodes"
    for name in ("b-pack", "a-pack", "old.disabled", "__pycache__", ".git"):
        (folder / name).mkdir()
    for name in ("single.py", "notes.txt", "websocket_image_save.py", "example_node.py.example"):
        (folder / name).write_text("")
    assert list_nodes(context, StageView("nodes")) == "4 in custom_nodes"
    assert [(row["name"], row["state"]) for row in context.health.nodes] == [
        ("a-pack", "present"), ("b-pack", "present"), ("old.disabled", "disabled"), ("single.py", "present"),
    ]  # fmt: skip
    folder.rename(folder.with_name("away"))
    assert list_nodes(context, StageView("nodes")) == "0 in custom_nodes"
    context.lock.release()


def test_locked_models_that_are_not_there_are_named_and_the_rest_counted(context: Context) -> None:
    def model(name: str) -> LockedModel:
        return LockedModel(name, "vae", f"{name}.bin", "0" * 64, 10)

    folder = context.layout.comfyui / "models" / "vae"
    folder.mkdir()
    (folder / "whole.bin").write_bytes(bytes(10))
    context.pod = replace(context.pod, models=(model("whole"),))
    assert check_models(context, StageView("models")) == "1 locked"
    (folder / "half.bin").write_bytes(bytes(5))
    context.pod = replace(context.pod, models=(model("whole"), model("half"), model("none")))
    with pytest.raises(StorageError, match=r"half, none$"):
        check_models(context, StageView("models"))
    assert [(row["name"], row["state"], row["bytes"], row["total"]) for row in context.health.models] == [
        ("whole", "present", 10, 10), ("half", "incomplete", 5, 10), ("none", "missing", 0, 10),
    ]  # fmt: skip
    context.lock.release()


def test_without_file_locks_a_boot_that_is_alive_still_holds_the_workspace(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Doubled: a file system that refuses flock(2) cannot be mounted here."""
    monkeypatch.setattr(files.FolderLock, "acquire", lambda _: False)
    context = context_of(tmp_path)
    context.layout.records.mkdir(parents=True)
    run.write(context.layout.run_record, run.RunRecord(run.this_process(), "http://127.0.0.1:1"))
    with pytest.raises(BusyError, match=f"in use by the pod with pid {os.getpid()}"):
        prepare_workspace(context, StageView("workspace"))
    context.layout.run_record.unlink()
    prepare_workspace(context, StageView("workspace"))

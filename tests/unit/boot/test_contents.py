from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from comfypod.boot.contents import list_nodes
from comfypod.boot.health import StageView
from comfypod.podfile import BakedNode
from tests.unit.boot.contexts import prepared

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from comfypod.boot.context import Context


@pytest.fixture
def context(tmp_path: Path) -> Iterator[Context]:
    """A boot whose workspace is taken and seeded."""
    context = prepared(tmp_path)
    yield context
    context.lease.release()


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


def bake(context: Context, tmp_path: Path, *names: str) -> None:
    for name in names:
        (tmp_path / "opt" / name / name).mkdir(parents=True)
    context.pod = replace(
        context.pod, nodes=tuple(BakedNode(name, str(tmp_path / "opt" / name / name), "1") for name in names)
    )


def given(context: Context) -> dict[str, dict[str, str]]:
    """Return what ComfyUI is told."""
    assert context.extra_paths is not None
    body: dict[str, dict[str, str]] = json.loads(context.extra_paths.read_text())
    return body


def test_nodes_of_the_image_are_given_to_comfyui_by_their_parents(context: Context, tmp_path: Path) -> None:
    bake(context, tmp_path, "one", "two")
    assert list_nodes(context, StageView("nodes")) == "0 in custom_nodes, 2 of the image's own"
    assert given(context) == {
        f"baked_{name}": {"custom_nodes": str(tmp_path / "opt" / name)} for name in ("one", "two")
    }
    assert [(row["name"], row["state"]) for row in context.health.nodes] == [("one", "baked"), ("two", "baked")]


def test_what_the_user_has_under_the_name_of_a_baked_node_wins(context: Context, tmp_path: Path) -> None:
    bake(context, tmp_path, "folder", "linked", "off", "moved", "used")
    nodes = context.layout.comfyui / "custom_nodes"
    (nodes / "Folder").mkdir()
    (nodes / "linked").symlink_to(tmp_path)
    (nodes / "OFF.disabled").mkdir()
    (nodes / "moved.disabled").write_text("")
    (nodes / "used").symlink_to("/no/such/folder")
    list_nodes(context, StageView("nodes"))
    states = {row["name"]: row["state"] for row in context.health.nodes[:5]}
    assert states == {
        "folder": "shadowed", "linked": "shadowed", "off": "disabled", "moved": "disabled", "used": "baked",
    }  # fmt: skip
    assert all(row["reason"] for row in context.health.nodes[:4])
    assert list(given(context)) == ["baked_used"]


def test_a_baked_node_that_is_not_there_is_named_and_not_given(context: Context, tmp_path: Path) -> None:
    bake(context, tmp_path, "gone")
    (tmp_path / "opt" / "gone" / "gone").rmdir()
    list_nodes(context, StageView("nodes"))
    assert context.health.nodes[0]["state"] == "missing"
    assert context.extra_paths is None


def test_with_nothing_to_say_there_is_no_file(context: Context, tmp_path: Path) -> None:
    context.layout.extra_paths.write_text("{}")
    list_nodes(context, StageView("nodes"))
    assert context.extra_paths is None
    assert not context.layout.extra_paths.exists()


def test_models_of_the_image_are_given_by_the_folders_that_are_there(context: Context, tmp_path: Path) -> None:
    models = tmp_path / "opt" / "models"
    for name in ("checkpoints", "ipadapter", "custom_nodes", "base_path"):
        (models / name).mkdir(parents=True)
    (models / "readme.txt").write_text("")
    context.pod = replace(context.pod, models_path=str(models))
    list_nodes(context, StageView("nodes"))
    own = context.layout.comfyui / "models" / "ipadapter"
    assert given(context) == {
        "baked_models": {"base_path": str(models), "checkpoints": "checkpoints", "ipadapter": f"{own}\nipadapter"}
    }


def test_an_image_without_its_models_folder_says_nothing_of_it(context: Context, tmp_path: Path) -> None:
    context.pod = replace(context.pod, models_path=str(tmp_path / "none"))
    list_nodes(context, StageView("nodes"))
    assert context.extra_paths is None

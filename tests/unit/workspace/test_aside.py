from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from comfypod.errors import StorageError, UsageError
from comfypod.workspace import aside
from comfypod.workspace.layout import Layout
from tests.kit.disks import tmpfs
from tests.kit.killer import suffer

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    layout = Layout(tmp_path / "workspace")
    layout.records.mkdir(parents=True)
    return layout


def _node(layout: Layout, name: str = "node") -> Path:
    node = layout.comfyui / "custom_nodes" / name
    node.mkdir(parents=True)
    (node / "__init__.py").write_text(name)
    return node


def test_a_folder_is_set_aside_with_its_reason_and_put_back(layout: Layout) -> None:
    node = _node(layout)
    place = aside.put_aside(layout, node, "it hangs")
    assert place == layout.set_aside / "node-1"
    assert (place / "__init__.py").read_text() == "node"
    assert not node.exists()
    (found,) = aside.listed(layout)
    assert (found.name, found.path, found.why) == ("node-1", "ComfyUI/custom_nodes/node", "it hangs")
    assert aside.put_back(layout, "node-1") == node
    assert (node / "__init__.py").read_text() == "node"
    assert aside.listed(layout) == ()
    assert list(layout.set_aside.iterdir()) == []


def test_things_of_one_name_are_kept_beside_each_other(layout: Layout) -> None:
    for _ in range(2):
        aside.put_aside(layout, _node(layout), "again")
    assert [each.name for each in aside.listed(layout)] == ["node-1", "node-2"]


def test_a_link_is_set_aside_itself_and_what_it_leads_to_stays(layout: Layout, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    link = layout.root / "link"
    link.symlink_to(tmp_path / "mine")
    assert aside.put_aside(layout, link, "a link").is_symlink()
    assert (tmp_path / "mine").is_dir()
    assert aside.put_back(layout, "link-1").readlink() == tmp_path / "mine"


def test_what_took_its_place_is_not_written_over(layout: Layout) -> None:
    node = _node(layout)
    aside.put_aside(layout, node, "first")
    _node(layout)
    with pytest.raises(UsageError, match="is taken"):
        aside.put_back(layout, "node-1")
    assert (node / "__init__.py").exists()
    assert len(aside.listed(layout)) == 1


@pytest.mark.parametrize("name", ["other-1", "../records", "", ".."])
def test_a_name_that_is_not_set_aside_is_refused_with_those_that_are(layout: Layout, name: str) -> None:
    aside.put_aside(layout, _node(layout), "first")
    with pytest.raises(UsageError) as caught:
        aside.put_back(layout, name)
    assert "node-1" in caught.value.hint


def test_what_cannot_be_renamed_over_file_systems_stays_there_under_a_name_that_is_left_out(layout: Layout) -> None:
    layout.comfyui.mkdir()
    with tmpfs(layout.comfyui / "custom_nodes", megabytes=1):
        node = layout.comfyui / "custom_nodes" / "node"
        node.mkdir()
        place = aside.put_aside(layout, node, "mounted alone")
        assert place == node.with_name("node-1.disabled")
        assert aside.put_back(layout, "node-1") == node
        assert not place.exists()


def test_every_kill_leaves_what_was_or_a_thing_that_can_be_put_back(layout: Layout, tmp_path: Path) -> None:
    node, notes, step = _node(layout), tmp_path / "notes", 0
    ended = "killed"
    while ended == "killed":
        step += 1
        ended = suffer(lambda: aside.put_aside(layout, node, "a kill"), step, "kill", notes)
        assert node.exists() == (aside.listed(layout) == ())
        if not node.exists():
            aside.put_back(layout, aside.listed(layout)[0].name)
    assert ended == "done"
    assert step > 4
    aside.put_aside(layout, node, "kills of the way back")
    ended, step = "killed", 0
    while ended == "killed":
        step += 1
        ended = suffer(lambda: aside.put_back(layout, "node-1"), step, "kill", notes)
        assert node.exists() == (aside.listed(layout) == ())
        if node.exists():
            assert aside.put_aside(layout, node, "again").name == "node-1"


def test_a_disk_that_refuses_leaves_the_thing_where_it_was(layout: Layout, tmp_path: Path) -> None:
    node, refused = _node(layout), 0
    for step in range(1, 9):
        ended = suffer(lambda: aside.put_aside(layout, node, "full"), step, "ENOSPC", tmp_path / "notes")
        refused += ended.startswith("StorageError: cannot set")
        if not node.exists():
            aside.put_back(layout, aside.listed(layout)[0].name)
        assert (node / "__init__.py").exists()
    assert refused > 2


def test_planted_records_lead_nowhere(layout: Layout, tmp_path: Path) -> None:
    layout.set_aside.mkdir()
    (tmp_path / "outside").mkdir()
    (layout.root / "door").symlink_to(tmp_path / "outside")
    bodies = [
        {"path": "../outside/x"}, {"path": "door/x"}, {"path": "/etc/x"}, {"path": 3}, {"path": ""}, {"path": "a\0b"},
        {"path": ".."}, [],
    ]  # fmt: skip
    for number, body in enumerate(bodies):
        (layout.set_aside / f"x-{number}").write_text("x")
        text = json.dumps(body | {"why": "", "at": ""} if isinstance(body, dict) else body)
        (layout.set_aside / f"x-{number}.json").write_text(text)
    (layout.set_aside / "y.json").mkdir()
    (layout.set_aside / "z.json").write_bytes(b"\xff")
    assert aside.listed(layout) == ()
    with pytest.raises(UsageError):
        aside.put_back(layout, "x-0")


def test_a_folder_of_things_that_is_a_link_is_not_followed(layout: Layout, tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    layout.set_aside.symlink_to(tmp_path / "outside")
    with pytest.raises(StorageError):
        aside.put_aside(layout, _node(layout), "no")
    assert list((tmp_path / "outside").iterdir()) == []


def test_a_name_of_any_length_or_bytes_can_be_set_aside(layout: Layout) -> None:
    for name in ("n" * 255, "ä" * 120, "\udcff"):
        node = layout.root / name
        node.mkdir()
        place = aside.put_aside(layout, node, "odd")
        assert aside.put_back(layout, place.name) == node

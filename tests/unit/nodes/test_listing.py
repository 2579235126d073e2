from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from comfypod.errors import UsageError
from comfypod.nodes import listing, place, record
from comfypod.workspace.layout import Layout

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "custom_nodes" / "one").mkdir(parents=True)
    return tmp_path / "custom_nodes"


def test_a_node_is_switched_off_and_on(folder: Path) -> None:
    listing.switch(folder, "one", (), on=False)
    assert [path.name for path in folder.iterdir()] == ["one.disabled"]
    listing.switch(folder, "one.disabled", (), on=True)
    assert [path.name for path in folder.iterdir()] == ["one"]


def test_a_node_of_the_image_is_switched_by_a_mark(folder: Path) -> None:
    listing.switch(folder, "baked", ["baked"], on=False)
    assert (folder / "baked.disabled").is_dir()
    listing.switch(folder, "baked", ["baked"], on=True)
    assert [path.name for path in folder.iterdir()] == ["one"]


@pytest.mark.parametrize("name", ["two", "../custom_nodes/one", "/etc", "..", ""])
@pytest.mark.parametrize("on", [True, False])
def test_g8_only_what_is_there_can_be_switched(folder: Path, name: str, on: bool) -> None:
    with pytest.raises(UsageError, match="cannot be switched"):
        listing.switch(folder, name, (), on=on)
    assert [path.name for path in folder.iterdir()] == ["one"]


def test_what_stands_on_both_sides_is_not_switched(folder: Path) -> None:
    (folder / "one.disabled").mkdir()
    for on in (True, False):
        with pytest.raises(UsageError):
            listing.switch(folder, "one", (), on=on)


def test_what_failed_stands_beside_what_is_there(folder: Path) -> None:
    layout = Layout(folder.parent)
    layout.records.mkdir()
    entries = {
        "one": record.Entry("installed", "a was asked for, b stays"), "bad": record.Entry("failed", "why"),
        "half": record.Entry("incomplete", "where"), "new": record.Entry("placing"),
    }  # fmt: skip
    place.waiting(folder, "new").mkdir()
    record.write(layout, record.Record(entries))
    rows = {row["name"]: (row["state"], row["reason"]) for row in listing.rows(layout, folder, ())}
    assert rows == {
        "bad": ("failed", "why"), "half": ("incomplete", "where"), "new": ("installing", ""),
        "one": ("present", "a was asked for, b stays"),
    }  # fmt: skip

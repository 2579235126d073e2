from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from comfypod.models import notes
from comfypod.models.file import ModelFile
from comfypod.models.plan import Row
from comfypod.workspace.layout import Layout

if TYPE_CHECKING:
    from pathlib import Path

FILE = ModelFile("a", "https://h/a?token=canary", "loras", "a.safetensors")


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    layout = Layout(tmp_path)
    layout.records.mkdir()
    return layout


def test_what_is_noted_is_read_until_it_is_taken_back(layout: Layout) -> None:
    notes.write(layout, FILE, "failed", "404\x1b[31m")
    (note,) = notes.read(layout).values()
    assert (note.place, note.state, note.reason, note.under_way) == (FILE.place, "failed", "404?[31m", True)
    assert "canary" not in next(layout.model_notes.iterdir()).read_text()
    notes.forget(layout, ["vae/other", FILE.place])
    assert notes.read(layout) == {}


def test_it_counts_for_a_file_that_is_to_be_fetched_from_the_same_address(layout: Layout) -> None:
    notes.write(layout, FILE, "failed", "404")
    for row, counts in (
        (Row(FILE, "fetch"), True), (Row(FILE, "part"), True), (Row(FILE, "have"), False),
        (Row(replace(FILE, url="https://h/b"), "fetch"), False), (Row(replace(FILE, folder="vae"), "fetch"), False),
    ):  # fmt: skip
        assert (notes.of_row(notes.read(layout), row) is not None) is counts


def test_who_is_gone_is_not_under_way(layout: Layout) -> None:
    notes.write(layout, FILE, "failed", "404")
    (path,) = layout.model_notes.iterdir()
    path.write_text(json.dumps({**json.loads(path.read_text()), "started": 1}))
    (note,) = notes.read(layout).values()
    assert not note.under_way


@pytest.mark.parametrize(
    "change",
    [{"state": "present"}, {"reason": "\x1b[31m"}, {"reason": 7}, {"pid": "1"}, {"more": 1}, {"place": "vae/other"}],
)  # fmt: skip
def test_g8_what_anybody_has_planted_there_is_not_taken(layout: Layout, change: dict[str, Any]) -> None:
    notes.write(layout, FILE, "failed", "404")
    (path,) = layout.model_notes.iterdir()
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    (layout.model_notes / "x.json").mkdir()
    (layout.model_notes / "y.json").write_text("[" * 5000)
    assert notes.read(layout) == {}


def test_a_disk_that_refuses_loses_the_note_and_nothing_else(layout: Layout) -> None:
    layout.model_notes.write_text("")
    notes.write(layout, FILE, "failed", "404")
    notes.forget(layout, [FILE.place])
    assert notes.read(layout) == {}


def test_what_was_said_of_files_that_nothing_wants_is_swept(layout: Layout) -> None:
    other, gone = replace(FILE, folder="vae"), replace(FILE, folder="clip")
    for file in (FILE, other, gone):
        notes.write(layout, file, "failed", "404")
    for path in layout.model_notes.iterdir():
        body = json.loads(path.read_text())
        path.write_text(json.dumps({**body, "started": body["started"] if body["place"] == other.place else 1}))
    notes.sweep(layout, [FILE.place])
    assert set(notes.read(layout)) == {FILE.place, other.place}

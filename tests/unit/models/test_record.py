from __future__ import annotations

import json
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from typing import TYPE_CHECKING

import pytest

from comfypod.errors import BusyError
from comfypod.files import FolderLock
from comfypod.models import record
from comfypod.models.record import Entry
from comfypod.workspace.layout import Layout

if TYPE_CHECKING:
    from pathlib import Path

ENTRY = Entry("https://h/m", "ab" * 32, 3, 5, "sdxl")


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    layout = Layout(tmp_path)
    layout.records.mkdir()
    return layout


def test_what_is_noted_is_read_and_what_is_forgotten_is_not(layout: Layout) -> None:
    assert record.read(layout) == {}
    record.note(layout, "loras/a", ENTRY)
    record.note(layout, "vae/b", ENTRY)
    record.forget(layout, "loras/a")
    record.forget(layout, "loras/none")
    assert record.read(layout) == {"vae/b": ENTRY}


def test_writers_at_the_same_time_lose_nothing(layout: Layout) -> None:
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda number: record.note(layout, f"loras/{number}", ENTRY), range(40)))
    assert set(record.read(layout)) == {f"loras/{number}" for number in range(40)}


def test_a_writer_that_never_ends_is_named(layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(record, "_TRIES", 2)
    lock = FolderLock(layout.models_lock)
    lock.acquire()
    with pytest.raises(BusyError):
        record.note(layout, "loras/a", ENTRY)
    lock.release()
    record.note(layout, "loras/a", ENTRY)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"files": 3}', '{"files": {"loras/a": 3}}', "[" * 100_000, "\xff"])
def test_a_record_that_makes_no_sense_is_none(layout: Layout, text: str) -> None:
    layout.models.write_bytes(text.encode("latin-1"))
    assert record.read(layout) == {}
    record.note(layout, "loras/a", ENTRY)
    assert record.read(layout) == {"loras/a": ENTRY}


@pytest.mark.parametrize("place", ["../x", "/etc/passwd", "loras/../../x", "loras", "", "a//b", "loras/\n", "loras/.."])
def test_g8_a_planted_place_that_leaves_the_folder_is_left_out(layout: Layout, place: str) -> None:
    rows = {place: asdict(ENTRY), "loras/a": asdict(ENTRY)}
    layout.models.write_text(json.dumps({"schema": 1, "files": rows}))
    assert record.read(layout) == {"loras/a": ENTRY}


@pytest.mark.parametrize("change", [{"size": "3"}, {"size": True}, {"url": None}, {"more": 1}])
def test_an_entry_of_another_shape_is_left_out(layout: Layout, change: dict[str, object]) -> None:
    layout.models.write_text(json.dumps({"files": {"loras/a": {**asdict(ENTRY), **change}}}))
    assert record.read(layout) == {}


def test_a_file_is_ours_while_it_is_the_one_that_was_put_there(layout: Layout, tmp_path: Path) -> None:
    models = tmp_path / "models"
    path = models / "loras" / "a"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"123")
    entry = Entry("u", "", 3, path.stat().st_mtime_ns)
    record.note(layout, "loras/a", entry)
    assert record.ours(layout, models) == {"loras/a": entry}
    os.utime(path, ns=(1, entry.mtime + 1))
    assert record.ours(layout, models) == {}
    path.write_bytes(b"1234")
    os.utime(path, ns=(1, entry.mtime))
    assert record.ours(layout, models) == {}
    other = tmp_path / "other"
    path.rename(other)
    other.write_bytes(b"123")
    os.utime(other, ns=(1, entry.mtime))
    path.symlink_to(other)
    assert record.ours(layout, models) == {}

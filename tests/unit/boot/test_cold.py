"""The record of a start in a boot: when it is used, when not and why, and how it is made."""

from __future__ import annotations

import asyncio
import io
import json
import os
from dataclasses import replace
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from comfypod import podfile
from comfypod.boot import pages
from comfypod.boot.cold import ColdStart
from comfypod.environment.recording import built, make
from comfypod.files import FolderLock
from comfypod.launch.bundle import FORMAT
from comfypod.log import Console
from tests.kit import standin
from tests.kit.cold import KEY, Place
from tests.unit.boot.contexts import context_of, prepared

if TYPE_CHECKING:
    from pathlib import Path

    from comfypod.boot.context import Context
    from comfypod.podfile import PodFile


def _pod(tmp_path: Path, place: Place) -> PodFile:
    """Return the facts of the small image."""
    return replace(
        podfile.load(standin.pod_file(tmp_path, place.core)),
        python=str(place.python), comfyui_path=str(place.core), comfyui_args=(), environment_key=KEY,
        record=str(tmp_path / "store" / "cold" / "key"), engine="host",
    )  # fmt: skip


def _begin(context: Context) -> ColdStart:
    cold = ColdStart(context)
    cold.begin()
    cold.wait()
    return cold


def test_a_record_is_made_by_a_start_of_what_was_built_and_used_from_then_on(tmp_path: Path) -> None:
    place = Place(tmp_path)
    pod = _pod(tmp_path, place)
    assert pod.record is not None
    context = context_of(tmp_path, record=pod.record, environment_key=KEY)
    _begin(context)
    assert (context.record, context.health.cold_start.state) == (None, "none")
    left = place.folder / "store" / "cold" / "key.123"
    left.parent.mkdir(parents=True)
    left.touch()
    assert make(built(pod), place.folder / "store" / "cold" / "key", os.environ) == ""
    assert sorted(path.name for path in left.parent.iterdir()) == ["key", "key.ahead", "key.lock"]
    cold = _begin(context)
    assert context.record == (pod.record, KEY)
    assert context.health.cold_start.state == "used"
    assert context.health.snapshot()["cold_start"]["state"] == "used"
    cold.end()


def test_a_start_that_fails_makes_none_and_says_why(tmp_path: Path) -> None:
    place = Place(tmp_path)
    pod = _pod(tmp_path, place)
    place.write(place.core / "main.py", "raise SystemExit('not today')\n")
    assert "not today" in make(built(pod), tmp_path / "cold" / "key", os.environ)
    assert not (tmp_path / "cold" / "key").exists()


def test_where_the_store_cannot_be_written_none_is_made_and_the_reason_told(tmp_path: Path) -> None:
    (tmp_path / "cold").write_text("no folder")
    place = Place(tmp_path / "place")
    assert str(tmp_path / "cold") in make(built(_pod(tmp_path, place)), tmp_path / "cold" / "key", os.environ)


def test_one_is_left_to_whoever_makes_it_already(tmp_path: Path) -> None:
    place = Place(tmp_path)
    lock = FolderLock(tmp_path / "key.lock")
    assert lock.acquire()
    assert make(built(_pod(tmp_path, place)), tmp_path / "key", os.environ) == ""
    lock.release()
    assert not (tmp_path / "key").exists()


@pytest.mark.parametrize(
    ("text", "reason"), [("", "no record"), ("{}\n", "no record"), ("nothing", "no record"), (None, "Is a directory")]
)
def test_one_that_cannot_be_used_is_ignored_and_named(tmp_path: Path, text: str | None, reason: str) -> None:
    path = tmp_path / "record"
    path.write_text(text) if text is not None else path.mkdir()
    context = context_of(tmp_path, record=str(path))
    said = io.StringIO()
    context.console = Console(said)
    _begin(context)
    assert context.record is None
    view = context.health.cold_start
    assert view.state == "unused"
    assert reason in view.reason
    assert reason in said.getvalue()
    assert context.health.problems == []


def test_the_setting_switches_it_off(tmp_path: Path) -> None:
    context = context_of(tmp_path, record=str(tmp_path), environ={"COMFYPOD_COLD_START": "off"})
    _begin(context)
    assert (context.record, context.health.cold_start.state) == (None, "off")


def test_which_parts_of_large_libraries_it_uses_is_noted_once_it_has_nothing_to_do(tmp_path: Path) -> None:
    with open("/proc/self/maps") as maps:
        library = next(words[5] for line in maps if len(words := line.split()) == 6 and ".so" in words[5])
    record, context = tmp_path / "record", prepared(tmp_path, record=str(tmp_path / "record"), environment_key=KEY)
    head = {"format": FORMAT, "environment": KEY}
    record.write_text(json.dumps({**head, "size": 0}) + "\n")
    beside = {**head, "core": "/opt/comfyui", "parts": [[library, []], ["/lib/small.so", [[0, 5]]]]}
    record.with_name("record.ahead").write_text(json.dumps(beside))
    cold = _begin(context)
    served: Any = SimpleNamespace(served_seconds=100.0, prompts=0, pid=os.getpid())
    asyncio.run(cold.learn(served))
    assert list(found := pages.read(context.layout.pages, KEY)) == [library]
    assert all(length > 0 for _, length in found[library])
    # A process that is gone changes nothing.
    served.pid = 1 << 22
    asyncio.run(_begin(context).learn(served))
    assert pages.read(context.layout.pages, KEY) == found


def test_a_record_that_another_pod_makes_at_the_moment_is_waited_for(tmp_path: Path) -> None:
    place = Place(tmp_path / "place")
    path = tmp_path / "cold" / "key"
    facts = {"environment_key": KEY, "record": str(path), "engine": "host", "python": str(place.python)}
    context = prepared(tmp_path, **facts, comfyui_path=str(place.core), comfyui_args=())
    path.parent.mkdir()
    lock = FolderLock(path.with_name("key.lock"))
    assert lock.acquire()

    async def learn() -> None:
        served: Any = SimpleNamespace(served_seconds=100.0, prompts=0, pid=os.getpid())
        learning = asyncio.create_task(_begin(context).learn(served))
        await asyncio.sleep(0.5)
        assert not learning.done()
        lock.release()
        assert await asyncio.to_thread(make, built(context.pod), path, os.environ) == ""
        beside = json.loads(path.with_name("key.ahead").read_text())
        beside["parts"].append(["/lib/large.so", []])
        path.with_name("key.ahead").write_text(json.dumps(beside))
        await asyncio.wait_for(learning, 20)

    asyncio.run(learn())
    assert context.layout.pages.exists()

from __future__ import annotations

import asyncio
import os
import threading
import time
from typing import TYPE_CHECKING

from comfypod.boot import measure
from comfypod.boot.health import Health
from comfypod.boot.measure import Measured, Meter
from tests.unit.boot.test_health import POD

if TYPE_CHECKING:
    from pathlib import Path

    import pytest


def _measured(meter: Meter) -> Measured:
    return asyncio.run(meter.measure(Health(POD, 0.0)))


def test_the_workspaces_disk_and_memory_are_measured(tmp_path: Path) -> None:
    found = _measured(Meter(tmp_path))
    assert found.volume is not None
    assert 0 < found.volume.free <= found.volume.size == os.statvfs(tmp_path).f_blocks * os.statvfs(tmp_path).f_frsize
    assert (found.memory is not None, found.late, found.queue_running) == (True, frozenset(), None)


def test_a_workspace_that_is_not_there_is_left_out_and_not_late(tmp_path: Path) -> None:
    found = _measured(Meter(tmp_path / "none"))
    assert (found.volume, found.late) == (None, frozenset())


def test_a_disk_that_hangs_is_left_out_in_time_and_asked_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answers, calls = threading.Event(), []

    def hang(workspace: Path) -> measure.Volume:
        calls.append(workspace)
        answers.wait(10)
        return measure.Volume(4, 3, 2, 1)

    monkeypatch.setattr(measure, "volume", hang)

    async def scenario() -> list[Measured]:
        meter, health = Meter(tmp_path, seconds=0.1), Health(POD, 0.0)
        before = time.monotonic()
        seen = [await meter.measure(health), await meter.measure(health)]
        assert time.monotonic() - before < 2
        answers.set()
        await asyncio.sleep(0.1)
        return [*seen, await meter.measure(health)]

    first, second, third = asyncio.run(scenario())
    assert (first.volume, first.late) == (second.volume, second.late) == (None, frozenset({"volume"}))
    assert first.memory is not None
    assert (third.volume, third.late) == (measure.Volume(4, 3, 2, 1), frozenset())
    assert len(calls) == 2

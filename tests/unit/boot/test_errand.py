from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
import time

import pytest

from comfypod.boot.errand import Errand

_HANGS = """
import asyncio, time
from comfypod.boot.errand import Errand
try:
    asyncio.run(Errand(lambda: time.sleep(60), 0.1).run())
except TimeoutError:
    print("late")
"""


def test_a_call_that_hangs_is_given_up_and_not_made_twice() -> None:
    free, calls = threading.Event(), []

    def hang() -> int:
        calls.append(1)
        free.wait(10)
        return 7

    async def scenario() -> None:
        errand = Errand(hang, 0.1)
        for _ in range(2):
            with pytest.raises(TimeoutError):
                await errand.run()
        assert len(calls) == 1
        free.set()
        assert await errand.run() == 7

    began = time.monotonic()
    asyncio.run(scenario())
    assert time.monotonic() - began < 5


def test_who_asks_at_the_same_time_shares_one_call() -> None:
    calls: list[int] = []

    def work() -> int:
        calls.append(1)
        time.sleep(0.05)
        return 7

    async def scenario() -> list[int]:
        errand = Errand(work, 2.0)
        return await asyncio.gather(*(errand.run() for _ in range(5)))

    assert asyncio.run(scenario()) == [7] * 5
    assert len(calls) == 1


def test_an_error_of_the_disk_is_the_callers() -> None:
    def fail() -> int:
        raise OSError(116, "Stale file handle")

    with pytest.raises(OSError, match="Stale"):
        asyncio.run(Errand(fail, 2.0).run())


def test_a_call_that_never_ends_does_not_keep_the_program_from_ending() -> None:
    began = time.monotonic()
    done = subprocess.run([sys.executable, "-c", _HANGS], capture_output=True, text=True, timeout=30, check=True)
    assert (done.stdout, done.stderr) == ("late\n", "")
    assert time.monotonic() - began < 10

from __future__ import annotations

import asyncio
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from comfypod.boot import process
from comfypod.boot.policy import Limits
from comfypod.boot.process import MOVES, State, Supervised
from comfypod.boot.services import Service
from comfypod.ports import choose_free


def _service(*argv: str) -> Service:
    return Service(
        name="x", argv=argv, safe_argv=argv, env={}, cwd=Path("/"), host="127.0.0.1", port=9, path="/",
        critical=True, limits=Limits(quick_deaths=1), stop_seconds=1,
    )  # fmt: skip


def test_every_state_can_be_reached_and_left() -> None:
    reached = {state for targets in MOVES.values() for state in targets}
    assert reached == set(State)
    assert all(MOVES[state] for state in State)


@given(st.lists(st.sampled_from(list(State)), max_size=20))
def test_a_move_that_is_not_in_the_table_is_an_assertion(wanted: list[State]) -> None:
    supervised = Supervised(_service("true"), lambda _: None, lambda _: None)
    for state in wanted:
        if state in MOVES[supervised.state]:
            supervised._move(state)
            assert supervised.state is state
        else:
            with pytest.raises(AssertionError):
                supervised._move(state)


def test_a_child_that_exited_7_is_reported_as_7() -> None:
    async def scenario() -> Supervised:
        supervised = Supervised(_service(sys.executable, "-c", "raise SystemExit(7)"), lambda _: None, lambda _: None)
        await supervised.run()
        return supervised

    supervised = asyncio.run(scenario())
    assert (supervised.state, supervised.last_exit, supervised.failure_code) == (State.FAILED, 7, 7)


@pytest.mark.parametrize(
    ("script", "cause"),
    [("exit 3", "exit"), ("kill -9 $$", "signal"), ("echo oom_kill 1 > EVENTS; kill -9 $$", "out-of-memory")],
)
def test_a_restart_is_counted_by_what_ended_the_run(tmp_path: Path, script: str, cause: str) -> None:
    for name in ("memory.current", "memory.max"):
        (tmp_path / name).write_text("1000\n")
    events = tmp_path / "memory.events"
    events.write_text("oom_kill 0\n")

    async def scenario() -> Supervised:
        service = replace(_service("sh", "-c", script.replace("EVENTS", str(events))), limits=Limits(quick_deaths=2))
        supervised = Supervised(service, lambda _: None, lambda _: None, tmp_path)
        await asyncio.wait_for(supervised.run(), 10)
        return supervised

    supervised = asyncio.run(scenario())
    assert supervised.restarts == 1
    assert {name: count for name, count in supervised.restarts_by_cause.items() if count} == {cause: 1}


def test_a_missing_program_is_a_failure_and_not_a_traceback() -> None:
    said: list[bytes] = []

    async def scenario() -> Supervised:
        supervised = Supervised(_service("/no/such/program"), said.append, lambda _: None)
        await supervised.run()
        return supervised

    assert asyncio.run(scenario()).last_exit == 127
    assert said == [b"cannot run /no/such/program: No such file or directory\n"]


def test_a_stop_before_the_first_step_ends_at_once() -> None:
    async def scenario() -> Supervised:
        supervised = Supervised(_service("sleep", "60"), lambda _: None, lambda _: None)
        running = asyncio.create_task(supervised.run())
        await supervised.stop()
        await asyncio.wait_for(running, 5)
        return supervised

    supervised = asyncio.run(scenario())
    assert (supervised.state, supervised.pid, supervised.failure_code) == (State.STOPPED, None, 0)


@pytest.mark.parametrize("said", [True, False])
def test_a_child_that_tells_is_asked_when_it_listens_or_else_now_and_then(
    monkeypatch: pytest.MonkeyPatch, *, said: bool
) -> None:
    monkeypatch.setattr(process, "_UNTOLD_POLL", 300.0 if said else 0.2)

    async def scenario() -> None:
        port, listens, ready = choose_free(20000), asyncio.Event(), asyncio.Event()
        argv = (sys.executable, "-u", "-m", "http.server", "--bind", "127.0.0.1", str(port))

        def changed(child: Supervised) -> None:
            if child.state is State.READY:
                ready.set()

        supervised = Supervised(replace(_service(*argv), port=port, tells=True), lambda _: listens.set(), changed)
        running = asyncio.create_task(supervised.run())
        async with asyncio.timeout(30):
            await listens.wait()
            if said:
                # Long enough for a few questions of those that are put twenty times a second.
                await asyncio.sleep(0.5)
                assert not ready.is_set()
                supervised.listens()
            await ready.wait()
        await supervised.stop()
        await running

    asyncio.run(scenario())


@pytest.mark.parametrize("steps", [1, 2, 5])
def test_a_stop_in_the_middle_of_a_start_ends_a_child_that_is_deaf(steps: int) -> None:
    async def scenario() -> Supervised:
        supervised = Supervised(_service("sh", "-c", "trap '' TERM INT; sleep 60"), lambda _: None, lambda _: None)
        running = asyncio.create_task(supervised.run())
        for _ in range(steps):
            await asyncio.sleep(0)
        await supervised.stop()
        await asyncio.wait_for(running, 10)
        return supervised

    supervised = asyncio.run(scenario())
    assert (supervised.state, supervised.pid) == (State.STOPPED, None)

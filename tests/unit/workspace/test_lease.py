from __future__ import annotations

import json
import os
import random
import signal
import time
from typing import TYPE_CHECKING

import pytest

from comfypod import files
from comfypod.errors import BusyError
from comfypod.workspace.lease import Lease
from tests.kit.lab import until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / ".comfypod" / "pods"


@pytest.fixture
def lockless(monkeypatch: pytest.MonkeyPatch) -> None:
    """Doubled: a network disk whose locks do not reach other machines cannot be mounted here."""
    monkeypatch.setattr(files, "try_lock", lambda _handle, **_: None)


@pytest.fixture
def lease(folder: Path) -> Iterator[Callable[..., Lease]]:
    made: list[Lease] = []

    def make(**options: object) -> Lease:
        made.append(Lease(folder, **{"beat": 0.02, "patience": 0.4, **options}))  # type: ignore[arg-type]
        return made[-1]

    yield make
    for each in made:
        each.release()


def ticket(folder: Path, number: int, **more: object) -> Path:
    """Write the ticket of a pod on another machine that is gone."""
    body = {"host": "gone", "phase": "preparing", "beat": 7, "machine": "another", "pid": 5, "started": 5}
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / str(number)
    path.write_text(json.dumps({**body, "namespace": "pid:[1]", **more}))
    return path


def nothing(*_: object) -> None:
    pass


def test_the_first_prepares_and_the_second_waits_until_it_runs(lease: Callable[..., Lease]) -> None:
    first, second = lease(), lease()
    first.take()
    assert first.ahead() is None
    second.take()
    ahead = second.ahead()
    assert ahead is not None
    assert (ahead.host, ahead.phase, ahead.life) == (os.uname().nodename, "preparing", "alive")
    assert first.ahead() is None
    assert second.wait(second.ahead, nothing, 0.3) == ahead
    first.run()
    assert second.ahead() is None
    assert [pod.phase for pod in second.others()] == ["running"]
    first.release()
    assert second.others() == []


def test_a_ticket_that_was_given_back_leaves_nothing(lease: Callable[..., Lease], folder: Path) -> None:
    first = lease()
    first.take()
    assert len(os.listdir(folder)) == 1
    first.release()
    first.release()
    assert os.listdir(folder) == []
    assert not first.held


def _in_child(work: Callable[[], None]) -> int:
    pid = os.fork()
    if pid == 0:
        try:
            work()
        finally:
            os._exit(0)
    return pid


def test_a8_a_pod_that_is_killed_is_followed_at_once_by_the_next(lease: Callable[..., Lease], folder: Path) -> None:
    def prepare() -> None:
        Lease(folder).take()
        ready.touch()
        time.sleep(60)

    ready = folder.parent.parent / "ready"

    pid = _in_child(prepare)
    second = lease(patience=600)
    until(ready.exists, "a ticket")
    second.take()
    assert second.wait(second.ahead, nothing, 0.3) is not None
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    assert second.ahead() is None
    assert len(os.listdir(folder)) == 1


def test_a9_a_stale_lease_of_a_host_that_is_gone_is_taken_over_after_its_time_whatever_the_clocks_say(
    lease: Callable[..., Lease], folder: Path, lockless: None
) -> None:
    for number, away in ((1, -1e6), (2, 1e6)):
        path = ticket(folder, number)
        os.utime(path, (time.time() + away,) * 2)
    mine = lease(machine="mine")
    mine.take()
    said: list[tuple[str, float]] = []
    began = time.monotonic()
    assert mine.wait(mine.ahead, lambda pod, seconds: said.append((pod.host, seconds))) is None
    assert 0.4 <= time.monotonic() - began < 10
    assert {host for host, _ in said} == {"gone"}
    assert mine.others() == []
    assert os.listdir(folder) == ["3"]


@pytest.mark.parametrize("away", [-1e6, 1e6])
def test_a9_a_pod_of_another_machine_that_goes_on_is_never_taken_over(
    lease: Callable[..., Lease], folder: Path, lockless: None, away: float
) -> None:
    theirs, mine = lease(machine="theirs"), lease(machine="mine")
    theirs.take()
    mine.take()
    os.utime(folder / "1", (time.time() + away,) * 2)
    assert mine.wait(mine.ahead, nothing, 1.5) is not None
    theirs.ensure()
    theirs.run()
    assert mine.ahead() is None
    assert [(pod.phase, pod.life) for pod in mine.others()] == [("running", "alive")]


def test_whether_a_pod_elsewhere_lives_is_known_after_a_while(
    lease: Callable[..., Lease], folder: Path, lockless: None
) -> None:
    ticket(folder, 1, phase="running")
    mine = lease(machine="mine")
    assert [pod.life for pod in mine.others()] == ["unknown"]
    assert mine.wait(mine.unknown, nothing) is None
    assert mine.others() == []


def test_who_stood_still_for_too_long_may_not_go_on(lease: Callable[..., Lease], folder: Path, lockless: None) -> None:
    slow, other = lease(machine="slow", beat=600.0), lease(machine="other")
    slow.take()
    slow.ensure()
    other.take()
    assert other.wait(other.ahead, nothing) is None
    with pytest.raises(BusyError, match="stood still"):
        slow.ensure()
    slow.release()
    assert os.listdir(folder) == ["2"]


def test_a_pod_that_runs_and_was_taken_for_dead_says_again_that_it_is_there(
    lease: Callable[..., Lease], folder: Path
) -> None:
    first, second = lease(), lease()
    first.take()
    first.run()
    (folder / "1").unlink()
    until(lambda: bool(second.others()), "a ticket")
    assert [pod.phase for pod in second.others()] == ["running"]


@pytest.mark.parametrize("text", ["", "[]", "{", '{"pid": "x"}', "\0" * 100, json.dumps({"pid": 1, "machine": []})])
def test_a_ticket_that_makes_no_sense_is_waited_for_and_then_dead(
    lease: Callable[..., Lease], folder: Path, text: str
) -> None:
    ticket(folder, 1).write_text(text)
    (folder / "notes.txt").write_text("mine")
    mine = lease()
    mine.take()
    assert mine.ahead() is not None
    assert mine.wait(mine.ahead, nothing) is None
    assert sorted(os.listdir(folder)) == ["2", "notes.txt"]


def test_a_ticket_that_is_a_pipe_does_not_hold_anybody_up(lease: Callable[..., Lease], folder: Path) -> None:
    folder.mkdir(parents=True)
    os.mkfifo(folder / "1")
    (folder / "2").mkdir()
    mine = lease()
    mine.take()
    assert mine.others() == []


@pytest.mark.slow
def test_a8_only_one_of_many_prepares_at_a_time_whoever_is_killed(folder: Path, tmp_path: Path) -> None:
    """Ten seconds of eight processes that come, prepare, run and go, a random one killed every few milliseconds."""
    oracle, broken, done = tmp_path / "oracle", tmp_path / "broken", tmp_path / "done"
    oracle.touch()

    def live(seed: int) -> None:
        chance = random.Random(seed)
        for _ in range(10_000):
            # Opened before the ticket, so that the kernel lets go of it before, too.
            handle = os.open(oracle, os.O_RDWR)
            lease = Lease(folder, beat=0.05, patience=60)
            lease.take()
            while lease.ahead() is not None:
                time.sleep(0.001)
            if files.try_lock(handle) is False:
                broken.write_text(f"{os.getpid()}")
            time.sleep(chance.random() * 0.01)
            os.close(handle)
            with done.open("a") as sink:
                sink.write("x")
            lease.run()
            time.sleep(chance.random() * 0.01)
            lease.release()

    pods = [_in_child(lambda seed=seed: live(seed)) for seed in range(8)]  # type: ignore[misc]
    chance, deadline, kills = random.Random(0), time.monotonic() + 10, 0
    try:
        while time.monotonic() < deadline:
            time.sleep(chance.random() * 0.05)
            victim = pods.pop(chance.randrange(len(pods)))
            os.kill(victim, signal.SIGKILL)
            os.waitpid(victim, 0)
            kills += 1
            pods.append(_in_child(lambda seed=kills: live(seed)))  # type: ignore[misc]
    finally:
        for pid in pods:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
    print(f"{kills} kills, {len(done.read_text())} turns")
    assert not broken.exists()
    assert kills > 50
    assert len(done.read_text()) > 20

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given
from hypothesis import strategies as st

from comfypod import proc
from comfypod.workspace import run
from comfypod.workspace.run import Child, RunRecord
from tests.kit.lab import until

_TEXT = st.text(st.characters(codec="utf-8"))
_CHILDREN = st.builds(Child, _TEXT, st.integers(1), st.integers(0))
_URLS = st.dictionaries(_TEXT, _TEXT, max_size=3)
_STUBBORN = (
    "import os, signal, sys, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); child = os.fork();"
    "child and print(child, flush=True); time.sleep(60)"
)


def me(name: str = "boot") -> Child:
    return named(name, os.getpid())


def named(name: str, pid: int) -> Child:
    started = proc.start_ticks(pid)
    assert started is not None
    return Child(name, pid, started)


@given(st.builds(RunRecord, _CHILDREN, _TEXT, _URLS, st.lists(_CHILDREN, max_size=3).map(tuple)))
def test_a_record_comes_back_as_it_was_written(record: RunRecord) -> None:
    with TemporaryDirectory() as folder:
        path = Path(folder, "run.json")
        run.write(path, record)
        assert run.read(path) == record
        assert path.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(
    "data",
    [
        b"", b"{", b"\xff", b"[]", b"null", b"{}", b'{"boot": 3, "control": "", "urls": {}, "children": []}',
        b'{"boot": {"name": "boot", "pid": 1}, "control": "", "urls": {}, "children": []}',
        b'{"boot": {"name": "boot", "pid": 1, "started": 1}, "control": "", "urls": {}, "children": [3]}',
        b'{"boot": {"name": "boot", "pid": 1, "started": 1}, "control": "", "urls": {}, "children": null}',
    ],
)  # fmt: skip
def test_a_damaged_record_counts_as_none(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "run.json"
    path.write_bytes(data)
    assert run.read(path) is None
    assert run.running(path) is None


def test_only_a_boot_that_is_alive_is_running(tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    assert run.running(path) is None
    record = RunRecord(me(), "http://127.0.0.1:1", {})
    run.write(path, record)
    assert run.running(path) == record
    with subprocess.Popen(["sleep", "60"]) as child:
        gone = named("boot", child.pid)
        child.kill()
    run.write(path, RunRecord(gone, "http://127.0.0.1:1", {}))
    assert run.running(path) is None
    assert run.read(path) is not None


def test_a_pid_that_another_process_has_now_is_not_the_boot(tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    run.write(path, RunRecord(Child("boot", os.getpid(), me().started - 1), "http://127.0.0.1:1", {}))
    assert run.running(path) is None
    assert not Child("boot", 1, -1).alive


def test_a_pid_that_another_process_has_now_is_not_ended() -> None:
    with subprocess.Popen(["sleep", "60"], start_new_session=True) as bystander:
        taken = named("comfyui", bystander.pid)
        record = RunRecord(me(), "", {}, (Child("comfyui", taken.pid, taken.started - 1),))
        assert run.end_orphans(record) == ()
        assert taken.alive
        bystander.kill()


def test_what_a_killed_boot_left_is_asked_to_end_and_named() -> None:
    with subprocess.Popen(["sleep", "60"], start_new_session=True) as one:
        gone = Child("jupyter", 2**22 + 1, 5)
        record = RunRecord(me(), "", {}, (named("comfyui", one.pid), gone))
        assert run.end_orphans(record) == ("comfyui",)
        assert one.wait() == -signal.SIGTERM
    assert run.end_orphans(record) == ()


def test_a_group_that_is_deaf_to_signals_is_killed_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "_ORPHAN_SECONDS", 0.3)
    argv = [sys.executable, "-c", _STUBBORN]
    with subprocess.Popen(argv, start_new_session=True, stdout=subprocess.PIPE, text=True) as leader:
        assert leader.stdout is not None
        second = named("second", int(leader.stdout.readline()))
        assert run.end_orphans(RunRecord(me(), "", {}, (named("comfyui", leader.pid),))) == ("comfyui",)
        assert leader.wait() == -signal.SIGKILL
        until(lambda: not second.alive, "ended")


def test_a_record_that_is_replaced_is_never_half_there(tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    run.write(path, RunRecord(me(), "a" * 10_000, {}))
    before = path.stat().st_ino
    run.write(path, RunRecord(me(), "b", {}))
    assert path.stat().st_ino != before
    assert json.loads(path.read_text())["control"] == "b"

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
from comfypod.workspace.run import Boot, RunRecord
from tests.kit.lab import until
from tests.kit.web import Answer, serve

_TEXT = st.text(st.characters(codec="utf-8"))
_BOOTS = st.builds(Boot, st.integers(2), st.integers(1), _TEXT)
_STUBBORN = (
    "import os, signal, sys, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); child = os.fork();"
    "child and print(child, flush=True); time.sleep(60)"
)


@given(st.builds(RunRecord, _BOOTS, _TEXT))
def test_a_record_comes_back_as_it_was_written(record: RunRecord) -> None:
    with TemporaryDirectory() as folder:
        path = Path(folder, "run.json")
        run.write(path, record)
        assert run.read(path) == record
        assert path.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(
    "data",
    [
        b"", b"{", b"\xff", b"[]", b"null", b"{}", b"[" * 100_000, b'{"boot": 3, "control": ""}',
        b'{"boot": {"pid": 9}, "control": ""}',
        b'{"boot": {"pid": -1, "started": null}, "control": ""}',
        b'{"boot": {"pid": 0, "started": 1}, "control": ""}',
        b'{"boot": {"pid": 1, "started": 1}, "control": ""}',
        b'{"boot": {"pid": 9, "started": true}, "control": ""}',
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
    record = RunRecord(run.this_process(), "http://127.0.0.1:1")
    run.write(path, record)
    assert run.running(path) == record
    with subprocess.Popen(["sleep", "60"]) as child:
        gone = Boot(child.pid, proc.start_ticks(child.pid) or 0)
        child.kill()
    run.write(path, RunRecord(gone, "http://127.0.0.1:1"))
    assert run.running(path) is None
    assert run.read(path) is not None


def test_a_record_from_before_there_were_images_is_of_this_machine(tmp_path: Path) -> None:
    path, me = tmp_path / "run.json", run.this_process()
    path.write_text(json.dumps({"boot": {"pid": me.pid, "started": me.started}, "control": "c"}))
    found = run.running(path)
    assert found == RunRecord(Boot(me.pid, me.started), "c")
    assert found is not None
    assert found.boot.here


def test_a_pod_of_another_container_runs_when_it_answers_with_its_name(tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    with serve() as site:
        record = RunRecord(Boot(os.getpid(), run.this_process().started, "pid:[1]"), site.url)
        run.write(path, record)
        assert not record.boot.here
        assert run.running(path) is None
        for pid, namespace, found in ((9, "pid:[1]", None), (os.getpid(), "", None), (os.getpid(), "pid:[1]", record)):
            body = {"boot": {"pid": pid, "namespace": namespace}}
            site.answers["/status"] = Answer(json.dumps(body).encode())
            assert run.running(path) == found
        site.answers["/status"] = Answer(b'{"boot": 3}')
        assert run.running(path) is None
    assert run.running(path) is None


def test_whoever_holds_a_workspace_is_named_as_far_as_they_are_known(tmp_path: Path) -> None:
    path, me = tmp_path / "run.json", run.this_process()
    assert run.in_use(tmp_path, path).message == f"the workspace {tmp_path} is in use"
    run.write(path, RunRecord(me, "c"))
    assert f"by the pod with pid {me.pid}" in run.in_use(tmp_path, path).message
    run.write(path, RunRecord(Boot(me.pid, me.started, "pid:[1]"), "c"))
    held = run.in_use(tmp_path, path)
    assert held.message.endswith("in use by a pod in another container")
    assert "comfypod down" in held.hint


def test_a_pid_that_another_process_has_now_is_not_the_boot(tmp_path: Path) -> None:
    path, me = tmp_path / "run.json", run.this_process()
    run.write(path, RunRecord(Boot(me.pid, me.started - 1), "http://127.0.0.1:1"))
    assert run.running(path) is None


def _started(workspace: Path, argv: list[str]) -> subprocess.Popen[str]:
    env = {**os.environ, run.MARK: str(workspace)}
    return subprocess.Popen(argv, env=env, start_new_session=True, stdout=subprocess.PIPE, text=True)


def test_what_a_killed_boot_left_is_asked_to_end_and_nothing_else_is(tmp_path: Path) -> None:
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    with _started(ours, ["sleep", "60"]) as one, _started(theirs, ["sleep", "60"]) as bystander:
        assert run.end_orphans(ours) == 1
        assert one.wait() == -signal.SIGTERM
        assert bystander.poll() is None
        bystander.kill()
    assert run.end_orphans(ours) == 0


def test_a_group_that_is_deaf_to_signals_is_killed_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "_ORPHAN_SECONDS", 0.3)
    with _started(tmp_path, [sys.executable, "-c", _STUBBORN]) as leader:
        assert leader.stdout is not None
        second = int(leader.stdout.readline())
        assert run.end_orphans(tmp_path) == 2
        assert leader.wait() == -signal.SIGKILL
        until(lambda: proc.start_ticks(second) is None, "ended")


def test_whoever_asks_is_never_among_the_orphans(tmp_path: Path) -> None:
    code = "import sys, pathlib; from comfypod.workspace import run; print(run.end_orphans(pathlib.Path(sys.argv[1])))"
    shell = f"{sys.executable} -c '{code}' {tmp_path}; echo still here"
    with _started(tmp_path, ["sh", "-c", shell]) as asking:
        assert asking.communicate(timeout=20)[0] == "0\nstill here\n"


def test_a_record_that_is_replaced_is_never_half_there(tmp_path: Path) -> None:
    path, me = tmp_path / "run.json", run.this_process()
    run.write(path, RunRecord(me, "a" * 10_000))
    before = path.stat().st_ino
    run.write(path, RunRecord(me, "b"))
    assert path.stat().st_ino != before
    assert json.loads(path.read_text())["control"] == "b"

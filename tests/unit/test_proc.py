from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from comfypod import proc
from comfypod.errors import HostError
from tests.kit.lab import until

if TYPE_CHECKING:
    from collections.abc import Awaitable

DEAF = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('deaf', flush=True); time.sleep(60)"
NO_PID = 2**22 + 1


def python(code: str, *arguments: str) -> list[str]:
    return [sys.executable, "-I", "-S", "-c", code, *arguments]


def test_what_a_program_prints_and_returns_is_kept_apart() -> None:
    done = proc.run(python("import sys; print('out'); print('err', file=sys.stderr); sys.exit(3)"), seconds=30)
    assert (done.returncode, done.stdout, done.stderr) == (3, "out\n", "err\n")
    assert (done.ok, done.timed_out) == (False, False)
    assert proc.run(["true"], seconds=30).ok


def test_output_that_is_not_text_is_kept_readable() -> None:
    done = proc.run(python(r"import os; os.write(1, b'a\xff')"), seconds=30)
    assert done.stdout == "a\N{REPLACEMENT CHARACTER}"


def test_a_program_reads_nothing_of_ours_and_sees_the_environment_and_folder_given(tmp_path: Path) -> None:
    code = "import os, sys; print(repr(sys.stdin.read()), os.environ.get('A'), os.environ.get('HOME'), os.getcwd())"
    done = proc.run(python(code), seconds=30, env={"A": "1"}, cwd=tmp_path)
    assert done.stdout == f"'' 1 None {tmp_path}\n"


def test_a_program_that_ignores_sigterm_is_killed_and_its_output_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(proc, "_TERMINATE_SECONDS", 0.2)
    done = proc.run(python(DEAF), seconds=1)
    assert (done.timed_out, done.ok) == (True, False)
    assert (done.returncode, done.stdout) == (-signal.SIGKILL, "deaf\n")


def test_a_wait_is_bounded_also_when_a_grandchild_keeps_the_output_open(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(proc, "_TERMINATE_SECONDS", 0.2)
    began = time.monotonic()
    done = proc.run(["sh", "-c", "sleep 8 & echo started"], seconds=0.5)
    assert done.timed_out
    assert time.monotonic() - began < 7


def test_tick_is_called_meanwhile_and_its_error_ends_the_program(tmp_path: Path) -> None:
    pid_file, ticks = tmp_path / "pid", list[int]()

    class StopError(Exception):
        pass

    def tick() -> None:
        ticks.append(1)
        if pid_file.exists() and len(ticks) > 1:
            raise StopError

    code = "import os, pathlib, sys, time; pathlib.Path(sys.argv[1]).write_text(str(os.getpid())); time.sleep(60)"
    with pytest.raises(StopError):
        proc.run(python(code, str(pid_file)), seconds=60, tick=tick)
    assert proc.start_ticks(int(pid_file.read_text())) is None


def test_output_goes_to_a_private_file_that_tick_can_read_meanwhile(tmp_path: Path) -> None:
    log, seen = tmp_path / "log", list[str]()
    code = "import sys, time; print('out', flush=True); print('err', file=sys.stderr, flush=True); time.sleep(1)"
    done = proc.run(python(code), seconds=30, output=log, tick=lambda: seen.append(log.read_text()))
    assert (done.ok, done.stdout, done.stderr) == (True, "", "")
    assert "out\nerr\n" in seen
    proc.run(python("print('more')"), seconds=30, output=log)
    assert log.read_text() == "out\nerr\nmore\n"
    assert log.stat().st_mode & 0o777 == 0o600


def test_descriptors_that_are_kept_are_open_in_the_child_and_others_are_not(tmp_path: Path) -> None:
    kept, other = (os.open(tmp_path, os.O_RDONLY) for _ in range(2))
    try:
        os.set_inheritable(other, True)
        code = "import os, sys\nfor fd in sys.argv[1:]: print(os.path.exists('/proc/self/fd/' + fd))"
        done = proc.run(python(code, str(kept), str(other)), seconds=30, keep=(kept,))
        assert done.stdout == "True\nFalse\n"
    finally:
        os.close(kept)
        os.close(other)


def test_a_missing_program_is_an_error_of_the_host(tmp_path: Path) -> None:
    with pytest.raises(HostError, match="cannot run /no/such/program: No such file"):
        proc.run(["/no/such/program"], seconds=1)
    (tmp_path / "plain").write_text("text")
    with pytest.raises(HostError, match="Permission denied"):
        proc.run([str(tmp_path / "plain")], seconds=1)
    with pytest.raises(HostError, match="'no-such-program' is not on the PATH") as caught:
        proc.find_program("no-such-program")
    assert caught.value.hint


def test_a_tied_program_runs_as_itself_and_ends_when_its_parent_is_killed(tmp_path: Path) -> None:
    assert proc.run(["/bin/sh", "-c", "echo $0 $#", "me", "a", "b"], seconds=30, tied=True).stdout == "me 2\n"
    pid_file = tmp_path / "pid"
    code = (
        "import sys; from comfypod import proc;"
        "proc.run(['/bin/sh', '-c', 'echo $$ > $0.new; mv $0.new $0; exec sleep 60', sys.argv[1]],"
        " seconds=60, tied=True)"
    )
    with subprocess.Popen([sys.executable, "-c", code, str(pid_file)]) as parent:
        until(pid_file.exists, "started")
        pid = int(pid_file.read_text())
        assert proc.start_ticks(pid) is not None
        parent.kill()
    until(lambda: proc.start_ticks(pid) is None, "ended with its parent")


def test_a_detached_program_outlives_its_starter_and_writes_to_a_private_file(tmp_path: Path) -> None:
    output = tmp_path / "out"
    starter = (
        "import pathlib, sys; from comfypod import proc;"
        "child = proc.detach(['sh', '-c', 'echo one; echo two >&2; exec sleep 60'], pathlib.Path(sys.argv[1]));"
        "print(child.pid, flush=True); child.returncode = 0"
    )
    done = subprocess.run([sys.executable, "-c", starter, str(output)], capture_output=True, text=True, check=True)
    pid = int(done.stdout)
    try:
        until(lambda: output.read_text() == "one\ntwo\n", "written")
        assert proc.start_ticks(pid) is not None
        assert os.getsid(pid) == pid
        assert output.stat().st_mode & 0o777 == 0o600
    finally:
        assert proc.signal_group(pid, signal.SIGKILL)


def test_a_process_is_named_by_its_start_while_it_lives(tmp_path: Path) -> None:
    own = proc.start_ticks(os.getpid())
    assert own is not None
    assert own == proc.start_ticks(os.getpid())
    assert proc.start_ticks(NO_PID) is None
    child = subprocess.Popen(["sleep", "60"])
    try:
        started = proc.start_ticks(child.pid)
        assert started is not None
        assert started > own
    finally:
        child.kill()
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
        assert proc.start_ticks(child.pid) is None, "a zombie is gone"
        child.wait()


def test_a_program_name_with_spaces_and_parentheses_is_read_right(tmp_path: Path) -> None:
    script = tmp_path / "a ) b ("
    script.symlink_to("/bin/sleep")
    with subprocess.Popen([str(script), "60"]) as child:
        started = proc.start_ticks(child.pid)
        child.kill()
    assert started is not None
    assert started >= (proc.start_ticks(os.getpid()) or 0)


def test_signals_to_what_is_gone_say_so() -> None:
    assert not proc.signal_process(NO_PID, signal.SIGTERM)
    assert not proc.signal_group(NO_PID, signal.SIGTERM)
    child = subprocess.Popen(["sleep", "60"], start_new_session=True)
    assert proc.signal_process(child.pid, signal.SIGTERM)
    assert child.wait() == -signal.SIGTERM


def test_the_processor_time_of_a_group_counts_all_its_processes(tmp_path: Path) -> None:
    spin = "while True: pass"
    code = f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', '{spin}'])\n{spin}"
    child = proc.detach([sys.executable, "-c", code], tmp_path / "out")
    try:
        time.sleep(0.3)
        before, own = proc.group_seconds(child.pid), time.monotonic()
        time.sleep(1.0)
        assert 0.3 < proc.group_seconds(child.pid) - before < 4 * (time.monotonic() - own)
    finally:
        proc.signal_group(child.pid, signal.SIGKILL)
        child.wait()
    assert proc.group_seconds(NO_PID) == 0


def _service(code: str, **env: str) -> Awaitable[proc.ServiceChild]:
    return proc.start_service(python(code), {**os.environ, **env}, Path("/"))


def _score(pid: int | str) -> int:
    return int(Path(f"/proc/{pid}/oom_score_adj").read_text())


def test_a_service_is_ended_before_us_when_memory_runs_out() -> None:
    async def score() -> int:
        child = await _service("import time; time.sleep(60)")
        found = _score(child.process.pid)
        child.process.kill()
        await child.process.wait()
        child.close()
        return found

    assert asyncio.run(score()) > _score("self")


@pytest.mark.parametrize("turns", range(8))
def test_a_service_whose_start_is_cancelled_leaves_nothing(turns: int) -> None:
    marker = f"comfypod-test-{os.getpid()}-{turns}"

    async def cancelled() -> None:
        task = asyncio.ensure_future(_service("import time; time.sleep(60)", MARKER=marker))
        for _ in range(turns):
            await asyncio.sleep(0)
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            child = await task
            child.process.kill()
            await child.process.wait()
            child.close()

    asyncio.run(cancelled())
    gc.collect()
    assert proc.with_variable(f"MARKER={marker}") == []

"""The only subprocess door: argument lists, bounded waits, children that never outlive an interrupt."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from comfypod.errors import HostError

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

_TERMINATE_SECONDS = 10.0
_POLL_SECONDS = 0.5
# In thousandths of all memory (proc(5), oom_score_adj): more than we use ourselves even where the limit is 256 MB.
_SOONER = 100
# prctl(PR_SET_PDEATHSIG); the parent may have died before the call.
_TIE = """
import ctypes, os, signal, sys
ctypes.CDLL(None).prctl(1, signal.SIGTERM)
if os.getppid() == int(sys.argv[1]):
    os.execv(sys.argv[2], sys.argv[2:])
"""


@dataclass(frozen=True, slots=True)
class Completed:
    """A finished program: what it returned and printed (decoded, both streams apart)."""

    argv: tuple[str, ...]
    returncode: int
    stdout: str
    stderr: str
    timed_out: bool = False

    @property
    def ok(self) -> bool:
        """Whether it ended by itself with 0."""
        return self.returncode == 0 and not self.timed_out


def find_program(name: str) -> str:
    """Return the path of a program on the PATH.

    Raises:
        HostError: there is none.
    """
    found = shutil.which(name)
    if found is None:
        raise HostError(f"the program {name!r} is not on the PATH", f"install {name} and run the command again")
    return found


def run(
    argv: Sequence[str],
    *,
    seconds: float,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    tick: Callable[[], None] | None = None,
    keep: Sequence[int] = (),
    tied: bool = False,
    output: Path | None = None,
) -> Completed:
    """Run a program to its end, or for `seconds` at most; both streams are kept.

    `tick` is called twice a second meanwhile. Whatever ends the wait (an interrupt, an error in `tick`), the program
    is ended first. `keep` are descriptors that stay open in the child. A `tied` program also ends when this thread is
    killed (it costs the start of a Python). With `output`, both streams are added to that file (mode 0600 where it is
    new) and none is kept.

    Raises:
        HostError: the program is missing or cannot be executed.
    """
    command = [sys.executable, "-I", "-S", "-c", _TIE, str(os.getpid()), *argv] if tied else list(argv)
    sink = None if output is None else os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    out, err = (subprocess.PIPE, subprocess.PIPE) if sink is None else (sink, subprocess.STDOUT)
    try:
        child = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=out, stderr=err, process_group=0,
            env=None if env is None else dict(env), cwd=cwd, text=True, errors="replace", pass_fds=tuple(keep),
        )  # fmt: skip
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise HostError(f"cannot run {argv[0]}: {reason}", "check that it is installed and executable") from error
    finally:
        if sink is not None:
            os.close(sink)
    try:
        said = _follow(child, time.monotonic() + seconds, tick)
    finally:
        last_words = _end(child) if child.returncode is None else ("", "")
    stdout, stderr = said if said is not None else last_words
    return Completed(tuple(argv), child.returncode, stdout or "", stderr or "", timed_out=said is None)


def _follow(child: subprocess.Popen[str], deadline: float, tick: Callable[[], None] | None) -> tuple[str, str] | None:
    """Return what the child printed by its end, None when the deadline came first."""
    while (left := deadline - time.monotonic()) > 0:
        try:
            return child.communicate(timeout=min(_POLL_SECONDS, left))
        except subprocess.TimeoutExpired:
            if tick is not None:
                tick()
    return None


def _end(child: subprocess.Popen[str]) -> tuple[str, str]:
    """End the child's whole group, and do not wait for output that a stray descendant keeps open."""
    for signum in (signal.SIGTERM, signal.SIGKILL):
        signal_group(child.pid, signum)
        try:
            return child.communicate(timeout=_TERMINATE_SECONDS)
        except subprocess.TimeoutExpired:
            continue
    child.wait()
    for stream in (child.stdout, child.stderr):
        if stream is not None:
            stream.close()
    return "", ""


def replace(argv: Sequence[str], env: Mapping[str, str] | None = None) -> None:
    """Become another program: same process, same signals, its exit code is ours. Does not return."""
    os.execve(argv[0], list(argv), dict(os.environ if env is None else env))


def detach(argv: Sequence[str], output: Path, env: Mapping[str, str] | None = None) -> subprocess.Popen[bytes]:
    """Start a program in a session of its own that outlives us; both streams go to the new file `output`, mode 0600."""
    output.unlink(missing_ok=True)
    with os.fdopen(os.open(output, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as sink:
        return subprocess.Popen(
            list(argv), stdin=subprocess.DEVNULL, stdout=sink, stderr=subprocess.STDOUT,
            env=None if env is None else dict(env), start_new_session=True,
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class ServiceChild:
    """A supervised child and what it prints.

    The pipe is ours and not asyncio's: there `wait` returns only when the last descendant has closed it.
    """

    process: asyncio.subprocess.Process
    output: asyncio.StreamReader
    close: Callable[[], None]


async def start_service(
    argv: Sequence[str], env: Mapping[str, str], cwd: Path, keep: Sequence[int] = ()
) -> ServiceChild:
    """Start a supervised child in a session of its own, both streams joined in one pipe; `keep` stays open in it.

    Where memory runs out, the kernel ends it before us, who start it again.

    Raises:
        HostError: the program is missing or cannot be executed.
    """
    import asyncio

    output = asyncio.StreamReader()
    reading, writing = os.pipe()
    with os.fdopen(writing, "wb", buffering=0), contextlib.ExitStack() as undo:
        # First the pipe: whoever is cancelled while the program starts leaves none behind, for asyncio ends that one.
        transport, _ = await asyncio.get_running_loop().connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(output), os.fdopen(reading, "rb", buffering=0)
        )
        undo.callback(transport.close)
        try:
            process = await asyncio.create_subprocess_exec(
                *argv, stdin=subprocess.DEVNULL, stdout=writing, stderr=subprocess.STDOUT,
                env=dict(env), cwd=cwd, start_new_session=True, pass_fds=keep,
            )  # fmt: skip
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else error
            raise HostError(f"cannot run {argv[0]}: {reason}", "`comfypod up` repairs the store") from error
        undo.pop_all()
    _ends_sooner(process.pid)
    return ServiceChild(process, output, transport.close)


def _ends_sooner(pid: int) -> None:
    """Raise the score by which the kernel chooses whom to end; a child that has chosen a higher one keeps it."""
    with contextlib.suppress(OSError), open(f"/proc/{pid}/oom_score_adj", "r+", encoding="ascii") as handle:
        if int(handle.read()) < _SOONER:
            handle.write(str(_SOONER))


def signal_group(pid: int, signum: signal.Signals) -> bool:
    """Signal a child's whole group; False when nothing of it is left."""
    try:
        os.killpg(pid, signum)
    except (ProcessLookupError, PermissionError):
        return False
    return True


def signal_process(pid: int, signum: signal.Signals) -> bool:
    """Signal one process; False when it is gone."""
    try:
        os.kill(pid, signum)
    except (ProcessLookupError, PermissionError):
        return False
    return True


def _stat(pid: int) -> list[str]:
    """Return the fields of /proc/PID/stat from the third on (proc(5)); none when the process is gone."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as handle:
            return handle.read().rpartition(")")[2].split()
    except OSError:
        return []


def start_ticks(pid: int) -> int | None:
    """Return a process's start time in clock ticks since boot, None when it is gone or a zombie.

    A pid together with its start time names a process for good.
    """
    fields = _stat(pid)
    return int(fields[19]) if fields and fields[0] != "Z" else None


def resident(pid: int) -> int:
    """Return the bytes of memory that a process has, those that it shares included; 0 when it is gone."""
    try:
        with open(f"/proc/{pid}/statm", encoding="ascii") as handle:
            return int(handle.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0


def group_seconds(group: int) -> float:
    """Return the processor time in seconds that the processes of a group, and what they have waited for, have used."""
    ticks = 0
    for name in os.listdir("/proc"):
        if name.isdecimal():
            fields = _stat(int(name))
            if fields and int(fields[2]) == group:
                ticks += sum(map(int, fields[11:15]))
    return ticks / os.sysconf("SC_CLK_TCK")


def command_line(pid: int) -> tuple[str, ...]:
    """Return the arguments that a process runs with; none when it is gone or not to be seen."""
    try:
        with open(f"/proc/{pid}/cmdline", encoding="utf-8", errors="replace") as handle:
            return tuple(handle.read().split("\0"))
    except OSError:
        return ()


def with_variable(assignment: str) -> list[int]:
    """Return the processes of this user that were started with `NAME=value`, without us and those that we come from.

    Those of a container are not seen from outside it: paths and pids mean something else there.
    """
    wanted, found = os.fsencode(assignment), []
    for name in os.listdir("/proc"):
        if name.isdecimal():
            with contextlib.suppress(OSError), open(f"/proc/{name}/environ", "rb") as handle:
                if wanted in handle.read().split(b"\0") and _namespace(name) == _namespace("self"):
                    found.append(int(name))
    return [pid for pid in found if pid not in _ancestors()] if found else []


def _namespace(process: str) -> str:
    return os.readlink(f"/proc/{process}/ns/pid")  # noqa: PTH115


def _ancestors() -> set[int]:
    line, pid = {os.getpid()}, os.getpid()
    while pid > 1:
        fields = _stat(pid)
        pid = int(fields[1]) if fields else 0
        line.add(pid)
    return line

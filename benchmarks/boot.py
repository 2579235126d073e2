"""Boot beside bare ComfyUI: `uv run python -m benchmarks.boot [--runs N]`.

Prepares the store with `comfypod up` if need be, then starts, in turn and on the same workspace, ComfyUI bare
(`python main.py`, as boot would call it) and `comfypod boot` with JupyterLab on. Time to ready is from the start of
the process to the first 200 of `/system_stats`. Boot's own moments are shown too.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import os
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, TypeVar

from benchmarks.question import Question, run
from comfypod import control, podfile
from comfypod.workspace.children import child_environ
from comfypod.workspace.layout import Layout

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

T = TypeVar("T")

PORTS = {"port": "18188", "jupyter_port": "18888", "control_port": "18189"}
CONTROL = f"http://127.0.0.1:{PORTS['control_port']}"
POLL = 0.01
LONGEST = 300.0


@dataclass(frozen=True)
class Bare:
    """A start of ComfyUI alone: seconds to ready, and the milliseconds of processor that it and what it ran took."""

    seconds: float
    cpu: float


@dataclass(frozen=True)
class Booted:
    """A start by boot: seconds to ready, and boot's own moments."""

    seconds: float
    moments: dict[str, float]


def prepare(workspace: Path) -> podfile.PodFile:
    """Have the store and the workspace ready, so that every measured start is a later one."""
    flags = [word for name, value in PORTS.items() for word in (f"--{name.replace('_', '-')}", value)]
    command = [sys.executable, "-m", "comfypod", "up", "--profile", "cpu", "--detach", "--workspace", str(workspace)]
    subprocess.run([*command, *flags], check=True, stdout=sys.stderr)
    subprocess.run(
        [sys.executable, "-m", "comfypod", "down", "--workspace", str(workspace)], check=True, stdout=sys.stderr
    )
    return podfile.load(Layout(workspace).pod_file)


def until(done: Callable[[], T], process: subprocess.Popen[bytes], what: str, pause: float = POLL) -> T:
    """Return what `done` gives once that is true; exit where the process has ended before, or takes too long."""
    deadline = time.monotonic() + LONGEST
    while not (found := done()):
        if process.poll() is not None:
            raise SystemExit(f"{what}: the process ended with {process.returncode}")
        if time.monotonic() > deadline:
            raise SystemExit(f"{what}: not in {LONGEST:g} s")
        time.sleep(pause)
    return found


def answers(port: str) -> bool:
    """Whether a ComfyUI answers on a port."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/system_stats", timeout=5) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def wait_ready(process: subprocess.Popen[bytes], began: float, port: str = PORTS["port"]) -> float:
    """Return the seconds from `began` to ComfyUI's first answer."""
    until(lambda: answers(port), process, "ComfyUI answers")
    return time.monotonic() - began


def milliseconds(pid: int) -> float:
    """Return the processor time of a process and of the children that it has waited for (proc(5): utime to cstime)."""
    words = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return sum(map(int, words[11:15])) * 1000 / os.sysconf("SC_CLK_TCK")


@contextlib.contextmanager
def program(
    argv: list[str], env: dict[str, str], cwd: Path, port: str, log: IO[bytes] | int
) -> Iterator[subprocess.Popen[bytes]]:
    """Run what is to answer on a port, where nothing else may, and end it afterwards, whatever happens."""
    if answers(port):
        raise SystemExit(f"something answers on port {port} already; stop it first")
    process = subprocess.Popen(argv, env=env, cwd=cwd, stdout=log, stderr=log)
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def bare(pod: podfile.PodFile, workspace: Path, port: str = PORTS["port"], *words: str) -> Bare:
    """Start ComfyUI as anyone would."""
    tree = Layout(workspace).comfyui
    argv = [pod.python, str(tree / "main.py"), *pod.comfyui_args, "--port", port, "--disable-auto-launch", *words]
    env = child_environ(os.environ, Path(pod.python), workspace)
    began = time.monotonic()
    with program(argv, env, tree, port, subprocess.DEVNULL) as process:
        return Bare(wait_ready(process, began, port), milliseconds(process.pid))


@contextlib.contextmanager
def pod(workspace: Path, *flags: str, log: IO[bytes] | int = subprocess.DEVNULL) -> Iterator[subprocess.Popen[bytes]]:
    """Boot a workspace that has been prepared, with JupyterLab."""
    given = [f"--set={name}={value}" for name, value in {**PORTS, "workspace": str(workspace)}.items()]
    argv = [sys.executable, "-P", "-m", "comfypod", "boot", "--pod", str(Layout(workspace).pod_file), *given, *flags]
    env = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    with program(argv, env, workspace, PORTS["port"], log) as process:
        yield process


def booted(workspace: Path) -> Booted:
    """Start the same under boot."""
    ports, at = {"gateway": int(PORTS["port"]), "control plane": int(PORTS["control_port"])}, dict[str, float]()
    for name, port in ports.items():
        threading.Thread(target=first_answer, args=(name, port, at), daemon=True).start()
    began = time.monotonic()
    with pod(workspace) as process:
        seconds = wait_ready(process, began)
        boot = until(_all_ready, process, "JupyterLab is ready", 0.1)
        first = time.monotonic() - boot["seconds"]
    return Booted(seconds, boot["moments"] | {f"first answer of the {name}": when - first for name, when in at.items()})


def first_answer(name: str, port: int, answers: dict[str, float]) -> None:
    """Note in `answers` when a port answers for the first time, in monotonic seconds."""
    deadline = time.monotonic() + LONGEST
    while time.monotonic() < deadline:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
        try:
            connection.request("GET", "/livez")
            if connection.getresponse().status == 200:
                answers[name] = time.monotonic()
                return
        except OSError:
            time.sleep(POLL / 5)
        finally:
            connection.close()


def _all_ready() -> dict[str, Any]:
    """Return what boot says of itself, nothing before all services are ready."""
    status = control.status(CONTROL) or {}
    states = {row["name"]: row["state"] for row in status.get("services", ())}
    return dict(status["boot"]) if "jupyter" in states and set(states.values()) == {"ready"} else {}


def measure(chosen: argparse.Namespace) -> list[Question]:
    """Start both in turn."""
    with tempfile.TemporaryDirectory(prefix="comfypod-bench-") as folder:
        workspace = Path(folder) / "workspace"
        prepared = prepare(workspace)
        pairs: list[tuple[Bare, Booted]] = []
        for number in range(chosen.runs + 1):
            # Each goes first in turn, so that what one leaves behind favors neither.
            first_booted = booted(workspace) if number % 2 else None
            plain = bare(prepared, workspace)
            pair = (plain, first_booted or booted(workspace))
            print(f"run {number}: bare {pair[0].seconds:.2f} s, boot {pair[1].seconds:.2f} s", file=sys.stderr)
            pairs.append(pair)
    starts = {
        "bare ComfyUI": [a.seconds for a, _ in pairs[1:]],
        "boot, JupyterLab on": [b.seconds for _, b in pairs[1:]],
    }
    boots = [each.moments for _, each in pairs[1:]]
    moments = {name: [each[name] for each in boots] for name in boots[0]}
    return [
        Question(
            "boot",
            "Start to ready on the host, page cache warm",
            "seconds",
            starts,
            "bare ComfyUI",
            0.85,
            ("boot, JupyterLab on",),
        ),
        Question("boot-moments", "Since boot's first instruction", "seconds", moments),
    ]


def options(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    parser.add_argument("--runs", type=int, default=5, help="pairs to measure after one that is not counted")


if __name__ == "__main__":
    run(__doc__, measure, options)

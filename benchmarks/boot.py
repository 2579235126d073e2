"""Boot beside bare ComfyUI: `uv run python -m benchmarks.boot [--runs N]`.

Prepares the store with `comfypod up` if need be, then starts, in turn and on the same workspace, ComfyUI bare
(`python main.py`, as boot would call it) and `comfypod boot` with JupyterLab on. Time to ready is from the start of
the process to the first 200 of `/system_stats`. Boot's own moments are shown too.
"""

from __future__ import annotations

import argparse
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
from typing import IO, Any

from benchmarks.question import Question, run
from comfypod import control, podfile
from comfypod.workspace.children import child_environ
from comfypod.workspace.layout import Layout

PORTS = {"port": "18188", "jupyter_port": "18888", "control_port": "18189"}
CONTROL = f"http://127.0.0.1:{PORTS['control_port']}"
POLL = 0.01
LONGEST = 300.0


@dataclass(frozen=True)
class Run:
    """One start: seconds to ready, and boot's own moments where it was boot.

    `cpu` is the milliseconds of processor that bare ComfyUI took up to then, with the programs that it ran.
    """

    seconds: float
    moments: dict[str, float]
    cpu: float = 0.0


def prepare(workspace: Path) -> podfile.PodFile:
    """Have the store and the workspace ready, so that every measured start is a later one."""
    flags = [word for name, value in PORTS.items() for word in (f"--{name.replace('_', '-')}", value)]
    command = [sys.executable, "-m", "comfypod", "up", "--profile", "cpu", "--detach", "--workspace", str(workspace)]
    subprocess.run([*command, *flags], check=True, stdout=sys.stderr)
    subprocess.run(
        [sys.executable, "-m", "comfypod", "down", "--workspace", str(workspace)], check=True, stdout=sys.stderr
    )
    return podfile.load(Layout(workspace).pod_file)


def wait_ready(process: subprocess.Popen[bytes], began: float, port: str = PORTS["port"]) -> float:
    """Return the seconds from `began` to ComfyUI's first answer."""
    stats = f"http://127.0.0.1:{port}/system_stats"
    while time.monotonic() - began < LONGEST:
        if process.poll() is not None:
            raise SystemExit(f"the process ended with {process.returncode}")
        try:
            with urllib.request.urlopen(stats, timeout=5) as answer:
                if answer.status == 200:
                    return time.monotonic() - began
        except (urllib.error.URLError, OSError):
            time.sleep(POLL)
    raise SystemExit("not ready in time")


def milliseconds(pid: int, *, children: bool = False) -> float:
    """Return the processor time of a process so far, threads that have ended included (proc(5): utime and stime).

    With `children`, also that of those that it has waited for.
    """
    words = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return sum(map(int, words[11 : 15 if children else 13])) * 1000 / os.sysconf("SC_CLK_TCK")


def bare(pod: podfile.PodFile, workspace: Path, port: str = PORTS["port"], *words: str) -> Run:
    """Start ComfyUI as anyone would."""
    tree = Layout(workspace).comfyui
    argv = [pod.python, str(tree / "main.py"), *pod.comfyui_args, "--port", port, "--disable-auto-launch", *words]
    began = time.monotonic()
    process = subprocess.Popen(
        argv, env=child_environ(os.environ, Path(pod.python), workspace), cwd=tree,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        seconds, cpu = wait_ready(process, began, port), milliseconds(process.pid, children=True)
    finally:
        process.terminate()
        process.wait(30)
    return Run(seconds, {}, cpu)


def boot(workspace: Path, *flags: str, log: IO[bytes] | int = subprocess.DEVNULL) -> subprocess.Popen[bytes]:
    """Start boot on a workspace that has been prepared, with JupyterLab."""
    given = [f"--set={name}={value}" for name, value in {**PORTS, "workspace": str(workspace)}.items()]
    argv = [sys.executable, "-P", "-m", "comfypod", "boot", "--pod", str(Layout(workspace).pod_file), *given, *flags]
    env = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    return subprocess.Popen(argv, env=env, cwd=workspace, stdout=log, stderr=subprocess.DEVNULL)


def booted(workspace: Path) -> Run:
    """Start the same under boot."""
    ports, answers = {"gateway": int(PORTS["port"]), "control plane": int(PORTS["control_port"])}, dict[str, float]()
    asking = [threading.Thread(target=first_answer, args=(name, port, answers)) for name, port in ports.items()]
    for thread in asking:
        thread.start()
    began = time.monotonic()
    process = boot(workspace)
    seconds = wait_ready(process, began)
    status: dict[str, Any] = {}
    while not _all_ready(status):
        time.sleep(0.1)
        status = control.status(CONTROL) or {}
    first = time.monotonic() - status["boot"]["seconds"]
    process.terminate()
    process.wait(30)
    return Run(
        seconds, status["boot"]["moments"] | {f"first answer of the {name}": at - first for name, at in answers.items()}
    )


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


def _all_ready(status: dict[str, Any]) -> bool:
    states = {row["name"]: row["state"] for row in status.get("services", ())}
    return "jupyter" in states and set(states.values()) == {"ready"}


def measure(chosen: argparse.Namespace) -> list[Question]:
    """Start both in turn."""
    with tempfile.TemporaryDirectory(prefix="comfypod-bench-") as folder:
        workspace = Path(folder) / "workspace"
        pod = prepare(workspace)
        pairs: list[tuple[Run, Run]] = []
        for number in range(chosen.runs + 1):
            # Each goes first in turn, so that what one leaves behind favors neither.
            first_booted = booted(workspace) if number % 2 else None
            plain = bare(pod, workspace)
            pair = (plain, first_booted or booted(workspace))
            print(f"run {number}: bare {pair[0].seconds:.2f} s, boot {pair[1].seconds:.2f} s", file=sys.stderr)
            pairs.append(pair)
    starts = {
        "bare ComfyUI": [a.seconds for a, _ in pairs[1:]],
        "boot, JupyterLab on": [b.seconds for _, b in pairs[1:]],
    }
    boots = [boot for _, boot in pairs[1:]]
    moments = {name: [boot.moments[name] for boot in boots] for name in boots[0].moments}
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

"""What comfypod's own programs and JupyterLab take: `uv run --group bench python -m benchmarks.budgets [IMAGE]`.

Later boots with a warm page cache, which nobody asks for anything until their log says that the pod is ready and that
JupyterLab runs: of a container (needs root), or, without an image, of a pod on this machine, where bare ComfyUI is
started in turn to compare processor time with. That is from the start to ready, memory the most up to JupyterLab.
"""

from __future__ import annotations

import contextlib
import subprocess
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks import boot, start
from benchmarks.question import Question, run

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Iterator

PROGRAMS = {"boot": "comfypod boot", "gateway": "comfypod.gateway", "jupyterlab": "jupyter-lab"}
READY, JUPYTER = "ready after", "is running at"
# Rarely enough to change nothing.
POLL = 0.25
BUDGETS = {("boot", "cpu"): 300.0, ("boot", "memory"): 40.0, ("gateway", "memory"): 60.0}
# What boot may take of the processor time of ComfyUI's own start: 300 ms where that is 7.5 s.
SHARE = 0.04


@dataclass(frozen=True, slots=True)
class Pod:
    """A pod that has been started: its log so far, its processes, a number and a command line a row, does it run?"""

    log: Callable[[], str]
    rows: Callable[[], str]
    runs: Callable[[], bool]


@dataclass(frozen=True, slots=True)
class Used:
    """Milliseconds of processor up to ready and the most MB of memory up to JupyterLab, by program."""

    cpu: dict[str, float]
    memory: dict[str, float]


@contextlib.contextmanager
def in_container(bench: start.Bench, way: start.Way) -> Iterator[Pod]:
    """Boot a container."""
    with bench.container(way, bench.volume(way, "later")) as name:
        start.docker("start", name)
        yield Pod(
            lambda: start.docker("logs", name), lambda: start.docker("top", name, "-eo", "pid,args"),
            lambda: start.docker("inspect", "--format", "{{.State.Running}}", name) == "true",
        )  # fmt: skip


@contextlib.contextmanager
def on_this_machine(workspace: Path) -> Iterator[Pod]:
    """Boot a pod on a workspace that has been prepared."""
    place = workspace.parent / "log"
    with place.open("wb") as log, boot.pod(workspace, log=log) as process:
        words = ("ps", "-ww", "-o", "pid,args", "--pid", str(process.pid), "--ppid", str(process.pid))
        yield Pod(
            place.read_text, lambda: subprocess.run(words, check=True, capture_output=True, text=True).stdout,
            lambda: process.poll() is None,
        )  # fmt: skip


def until_said(pod: Pod, words: str) -> None:
    """Wait until a pod's log has some words."""
    deadline = time.monotonic() + start.LONGEST
    while words not in pod.log():
        if time.monotonic() > deadline or not pod.runs():
            raise SystemExit(f"the pod has ended or does not say {words!r}: {pod.log()[-2000:]}")
        time.sleep(POLL)


def programs(pod: Pod) -> dict[str, int]:
    """Return the process numbers of comfypod's programs and of JupyterLab."""
    rows = [line.strip().partition(" ") for line in pod.rows().splitlines()[1:]]
    return {
        name: int(number) for number, _, words in rows for name, mark in PROGRAMS.items()
        if mark in words and "tini" not in words
    }  # fmt: skip


def once(pod: Pod) -> Used:
    """Wait for a pod and JupyterLab, and return what they took."""
    until_said(pod, READY)
    cpu = {name: boot.milliseconds(number) for name, number in programs(pod).items() if name != "jupyterlab"}
    until_said(pod, JUPYTER)
    return Used(cpu, {name: _megabytes(number) for name, number in programs(pod).items()})


def _megabytes(number: int) -> float:
    lines = Path(f"/proc/{number}/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1000 for line in lines if line.startswith("VmHWM"))


def measure(chosen: argparse.Namespace) -> list[Question]:
    """Boot often, and set what was used beside the budgets."""
    with tempfile.TemporaryDirectory(prefix="comfypod-bench-", dir=chosen.folder) as name:
        return _of_containers(Path(name), chosen) if chosen.image else _of_this_machine(Path(name), chosen.runs)


def _of_containers(folder: Path, chosen: argparse.Namespace) -> list[Question]:
    way = next(way for way in start.ways([chosen.image], None) if way.name == start.MOVE)
    bench, every = start.Bench(folder, chosen), list[Used]()
    for _ in range(chosen.runs + 1):
        with in_container(bench, way) as pod:
            every.append(once(pod))
    cpu = [_beside(name, "cpu", "milliseconds", [each.cpu[name] for each in every[1:]]) for name in ("boot", "gateway")]
    return cpu + _memory(every[1:])


def _of_this_machine(folder: Path, runs: int) -> list[Question]:
    workspace = folder / "workspace"
    prepared, every, bare = boot.prepare(workspace), list[Used](), list[float]()
    for _ in range(runs + 1):
        bare.append(boot.bare(prepared, workspace).cpu)
        with on_this_machine(workspace) as pod:
            every.append(once(pod))
    taken = {"bare ComfyUI": bare[1:]} | {name: [each.cpu[name] for each in every[1:]] for name in ("boot", "gateway")}
    title = "Processor time up to ready, of a pod on this machine"
    return [Question("cpu-share", title, "milliseconds", taken, "bare ComfyUI", SHARE, ("boot",)), *_memory(every[1:])]


def _memory(every: list[Used]) -> list[Question]:
    return [_beside(name, "memory", "MB", [each.memory[name] for each in every]) for name in PROGRAMS]


def _beside(name: str, what: str, unit: str, values: list[float]) -> Question:
    title = {"cpu": f"Processor time of {name} up to ready", "memory": f"Most memory of {name}"}[what]
    if (budget := BUDGETS.get((name, what))) is None:
        return Question(f"{name}-{what}", title, unit, {name: values})
    return Question(f"{name}-{what}", title, unit, {"budget": [budget], name: values}, "budget", 1, (name,))


def options(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    parser.add_argument("image", nargs="?", metavar="IMAGE")
    parser.add_argument("--runs", type=int, default=5, help="boots to measure after one that is not counted")
    parser.add_argument("--folder", type=Path, help="where the volume is (default: the temporary folder)")


if __name__ == "__main__":
    run(__doc__, measure, options)

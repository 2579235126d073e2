"""What comfypod's own programs and JupyterLab take: `uv run --group bench python -m benchmarks.budgets IMAGE`.

Later boots of a container with a warm page cache, which nobody asks for anything until its log says that it is ready
and that JupyterLab runs. Processor time is from the start to ready, memory the most up to JupyterLab. Needs root.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks import start
from benchmarks.question import Question, run

if TYPE_CHECKING:
    import argparse

PROGRAMS = {"boot": "comfypod boot", "gateway": "comfypod.gateway", "jupyterlab": "jupyter-lab"}
READY, JUPYTER = "ready after", "is running at"
# Rarely enough to change nothing.
POLL = 0.25
BUDGETS = {("boot", "cpu"): 300.0, ("boot", "memory"): 40.0, ("gateway", "memory"): 60.0}


def until_said(container: str, words: str) -> None:
    """Wait until a container's log has some words."""
    deadline = time.monotonic() + start.LONGEST
    while words not in start.docker("logs", container):
        if time.monotonic() > deadline:
            raise SystemExit(f"the container does not say {words!r}")
        time.sleep(POLL)


def usage(container: str) -> dict[str, tuple[float, float]]:
    """Return by program the milliseconds of processor and the most MB of memory so far."""
    found: dict[str, tuple[float, float]] = {}
    for line in start.docker("top", container, "-eo", "pid,args").splitlines()[1:]:
        pid, _, words = line.strip().partition(" ")
        for name, mark in PROGRAMS.items():
            if mark in words and "tini" not in words:
                with contextlib.suppress(OSError):
                    found[name] = (_milliseconds(Path("/proc") / pid), _megabytes(Path("/proc") / pid))
    return found


def _milliseconds(process: Path) -> float:
    # Those of threads that have ended included (proc(5): utime and stime).
    words = (process / "stat").read_text().rpartition(")")[2].split()
    return sum(map(int, words[11:13])) * 1000 / os.sysconf("SC_CLK_TCK")


def _megabytes(process: Path) -> float:
    lines = (process / "status").read_text().splitlines()
    return next(int(line.split()[1]) / 1000 for line in lines if line.startswith("VmHWM"))


def once(bench: start.Bench, way: start.Way) -> tuple[dict[str, tuple[float, float]], dict[str, tuple[float, float]]]:
    """Boot once; return what had been used when the pod was ready, and when JupyterLab ran."""
    options = ("--network", "host", "--volume", f"{bench.volume(way, 'later')}:/workspace", *way.options)
    container = start.docker("create", *options, way.image)
    try:
        start.docker("start", container)
        until_said(container, READY)
        ready = usage(container)
        until_said(container, JUPYTER)
        return ready, usage(container)
    finally:
        start.docker("stop", "--time", "60", container)
        start.docker("rm", "--force", "--volumes", container)


def measure(chosen: argparse.Namespace) -> list[Question]:
    """Boot often, and set what was used beside the budgets."""
    way = next(way for way in start.ways([chosen.image], None) if way.name == start.MOVE)
    with tempfile.TemporaryDirectory(prefix="comfypod-bench-", dir=chosen.folder) as name:
        bench = start.Bench(Path(name), chosen)
        # The first is not counted.
        every = [once(bench, way) for _ in range(chosen.runs + 1)][1:]
    cpu = [_beside(name, "cpu", "milliseconds", [ready[name][0] for ready, _ in every]) for name in ("boot", "gateway")]
    return cpu + [_beside(name, "memory", "MB", [later[name][1] for _, later in every]) for name in PROGRAMS]


def _beside(name: str, what: str, unit: str, values: list[float]) -> Question:
    title = {"cpu": f"Processor time of {name} up to ready", "memory": f"Most memory of {name}"}[what]
    if (budget := BUDGETS.get((name, what))) is None:
        return Question(f"{name}-{what}", title, unit, {name: values})
    return Question(f"{name}-{what}", title, unit, {"budget": [budget], name: values}, "budget", 1, (name,))


def options(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    parser.add_argument("image", metavar="IMAGE")
    parser.add_argument("--runs", type=int, default=5, help="boots to measure after one that is not counted")
    parser.add_argument("--folder", type=Path, help="where the volume is (default: the temporary folder)")


if __name__ == "__main__":
    run(__doc__, measure, options)

"""Starts on a cold disk, bare beside comfypod: `uv run python -m benchmarks.cold [--runs N] [--iops N] [--way ...]`.

As `boot.py`, but before each start the kernel's page cache is dropped, which needs root, and `throttled` ones may read
only so many times a second from the disk that the store is on (the block-I/O controller, version 1 or 2). The record of
a start is made first, as the host engine makes it. `off` is comfypod with `cold_start=off`.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.boot import bare, booted, prepare
from benchmarks.question import Question, run
from comfypod import podfile
from comfypod.boot import readahead
from comfypod.environment import recording

if TYPE_CHECKING:
    from collections.abc import Iterator

    from comfypod.podfile import PodFile

CONTROLLERS = Path("/sys/fs/cgroup")
WAYS = ("bare", "comfypod", "off")
# What is aimed at, by state.
STATES = {"cold": 0.75, "throttled": 0.6, "warm": 0.85}


def drop_caches() -> None:
    """Have the kernel forget what it has of files."""
    os.sync()
    Path("/proc/sys/vm/drop_caches").write_text("3\n")


def disk_of(path: Path) -> str:
    """Return the number of the whole disk that a path is on, as the controllers name it."""
    device = path.stat().st_dev
    number = f"{os.major(device)}:{os.minor(device)}"
    place = Path("/sys/dev/block", number).resolve()
    whole = place.parent if (place / "partition").exists() else place
    return (whole / "dev").read_text().strip()


@contextlib.contextmanager
def throttled(disk: str, iops: int) -> Iterator[None]:
    """Give what is started within at most so many reads a second."""
    first = CONTROLLERS / "blkio"
    group = (first if first.is_dir() else CONTROLLERS) / "comfypod-bench"
    with contextlib.suppress(FileExistsError):
        group.mkdir()
    if first.is_dir():
        (group / "blkio.throttle.read_iops_device").write_text(f"{disk} {iops}\n")
    else:
        with contextlib.suppress(OSError):
            (CONTROLLERS / "cgroup.subtree_control").write_text("+io\n")
        (group / "io.max").write_text(f"{disk} riops={iops}\n")
    before = _own_group(v1=first.is_dir())
    (group / "cgroup.procs").write_text(f"{os.getpid()}\n")
    try:
        yield
    finally:
        (before / "cgroup.procs").write_text(f"{os.getpid()}\n")


def _own_group(*, v1: bool) -> Path:
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if ("blkio" in controllers.split(",")) if v1 else not controllers:
            return (CONTROLLERS / "blkio" if v1 else CONTROLLERS) / path.lstrip("/")
    raise SystemExit("this process is in no control group of the controller")


def start(way: str, pod: PodFile, workspace: Path) -> float:
    """Start ComfyUI in a way; return the seconds to ready."""
    if way == "bare":
        return bare(pod, workspace).seconds
    os.environ["COMFYPOD_COLD_START"] = "off" if way == "off" else "auto"
    return booted(workspace).seconds


def measure(pod: PodFile, workspace: Path, chosen: argparse.Namespace) -> dict[str, dict[str, list[float]]]:
    """Measure each way in each state in turn."""
    disk = disk_of(Path(pod.python).parent)
    found: dict[str, dict[str, list[float]]] = {state: {way: [] for way in chosen.ways} for state in chosen.states}
    for number in range(chosen.runs):
        for state in chosen.states:
            # Each goes first in turn.
            ways = chosen.ways[number % len(chosen.ways) :] + chosen.ways[: number % len(chosen.ways)]
            for way in ways:
                if state != "warm":
                    drop_caches()
                slow = throttled(disk, chosen.iops) if state == "throttled" else contextlib.nullcontext()
                with slow:
                    seconds = start(way, pod, workspace)
                print(f"run {number}: {state}, {way} {seconds:.2f} s", file=sys.stderr, flush=True)
                found[state][way].append(seconds)
    return found


def ensure_recorded(pod: podfile.PodFile) -> None:
    """Make the record of a start where there is none that this comfypod reads."""
    assert pod.record is not None
    try:
        readahead.read_parts(pod.record, pod.environment_key, pod.comfyui_path, {})
    except (OSError, ValueError):
        if said := recording.make(recording.built(pod), Path(pod.record), os.environ):
            raise SystemExit(f"no record: {said}") from None


def asked(chosen: argparse.Namespace) -> list[Question]:
    """Make the record, start each way once, and measure."""
    with tempfile.TemporaryDirectory(prefix="comfypod-bench-") as folder:
        workspace = chosen.workspace or Path(folder) / "workspace"
        pod = prepare(workspace)
        ensure_recorded(pod)
        for way in chosen.ways:
            start(way, pod, workspace)
        found = measure(pod, workspace, chosen)
    titles = {"throttled": f"page cache dropped, {chosen.iops} reads a second", "cold": "page cache dropped"}
    return [
        Question(
            f"host-{state}", f"Start to ready on the host, {titles.get(state, state)}", "seconds", ways, "bare",
            STATES[state], ("comfypod",),
        )
        for state, ways in found.items()
    ]  # fmt: skip


def options(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    parser.add_argument("--runs", type=int, default=3, help="rounds to measure")
    parser.add_argument("--iops", type=int, default=500, help="reads a second where throttled")
    parser.add_argument("--states", nargs="+", choices=list(STATES), default=["cold", "throttled"])
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=["bare", "comfypod"])
    parser.add_argument("--workspace", type=Path, help="where the workspace is, kept; a temporary folder otherwise")


if __name__ == "__main__":
    run(__doc__, asked, options)

"""Starts on a cold disk, bare beside comfypod: `uv run python -m benchmarks.cold [--runs N] [--iops N] [--way ...]`.

As `boot.py`, but before each start the kernel's page cache is dropped, which needs root, and `throttled` ones may read
only so many times a second from the disk that the store is on (the block-I/O controller, version 1 or 2). The record of
a start is made first, as the host engine makes it. `off` is comfypod with `cold_start=off`. Prints medians and ratios;
with `--json` the same as JSON.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import statistics
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.boot import bare, booted, prepare, spread
from comfypod.boot import cold
from comfypod.workspace.layout import Layout

if TYPE_CHECKING:
    from collections.abc import Iterator

    from comfypod.podfile import PodFile

CONTROLLERS = Path("/sys/fs/cgroup")
WAYS = ("bare", "comfypod", "off")
STATES = ("cold", "throttled", "warm")


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
    return booted(Layout(workspace).pod_file, workspace).seconds


def measure(pod: PodFile, workspace: Path, options: argparse.Namespace) -> dict[str, dict[str, list[float]]]:
    """Measure each way in each state in turn."""
    disk = disk_of(Path(pod.python).parent)
    found: dict[str, dict[str, list[float]]] = {state: {way: [] for way in options.ways} for state in options.states}
    for number in range(options.runs):
        for state in options.states:
            # Each goes first in turn.
            ways = options.ways[number % len(options.ways) :] + options.ways[: number % len(options.ways)]
            for way in ways:
                if state != "warm":
                    drop_caches()
                slow = throttled(disk, options.iops) if state == "throttled" else contextlib.nullcontext()
                with slow:
                    seconds = start(way, pod, workspace)
                print(f"run {number}: {state}, {way} {seconds:.2f} s", file=sys.stderr, flush=True)
                found[state][way].append(seconds)
    return found


def report(found: dict[str, dict[str, list[float]]], iops: int) -> dict[str, Any]:
    """Put the figures together."""
    ratios = {
        state: {
            way: {
                "medians": round(statistics.median(seconds) / statistics.median(ways["bare"]), 4),
                "by_pair": spread([ours / plain for ours, plain in zip(seconds, ways["bare"], strict=True)]),
            }
            for way, seconds in ways.items()
            if way != "bare" and "bare" in ways
        }
        for state, ways in found.items()
    }
    return {
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}",
        "iops": iops,
        "runs": len(next(iter(next(iter(found.values())).values()))),
        "seconds": {state: {way: spread(seconds) for way, seconds in ways.items()} for state, ways in found.items()},
        "ratios": ratios,
    }


def show(figures: dict[str, Any]) -> str:
    """Render the figures as a table in Markdown."""
    lines = [
        f"{figures['machine']}, {figures['runs']} interleaved runs, throttled: {figures['iops']} reads a second",
        "",
    ]
    lines += ["| seconds to ready | min | median | max | of bare |", "| --- | --- | --- | --- | --- |"]
    for state, ways in figures["seconds"].items():
        for way, row in ways.items():
            ratio = figures["ratios"][state].get(way)
            told = f"{ratio['medians']:.2f} (by pair {ratio['by_pair']['median']:.2f})" if ratio else ""
            lines.append(f"| {state}, {way} | {row['min']:.2f} | {row['median']:.2f} | {row['max']:.2f} | {told} |")
    return "\n".join(lines)


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=3, help="rounds to measure")
    parser.add_argument("--iops", type=int, default=500, help="reads a second where throttled")
    parser.add_argument("--states", nargs="+", choices=STATES, default=["cold", "throttled"])
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=["bare", "comfypod"])
    parser.add_argument("--workspace", type=Path, help="where the workspace is, kept; a temporary folder otherwise")
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="comfypod-bench-") as folder:
        workspace = options.workspace or Path(folder) / "workspace"
        pod = prepare(workspace)
        assert pod.record is not None
        if not Path(pod.record).exists() and (said := cold.make(pod, Path(pod.record), os.environ)):
            raise SystemExit(f"no record: {said}")
        for way in options.ways:
            start(way, pod, workspace)
        figures = report(measure(pod, workspace, options), options.iops)
    print(json.dumps(figures, indent=1) if options.json else show(figures))


if __name__ == "__main__":
    main()

"""A restart of ComfyUI in a running pod beside a bare start: `uv run python -m benchmarks.restart [--runs N]`.

In turn, on one machine: ComfyUI bare (`python main.py`, on a port and a database of its own), a restart of the pod's
ComfyUI by the standby, and one with no standby there. A restart is from the request on the pod's page to the first 200
of `/system_stats` through the gateway, the end of the old ComfyUI included.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

from benchmarks import boot
from benchmarks.question import Question, run
from comfypod import control, podfile

GATEWAY = f"http://127.0.0.1:{boot.PORTS['port']}"
BARE_PORT = "18190"
WAYS = ("bare", "standby", "without")


def bare(pod: podfile.PodFile, workspace: Path) -> float:
    """Start ComfyUI as anyone would, beside the pod's."""
    database = f"sqlite:///{workspace.parent / 'bare.db'}"
    return boot.bare(pod, workspace, BARE_PORT, "--database-url", database).seconds


def status() -> dict[str, Any]:
    """Ask the pod."""
    return control.status(boot.CONTROL) or {}


def restart(process: subprocess.Popen[bytes], starts: int) -> float:
    """Restart the pod's ComfyUI; `starts` says how many starts the standby shall have been by then."""
    began = time.monotonic()
    request = urllib.request.Request(f"{GATEWAY}/_pod/do/restart", b"{}")
    with urllib.request.urlopen(request, timeout=boot.LONGEST):
        seconds = boot.wait_ready(process, began)
    # It is counted a moment later.
    deadline = time.monotonic() + 10
    while (seen := status()["standby"])["starts"] < starts and time.monotonic() < deadline:
        time.sleep(boot.POLL)
    if seen["starts"] != starts:
        raise SystemExit(f"not the start that was to be measured: {seen}")
    return seconds


def standby_waits(process: subprocess.Popen[bytes]) -> int:
    """Wait until the standby waits; return the bytes that it has."""

    def size() -> int:
        view = status().get("standby", {})
        return int(view["memory_bytes"]) if view.get("state") == "waiting" else 0

    return boot.until(size, process, "a standby waits", 0.5)


def measure(
    prepared: podfile.PodFile, workspace: Path, process: subprocess.Popen[bytes], runs: int
) -> tuple[dict[str, list[float]], int]:
    """Measure each way in turn; the first round is not counted."""
    found: dict[str, list[float]] = {way: [] for way in WAYS}
    size = 0
    for number in range(runs + 1):
        size = standby_waits(process)
        round_ = {
            "bare": bare(prepared, workspace), "standby": restart(process, number + 1),
            "without": restart(process, number + 1),
        }  # fmt: skip
        print(
            f"run {number}: " + ", ".join(f"{way} {seconds:.2f} s" for way, seconds in round_.items()), file=sys.stderr
        )
        for way, seconds in round_.items() if number else ():
            found[way].append(seconds)
    return found, size


def asked(chosen: argparse.Namespace) -> list[Question]:
    """Boot a pod with a standby, and measure."""
    with tempfile.TemporaryDirectory(prefix="comfypod-bench-") as folder:
        workspace = Path(folder) / "workspace"
        prepared = boot.prepare(workspace)
        with boot.pod(workspace, "--set=standby=on") as process:
            boot.wait_ready(process, time.monotonic())
            found, size = measure(prepared, workspace, process, chosen.runs)
    return [
        Question("restart", "ComfyUI again, until it answers", "seconds", found, "bare", 0.35, ("standby",)),
        Question(
            "standby-memory", "Memory of the standby, what it shares included", "MiB", {"standby": [size / (1 << 20)]}
        ),
    ]


def options(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    parser.add_argument("--runs", type=int, default=5, help="rounds to measure after one that is not counted")


if __name__ == "__main__":
    run(__doc__, asked, options)

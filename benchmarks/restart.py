"""A restart of ComfyUI in a running pod beside a bare start: `uv run python -m benchmarks.restart [--runs N]`.

In turn, on one machine: ComfyUI bare (`python main.py`, on a port and a database of its own), a restart of the pod's
ComfyUI by the standby, and one with no standby there. A restart is from the request on the pod's page to the first 200
of `/system_stats` through the gateway, the end of the old ComfyUI included.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

from benchmarks import boot
from benchmarks.boot import CONTROL, LONGEST, POLL, PORTS
from benchmarks.question import Question, run
from comfypod import control, podfile

GATEWAY = f"http://127.0.0.1:{PORTS['port']}"
BARE_PORT = "18190"
WAYS = ("bare", "standby", "without")


def answers(url: str, began: float) -> float:
    """Return the seconds from `began` to the first 200 of `/system_stats`."""
    while time.monotonic() - began < LONGEST:
        try:
            with urllib.request.urlopen(f"{url}/system_stats", timeout=5) as answer:
                if answer.status == 200:
                    return time.monotonic() - began
        except (urllib.error.URLError, OSError):
            time.sleep(POLL)
    raise SystemExit("not ready in time")


def bare(pod: podfile.PodFile, workspace: Path) -> float:
    """Start ComfyUI as anyone would, beside the pod's."""
    database = f"sqlite:///{workspace.parent / 'bare.db'}"
    return boot.bare(pod, workspace, BARE_PORT, "--database-url", database).seconds


def status() -> dict[str, Any]:
    """Ask the pod."""
    return control.status(CONTROL) or {}


def restart(starts: int) -> float:
    """Restart the pod's ComfyUI; `starts` says how many starts the standby shall have been by then."""
    began = time.monotonic()
    request = urllib.request.Request(f"{GATEWAY}/_pod/do/restart", b"{}")
    with urllib.request.urlopen(request, timeout=LONGEST):
        seconds = answers(GATEWAY, began)
    # It is counted a moment later.
    deadline = time.monotonic() + 10
    while status()["standby"]["starts"] < starts and time.monotonic() < deadline:
        time.sleep(POLL)
    if status()["standby"]["starts"] != starts:
        raise SystemExit(f"not the start that was to be measured: {status()['standby']}")
    return seconds


def standby_waits() -> int:
    """Wait until the standby waits; return the bytes that it has."""
    while (view := status()["standby"])["state"] != "waiting":
        time.sleep(0.5)
    return int(view["memory_bytes"])


def measure(pod: podfile.PodFile, workspace: Path, runs: int) -> tuple[dict[str, list[float]], int]:
    """Measure each way in turn; the first round is not counted."""
    found: dict[str, list[float]] = {way: [] for way in WAYS}
    size = 0
    for number in range(runs + 1):
        size = standby_waits()
        round_ = {"bare": bare(pod, workspace), "standby": restart(number + 1), "without": restart(number + 1)}
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
        pod = boot.prepare(workspace)
        process = boot.boot(workspace, "--set=standby=on")
        try:
            answers(GATEWAY, time.monotonic())
            found, size = measure(pod, workspace, chosen.runs)
        finally:
            process.terminate()
            process.wait(60)
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

"""The download door beside others: `uv run python -m benchmarks.downloads [--gib N] [--runs N] [--folder DIR]`.

Serves one file by nginx on loopback, without a limit and with one for each connection, and fetches it in turn by
`aria2c -x16`, `curl`, `huggingface_hub` (in an environment of its own) and the door, which alone checks the digest.
Each is timed as a process, from its start until it ends, and until the file is on the disk (fsync), for which only the
door waits by itself. Prints medians in MB/s and what the door is to the best of the others; with `--memory N` the
door's peak memory for a sparse file of N GiB.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks.question import Question, run

PORT = 18391
URL = f"http://127.0.0.1:{PORT}"
REPOSITORY = "org/repo/resolve/main"
CAP = "20m"

_NGINX = """
daemon off; worker_processes 1; pid {folder}/nginx.pid; error_log {folder}/nginx.log;
events {{ worker_connections 512; }}
http {{
 access_log off; sendfile on; default_type application/octet-stream; keepalive_requests 100000;
 client_body_temp_path {folder}/1; proxy_temp_path {folder}/2; fastcgi_temp_path {folder}/3;
 uwsgi_temp_path {folder}/4; scgi_temp_path {folder}/5;
 server {{
  listen 127.0.0.1:{port}; root {folder}/www;
  add_header X-Repo-Commit 0000000000000000000000000000000000000000 always;
  location /capped/ {{ alias {folder}/www/; limit_rate {cap}; }}
 }}
}}
"""
_DOOR = """
import sys
from pathlib import Path
from comfypod.download.order import Order, Terms
from comfypod.download.run import fetch
url, target, sha256 = sys.argv[1:]
(error,) = fetch([Order(url, Path(target), sha256)], Path(target).parent / "site", Terms())
sys.exit(error and error.message)
"""
_HUB = """
import sys
from huggingface_hub import hf_hub_download
hf_hub_download("org/repo", "model.safetensors", local_dir=sys.argv[1])
"""


@dataclass(frozen=True)
class Tool:
    """A program that fetches an address to a file: how to call it. `single`: over one connection."""

    name: str
    argv: list[str]
    environ: dict[str, str]
    single: bool = False


def tools(base: str, target: Path, sha256: str, hub: str) -> list[Tool]:
    """Return how each is called for a file below an address."""
    url = f"{base}/{REPOSITORY}/model.safetensors"
    aria = [
        "aria2c",
        "-q",
        "-x16",
        "-s16",
        "--file-allocation=falloc",
        "-d",
        str(target.parent),
        "-o",
        target.name,
        url,
    ]
    hub_settings = {"HF_ENDPOINT": base, "HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    return [
        Tool("comfypod", [sys.executable, "-c", _DOOR, url, str(target), sha256], {}),
        Tool("aria2c -x16", aria, {}),
        Tool("curl", ["curl", "-s", "-f", "-o", str(target), url], {}, single=True),
        Tool("huggingface_hub", [hub, "-c", _HUB, str(target.parent)], hub_settings, single=True),
    ]


@contextmanager
def server(folder: Path, size: int) -> Iterator[str]:
    """Serve a file of random bytes; give its digest."""
    place = folder / "www" / REPOSITORY / "model.safetensors"
    place.parent.mkdir(parents=True)
    digest = hashlib.sha256()
    with place.open("wb") as sink:
        for _ in range(size >> 20):
            block = os.urandom(1 << 20)
            digest.update(block)
            sink.write(block)
    with nginx(folder):
        yield digest.hexdigest()


@contextmanager
def nginx(folder: Path) -> Iterator[None]:
    """Run nginx over a folder."""
    folder.chmod(0o755)
    config = folder / "nginx.conf"
    config.write_text(_NGINX.format(folder=folder, port=PORT, cap=CAP))
    process = subprocess.Popen(["nginx", "-c", str(config)], stderr=subprocess.DEVNULL)
    try:
        for _ in range(100):
            try:
                socket.create_connection(("127.0.0.1", PORT), 1).close()
                break
            except OSError:
                time.sleep(0.05)
        yield
    finally:
        process.terminate()
        process.wait()


def environment(folder: Path) -> str:
    """Make an environment with huggingface_hub; return its Python."""
    subprocess.run(["uv", "venv", "-q", str(folder / "hub")], check=True)
    python = str(folder / "hub" / "bin" / "python")
    subprocess.run(["uv", "pip", "install", "-q", "--python", python, "huggingface_hub"], check=True)
    return python


def once(tool: Tool, target: Path, size: int) -> tuple[float, float]:
    """Fetch; return MB/s until the tool ended, and until the file was on the disk."""
    shutil.rmtree(target.parent, ignore_errors=True)
    target.parent.mkdir()
    os.sync()
    began = time.perf_counter()
    subprocess.run(tool.argv, check=True, env={**os.environ, **tool.environ}, stdout=subprocess.DEVNULL)
    ended = time.perf_counter() - began
    (place,) = [path for path in target.parent.iterdir() if path.is_file()]
    with place.open("r+b") as handle:
        os.fsync(handle.fileno())
    durable = time.perf_counter() - began
    if place.stat().st_size != size:
        raise SystemExit(f"{tool.name}: {place.stat().st_size} of {size} bytes")
    return size / ended / 1e6, size / durable / 1e6


def measure(folder: Path, size: int, runs: int) -> dict[str, dict[str, list[float]]]:
    """Fetch by each tool in turn, without a cap and with one."""
    found: dict[str, dict[str, list[float]]] = {}
    hub = environment(folder)
    with server(folder, size) as sha256:
        for cap, base in (("no cap", URL), (f"{CAP} a connection", f"{URL}/capped")):
            everything = tools(base, folder / "out" / "a", sha256, hub)
            for number in range(runs):
                # A cap holds one connection to the same time in every run, and to a long one: once is enough.
                turn = [tool for tool in everything if not (number and base != URL and tool.single)]
                for tool in turn[number % len(turn) :] + turn[: number % len(turn)]:
                    print(f"{cap}: {tool.name}", file=sys.stderr)
                    ended, durable = once(tool, folder / "out" / "a", size)
                    found.setdefault(f"{cap}, until it ends", {}).setdefault(tool.name, []).append(ended)
                    found.setdefault(f"{cap}, until on disk", {}).setdefault(tool.name, []).append(durable)
    return found


def memory(folder: Path, size: int) -> float:
    """Return the door's peak memory in MB for a sparse file over 16 connections, as the kernel counts it (VmHWM)."""
    place = folder / "www" / "sparse"
    place.parent.mkdir()
    with place.open("wb") as sink:
        sink.truncate(size)
    program = _DOOR.replace("sys.exit(", "print(open('/proc/self/status').read())\nsys.exit(")
    with nginx(folder), place.open("rb") as whole:
        sha256 = hashlib.file_digest(whole, "sha256").hexdigest()
        argv = [sys.executable, "-c", program, f"{URL}/capped/sparse", str(folder / "sparse"), sha256]
        said = subprocess.run(argv, check=True, capture_output=True, text=True).stdout
    (folder / "sparse").unlink()
    return next(int(line.split()[1]) / 1000 for line in said.splitlines() if line.startswith("VmHWM"))


def asked(chosen: argparse.Namespace) -> list[Question]:
    """Have each fetch the file in turn, and the door a sparse one for its memory."""
    with tempfile.TemporaryDirectory(prefix="comfypod-bench-", dir=chosen.folder) as name:
        most = [memory(Path(name), int((chosen.memory or chosen.gib) * (1 << 30)))]
        found = {} if chosen.memory else measure(Path(name), int(chosen.gib * 1024) << 20, chosen.runs)
    budget = {"budget": [150.0], "comfypod": most}
    return [
        *(_question(number, what, rows) for number, (what, rows) in enumerate(found.items())),
        Question("download-memory", "Most memory of a download", "MB", budget, "budget", 1, ("comfypod",)),
    ]


def _question(number: int, what: str, rows: dict[str, list[float]]) -> Question:
    """Compare the door with the best of the others."""
    best = max((name for name in rows if name != "comfypod"), key=lambda name: statistics.median(rows[name]))
    title = f"A model from a server on this machine, {what}"
    return Question(f"download-{number}", title, "MB/s", rows, best, 0.95, ("comfypod",), more_is_better=True)


def options(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    parser.add_argument("--gib", type=float, default=2, help="size of the file")
    parser.add_argument("--runs", type=int, default=5, help="times that each fetches it")
    parser.add_argument("--folder", type=Path, help="where the files are (default: the temporary folder)")
    parser.add_argument("--memory", type=float, help="measure memory alone, for a sparse file of so many GiB")


if __name__ == "__main__":
    run(__doc__, asked, options)

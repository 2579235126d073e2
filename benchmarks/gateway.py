"""The gateway beside ComfyUI itself: `uv run python -m benchmarks.gateway [--requests N] [--runs N] [--mib N]`.

Starts the real ComfyUI with `comfypod up`, then asks it directly and through the gateway (with a token), in turn: small
requests on one kept connection, one large download (`/view`) and one large upload (`/upload/image`), how long a
message takes to reach 200 WebSocket clients, and how long the previews of a prompt take to reach them all (a node of
the benchmark's own sends them, through ComfyUI's `send_sync`). With a `caddy` on the PATH, Caddy with `forward_auth`
is asked as well.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import http.client
import json
import os
import selectors
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.question import Question, run
from comfypod import control
from comfypod.workspace.layout import Layout

PORTS = {"--port": "18188", "--jupyter-port": "18888", "--control-port": "18189"}
CONTROL = f"http://127.0.0.1:{PORTS['--control-port']}"
CADDY = 18190
CLIENTS = 200
CHUNK = 1 << 20
PREVIEWS = 20
_BINARY = 2
_NODE = """
import torch
from PIL import Image
from protocol import BinaryEventTypes
from server import PromptServer


class SendPreviews:
    CATEGORY, FUNCTION, OUTPUT_NODE, RETURN_TYPES = "benchmark", "send", True, ()

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"count": ("INT", {"default": 1}), "seed": ("INT", {"default": 0, "max": 1 << 30})}}

    def send(self, count, seed):
        torch.manual_seed(seed)
        noise = (torch.rand(32, 32, 3) * 255).byte().numpy()
        preview = Image.fromarray(noise).resize((512, 512))
        for _ in range(count):
            PromptServer.instance.send_sync(BinaryEventTypes.UNENCODED_PREVIEW_IMAGE, ("JPEG", preview, 512), None)
        return ()


NODE_CLASS_MAPPINGS = {"SendPreviews": SendPreviews}
"""


@dataclass(frozen=True)
class Way:
    """One way to ComfyUI: its port and what a client must send."""

    name: str
    port: int
    headers: dict[str, str]


@contextmanager
def pod(workspace: Path) -> Iterator[list[Way]]:
    """Run a pod; return the ways to its ComfyUI."""
    arguments = [word for pair in PORTS.items() for word in pair]
    command = [sys.executable, "-m", "comfypod"]
    up = [*command, "up", "--engine", "host", "--profile", "cpu", "--detach", "--no-jupyter", "--listen", "0.0.0.0"]
    given = ["--workspace", str(workspace), *arguments, "--", "--max-upload-size", "4000"]
    subprocess.run([*up, *given], check=True, stdout=sys.stderr)
    try:
        token = Layout(workspace).token.read_text().strip()
        way = Way("gateway", int(PORTS["--port"]), {"Authorization": f"Bearer {token}"})
        (Layout(workspace).comfyui / "custom_nodes" / "previews.py").write_text(_NODE)
        _restart(way)
        yield [Way("direct", _own_port(), {}), way]
    finally:
        subprocess.run([*command, "down", "--workspace", str(workspace)], check=True, stdout=sys.stderr)


def _restart(way: Way) -> None:
    """Have ComfyUI load the benchmark's node."""
    before = _pid()
    ask = http.client.HTTPConnection("127.0.0.1", way.port, timeout=60)
    ask.request("POST", "/_pod/do/restart", b"{}", {**way.headers, "Content-Type": "application/json"})
    ask.getresponse().read()
    deadline = time.monotonic() + 120
    while _pid() == before or not (control.status(CONTROL) or {}).get("ready"):
        if time.monotonic() > deadline:
            raise SystemExit("ComfyUI did not start again")
        time.sleep(0.2)


def _pid() -> int | None:
    status = control.status(CONTROL) or {}
    return next((row["pid"] for row in status["services"] if row["name"] == "comfyui"), None)


def _own_port() -> int:
    words = Path(f"/proc/{_pid()}/cmdline").read_text().split("\0")
    return int(words[words.index("--port") + 1])


@contextmanager
def caddy(folder: Path, direct: Way) -> Iterator[list[Way]]:
    """Run Caddy in front of ComfyUI, asking boot's control plane about every request; nothing where it is missing."""
    if shutil.which("caddy") is None:
        yield []
        return
    config = folder / "Caddyfile"
    config.write_text(
        "{\n admin off\n auto_https off\n}\n"
        f":{CADDY} {{\n forward_auth {CONTROL.removeprefix('http://')} {{\n  uri /livez\n }}\n"
        f" reverse_proxy 127.0.0.1:{direct.port}\n}}\n"
    )
    process = subprocess.Popen(
        ["caddy", "run", "--config", str(config), "--adapter", "caddyfile"],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        for _ in range(100):
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", CADDY), 1):
                break
            time.sleep(0.05)
        yield [Way("caddy", CADDY, {"Host": "127.0.0.1"})]
    finally:
        process.terminate()
        process.wait()


def latencies(ways: list[Way], count: int) -> dict[str, list[float]]:
    """Return milliseconds per small request, asked in turn on one connection a way."""
    lines = {way.name: http.client.HTTPConnection("127.0.0.1", way.port, timeout=30) for way in ways}
    found: dict[str, list[float]] = {way.name: [] for way in ways}
    for number in range(count + 50):
        for way in ways[number % len(ways) :] + ways[: number % len(ways)]:
            began = time.perf_counter()
            lines[way.name].request("GET", "/prompt", headers=way.headers)
            lines[way.name].getresponse().read()
            if number >= 50:
                found[way.name].append((time.perf_counter() - began) * 1000)
    return found


def in_turn(ways: list[Way], runs: int, work: Callable[[Way], None], size: int) -> dict[str, list[float]]:
    """Return MiB a second of a transfer, done in turn."""
    found: dict[str, list[float]] = {way.name: [] for way in ways}
    for number in range(runs):
        for way in ways[number % len(ways) :] + ways[: number % len(ways)]:
            began = time.perf_counter()
            work(way)
            found[way.name].append(size / (time.perf_counter() - began) / (1 << 20))
    return found


def download(way: Way, size: int) -> None:
    """Fetch the large file and throw it away."""
    line = http.client.HTTPConnection("127.0.0.1", way.port, timeout=300)
    line.request("GET", "/view?filename=large.bin", headers=way.headers)
    answer, buffer, left = line.getresponse(), bytearray(CHUNK), size
    while read := answer.readinto(buffer):
        left -= read
    if answer.status != 200 or left:
        raise SystemExit(f"{way.name}: {answer.status}, {left} bytes are missing")
    line.close()


def upload(way: Way, size: int) -> None:
    """Send a large file."""
    edge = "comfypod-benchmark"
    disposition = 'Content-Disposition: form-data; name="image"; filename="up.bin"'
    head = f"--{edge}\r\n{disposition}\r\nContent-Type: application/octet-stream\r\n\r\n".encode()
    tail = f'\r\n--{edge}\r\nContent-Disposition: form-data; name="overwrite"\r\n\r\ntrue\r\n--{edge}--\r\n'.encode()

    def parts() -> Iterator[bytes]:
        yield head
        for _ in range(size // CHUNK):
            yield bytes(CHUNK)
        yield tail

    line = http.client.HTTPConnection("127.0.0.1", way.port, timeout=300)
    sizes = {"Content-Length": str(len(head) + size + len(tail))}
    line.request("POST", "/upload/image", parts(), {
        **way.headers, **sizes, "Content-Type": f"multipart/form-data; boundary={edge}",
    })  # fmt: skip
    answer = line.getresponse()
    if answer.status != 200:
        raise SystemExit(f"{way.name}: {answer.status} {answer.read()[:200]!r}")
    line.close()


def broadcast(way: Way, rounds: int) -> list[float]:
    """Return the milliseconds from a request that changes the queue until every client has heard of it."""
    with _audience(way) as (watch, lines):
        return [_round(way, watch, lines) for _ in range(rounds)]


def previews(way: Way, rounds: int) -> list[float]:
    """Return the milliseconds from a prompt that sends previews until every client has all of them."""
    with _audience(way) as (watch, lines):
        return [_shown(way, watch, lines, seed) for seed in range(rounds)]


@contextmanager
def _audience(way: Way) -> Iterator[tuple[selectors.BaseSelector, list[socket.socket]]]:
    with ExitStack() as stack:
        lines = [stack.enter_context(_websocket(way, number)) for number in range(CLIENTS)]
        watch = stack.enter_context(selectors.DefaultSelector())
        for line in lines:
            watch.register(line, selectors.EVENT_READ)
        _heard(watch, 2.0, set())
        yield watch, lines


def _round(way: Way, watch: selectors.BaseSelector, lines: list[socket.socket]) -> float:
    _heard(watch, 0.2, set())
    began = time.perf_counter()
    _queue(way, _PROMPT)
    return (time.perf_counter() - began) * 1000 if _heard(watch, 10.0, set(lines)) else float("inf")


def _shown(way: Way, watch: selectors.BaseSelector, lines: list[socket.socket], seed: int) -> float:
    _heard(watch, 0.5, set())
    counted = {line: Frames() for line in lines}
    began = time.perf_counter()
    _queue(way, {"1": {"class_type": "SendPreviews", "inputs": {"count": PREVIEWS, "seed": seed}}})
    while any(each.previews < PREVIEWS for each in counted.values()):
        if time.perf_counter() - began > 60:
            return float("inf")
        for key, _ in watch.select(1.0):
            line = key.fileobj
            assert isinstance(line, socket.socket)
            counted[line].feed(line.recv(1 << 18))
    return (time.perf_counter() - began) * 1000


class Frames:
    """Counts the binary frames that a server sends, which has no masks (RFC 6455, section 5.2)."""

    def __init__(self) -> None:
        self.previews, self._left, self._kind, self._head = 0, 0, 0, b""

    def feed(self, data: bytes) -> None:
        """Take what has come."""
        at = 0
        while at < len(data):
            if self._left:
                step = min(self._left, len(data) - at)
                at, self._left = at + step, self._left - step
            else:
                self._head += data[at : at + 1]
                at += 1
                self._begin()
            if not self._left and self._kind == _BINARY and not self._head:
                self.previews, self._kind = self.previews + 1, 0

    def _begin(self) -> None:
        """Begin a frame once its head is whole."""
        if len(self._head) < 2:
            return
        size = {126: 4, 127: 10}.get(self._head[1], 2)
        if len(self._head) == size:
            self._left = self._head[1] if size == 2 else int.from_bytes(self._head[2:], "big")
            self._kind, self._head = self._head[0] & 15, b""


def _queue(way: Way, prompt: dict[str, Any]) -> None:
    ask = http.client.HTTPConnection("127.0.0.1", way.port, timeout=30)
    headers = {**way.headers, "Content-Type": "application/json"}
    ask.request("POST", "/prompt", json.dumps({"prompt": prompt}).encode(), headers)
    if (answer := ask.getresponse()).status != 200:
        raise SystemExit(f"{way.name}: {answer.status} {answer.read()[:300]!r}")
    answer.read()


_PROMPT = {
    "1": {"class_type": "EmptyImage", "inputs": {"width": 8, "height": 8, "batch_size": 1, "color": 0}},
    "2": {"class_type": "PreviewImage", "inputs": {"images": ["1", 0]}},
}


def _heard(watch: selectors.BaseSelector, seconds: float, wanted: set[Any]) -> bool:
    """Read what comes, until all of `wanted` have got something (say whether), or where none is for some time."""
    deadline, endless = time.perf_counter() + seconds, not wanted
    while (wanted or endless) and time.perf_counter() < deadline:
        for key, _ in watch.select(0.05):
            line = key.fileobj
            assert isinstance(line, socket.socket)
            line.recv(1 << 16)
            wanted.discard(line)
    return not wanted


def _websocket(way: Way, number: int) -> socket.socket:
    line = socket.create_connection(("127.0.0.1", way.port), 30)
    key = base64.b64encode(os.urandom(16)).decode()
    headers = {"Host": f"127.0.0.1:{way.port}", **way.headers, "Connection": "Upgrade", "Upgrade": "websocket"}
    headers |= {"Sec-WebSocket-Key": key, "Sec-WebSocket-Version": "13"}
    head = f"GET /ws?clientId={way.name}{number} HTTP/1.1\r\n" + "".join(f"{k}: {v}\r\n" for k, v in headers.items())
    line.sendall(f"{head}\r\n".encode())
    if not line.recv(1 << 12).startswith(b"HTTP/1.1 101"):
        raise SystemExit(f"{way.name}: no WebSocket")
    return line


def asked(chosen: argparse.Namespace) -> list[Question]:
    """Ask each way in turn."""
    size = chosen.mib << 20
    with tempfile.TemporaryDirectory(prefix="comfypod-bench-") as folder, ExitStack() as stack:
        ways = stack.enter_context(pod(Path(folder) / "workspace"))
        ways += stack.enter_context(caddy(Path(folder), ways[0]))
        with (Layout(Path(folder) / "workspace").comfyui / "output" / "large.bin").open("wb") as large:
            large.truncate(size)
        heard = {way.name: broadcast(way, 20) for way in ways}
        seen = {way.name: previews(way, 10) for way in ways}
        down = in_turn(ways, chosen.runs, lambda way: download(way, size), size)
        up = in_turn(ways, chosen.runs, lambda way: upload(way, size), size)
        small = latencies(ways, chosen.requests)
    ours, most = ("gateway",), {"more_is_better": True}
    return [
        Question("gateway-latency", "A small request", "milliseconds", small, "direct"),
        Question("gateway-download", f"{chosen.mib} MiB from ComfyUI", "MiB/s", down, "direct", 0.7, ours, **most),
        Question("gateway-upload", f"{chosen.mib} MiB to ComfyUI", "MiB/s", up, "direct", 0.7, ours, **most),
        Question("gateway-message", f"A message to {CLIENTS} WebSockets", "milliseconds", heard, "direct"),
        Question("gateway-previews", f"{PREVIEWS} previews to {CLIENTS} WebSockets", "milliseconds", seen, "direct"),
    ]


def options(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    parser.add_argument("--requests", type=int, default=1000, help="small requests by each way")
    parser.add_argument("--runs", type=int, default=5, help="large transfers by each way")
    parser.add_argument("--mib", type=int, default=1024, help="size of a large transfer")


if __name__ == "__main__":
    run(__doc__, asked, options)

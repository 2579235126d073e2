"""A stand-in for ComfyUI: its command line and three of its routes, with faults to order.

The real ComfyUI takes ten seconds and 8 GB; what boot does around it is tested with this, ComfyUI itself with the
tests marked `real`.
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from comfypod.podfile import PodFile

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

_MAIN = r"""
import argparse, getpass, http.server, json, os, pathlib, signal, sys, threading, time

parser = argparse.ArgumentParser()
parser.add_argument("--listen"); parser.add_argument("--port", type=int)
parser.add_argument("--base-directory"); parser.add_argument("--database-url")
parser.add_argument("--disable-auto-launch", action="store_true"); parser.add_argument("--cpu", action="store_true")
parser.add_argument("--disable-all-custom-nodes", action="store_true")
parser.add_argument("--extra-model-paths-config")
options = parser.parse_args()
orders = json.loads(pathlib.Path(os.environ["STANDIN_ORDERS"]).read_text())
starts = pathlib.Path(os.environ["STANDIN_ORDERS"]).with_name("starts")
with starts.open("a") as handle:
    seen = {"pid": os.getpid(), "argv": sys.argv[1:], "env": dict(os.environ), "user": getpass.getuser()}
    seen |= {"uids": os.getresuid(), "gids": os.getresgid(), "groups": os.getgroups()}
    handle.write(json.dumps(seen) + "\n")
print("stand-in starts", flush=True)
if orders["stubborn"]:
    signal.signal(signal.SIGINT, signal.SIG_IGN); signal.signal(signal.SIGTERM, signal.SIG_IGN)
time.sleep(orders["slow"])
nodes_off = options.disable_all_custom_nodes
version = pathlib.Path(__file__).with_name("comfyui_version.py").read_text()
healed = (nodes_off and orders["heals_in_safe_mode"]) or f'"{orders["heals_with_version"]}"' in version
if orders["die"] is not None and not healed:
    print("stand-in dies", flush=True)
    os._exit(orders["die"])

class Routes(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        queue = {"queue_running": [], "queue_pending": [1, 2]}
        body = {"/system_stats": {"system": {}}, "/queue": queue}.get(self.path)
        if orders["mute"]:
            time.sleep(3600)
        data = json.dumps(body).encode()
        self.send_response(200 if body else 404); self.send_header("Content-Length", str(len(data)))
        self.end_headers(); self.wfile.write(data)
    def log_message(self, *words): pass

server = http.server.ThreadingHTTPServer((options.listen, options.port), Routes)
server.daemon_threads = True
if orders["die_later"] is not None:
    threading.Timer(orders["die_later"], os._exit, (9,)).start()
try:
    server.serve_forever()
except KeyboardInterrupt:
    print("stand-in stopped server", flush=True)
"""


@dataclass(frozen=True, slots=True)
class Orders:
    """How the stand-in behaves: seconds before it serves, exit code to die with, deaf to signals, and so on."""

    slow: float = 0.0
    die: int | None = None
    heals_in_safe_mode: bool = False
    heals_with_version: str | None = None
    die_later: float | None = None
    stubborn: bool = False
    mute: bool = False


def tree(folder: Path, *, release: str = "1") -> Path:
    """Make a small tree in ComfyUI's layout and return it."""
    for name in ("comfy/ldm", "custom_nodes", "models/checkpoints", "input", "output", "user"):
        (folder / name).mkdir(parents=True)
    (folder / "main.py").write_text(_MAIN)
    (folder / "comfyui_version.py").write_text(f'__version__ = "{release}"\n')
    (folder / "comfy" / "__init__.py").write_text("")
    (folder / "comfy" / "ldm" / "model.py").write_text("LAYERS = 12\n" * 200)
    (folder / "input" / "example.png").write_bytes(b"\x89PNG" + bytes(4000))
    (folder / "models" / "checkpoints" / "put_checkpoints_here").write_text("")
    (folder / "link.py").symlink_to("main.py")
    return folder


def orders(folder: Path, behaviour: Orders) -> Path:
    """Write the stand-in's orders; the stand-in reads them at each start."""
    path = folder / "orders.json"
    path.write_text(json.dumps(asdict(behaviour)))
    return path


def pod_file(
    folder: Path, comfyui: Path, *, release: str = "1", facts: Mapping[str, Any] | None = None, **settings: str
) -> Path:
    """Write a `pod.json` that runs the stand-in with this Python; `facts` are fields that shall be others."""
    pod = PodFile(
        profile="cpu",
        arch="x86_64",
        lock="0" * 64,
        comfyui_version=release,
        comfyui_digest="sha256:" + release.zfill(64),
        comfyui_path=str(comfyui),
        environment_key="standin",
        torch="0",
        python=sys.executable,
        engine="host",
        comfyui_args=("--cpu",),
        settings=settings,
    )
    path = folder / "pod.json"
    path.write_bytes(replace(pod, **(facts or {})).encode())
    return path

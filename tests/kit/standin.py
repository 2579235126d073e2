"""A stand-in for ComfyUI: its command line, its queue, some of its routes and some that show what reached it.

The real ComfyUI takes ten seconds and 8 GB; what boot does around it is tested with this, ComfyUI itself with the
tests marked `real`.
"""

from __future__ import annotations

import json
import sys
import uuid
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from comfypod.podfile import PodFile
from tests.kit.comfyui import Client, node

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

_NODES = r"""
import importlib.util, logging, os, sys, traceback
import folder_paths

NODE_CLASS_MAPPINGS = {}

async def load_custom_node(module_path, ignore=frozenset(), module_parent="custom_nodes"):
    path = module_path if os.path.isfile(module_path) else os.path.join(module_path, "__init__.py")
    name = module_path.replace(".", "_x_")
    try:
        spec = importlib.util.spec_from_file_location(name, path)
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        spec.loader.exec_module(module)
        NODE_CLASS_MAPPINGS.update(module.NODE_CLASS_MAPPINGS)
        if hasattr(module, "comfy_entrypoint"):
            await module.comfy_entrypoint()
        return True
    except Exception as error:
        print(traceback.format_exc(), f"Cannot import {module_path}: {error}", flush=True)
        return False

async def init_external_custom_nodes():
    for folder in folder_paths.get_folder_paths("custom_nodes"):
        for name in sorted(os.listdir(folder)):
            path = os.path.join(folder, name)
            wanted = os.path.isdir(path) or name.endswith(".py")
            if wanted and name != "__pycache__" and not name.endswith(".disabled"):
                await load_custom_node(path)
"""
_PRESTARTUP = r"""
import importlib.util, os
import folder_paths

def execute_prestartup_scripts():
    for folder in folder_paths.get_folder_paths("custom_nodes"):
        for name in sorted(os.listdir(folder)):
            path = os.path.join(folder, name, "prestartup_script.py")
            if os.path.exists(path):
                try:
                    spec = importlib.util.spec_from_file_location(path, path)
                    spec.loader.exec_module(importlib.util.module_from_spec(spec))
                except Exception as error:
                    print(f"Failed to execute startup-script: {path} / {error}", flush=True)
"""
_FOLDER_PATHS = r"""
folders = {"custom_nodes": []}

def get_folder_paths(kind):
    return folders[kind]
"""
_MAIN = r"""
import argparse, base64, getpass, hashlib, heapq, http.server, json, os, pathlib, signal, sys, threading, time

parser = argparse.ArgumentParser()
parser.add_argument("--listen"); parser.add_argument("--port", type=int)
parser.add_argument("--base-directory"); parser.add_argument("--database-url")
parser.add_argument("--disable-auto-launch", action="store_true"); parser.add_argument("--cpu", action="store_true")
parser.add_argument("--disable-all-custom-nodes", action="store_true")
parser.add_argument("--extra-model-paths-config")
options = parser.parse_args()
import cuda_malloc
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
began = time.monotonic()
nodes_off = options.disable_all_custom_nodes
version = pathlib.Path(__file__).with_name("comfyui_version.py").read_text()
healed = (nodes_off and orders["heals_in_safe_mode"]) or f'"{orders["heals_with_version"]}"' in version
if orders["die"] is not None and not healed:
    print("stand-in dies", flush=True)
    os._exit(orders["die"])

import asyncio, folder_paths, prestartup
base = pathlib.Path(options.base_directory or pathlib.Path(__file__).parent)
if options.extra_model_paths_config:
    extra = json.loads(pathlib.Path(options.extra_model_paths_config).read_text()).values()
    folder_paths.folders["custom_nodes"] += [each["custom_nodes"] for each in extra if "custom_nodes" in each]
folder_paths.folders["custom_nodes"].append(str(base / "custom_nodes"))
if not nodes_off:
    prestartup.execute_prestartup_scripts()
import torch, nodes
if not nodes_off:
    asyncio.run(nodes.init_external_custom_nodes())

def is_mute():
    later = orders["mute_later"]
    return orders["mute"] or (later is not None and time.monotonic() - began > later)

def toil():
    while orders["works"] is None or time.monotonic() - began < orders["works"]:
        if not is_mute():
            time.sleep(0.05)

def eat():
    eaten = []
    while True:
        eaten.append(b"x" * (1 << 22)); time.sleep(0.01)

def run_out_of_memory():
    pathlib.Path(orders["out_of_memory"]).write_text("oom 1\noom_kill 1\n")
    os.kill(os.getpid(), signal.SIGKILL)

ran = pathlib.Path(os.environ["STANDIN_ORDERS"]).with_name("ran")
guard, interrupted = threading.Condition(), threading.Event()
running, pending, history, numbers = [], [], {}, [0]

def note(*words):
    with ran.open("a") as handle:
        handle.write(" ".join(words) + "\n")

def execute(item):
    for node in item[2].values():
        if node["class_type"] == "Kill":
            os._exit(9)
        if node["class_type"] == "Fail" or interrupted.wait(node["inputs"].get("seconds", 0)):
            return False
    return True

def work():
    while True:
        with guard:
            guard.wait_for(lambda: pending)
            item = heapq.heappop(pending); running.append(item); interrupted.clear()
        note("begin", item[1])
        began_at = time.time_ns() // 1_000_000
        completed = execute(item)
        note("end" if completed else "broken", item[1])
        with guard:
            running.remove(item)
            history[item[1]] = {"prompt": item, "outputs": {}, "status": ending(completed, began_at)}

def take(body):
    if any(node["class_type"] == "Refused" for node in body["prompt"].values()):
        return 400, {"error": {}}
    extra = dict(body.get("extra_data", {}))
    extra |= {"client_id": body["client_id"]} if "client_id" in body else {}
    with guard:
        outputs = body.get("partial_execution_targets", list(body["prompt"]))
        heapq.heappush(pending, [body.get("number", numbers[0]), body["prompt_id"], body["prompt"], extra, outputs])
        numbers[0] += 1
        guard.notify()
    return 200, {"prompt_id": body["prompt_id"]}

def change(body):
    with guard:
        pending[:] = [] if body.get("clear") else [item for item in pending if item[1] not in body.get("delete", ())]
        heapq.heapify(pending)
    return 200, {}

def interrupt(body):
    with guard:
        if running and body.get("prompt_id") in (None, running[0][1]):
            interrupted.set()
    return 200, {}

def ending(completed, began_at):
    end = "execution_success" if completed else "execution_interrupted" if interrupted.is_set() else "execution_error"
    times = [["execution_start", {"timestamp": began_at}], [end, {"timestamp": time.time_ns() // 1_000_000}]]
    return {"completed": completed, "status_str": "success" if completed else "error", "messages": times}

def look(path):
    route, _, query = path.partition("?max_items=")
    extra = starts.with_name("queue")
    more = [0] * int(extra.read_text()) if extra.exists() else []
    with guard:
        if path.startswith("/history/"):
            name = path.rpartition("/")[2]
            return 200, {name: history[name]} if name in history else {}
        queue = {"queue_running": list(running) + [0] * orders["busy"], "queue_pending": list(pending) + more}
        remaining = {"exec_info": {"queue_remaining": sum(map(len, queue.values()))}}
        body = {"/system_stats": {"system": {}}, "/object_info": dict.fromkeys(nodes.NODE_CLASS_MAPPINGS),
                "/queue": queue, "/prompt": remaining,
                "/history": dict(list(history.items())[-int(query or 0):])}.get(route)
        return (404, None) if body is None else (200, body)

class Routes(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_GET(self):
        if is_mute():
            time.sleep(3600)
        if orders["closes"]:
            return
        if self.headers.get("Upgrade") == "websocket":
            return self.websocket()
        if self.path == "/manager/reboot":
            os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
        if self.path == "/manager/again":
            os.execv(sys.executable, [sys.executable, *sys.argv])
        if self.path.startswith("/big"):
            return self.big(int(self.path.partition("=")[2]))
        if self.path.startswith(("/file", "/short")):
            return self.file(int(self.path.partition("=")[2]), cut=self.path.startswith("/short"))
        if self.path.startswith("/seen"):
            return self.answer({"path": self.path, "headers": self.headers.items()})
        status, body = look(self.path)
        self.answer(body, status)
    def answer(self, body, status=200):
        data = json.dumps(body).encode()
        self.send_response(status); self.send_header("Content-Length", str(len(data)))
        self.end_headers(); self.wfile.write(data)
    def big(self, left):
        self.send_response(200); self.send_header("Transfer-Encoding", "chunked"); self.end_headers()
        while left:
            part = bytes(min(left, 1 << 16)); left -= len(part)
            self.wfile.write(b"%x\r\n" % len(part) + part + b"\r\n")
        self.wfile.write(b"0\r\n\r\n")
    def file(self, size, cut):
        self.send_response(200); self.send_header("Content-Length", str(size)); self.end_headers()
        data = (bytes(range(251)) * (size // 251 + 1))[:size // 2 if cut else size]
        self.wfile.write(data)
        self.close_connection = cut
    def do_POST(self):
        own = {"/prompt": take, "/queue": change, "/interrupt": interrupt}.get(self.path)
        if own is not None:
            status, body = own(json.loads(b"".join(self.body())))
            return self.answer(body, status)
        digest, size = hashlib.sha256(), 0
        for part in self.body():
            digest.update(part); size += len(part)
        self.answer({"path": self.path, "bytes": size, "sha256": digest.hexdigest(), "headers": self.headers.items()})
    def body(self):
        if self.headers.get("Transfer-Encoding") == "chunked":
            while size := int(self.rfile.readline(), 16):
                yield self.rfile.read(size); self.rfile.readline()
            self.rfile.readline()
        left = int(self.headers.get("Content-Length", 0))
        while left and (part := self.rfile.read(min(left, 1 << 16))):
            left -= len(part); yield part
    def websocket(self):
        key = self.headers["Sec-WebSocket-Key"] + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
        self.send_response(101); self.send_header("Upgrade", "websocket"); self.send_header("Connection", "Upgrade")
        accept = base64.b64encode(hashlib.sha1(key.encode()).digest()).decode()
        self.send_header("Sec-WebSocket-Accept", accept); self.end_headers()
        while data := self.connection.recv(1 << 16):
            self.connection.sendall(data)
        self.close_connection = True
    def log_message(self, *words): pass

threading.Thread(target=work, daemon=True).start()

server = http.server.ThreadingHTTPServer((options.listen, options.port), Routes)
server.daemon_threads = True
if orders["die_later"] is not None:
    threading.Timer(orders["die_later"], os._exit, (9,)).start()
if orders["out_of_memory"] is not None:
    threading.Timer(0.5, run_out_of_memory).start()
if orders["eats"]:
    threading.Timer(0.5, eat).start()
if orders["busy"]:
    threading.Thread(target=toil, daemon=True).start()
try:
    server.serve_forever()
except KeyboardInterrupt:
    print("stand-in stopped server", flush=True)
"""


@dataclass(frozen=True, slots=True)
class Orders:
    """How the stand-in behaves: seconds before it serves, exit code to die with, deaf to signals, and so on.

    `mute` accepts connections and never answers, `mute_later` so many seconds after its start. With `busy` a prompt
    runs, and while it is mute that takes all of a processor, for the seconds of `works` after its start where given.
    `out_of_memory` is the `memory.events` to count in before it is killed. With `eats` it takes memory until it is
    killed, with `closes` it answers nothing and closes. A file `queue` beside the orders says how many prompts
    wait besides those that were submitted.
    """

    slow: float = 0.0
    die: int | None = None
    heals_in_safe_mode: bool = False
    heals_with_version: str | None = None
    die_later: float | None = None
    stubborn: bool = False
    mute: bool = False
    mute_later: float | None = None
    busy: bool = False
    works: float | None = None
    out_of_memory: str | None = None
    eats: bool = False
    closes: bool = False


def tree(folder: Path, *, release: str = "1") -> Path:
    """Make a small tree in ComfyUI's layout and return it."""
    for name in ("comfy/ldm", "custom_nodes", "models/checkpoints", "input", "output", "user"):
        (folder / name).mkdir(parents=True)
    (folder / "main.py").write_text(_MAIN)
    (folder / "nodes.py").write_text(_NODES)
    (folder / "prestartup.py").write_text(_PRESTARTUP)
    (folder / "folder_paths.py").write_text(_FOLDER_PATHS)
    (folder / "cuda_malloc.py").write_text("")
    (folder / "torch.py").write_text("")
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


def submit(port: int, kind: str = "Sleep", seconds: float = 0.0, **more: Any) -> str:
    """Submit a prompt of one node to the stand-in (`Sleep`, `Fail`, `Kill` or `Refused`); return its id."""
    name, client = str(uuid.uuid4()), Client(f"http://127.0.0.1:{port}")
    prompt = {"1": node(kind, seconds=seconds)}
    client.post("/prompt", json.dumps({"prompt_id": name, "prompt": prompt, "client_id": "me", **more}).encode())
    return name

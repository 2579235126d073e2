"""Everything an image is made of, tiny and local: an index of small wheels, a Git server, a lock made from both.

comfypod's own packages in an image are the real ones, which the index sends to the caller's.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
from contextlib import contextmanager
from dataclasses import dataclass, field
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any

from comfypod.image.context import write_context
from comfypod.image.layer import EPOCH
from comfypod.image.network import network, secret_files
from comfypod.image.request import Build
from comfypod.image.settle import settle
from comfypod.lock.load import read_lock
from comfypod.manifest.profiles import load_profiles
from tests.kit import standin
from tests.kit.engine import BASE
from tests.kit.lab import until
from tests.kit.lockable import TORCH, manifest_text, node
from tests.kit.pods import free_port
from tests.kit.repos import Repository, make_repository
from tests.kit.wheels import build_wheel

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from comfypod.image.engine import Engine

_UPSTREAM = ("UV_DEFAULT_INDEX", "UV_INDEX_URL", "PIP_INDEX_URL")
# Where the lab's nodes are said to be; a mirror serves them, so that the lock is the same on every machine.
GIT_HOST = "https://git.example.invalid/"
# Answers everything on the port that it is given.
_JUPYTER = """\
#!python
import http.server, sys

class Routes(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200); self.send_header("Content-Length", "2"); self.end_headers(); self.wfile.write(b"{}")
    def log_message(self, *words): pass

port = next(int(word.partition("=")[2]) for word in sys.argv if word.startswith("--ServerApp.port="))
http.server.ThreadingHTTPServer(("", port), Routes).serve_forever()
"""


@dataclass
class Index:
    """A package index over a folder; what it lacks it sends to the caller's own index, what apt asks for to Debian.

    With `login` ("user:password") it answers to nobody else. `requests` holds paths as they came.
    """

    folder: Path
    port: int
    login: str = ""
    requests: list[str] = field(default_factory=list)

    @property
    def root(self) -> str:
        who = f"{self.login}@" if self.login else ""
        return f"http://{who}127.0.0.1:{self.port}"

    @property
    def url(self) -> str:
        return f"{self.root}/simple"

    def files(self, name: str) -> list[Path]:
        """Return the files of a package."""
        found = sorted(self.folder.glob("*.whl")) + sorted(self.folder.glob("*.tar.gz"))
        return [path for path in found if path.name.partition("-")[0].replace("_", "-").lower() == name]


@contextmanager
def serve_index(folder: Path, login: str = "") -> Iterator[Index]:
    """Run an index on a free loopback port."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler)
    index = Index(folder, server.server_address[1], login)
    server.RequestHandlerClass = _handler(index)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield index
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def _handler(index: Index) -> type[BaseHTTPRequestHandler]:
    upstream = next((os.environ[name] for name in _UPSTREAM if os.environ.get(name)), "https://pypi.org/simple")
    wanted = "Basic " + base64.b64encode(index.login.encode()).decode()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            index.requests.append(self.path)
            if index.login and self.headers.get("Authorization") != wanted:
                self._answer(401, {"WWW-Authenticate": 'Basic realm="lab"'})
                return
            kind, _, name = self.path.strip("/").partition("/")
            if kind == "files" and (path := index.folder / name).is_file():
                self._answer(200, {"Content-Type": "application/octet-stream"}, path.read_bytes())
            elif kind == "simple" and (found := index.files(name)):
                rows = (
                    {
                        "filename": path.name, "url": f"/files/{path.name}", "size": path.stat().st_size,
                        "hashes": {"sha256": sha256(path.read_bytes()).hexdigest()},
                    }
                    for path in found
                )  # fmt: skip
                body = {"meta": {"api-version": "1.1"}, "name": name, "files": list(rows), "versions": []}
                self._answer(200, {"Content-Type": "application/vnd.pypi.simple.v1+json"}, json.dumps(body).encode())
            elif kind == "simple":
                self._answer(302, {"Location": f"{upstream.rstrip('/')}/{name}/"})
            elif kind in {"debian", "debian-security"}:
                self._answer(302, {"Location": f"http://deb.debian.org{self.path}"})
            else:
                self._answer(404, {})

        def do_HEAD(self) -> None:
            self.do_GET()

        def _answer(self, status: int, headers: Mapping[str, str], body: bytes = b"") -> None:
            self.send_response(status)
            for name, value in {"Content-Length": str(len(body)), **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the name is the base class's
            pass

    return Handler


@contextmanager
def serve_git(folder: Path) -> Iterator[str]:
    """Serve the repositories below a folder with `git daemon`; yields the address that they are below."""
    port = free_port()
    argv = [
        "git", "daemon", "--export-all", "--reuseaddr", "--listen=127.0.0.1", f"--port={port}",
        f"--base-path={folder}", str(folder),
    ]  # fmt: skip
    with (folder / "daemon.log").open("w") as log:
        daemon = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT)
        try:
            until(lambda: _answers(port), "answered by git daemon")
            yield f"git://127.0.0.1:{port}/"
        finally:
            daemon.terminate()
            daemon.wait(10)


def _answers(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
        return True
    return False


@dataclass
class ImageLab:
    """A folder with a manifest, the index and the Git server that it is locked from."""

    folder: Path
    index: Index
    git: str
    profiles: tuple[str, ...] = ("cpu",)
    nodes: dict[str, Repository] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.tree = standin.tree(self.folder / "tree", release="0.30.0")
        shutil.copy(Path(__file__).with_name("tiny_comfyui.py"), self.tree / "main.py")
        self.require("torch", "torchvision", "torchaudio", "lab-bulk", "comfyui-frontend-package")
        for name, version in TORCH:
            build_wheel(self.index.folder, name, version)
        suite = {"lab_bulk/tests/test_bulk.py": "import lab_bulk\n", "lab_bulk/__init__.py": "x = 1\n"}
        build_wheel(self.index.folder, "lab-bulk", "1.0", modules=suite)
        build_wheel(self.index.folder, "comfyui-frontend-package", "1.0")
        build_wheel(
            self.index.folder, "jupyterlab", "4.0", modules={"jupyterlab-4.0.data/scripts/jupyter-lab": _JUPYTER}
        )
        self.lock = self.folder / "comfypod.lock"

    def require(self, *names: str) -> None:
        """Let ComfyUI's tree ask for these packages and no others."""
        (self.tree / "requirements.txt").write_text("".join(f"{name}\n" for name in names))

    def make_unlike_any(self) -> None:
        """Give tree, wheel and nodes contents that no engine has built before and kept in its cache."""
        line = f"# {secrets.token_hex(8)}\n"
        (self.tree / "unlike.py").write_text(line)
        build_wheel(self.index.folder, "lab-bulk", "1.0", modules={"lab_bulk/__init__.py": line})
        for repository in self.nodes.values():
            repository.commit({"unlike.py": line})

    @property
    def mirrors(self) -> str:
        return f"{GIT_HOST}={self.git}"

    @property
    def environ(self) -> dict[str, str]:
        return {
            "COMFYPOD_DATA": str(self.folder / "data"), "COMFYPOD_GIT_MIRRORS": self.mirrors,
            "UV_DEFAULT_INDEX": self.index.url, "UV_CACHE_DIR": str(self.folder / "cache"),
        }  # fmt: skip

    def add_node(self, name: str, contents: Mapping[str, str]) -> Repository:
        """Make a node's repository below the Git server."""
        self.nodes[name] = repository = make_repository(self.folder / "git" / name, contents)
        return repository

    def make_lock(self, more: str = "", **environ: str) -> Path:
        """Lock the tree, the packages and every node as they are now."""
        profiles = ", ".join(f'"{name}"' for name in self.profiles)
        tables = "".join(node(name, f"{GIT_HOST}{name}", "main") for name in self.nodes)
        (self.folder / "comfypod.toml").write_text(manifest_text(profiles=profiles, more=tables + more))
        done = self.run("lock", "--upgrade", **environ)
        assert done.returncode == 0, done.stdout + done.stderr
        return self.lock

    def run(self, *arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
        """Run `comfypod` beside the manifest."""
        return subprocess.run(
            [sys.executable, "-m", "comfypod", *arguments], cwd=self.folder, capture_output=True, text=True,
            timeout=600, check=False, env={**os.environ, **self.environ, **environ},
        )  # fmt: skip

    def build(self, tag: str, *arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
        """Run `comfypod build` of a slim `cpu` image for the lock as it is."""
        given = ("build", "cpu", "--variant", "slim", "--engine", "docker", "--lock", str(self.lock), "--tag", tag)
        return self.run(*given, "--network", "host", *arguments, **environ)

    def edit_lock(self, change: Callable[[dict[str, Any]], None]) -> None:
        """Tamper with the lock."""
        body = json.loads(self.lock.read_text())
        change(body)
        self.lock.write_text(json.dumps(body))

    @contextmanager
    def request(self, profile: str, stage: str, tag: str, base: str) -> Iterator[Build]:
        """Write the build context of the lock as it is, and yield how an engine is told to build from it."""
        reached = network({**os.environ, **self.environ}, mode="host")
        with tempfile.TemporaryDirectory(dir=self.folder) as folder, secret_files(reached) as hidden:
            context = Path(folder, "context")
            write_context(read_lock(self.lock), [load_profiles()[name] for name in self.profiles], context, self.folder)
            dockerfile = context / "Dockerfiles" / f"Dockerfile.{profile}"
            yield Build(
                context, dockerfile, stage, tag, args={"BASE": base}, secrets=hidden, network="host", timestamp=EPOCH
            )  # fmt: skip

    def image(
        self, engine: Engine, tag: str, profile: str = "cpu", stage: str = "slim", *, base: str = BASE,
        fresh: bool = False,
    ) -> str:  # fmt: skip
        """Build an image without trying it, `fresh` without the engine's cache; return the tag."""
        with self.request(profile, stage, tag, base) as request:
            argv = engine.build_command(request)
            argv[-1:] = ["--no-cache", argv[-1]] if fresh else argv[-1:]
            env = {**os.environ, **engine.environment}
            done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=900, env=env)
        assert done.returncode == 0, done.stdout + done.stderr
        settle(engine, tag)
        return tag

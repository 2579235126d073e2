"""Everything an image is made of, tiny and local: an index of small wheels, a Git server, a lock made from both.

comfypod's own packages in an image are the real ones, which the index sends to the caller's.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import socket
import subprocess
import sys
import threading
from contextlib import contextmanager
from dataclasses import dataclass, field
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING

from comfypod.image.context import write_context
from comfypod.lock.load import read_lock
from comfypod.manifest.profiles import load_profiles
from tests.kit import standin
from tests.kit.lab import until
from tests.kit.lockable import TORCH, manifest_text, node
from tests.kit.pods import free_port
from tests.kit.repos import Repository, make_repository
from tests.kit.wheels import build_wheel

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

_UPSTREAM = ("UV_DEFAULT_INDEX", "UV_INDEX_URL", "PIP_INDEX_URL")
# Where the lab's nodes are said to be; a mirror serves them, so that the lock is the same on every machine.
GIT_HOST = "https://git.example.invalid/"


@dataclass
class Index:
    """A package index over a folder; what it lacks it sends to the caller's own index.

    With `login` ("user:password") it answers to nobody else. `requests` holds paths as they came.
    """

    folder: Path
    port: int
    login: str = ""
    requests: list[str] = field(default_factory=list)

    @property
    def url(self) -> str:
        who = f"{self.login}@" if self.login else ""
        return f"http://{who}127.0.0.1:{self.port}/simple"

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
            else:
                self._answer(302 if kind == "simple" else 404, {"Location": f"{upstream.rstrip('/')}/{name}/"})

        do_HEAD = do_GET

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
        self.require("torch", "torchvision", "torchaudio", "bulk", "comfyui-frontend-package")
        for name, version in TORCH:
            build_wheel(self.index.folder, name, version)
        suite = {"bulk/tests/test_bulk.py": "import bulk\n", "bulk/__init__.py": "x = 1\n"}
        build_wheel(self.index.folder, "bulk", "1.0", modules=suite)
        build_wheel(self.index.folder, "comfyui-frontend-package", "1.0")
        build_wheel(self.index.folder, "jupyterlab", "4.0")
        self.lock = self.folder / "comfypod.lock"

    def require(self, *names: str) -> None:
        """Let ComfyUI's tree ask for these packages and no others."""
        (self.tree / "requirements.txt").write_text("".join(f"{name}\n" for name in names))

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

    def run(self, *arguments: str, seconds: float = 600, **environ: str) -> subprocess.CompletedProcess[str]:
        """Run `comfypod` beside the manifest."""
        return subprocess.run(
            [sys.executable, "-m", "comfypod", *arguments], cwd=self.folder, capture_output=True, text=True,
            timeout=seconds, check=False, env={**os.environ, **self.environ, **environ},
        )  # fmt: skip

    def build(self, *arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
        """Run `comfypod build` for the lock as it is."""
        return self.run("build", "--lock", str(self.lock), "--network", "host", *arguments, **environ)

    def write_context(self, folder: Path) -> Path:
        """Write the build context of the lock as it is."""
        lock = read_lock(self.lock)
        write_context(lock, [load_profiles()[name] for name in self.profiles], folder, self.folder)
        return folder

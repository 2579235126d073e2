"""Where ComfyUI-Manager installs from in a container without a network: a registry, a Git server and wheels, all in it.

Manager knows one registry, by its name on the internet; in the container that name is loopback's, with a certificate of
the kit's.
"""

from __future__ import annotations

import json
import subprocess
import zipfile
from typing import TYPE_CHECKING, Any

from tests.kit.lab import until
from tests.kit.repos import make_repository, write_tree
from tests.kit.wheels import build_wheel

if TYPE_CHECKING:
    from pathlib import Path

    from tests.kit.real_images import Container

REGISTRY = "api.comfy.org"
# Plain HTTP would not do: Manager asks over https alone.
_SERVER = """
import http.server, ssl
server = http.server.ThreadingHTTPServer(("127.0.0.1", 443), http.server.SimpleHTTPRequestHandler)
context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain("cert.pem", "key.pem")
server.socket = context.wrap_socket(server.socket, server_side=True)
server.serve_forever()
"""
_LISTENS = (
    "import socket\n"
    "for port in (443, 9418):\n"
    "    with socket.socket() as probe: print(probe.connect_ex(('127.0.0.1', port)))\n"
)
# Wheels by folder, as an index would have them; whoever installs in the container sees no other.
ENVIRON = {
    "SSL_CERT_FILE": "/offers/cert.pem", "REQUESTS_CA_BUNDLE": "/offers/cert.pem", "PIP_NO_INDEX": "1",
    "PIP_FIND_LINKS": "/offers/wheels",
}  # fmt: skip


class Offers:
    """A folder with all of that; a container is started with `options` and `ENVIRON`."""

    def __init__(self, folder: Path) -> None:
        self._folder = write_tree(folder, {"server.py": _SERVER})
        name = ("-subj", f"/CN={REGISTRY}", "-addext", f"subjectAltName=DNS:{REGISTRY}")
        files = ("-keyout", str(folder / "key.pem"), "-out", str(folder / "cert.pem"))
        argv = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", *name, *files]
        subprocess.run(argv, check=True, capture_output=True)
        self.options = ("--add-host", f"{REGISTRY}:127.0.0.1", "-v", f"{folder}:/offers:ro")

    def wheel(self, name: str) -> None:
        """Offer a package."""
        build_wheel(self._folder / "wheels", name, "1.0")

    def repository(self, name: str, contents: dict[str, str]) -> str:
        """Offer a node by Git; return its address."""
        make_repository(self._folder / "git" / name, contents)
        return f"git://127.0.0.1/{name}"

    def publish(self, name: str, contents: dict[str, str]) -> None:
        """Offer version 1.0.0 of a node in the registry."""
        answer = {"id": name, "version": "1.0.0", "downloadUrl": f"https://{REGISTRY}/{name}.zip"}
        write_tree(self._folder / "nodes" / name, {"install": json.dumps(answer)})
        with zipfile.ZipFile(self._folder / f"{name}.zip", "w") as bundle:
            for path, text in contents.items():
                bundle.writestr(path, text)


def serve(container: Container) -> None:
    """Start the servers in a container."""
    run = [container.engine.program, "exec", "--detach", "--workdir", "/offers", container.id]
    git = ["git", "daemon", "--export-all", "--base-path=/offers/git", "--listen=127.0.0.1", "/offers/git"]
    for argv in (["python3", "server.py"], git):
        subprocess.run([*run, *argv], check=True, capture_output=True)
    until(lambda: container.python(_LISTENS).split() == ["0", "0"], "the servers in the container", 60)


def install_by_manager(container: Container, name: str) -> None:
    """Have Manager install a node of the registry, as its page does."""
    what = {"id": name, "version": "1.0.0", "selected_version": "1.0.0", "mode": "cache", "channel": "default"}
    task = {"ui_id": name, "client_id": "kit", "kind": "install", "params": what}
    for path, body in (("/v2/manager/queue/task", json.dumps(task)), ("/v2/manager/queue/start", "")):
        status, said = container.ask(path, post=body)
        assert status == 200, said
    until(lambda: name in _history(container), f"{name} by Manager", 120)
    done = _history(container)[name]
    assert (done["result"], done["status"]["status_str"]) == ("success", "success"), done


def _history(container: Container) -> dict[str, Any]:
    history: dict[str, Any] = json.loads(container.ask("/v2/manager/queue/history")[1])["history"]
    return history

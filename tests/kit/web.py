"""A real local web server with answers that a test writes down."""

from __future__ import annotations

import threading
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@dataclass(frozen=True)
class Answer:
    """What one path answers; `cut` sends fewer bytes than promised."""

    body: bytes = b""
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    cut: int = 0


@dataclass(frozen=True)
class Site:
    """A running server: put answers into `answers` by path; `requests` holds (method, path) as they came.

    `logins` are their `Authorization` headers, empty where one had none.
    """

    url: str
    answers: dict[str, Answer] = field(default_factory=dict)
    requests: list[tuple[str, str]] = field(default_factory=list)
    logins: list[str] = field(default_factory=list)


@contextmanager
def serve() -> Iterator[Site]:
    """Run a server on a free loopback port."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler)
    site = Site(f"http://127.0.0.1:{server.server_address[1]}")
    server.RequestHandlerClass = _handler(site)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield site
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def serve_wheels(site: Site, folder: Path) -> str:
    """Let a server be an index of a folder's wheels (PEP 503); return its address."""
    pages: dict[str, str] = {}
    for path in sorted(folder.glob("*.whl")):
        site.answers[f"/files/{path.name}"] = Answer(path.read_bytes())
        name = path.name.partition("-")[0].replace("_", "-")
        pages[name] = pages.get(name, "") + f'<a href="/files/{path.name}">{path.name}</a>\n'
    for name, links in pages.items():
        page = f"<!DOCTYPE html><html><body>{links}</body></html>".encode()
        site.answers[f"/simple/{name}/"] = Answer(page, headers={"Content-Type": "text/html"})
    return f"{site.url}/simple"


def _handler(site: Site) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            answer = self._begin()
            self.wfile.write(answer.body[: len(answer.body) - answer.cut])

        def do_HEAD(self) -> None:
            self._begin()

        def _begin(self) -> Answer:
            site.requests.append((self.command, self.path))
            site.logins.append(self.headers.get("Authorization", ""))
            answer = site.answers.get(self.path, Answer(status=404))
            self.send_response(answer.status)
            for name, value in {"Content-Length": str(len(answer.body)), **answer.headers}.items():
                self.send_header(name, value)
            self.end_headers()
            return answer

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the name is the base class's
            pass

    return Handler

"""A real web server that misbehaves as hosts of large files do, over HTTP or TLS, and counts what it was asked."""

from __future__ import annotations

import re
import socket
import ssl
import struct
import threading
import time
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING

from comfypod import proc

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

_CHUNK = 1 << 14
# So much a socket may take ahead of who reads it: what was sent is close to what was received.
_SEND_BUFFER = 1 << 14


@dataclass(frozen=True)
class Request:
    """One request as it came."""

    method: str
    path: str
    headers: dict[str, str]
    peer: int

    @property
    def start(self) -> int:
        """Where the bytes begin that it asked for."""
        found = re.match(r"bytes=(\d+)-", self.headers.get("range", ""))
        return int(found[1]) if found else 0


@dataclass
class File:
    """One path: its bytes, and how it is served. What is changed while it is served counts from the next request on.

    `statuses` are answered first, one a request (0: the file). `cut` ends an answer after so many bytes, `stall` stops
    sending instead, `drip` sends one byte at a time with a pause, and `drip_head` the head of the answer. `cap` is in
    bytes a second and connection, `lie` is added to the length that is promised. `before` is called before each answer.
    """

    body: bytes = b""
    ranges: bool = True
    etag: str = '"one"'
    statuses: list[int] = field(default_factory=list)
    headers: dict[str, str] = field(default_factory=dict)
    redirect: str = ""
    page: bool = False
    no_head: int = 0
    unsized: bool = False
    cut: int = 0
    stall: int = 0
    drip: float = 0
    drip_head: float = 0
    cap: int = 0
    lie: int = 0
    before: Callable[[Request], None] | None = None


@dataclass
class Host:
    """A running server; its `files` by path, the `requests` that came, the bytes of bodies that it `sent`, those of
    `heads`, and the bytes of both that clients have `taken`."""

    url: str
    files: dict[str, File] = field(default_factory=dict)
    requests: list[Request] = field(default_factory=list)
    sent: int = 0
    taken: int = 0
    heads: int = 0
    mutex: threading.Lock = field(default_factory=threading.Lock)
    ended: threading.Event = field(default_factory=threading.Event)

    def asked(self, path: str, method: str = "GET") -> list[Request]:
        """Return the requests for a path."""
        return [request for request in self.requests if (request.method, request.path) == (method, path)]


def certificate(folder: Path) -> Path:
    """Make a certificate for this machine, which is its own authority; return the file with it and its key."""
    place = folder / "host.pem"
    done = proc.run([
        "openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2",
        "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1",
        "-keyout", str(place), "-out", str(folder / "authority.pem"),
    ], seconds=30)  # fmt: skip
    if not done.ok:
        raise RuntimeError(done.stderr)
    with place.open("a") as sink:
        sink.write((folder / "authority.pem").read_text())
    return place


@contextmanager
def host(certificate: Path | None = None, name: str = "127.0.0.1", port: int = 0) -> Iterator[Host]:
    """Run a server on a loopback port, a free one where none is given, over TLS where it has a certificate."""
    server = _Server(("127.0.0.1", port), BaseHTTPRequestHandler)
    scheme = "https" if certificate else "http"
    running = Host(f"{scheme}://{name}:{server.server_address[1]}")
    server.RequestHandlerClass = _handler(running)
    if certificate is not None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate)
        server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield running
    finally:
        running.ended.set()
        server.shutdown()
        thread.join()
        server.server_close()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 128

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that goes away is no error here."""


def _handler(running: Host) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        _pause = 0.0
        _headers_buffer: list[bytes]

        def do_HEAD(self) -> None:
            self._answer()

        def do_GET(self) -> None:
            self._answer()

        def _answer(self) -> None:
            headers = {name.lower(): value for name, value in self.headers.items()}
            request = Request(self.command, self.path, headers, self.client_address[1])
            running.requests.append(request)
            file = running.files.get(self.path.partition("?")[0], File(statuses=[404] * 99))
            self._pause = file.drip_head
            if file.before is not None:
                file.before(request)
            with running.mutex:
                status = file.statuses.pop(0) if file.statuses and self.command == "GET" else 0
            if self.command == "HEAD" and file.no_head:
                status = file.no_head
            if file.redirect:
                self._say(302, 0, {"Location": file.redirect, **file.headers})
            elif file.page:
                self._say(200, 30, {"Content-Type": "text/html; charset=utf-8"}, b"<!DOCTYPE html><p>Log in first")
            elif status:
                self._say(status, 0, file.headers)
            else:
                self._file(file, request)

        def _say(self, status: int, length: int | None, headers: dict[str, str], body: bytes = b"") -> None:
            self.send_response(status)
            if length is not None:
                self.send_header("Content-Length", str(length))
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        def _file(self, file: File, request: Request) -> None:
            headers = {"ETag": file.etag, "Content-Type": "application/octet-stream", **file.headers}
            headers |= {"Accept-Ranges": "bytes"} if file.ranges else {}
            total, start, stop = len(file.body), 0, len(file.body)
            found = re.fullmatch(r"bytes=(\d+)-(\d*)", request.headers.get("range", ""))
            part = found is not None and file.ranges and request.headers.get("if-range", file.etag) == file.etag
            if part and found is not None:
                start = int(found[1])
                stop = min(total, int(found[2]) + 1) if found[2] else total
                if start >= total:
                    self._say(416, 0, {"Content-Range": f"bytes */{total}"})
                    return
                headers["Content-Range"] = f"bytes {start}-{stop - 1}/{total + file.lie}"
            if file.unsized:
                self._say(200, None, headers | {"Connection": "close"})
                self.close_connection = True
            else:
                self._say(206 if part else 200, stop - start + file.lie, headers)
            if self.command == "GET":
                self._send(file, file.body, start, stop)

        def _send(self, file: File, body: bytes, start: int, stop: int) -> None:
            began, at, view = time.monotonic(), start, memoryview(body)
            step = 1 if file.drip else min(_CHUNK, file.cap // 20 or _CHUNK)
            while at < stop and not running.ended.is_set():
                most = min(step, stop - at, file.cut - (at - start) if file.cut else step)
                if file.stall and at - start >= file.stall:
                    running.ended.wait(60)
                if most <= 0:
                    break
                self.wfile.write(view[at : at + most])
                at += most
                with running.mutex:
                    running.sent += most
                if file.drip:
                    running.ended.wait(file.drip)
                elif file.cap:
                    running.ended.wait(max(0.0, began + (at - start) / file.cap - time.monotonic()))
            if at < stop or file.lie:
                self.close_connection = True

        def flush_headers(self) -> None:
            with running.mutex:
                running.heads += sum(map(len, getattr(self, "_headers_buffer", ())))
            if self._pause:
                head, self._headers_buffer = b"".join(self._headers_buffer), []
                for letter in head:
                    self.wfile.write(bytes((letter,)))
                    running.ended.wait(self._pause)
            super().flush_headers()

        def finish(self) -> None:
            with suppress(OSError):
                super().finish()
            # tcpi_bytes_acked: what the client's kernel took, and so not what was sent after its death.
            facts = self.connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 128)
            with running.mutex:
                running.taken += struct.unpack_from("<Q", facts, 120)[0]

        def setup(self) -> None:
            super().setup()
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the name is the base class's
            pass

    return Handler


@contextmanager
def tunnel(asked: list[str]) -> Iterator[str]:
    """Run a proxy that passes connections on (CONNECT), and notes the head of each request; give its address."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        thread = threading.Thread(target=_tunnels, args=(listening, asked), daemon=True)
        thread.start()
        yield f"http://me:canary@127.0.0.1:{listening.getsockname()[1]}"
        listening.shutdown(socket.SHUT_RDWR)
        thread.join()


def _tunnels(listening: socket.socket, asked: list[str]) -> None:
    with suppress(OSError):
        while True:
            client, _ = listening.accept()
            head = client.recv(1 << 16).decode()
            asked.append(head)
            name, _, port = head.split()[1].rpartition(":")
            server = socket.create_connection((name, int(port)))
            client.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")
            for ends in ((client, server), (server, client)):
                threading.Thread(target=_pass_on, args=ends, daemon=True).start()


def _pass_on(source: socket.socket, target: socket.socket) -> None:
    with suppress(OSError):
        while data := source.recv(1 << 16):
            target.sendall(data)
    for end in (source, target):
        with suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)
        end.close()

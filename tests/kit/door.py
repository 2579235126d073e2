"""Requests to a pod's gateway, as a client sends them and as an attacker does."""

from __future__ import annotations

import http.client
import json
import socket
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Got:
    """An answer; header names are in lower case."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def text(self) -> str:
        return self.body.decode("utf-8", "replace")

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@dataclass(frozen=True)
class Visitor:
    """Somebody who sends requests to a port of this machine, perhaps with a token."""

    port: int
    token: str = ""

    def ask(self, path: str, method: str = "GET", body: Any = None, **headers: str) -> Got:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        given = {"Authorization": f"Bearer {self.token}"} if self.token else {}
        given |= {name.replace("_", "-"): value for name, value in headers.items()}
        try:
            connection.request(method, path, body, given, encode_chunked=False)
            answer = connection.getresponse()
            return Got(answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read())
        finally:
            connection.close()

    def raw(self, data: bytes, *, seconds: float = 5.0) -> bytes:
        """Send bytes as they are, and nothing more; return all that comes back until the end or the time is over."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=seconds) as line:
            line.sendall(data)
            got = b""
            try:
                while part := line.recv(1 << 16):
                    got += part
            except (TimeoutError, ConnectionResetError):
                pass
            return got

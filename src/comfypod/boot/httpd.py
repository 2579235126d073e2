"""HTTP in its smallest form: the control plane's answers, and questions to the services on loopback.

Written on asyncio streams because `http.server` and `http.client` together cost more start time than all else in
boot; what faces the world is the gateway's business, not this module's.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from comfypod.ports import is_loopback

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

_REQUEST_SECONDS = 5.0
_LARGEST_BODY = 16 << 20
_REASONS = {
    200: "OK",
    400: "Bad Request",
    403: "Forbidden",
    404: "Not Found",
    405: "Method Not Allowed",
    503: "Service Unavailable",
}


@dataclass(frozen=True, slots=True)
class Answer:
    """An HTTP answer: status, body, content type."""

    status: int
    body: bytes
    kind: str = "text/plain; charset=utf-8"


# Gets the path and the query, which may be empty.
Handler: TypeAlias = "Callable[[str, str], Awaitable[Answer]]"


def text(status: int, word: str) -> Answer:
    """Answer with one short word, or a few lines."""
    return Answer(status, word.encode() + b"\n")


async def serve(host: str, port: int, handle: Handler) -> asyncio.Server:
    """Answer GET and HEAD with what `handle` makes of path and query. Every connection serves one request.

    On loopback a client must name us by number or as localhost: a web page that rebinds its own name to us does not.

    Raises:
        OSError: the address is in use or not ours.
    """

    async def converse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        # A connection that is open when the loop ends is cancelled; asyncio 3.11 would report that as an error.
        with contextlib.suppress(asyncio.CancelledError):
            await _converse(reader, writer, handle, is_loopback(host))

    return await asyncio.start_server(converse, host, port, reuse_address=True)


async def _converse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, handle: Handler, direct: bool) -> None:
    with contextlib.suppress(OSError, TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
        async with asyncio.timeout(_REQUEST_SECONDS):
            head = await reader.readuntil(b"\r\n\r\n")
        writer.write(await _respond(head, handle, direct))
        async with asyncio.timeout(_REQUEST_SECONDS):
            await writer.drain()
    with contextlib.suppress(OSError, TimeoutError):
        writer.close()
        async with asyncio.timeout(_REQUEST_SECONDS):
            await writer.wait_closed()


async def _respond(head: bytes, handle: Handler, direct: bool) -> bytes:
    lines = head.decode("latin-1").split("\r\n")
    words = lines[0].split(" ")
    if len(words) != 3 or not words[1].startswith("/") or not words[2].startswith("HTTP/1."):
        answer, method = text(400, "bad-request"), "GET"
    elif direct and not _is_direct(lines[1:]):
        answer, method = text(403, "host"), words[0]
    elif words[0] not in ("GET", "HEAD"):
        answer, method = text(405, "only-get"), words[0]
    else:
        path, _, query = words[1].partition("?")
        answer, method = await handle(path, query), words[0]
    reply = (
        f"HTTP/1.1 {answer.status} {_REASONS.get(answer.status, 'Unknown')}",
        f"Content-Type: {answer.kind}",
        f"Content-Length: {len(answer.body)}",
        "Cache-Control: no-store",
        "X-Content-Type-Options: nosniff",
        "Connection: close",
    )
    return "\r\n".join(reply).encode() + b"\r\n\r\n" + (b"" if method == "HEAD" else answer.body)


def _is_direct(headers: list[str]) -> bool:
    """Whether the Host header, where there is one, is an address or localhost."""
    for header in headers:
        name, _, value = header.partition(":")
        if name.strip().lower() == "host":
            host = value.strip().rpartition(":")[0] if re.search(r":\d*\Z", value.strip()) else value.strip()
            return host == "localhost" or re.fullmatch(r"[0-9.]+|\[[0-9A-Fa-f:.]+\]", host) is not None
    return True


async def get(
    host: str, port: int, path: str, seconds: float, body: bytes | None = None, largest: int = _LARGEST_BODY
) -> Answer | None:
    """Ask a service on loopback as `ask` does; None when it does not answer in time or not in HTTP."""
    try:
        return await ask(host, port, path, seconds, body, largest)
    except (OSError, ValueError):
        return None


async def ask(
    host: str, port: int, path: str, seconds: float, body: bytes | None = None, largest: int = _LARGEST_BODY
) -> Answer:
    """GET a path of a service on loopback, or POST it where there is a body, which is JSON.

    Raises:
        TimeoutError: it does not answer in time.
        OSError: nothing listens there, or the connection broke.
        ValueError: it does not answer in HTTP.
    """
    head = f"GET {path} HTTP/1.0\r\nHost: {host}:{port}\r\nConnection: close\r\n"
    if body is not None:
        head = head.replace("GET", "POST", 1) + f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n"
    writer: asyncio.StreamWriter | None = None
    try:
        async with asyncio.timeout(seconds):
            reader, writer = await asyncio.open_connection(host, port)
            writer.write(head.encode() + b"\r\n" + (body or b""))
            raw = bytearray()
            while chunk := await reader.read(largest - len(raw)):
                raw += chunk
        start, _, answer = bytes(raw).partition(b"\r\n\r\n")
        return Answer(int([*start.split(b" ", 2), b""][1]), answer)
    finally:
        if writer is not None:
            writer.close()

"""One client's connection: h11 reads and writes HTTP, asyncio moves the bytes, and every wait is bounded."""

from __future__ import annotations

import asyncio
import contextlib
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

import h11

from comfypod.gateway.request import Request

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

CHUNK = 1 << 18
LONGEST_HEAD = 1 << 16
# A client that says nothing more in the middle of a request or of an answer; a slow one does.
STALL_SECONDS = 300.0
_HEAD_SECONDS = 20.0
_IDLE_SECONDS = 75.0
_LINGER_SECONDS = 5.0
_LARGEST_FORM = 1 << 16

_HOST = re.compile(rb"[A-Za-z0-9._~%:\[\]-]*")


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer of the gateway's own."""

    status: int
    body: bytes = b""
    kind: str = "text/plain; charset=utf-8"
    headers: tuple[tuple[str, str], ...] = ()


class BadRequestError(Exception):
    """A request that two readers might read in two ways, or that h11 refuses."""


class Client:
    """One connection from outside."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, secure: bool = False) -> None:
        self.reader, self.writer, self.secure = reader, writer, secure
        self.http = h11.Connection(h11.SERVER, max_incomplete_event_size=LONGEST_HEAD)
        self.address = str((writer.get_extra_info("peername") or ("",))[0])
        self.taken = False
        self.status = 0  # of the last answer, 0 before there is one

    @property
    def descriptor(self) -> int:
        """The descriptor of the connection's socket."""
        return int(self.writer.get_extra_info("socket").fileno())

    async def request(self) -> Request | None:
        """Return the next request, None when the client has gone or waits too long.

        Raises:
            BadRequestError: it is none.
        """
        try:
            async with asyncio.timeout(_IDLE_SECONDS):
                event = self.http.next_event()
                if event is h11.NEED_DATA and self.http.trailing_data[0] == b"":
                    self.http.receive_data(await self.reader.read(CHUNK))
            async with asyncio.timeout(_HEAD_SECONDS):
                while event is h11.NEED_DATA:
                    event = self.http.next_event()
                    if event is h11.NEED_DATA:
                        self.http.receive_data(await self.reader.read(CHUNK))
        except TimeoutError:
            return None
        except h11.RemoteProtocolError as error:
            raise BadRequestError(error.error_status_hint) from error
        return self._checked(event) if isinstance(event, h11.Request) else None

    def _checked(self, event: h11.Request) -> Request:
        names = [bytes(name) for name, _ in event.headers]
        host = next((bytes(value) for name, value in event.headers if name == b"host"), b"")
        if sum(len(name) + len(value) for name, value in event.headers) > LONGEST_HEAD:
            raise BadRequestError(431)
        target = event.target.decode("latin-1")
        if b"transfer-encoding" in names and (b"content-length" in names or event.http_version < b"1.1"):
            raise BadRequestError(400)
        if event.http_version not in (b"1.0", b"1.1") or not _HOST.fullmatch(host):
            raise BadRequestError(400)
        if names.count(b"host") > 1 or not target.startswith("/") or "#" in target:
            raise BadRequestError(400)
        headers = tuple((bytes(name), bytes(value)) for name, value in event.headers)
        return Request(event.method.decode("latin-1"), target, headers, self.address, self.secure)

    async def body(self) -> bytes | None:
        """Return the next part of the request's body, None at its end.

        Raises:
            BadRequestError: what came is none.
            ConnectionError: the client went away or stalled.
        """
        try:
            while True:
                if self.http.they_are_waiting_for_100_continue:
                    await self.send(h11.InformationalResponse(status_code=100, headers=[]))
                event = self.http.next_event()
                if isinstance(event, h11.Data):
                    return bytes(event.data)
                if event is not h11.NEED_DATA:
                    return None
                async with asyncio.timeout(STALL_SECONDS):
                    self.http.receive_data(await self.reader.read(CHUNK))
        except h11.RemoteProtocolError as error:
            raise BadRequestError(error.error_status_hint) from error
        except TimeoutError as error:
            raise ConnectionResetError("the client stalled") from error

    async def form(self) -> bytes:
        """Return a small body as a whole.

        Raises:
            BadRequestError: it is too large, or none.
        """
        whole = b""
        while (part := await self.body()) is not None:
            whole += part
            if len(whole) > _LARGEST_FORM:
                raise BadRequestError(413)
        return whole

    async def send(self, event: h11.Event) -> None:
        """Send one event.

        Raises:
            ConnectionError: the client went away or takes nothing.
        """
        if isinstance(event, h11.Response):
            self.status = event.status_code
        if data := self.http.send(event):
            await self.write(data)

    async def write(self, data: bytes) -> None:
        """Send bytes as they are; see `send`."""
        self.writer.write(data)
        try:
            async with asyncio.timeout(STALL_SECONDS):
                await self.writer.drain()
        except TimeoutError as error:
            raise ConnectionResetError("the client stalled") from error

    async def reply(self, reply: Reply, *, head: bool = False) -> None:
        """Answer by ourselves; what is left of the request is not read, so the connection ends where there is some."""
        headers = [
            ("Content-Type", reply.kind), ("Content-Length", str(len(reply.body))), ("Cache-Control", "no-store"),
            ("X-Content-Type-Options", "nosniff"), ("Referrer-Policy", "same-origin"), ("X-Frame-Options", "DENY"),
            *reply.headers,
        ]  # fmt: skip
        if self.http.their_state is h11.SEND_BODY and not self._at_end():
            headers.append(("Connection", "close"))
        await self.send(h11.Response(status_code=reply.status, headers=headers))
        if reply.body and not head:
            await self.send(h11.Data(data=reply.body))
        await self.send(h11.EndOfMessage())

    def _at_end(self) -> bool:
        """Whether a request has no body: then nothing of it is left to read."""
        try:
            return isinstance(self.http.next_event(), h11.EndOfMessage)
        except h11.RemoteProtocolError:
            return False


async def converse(client: Client, handle: Callable[[Client, Request], Awaitable[None]]) -> None:
    """Serve one connection until either end has had enough."""
    try:
        with contextlib.suppress(OSError, h11.LocalProtocolError):
            while await _once(client, handle):
                client.http.start_next_cycle()
            await _linger(client)
    finally:
        client.writer.close()
        with contextlib.suppress(OSError, TimeoutError):
            async with asyncio.timeout(_LINGER_SECONDS):
                await client.writer.wait_closed()


async def _once(client: Client, handle: Callable[[Client, Request], Awaitable[None]]) -> bool:
    """Serve one request; False when there is no next one on this connection."""
    try:
        request = await client.request()
        if request is None:
            return False
        await handle(client, request)
    except BadRequestError as error:
        await _refuse(client, error)
    return not client.taken and client.http.our_state is client.http.their_state is h11.DONE


async def _linger(client: Client) -> None:
    """Let a client that is still sending read why that was in vain: a connection that is cut loses the answer."""
    if client.taken or client.http.our_state not in (h11.DONE, h11.MUST_CLOSE):
        return
    if client.http.their_state not in (h11.SEND_BODY, h11.ERROR):
        return
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(_LINGER_SECONDS):
            while await client.reader.read(CHUNK):
                pass


async def _refuse(client: Client, error: BadRequestError) -> None:
    if client.http.our_state in (h11.IDLE, h11.SEND_RESPONSE):
        status = int(str(error)) if str(error).isdecimal() else 400
        words = {413: b"too-large\n", 431: b"headers-too-large\n"}.get(status, b"bad-request\n")
        await client.reply(Reply(status, words, headers=(("Connection", "close"),)))

"""Passing a request on to a service behind the door, and its answer back: streams both ways, with flat memory."""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import h11

from comfypod.gateway.splice import Unseen, buffered, flushed, splice
from comfypod.gateway.wire import CHUNK, STALL_SECONDS, BadRequestError

if TYPE_CHECKING:
    from comfypod.gateway.door import Backend
    from comfypod.gateway.request import Headers, Request
    from comfypod.gateway.wire import Client

_CONNECT_SECONDS = 5.0
_KEPT = 32
_LARGE = 1 << 20
_LONGEST_ANSWER_HEAD = 1 << 18
# RFC 9110, 7.6.1; `Expect` is answered by us, since the service would have to be asked before the client sends.
_HOP = frozenset({b"connection", b"keep-alive", b"proxy-connection", b"te", b"trailer", b"upgrade", b"expect"})
_FRAMING = frozenset({b"content-length", b"transfer-encoding"})


class UnreachableError(Exception):
    """The service does not answer, or not in HTTP; nothing was sent to the client yet."""


@dataclass(slots=True)
class _Upstream:
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    http: h11.Connection
    used: bool = False

    @property
    def transport(self) -> asyncio.ReadTransport:
        """The connection's transport, which is one of a socket."""
        transport = self.writer.transport
        assert isinstance(transport, asyncio.ReadTransport)  # noqa: S101 - a socket's transport reads, too
        return transport

    @property
    def descriptor(self) -> int:
        """The descriptor of the connection's socket."""
        return int(self.writer.get_extra_info("socket").fileno())

    async def send(self, event: h11.Event) -> None:
        if data := self.http.send(event):
            self.writer.write(data)
            async with asyncio.timeout(STALL_SECONDS):
                await self.writer.drain()

    async def event(self) -> h11.Event:
        """Return what comes next; no time limits it, since a service may think for long."""
        while (event := self.http.next_event()) is h11.NEED_DATA:
            self.http.receive_data(await self.reader.read(CHUNK))
        if event is h11.PAUSED:
            raise ConnectionResetError("the service sends more than an answer")
        assert isinstance(event, h11.Event)  # noqa: S101 - nothing else is left
        return event


@dataclass(slots=True)
class Proxy:
    """Passes requests on; keeps idle connections to services for the next request."""

    _idle: dict[tuple[str, int], list[_Upstream]] = field(default_factory=dict)

    async def forward(self, client: Client, request: Request, backend: Backend) -> None:
        """Pass one request on, and its answer back.

        Raises:
            UnreachableError: the service does not answer.
            BadRequestError: the client's body is none.
            ConnectionError: one of both went away in the middle.
        """
        upstream, response = await self._answered(client, request, backend)
        if response.status_code == 101:
            await _tunnel(client, upstream, response)
            return
        try:
            await _back(client, upstream, response)
        finally:
            self._keep(backend, upstream)

    async def _answered(
        self, client: Client, request: Request, backend: Backend
    ) -> tuple[_Upstream, h11.Response | h11.InformationalResponse]:
        """Send a request, once more on a new connection when an idle one turns out to be closed."""
        has_body = any(name in _FRAMING for name, _ in request.headers)
        for again in (True, False):
            upstream = await self._connection(backend, fresh=not again)
            response = None
            try:
                response = await _asked(client, upstream, request, backend, has_body=has_body)
            except (OSError, TimeoutError, h11.RemoteProtocolError) as error:
                safe = request.method in ("GET", "HEAD", "OPTIONS") and not has_body
                if not (again and upstream.used and safe):
                    raise UnreachableError(str(error)) from error
            finally:
                if response is None:
                    upstream.writer.close()
            if response is not None:
                return upstream, response
        raise UnreachableError

    async def _connection(self, backend: Backend, *, fresh: bool) -> _Upstream:
        idle = self._idle.get((backend.host, backend.port), [])
        while idle and not fresh:
            upstream = idle.pop()
            if not upstream.reader.at_eof() and not upstream.writer.is_closing():
                upstream.used = True
                return upstream
            upstream.writer.close()
        try:
            async with asyncio.timeout(_CONNECT_SECONDS):
                reader, writer = await asyncio.open_connection(backend.host, backend.port, limit=CHUNK)
        except (OSError, TimeoutError) as error:
            raise UnreachableError(str(error)) from error
        return _Upstream(reader, writer, _fresh())

    def _keep(self, backend: Backend, upstream: _Upstream) -> None:
        """Keep a connection whose answer has ended for the next request; close any other."""
        idle = self._idle.setdefault((backend.host, backend.port), [])
        if upstream.http.our_state is upstream.http.their_state is h11.DONE and len(idle) < _KEPT:
            upstream.http.start_next_cycle()
            idle.append(upstream)
        else:
            upstream.writer.close()


def _fresh() -> h11.Connection:
    return h11.Connection(h11.CLIENT, max_incomplete_event_size=_LONGEST_ANSWER_HEAD)


async def _asked(
    client: Client, upstream: _Upstream, request: Request, backend: Backend, *, has_body: bool
) -> h11.Response | h11.InformationalResponse:
    """Send head and body, return the head of the answer; a service may answer before it has read the body."""
    head = h11.Request(method=request.method, target=request.target, headers=_onward(request, backend))
    await upstream.send(head)
    sending = asyncio.create_task(_send_body(client, upstream) if has_body else _send_end(client, upstream))
    answering = asyncio.create_task(_head(upstream))
    try:
        await asyncio.wait((sending, answering), return_when=asyncio.FIRST_COMPLETED)
        if not answering.done():
            await sending
        return await answering
    except (h11.LocalProtocolError, ConnectionError, TimeoutError):
        if sending.done() and isinstance(sending.exception(), BadRequestError):
            await sending
        raise
    finally:
        for task in (sending, answering):
            task.cancel()
        await asyncio.gather(sending, answering, return_exceptions=True)


async def _head(upstream: _Upstream) -> h11.Response | h11.InformationalResponse:
    while True:
        event = await upstream.event()
        if isinstance(event, h11.Response) or (
            isinstance(event, h11.InformationalResponse) and event.status_code == 101
        ):
            return event
        if not isinstance(event, h11.InformationalResponse):
            raise ConnectionResetError("the service closed the connection")


async def _send_body(client: Client, upstream: _Upstream) -> None:
    while (part := await client.body()) is not None:
        await upstream.send(h11.Data(data=part))
    await upstream.send(h11.EndOfMessage())


async def _send_end(client: Client, upstream: _Upstream) -> None:
    await client.body()
    await upstream.send(h11.EndOfMessage())


def _onward(request: Request, backend: Backend) -> Headers:
    """Return the headers for a service: what ends at us is left out, and it sees a request of its own site."""
    named = {word.strip().lower().encode("latin-1") for word in request.header("connection").split(",")}
    dropped = (_HOP | named | {b"x-forwarded-for", b"x-forwarded-proto", b"x-forwarded-host"}) - _FRAMING - {b"host"}
    headers: Headers = [(name, value) for name, value in request.headers if name not in dropped]
    headers = [(name, b"same-origin" if name == b"sec-fetch-site" else value) for name, value in headers]
    if request.upgrades:
        headers += [(b"connection", b"Upgrade"), (b"upgrade", b"websocket")]
    if backend.secret:
        headers = [each for each in headers if each[0] != b"authorization"]
        headers.append((b"authorization", backend.secret.encode("latin-1")))
    headers.append((b"x-forwarded-for", request.address.encode("latin-1")))
    headers.append((b"x-forwarded-proto", b"https" if request.secure else b"http"))
    return headers


async def _back(client: Client, upstream: _Upstream, response: h11.Response | h11.InformationalResponse) -> None:
    connection = b",".join(value for name, value in response.headers if name == b"connection")
    named = {word.strip().lower() for word in connection.split(b",")}
    kept = [(raw, value) for raw, value in response.headers.raw_items() if raw.lower() not in (_HOP | named) - _FRAMING]
    await client.send(h11.Response(status_code=response.status_code, reason=response.reason, headers=kept))
    # Bytes that are still to be encrypted cannot be moved past us.
    if not client.secure and upstream.http.their_state is h11.SEND_BODY and (length := _length(response)) > _LARGE:
        await _pass_on(client, upstream, length)
        return
    while not isinstance(event := await upstream.event(), h11.EndOfMessage):
        if not isinstance(event, h11.Data):
            raise ConnectionResetError("the service closed the connection in the middle")
        await client.send(h11.Data(data=event.data))
    await client.send(h11.EndOfMessage())


def _length(response: h11.Response | h11.InformationalResponse) -> int:
    """Return the length that an answer is announced with, 0 where it has none."""
    return next((int(value) for name, value in response.headers if name == b"content-length"), 0)


async def _pass_on(client: Client, upstream: _Upstream, length: int) -> None:
    """Pass a large body on past h11 and past us; the service's connection is not used again.

    The client's h11 is told of a body of that length, which it never sees.
    """
    head = upstream.http.trailing_data[0]
    head += await buffered(upstream.reader, upstream.transport, length - len(head))
    if len(head) > length:
        raise ConnectionResetError("the service sends more than an answer")
    client.http.send_with_data_passthrough(h11.Data(data=Unseen(length)))  # type: ignore[arg-type]
    await client.write(head)
    if length > len(head):
        await flushed(client.writer)
        await splice(upstream.descriptor, client.descriptor, length - len(head), STALL_SECONDS)
    await client.send(h11.EndOfMessage())


async def _tunnel(client: Client, upstream: _Upstream, response: h11.Response | h11.InformationalResponse) -> None:
    """Pass a WebSocket's bytes both ways as they are, until one end closes."""
    client.taken = True
    try:
        await client.send(
            h11.InformationalResponse(status_code=101, reason=response.reason, headers=list(response.headers))
        )
        upstream.writer.write(client.http.trailing_data[0])
        await client.write(upstream.http.trailing_data[0])
        ways = [
            asyncio.create_task(_pour(client.reader, upstream.writer)),
            asyncio.create_task(_pour(upstream.reader, client.writer)),
        ]
        try:
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for way in ways:
                way.cancel()
            await asyncio.gather(*ways, return_exceptions=True)
    finally:
        upstream.writer.close()


async def _pour(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError, TimeoutError):
        while data := await reader.read(CHUNK):
            writer.write(data)
            async with asyncio.timeout(STALL_SECONDS):
                await writer.drain()

from __future__ import annotations

import asyncio
import contextlib
import socket

from hypothesis import given, settings
from hypothesis import strategies as st

from comfypod.boot import httpd
from tests.kit.pods import free_port


async def _echo(path: str, query: str) -> httpd.Answer:
    return httpd.text(200, (path + query).strip("/") or "root")


def _exchange(raw: bytes, *, half_close: bool = True) -> bytes:
    async def talk() -> bytes:
        port = free_port()
        server = await httpd.serve("127.0.0.1", port, _echo)
        try:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(raw)
            with contextlib.suppress(OSError):
                if half_close:
                    writer.write_eof()
                answer = await asyncio.wait_for(reader.read(), 5)
            writer.close()
            return answer
        finally:
            server.close()

    return asyncio.run(talk())


def test_get_answers_with_the_body_and_closes() -> None:
    answer = _exchange(b"GET /livez?verbose HTTP/1.1\r\nHost: localhost:8189\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 200 OK\r\n")
    assert answer.endswith(b"\r\n\r\nlivezverbose\n")


def test_head_answers_without_the_body() -> None:
    assert _exchange(b"HEAD /livez HTTP/1.1\r\n\r\n").endswith(b"\r\n\r\n")


def test_other_methods_and_nonsense_are_refused() -> None:
    assert b" 405 " in _exchange(b"POST / HTTP/1.1\r\n\r\n").split(b"\r\n")[0]
    assert b" 400 " in _exchange(b"hello\r\n\r\n").split(b"\r\n")[0]
    assert b" 400 " in _exchange(b"GET http://other/ HTTP/1.1\r\n\r\n").split(b"\r\n")[0]


def test_a_head_without_an_end_gets_nothing() -> None:
    assert _exchange(b"GET / HTTP/1.1\r\n" + b"a: b\r\n" * 20_000) == b""


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=300))
def test_no_bytes_crash_the_server(raw: bytes) -> None:
    answer = _exchange(raw + b"\r\n\r\n")
    assert answer == b"" or answer.startswith(b"HTTP/1.1 ")


def test_get_returns_none_when_nothing_answers_in_http() -> None:
    async def ask() -> httpd.Answer | None:
        with socket.socket() as silent:
            silent.bind(("127.0.0.1", 0))
            silent.listen()
            return await httpd.get("127.0.0.1", silent.getsockname()[1], "/", 0.2)

    assert asyncio.run(ask()) is None
    assert asyncio.run(httpd.get("127.0.0.1", free_port(), "/", 0.2)) is None

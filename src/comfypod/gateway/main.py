"""The gateway's process: started by boot with listening sockets and one end of a line; ends with boot."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import resource
import signal
import socket
from functools import partial
from typing import TYPE_CHECKING, Any

from comfypod.gateway.app import App
from comfypod.gateway.link import Line
from comfypod.gateway.wire import CHUNK, Client, converse

if TYPE_CHECKING:
    import ssl
    from collections.abc import Sequence

_BACKLOG = 4096
_COUNT_SECONDS = 1.0


def main(arguments: Sequence[str] | None = None) -> None:
    """Serve until the line to boot ends or a signal comes."""
    parser = argparse.ArgumentParser(prog="comfypod.gateway")
    parser.add_argument("--line", type=int, required=True, help="descriptor of the line to boot")
    parser.add_argument("--door", action="append", default=[], metavar="FD=PATH", help="a listening socket")
    parser.add_argument("--plain", type=int, help="a listening socket for boot alone, which is never behind TLS")
    parser.add_argument("--tls", type=int, help="descriptor of a certificate with its key: the doors speak TLS")
    options = parser.parse_args(arguments)
    _keep_to(os.geteuid(), os.getegid())
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    doors = [(int(number), path) for number, _, path in (each.partition("=") for each in options.door)]
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(_serve(options.line, doors, options.plain, _context(options.tls)))


def _context(descriptor: int | None) -> ssl.SSLContext | None:
    """Return how to speak TLS; None where it is not asked for, so that its module is not loaded either."""
    if descriptor is None:
        return None
    import ssl

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(f"/proc/self/fd/{descriptor}")
    os.close(descriptor)
    context.set_alpn_protocols(["http/1.1"])
    return context


async def _serve(line_fd: int, doors: list[tuple[int, str]], plain: int | None, context: ssl.SSLContext | None) -> None:
    loop, ending = asyncio.get_running_loop(), asyncio.Event()
    for signum in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(signum, ending.set)
    line = Line(lambda message: _got(app, message, ending))
    app = App(line)
    talk = asyncio.create_task(line.run(socket.socket(fileno=line_fd)))
    talk.add_done_callback(lambda _: ending.set())
    for number, path in doors:
        await _listen(app, number, path, context)
    if plain is not None:
        await _listen(app, plain, "/", None)
    line.tell({"hello": os.getpid()})
    telling = asyncio.create_task(_tell_counts(app, line))
    await ending.wait()
    telling.cancel()
    for signum in (signal.SIGTERM, signal.SIGINT):
        # One that comes while the loop closes would find nobody to tell.
        loop.remove_signal_handler(signum)
        signal.signal(signum, signal.SIG_IGN)


async def _listen(app: App, number: int, path: str, context: ssl.SSLContext | None) -> None:
    listener = socket.socket(fileno=number)
    listener.setblocking(False)
    serve = partial(_client, app, path, context is not None)
    await asyncio.start_server(serve, sock=listener, backlog=_BACKLOG, limit=CHUNK, ssl=context)


async def _client(
    app: App, path: str, secure: bool, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
) -> None:
    app.count_connection(1)
    with contextlib.suppress(asyncio.CancelledError):
        await converse(Client(reader, writer, secure=secure), lambda client, request: app.handle(client, request, path))
    app.count_connection(-1)


async def _tell_counts(app: App, line: Line) -> None:
    """Tell boot what was answered, whenever there is news."""
    told = None
    while True:
        if told is not app.counts:
            told = app.counts
            line.tell({"counts": told.encode()})
        await asyncio.sleep(_COUNT_SECONDS)


async def _got(app: App, message: dict[str, Any], ending: asyncio.Event) -> None:
    if "end" in message:
        ending.set()
    app.tell(message)
    if (identity := app.door.identity) is not None and os.geteuid() == 0:
        _keep_to(*identity)


def _keep_to(uid: int, gid: int) -> None:
    """Be one user for good, with no way back."""
    if os.getresuid() == (uid, uid, uid):
        return
    if os.geteuid() == 0:
        os.setgroups([gid])
    os.setresgid(gid, gid, gid)
    os.setresuid(uid, uid, uid)


if __name__ == "__main__":
    main()

"""The only way out to the web: TLS, proxies, redirects followed by hand, credentials bound to their host."""

from __future__ import annotations

import contextlib
import errno
import functools
import http.client
import os
import socket
import ssl
import threading
import urllib.request
from typing import TYPE_CHECKING
from urllib.parse import SplitResult, urljoin, urlsplit

from comfypod import __version__
from comfypod.download import address
from comfypod.download.refusal import BrokenError, refused
from comfypod.errors import SourceError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

CONNECT_SECONDS = 15.0
# For the whole answer to a small question, whatever comes meanwhile.
QUESTION_SECONDS = 15.0
_MOST_REDIRECTS = 10
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
# A body that is not wanted is read to its end where it is short, so that the connection can be used again.
_SHORT = 1 << 16


class Answer:
    """What a host answered. `headers` are those of the last answer, `seen` those of redirects too, in lower case."""

    def __init__(self, response: http.client.HTTPResponse, url: str, seen: dict[str, str]) -> None:
        self._response = response
        self.url = url
        self.status = response.status
        self.reason = response.reason
        self.headers = {name.lower(): value for name, value in response.headers.items()}
        self.seen = seen | self.headers
        self.length = response.length
        self._got = 0

    @property
    def whole(self) -> bool:
        """Whether the body was read to its end."""
        return self._response.isclosed()

    def close(self) -> None:
        """Let go of the body; for whoever has the connection."""
        self._response.close()

    def readinto(self, buffer: memoryview) -> int:
        """Read what is there, at least one byte; 0 at the end.

        Raises:
            BrokenError: the connection broke or stalled, or ended before its time.
        """
        try:
            count = self._readinto(buffer)
        except (OSError, http.client.HTTPException, ValueError) as error:
            said = f"the connection broke after {self._got} bytes: {_reason(error)}"
            raise BrokenError(f"{address.shown(self.url)}: {said}", "try again") from error
        self._got += count
        if not count and self._got < (self.length or 0):
            said = f"the connection broke: {self._got} of {self.length} bytes arrived"
            raise BrokenError(f"{address.shown(self.url)}: {said}", "try again")
        return count

    def _readinto(self, buffer: memoryview) -> int:
        """Read past the response, which would copy; in one call where nothing is buffered."""
        if self.length is None:
            data = self._response.read1(len(buffer))
            buffer[: len(data)] = data
            return len(data)
        left = self.length - self._got
        count = int(self._response.fp.readinto1(buffer[:left])) if left else 0
        if count == left:
            self._response.close()
        return count

    def read(self, limit: int) -> bytes:
        """Read the body, at most `limit` bytes.

        Raises:
            BrokenError: the connection broke or stalled, or ended before its time.
        """
        data, buffer = bytearray(), memoryview(bytearray(1 << 16))
        while len(data) < limit and (count := self.readinto(buffer[: limit - len(data)])):
            data += buffer[:count]
        return bytes(data)


class Client:
    """Asks hosts over one connection that is kept while it is of use. For one thread; any may call `abort`."""

    def __init__(self, tokens: Mapping[str, str] | None = None) -> None:
        self._tokens = tokens or {}
        self._line: http.client.HTTPConnection | None = None
        self._to: tuple[str, str, int] | None = None
        self._socket: socket.socket | None = None
        self._answer: Answer | None = None
        self._late = False

    @contextlib.contextmanager
    def within(self, seconds: float, url: str) -> Iterator[None]:
        """Break what is asked of `url` when it takes longer, also where some of it still comes.

        Raises:
            BrokenError: it did, or it was broken by something else.
        """
        timer = threading.Timer(seconds, self._give_up)
        timer.daemon = True
        timer.start()
        try:
            yield
        except BrokenError as error:
            if not self._late:
                raise
            said = f"{address.shown(url)} did not answer in time: within {seconds:g} seconds"
            raise BrokenError(said, "try again later", silent=True) from error
        finally:
            timer.cancel()

    def _give_up(self) -> None:
        self._late = True
        self.abort()

    def ask(self, url: str, method: str = "GET", headers: Mapping[str, str] | None = None, *, home: str = "") -> Answer:
        """Ask, and follow redirects. `home` is the address that led to `url`, to which credentials belong.

        Raises:
            BrokenError: not reachable, or something that may pass.
            RefusedError: the host will not.
            SourceError: it is no address, or leads from https to http.
        """
        first = address.parse(home or url)
        seen: dict[str, str] = {}
        for _ in range(_MOST_REDIRECTS):
            parts = address.parse(url)
            login = address.authorization(first, parts, self._tokens)
            fields = {"User-Agent": f"comfypod/{__version__}", "Accept-Encoding": "identity", **(headers or {})}
            answer = self._ask(parts, url, method, fields | ({"Authorization": login} if login else {}), seen)
            place = _target(url, answer)
            if answer.status not in _REDIRECTS or not place.startswith(("https://", "http://")):
                break
            if parts.scheme == "https" and place.startswith("http://"):
                raise _unsafe(url, place)
            seen, url = answer.seen, _without_login(place)
        if answer.status not in (200, 206):
            raise refused(answer.status, answer.reason, answer.seen, first, with_token=bool(login))
        return answer

    def _ask(self, parts: SplitResult, url: str, method: str, headers: dict[str, str], seen: dict[str, str]) -> Answer:
        """Ask once; a kept connection that turns out to be closed is made anew."""
        kept = self._settle(parts)
        try:
            try:
                response = self._request(parts, method, headers)
            except (ConnectionError, http.client.RemoteDisconnected):
                if not kept or self._late:
                    raise
                self.close()
                response = self._request(parts, method, headers)
        except ValueError as error:
            # A header, and so a token, may stand in the reason, but not where TLS failed, which is a ValueError, too.
            why = f": {_reason(error)}" if isinstance(error, OSError) else ""
            raise SourceError(f"{address.shown(url)} cannot be asked for{why}", "check address and token") from error
        except (OSError, http.client.HTTPException) as error:
            self.close()
            said, hint = f"{address.shown(url)} is not reachable: {_reason(error)}", "check the network and the address"
            raise BrokenError(said, hint, silent=_is_silence(error)) from error
        self._answer = Answer(response, url, seen)
        return self._answer

    def _settle(self, parts: SplitResult) -> bool:
        """Say whether the connection that is there can be used for this request; close it where it cannot."""
        answer = self._answer
        if answer is not None and not answer.whole and answer.length is not None and answer.length < _SHORT:
            with contextlib.suppress(BrokenError):
                answer.read(_SHORT)
        same = self._to == (parts.scheme, address.host(parts), address.port(parts))
        if self._line is not None and same and (answer is None or answer.whole):
            return self._line.sock is not None
        self.close()
        return False

    def _request(self, parts: SplitResult, method: str, headers: dict[str, str]) -> http.client.HTTPResponse:
        proxy = _proxy(parts)
        if self._line is None:
            self._line = _line(parts, proxy)
            self._to = (parts.scheme, address.host(parts), address.port(parts))
        target = address.path(parts)
        if proxy is not None and parts.scheme == "http":
            target = f"http://{parts.netloc.rpartition('@')[2]}{target}"
            headers = headers | _proxy_login(proxy)
        headers = {"Host": address.place(parts), **headers}
        self._line.request(method, target, headers=headers)
        self._socket = self._line.sock
        if self._late:
            raise TimeoutError("the time is over")
        return self._line.getresponse()

    def close(self) -> None:
        """Let go of the connection."""
        line, self._line, answer, self._answer = self._line, None, self._answer, None
        self._socket = None
        if line is not None:
            line.close()
        if answer is not None:
            answer.close()

    def abort(self) -> None:
        """Break the connection from another thread; the one that waits for it fails at once."""
        sock = self._socket
        if sock is not None:
            with contextlib.suppress(OSError):
                # Not TLS's own, after which the other thread would read what is encrypted as if it were not.
                socket.socket.shutdown(sock, socket.SHUT_RDWR)


def _line(parts: SplitResult, proxy: SplitResult | None) -> http.client.HTTPConnection:
    """Return a connection, not made yet, to a host or to the proxy before it."""
    host, port = (address.host(parts), address.port(parts)) if proxy is None else (proxy.hostname, proxy.port or 80)
    if parts.scheme == "http":
        return http.client.HTTPConnection(host or "", port, timeout=CONNECT_SECONDS)
    context = _trust(os.environ.get("SSL_CERT_FILE"), os.environ.get("SSL_CERT_DIR"))
    line = http.client.HTTPSConnection(host or "", port, timeout=CONNECT_SECONDS, context=context)
    if proxy is not None:
        line.set_tunnel(address.host(parts), address.port(parts), _proxy_login(proxy))
    return line


@functools.lru_cache(maxsize=4)
def _trust(*_settings: str | None) -> ssl.SSLContext:
    """Return what is trusted; reading the certificates takes a while, so once for each setting."""
    return ssl.create_default_context()


def _proxy(parts: SplitResult) -> SplitResult | None:
    """Return the proxy for a host that `HTTP_PROXY`, `HTTPS_PROXY` and `NO_PROXY` name; their small letters too."""
    named = urllib.request.getproxies_environment()
    if parts.scheme not in named or urllib.request.proxy_bypass(address.place(parts)):
        return None
    text = named[parts.scheme]
    return address.parse(text if "://" in text else f"http://{text}")


def _target(url: str, answer: Answer) -> str:
    """Return where an answer leads, itself where it leads nowhere.

    Raises:
        SourceError: that is no address.
    """
    try:
        return urljoin(url, answer.headers.get("location", ""))
    except ValueError as error:
        told = f"{address.shown(url)} leads to what is no address"
        raise SourceError(told, "try another address, or later") from error


def _unsafe(url: str, place: str) -> SourceError:
    said = (
        f"{address.shown(url)} leads to {address.shown(place)}, without TLS: anybody on the way could change what comes"
    )
    return SourceError(
        said, "ask the host for an address that stays on https, or write the http address if you trust the way"
    )


def _proxy_login(proxy: SplitResult) -> dict[str, str]:
    login = address.authorization(proxy, proxy, {})
    return {"Proxy-Authorization": login} if login else {}


def _without_login(url: str) -> str:
    parts = urlsplit(url)
    return parts._replace(netloc=address.place(parts)).geturl()


def _is_silence(error: Exception) -> bool:
    """Say whether nobody has answered: no name, no way, no listener, or nothing in time."""
    unreached = isinstance(error, OSError) and error.errno in (errno.ENETUNREACH, errno.EHOSTUNREACH)
    return unreached or isinstance(error, (socket.gaierror, ConnectionRefusedError, TimeoutError))


def _reason(error: Exception) -> str:
    """Return why it failed, without what an address in it may carry."""
    return address.shown(str(error)) or type(error).__name__

"""A request as the gateway sees it, whatever it came over. Pure."""

from __future__ import annotations

import base64
import binascii
import ipaddress
import re
from dataclasses import dataclass, replace
from urllib.parse import unquote_plus

Headers = list[tuple[bytes, bytes]]

_PREFIX = re.compile(r"(/[A-Za-z0-9._~-]+)+")


@dataclass(frozen=True, slots=True)
class Request:
    """Method, target as sent, headers with names in lower case, and the address that it came from."""

    method: str
    target: str
    headers: tuple[tuple[bytes, bytes], ...]
    address: str
    secure: bool = False
    prefix: str = ""

    def header(self, name: str) -> str:
        """Return the first value of a header, empty when there is none."""
        wanted = name.encode("ascii")
        return next((value.decode("latin-1") for key, value in self.headers if key == wanted), "")

    @property
    def path(self) -> str:
        """The target without its query."""
        return self.target.partition("?")[0]

    @property
    def upgrades(self) -> bool:
        """Whether it asks for a WebSocket."""
        words = {word.strip().lower() for word in self.header("connection").split(",")}
        return self.method == "GET" and "upgrade" in words and self.header("upgrade").lower() == "websocket"

    @property
    def is_page(self) -> bool:
        """Whether a browser shows the answer to a person."""
        if mode := self.header("sec-fetch-mode"):
            return self.method == "GET" and mode == "navigate"
        return self.method == "GET" and not self.upgrades and "text/html" in self.header("accept")

    @property
    def host(self) -> str:
        """The name that the client used, with its port."""
        return self.header("host").lower()

    def cookie(self, name: str) -> str:
        """Return one cookie, empty when there is none."""
        pairs = (part.strip().partition("=") for part in self.header("cookie").split(";"))
        return next((value for key, _, value in pairs if key == name), "")

    def without_cookie(self, name: str) -> tuple[tuple[bytes, bytes], ...]:
        """Return the headers without one cookie."""
        kept: Headers = []
        for key, value in self.headers:
            if key != b"cookie":
                kept.append((key, value))
                continue
            parts = [part for part in value.split(b";") if part.strip().partition(b"=")[0] != name.encode()]
            if parts:
                kept.append((key, b";".join(parts).strip()))
        return tuple(kept)

    def bearer(self) -> str:
        """Return the secret of an `Authorization` header: Bearer, JupyterLab's `token`, or Basic's password."""
        scheme, _, rest = self.header("authorization").strip().partition(" ")
        if scheme.lower() in ("bearer", "token"):
            return rest.strip()
        if scheme.lower() != "basic":
            return ""
        try:
            return base64.b64decode(rest.strip(), validate=True).decode("utf-8").partition(":")[2]
        except (binascii.Error, ValueError):
            return ""

    def query_token(self) -> str:
        """Return `token` of the query, empty when there is none."""
        return next((unquote_plus(part[6:]) for part in self._query() if part.startswith("token=")), "")

    def without_token(self) -> Request:
        """Return the same request with no `token` in its query."""
        kept = "&".join(part for part in self._query() if not part.startswith("token="))
        return replace(self, target=self.path + (f"?{kept}" if kept else ""))

    def _query(self) -> list[str]:
        query = self.target.partition("?")[2]
        return query.split("&") if query else []


def seen_through(request: Request, proxies: tuple[str, ...]) -> Request:
    """Return a request as the client has sent it to the outermost of the proxies that are trusted.

    From anyone else, headers that only a proxy may set are dropped, so that nothing behind us believes them.
    """
    if not _is_one_of(request.address, proxies):
        kept = tuple(each for each in request.headers if not each[0].startswith(b"x-forwarded-"))
        return replace(request, headers=kept)
    chain = [part.strip() for part in request.header("x-forwarded-for").split(",") if part.strip()]
    address = next((each for each in reversed(chain) if not _is_one_of(each, proxies)), request.address)
    headers, host = request.headers, request.header("x-forwarded-host")
    if host:
        headers = (*(each for each in headers if each[0] != b"host"), (b"host", host.encode("latin-1")))
    prefix = request.header("x-forwarded-prefix").rstrip("/")
    return replace(
        request, address=address, headers=headers, secure=request.header("x-forwarded-proto").lower() == "https",
        prefix=prefix if _PREFIX.fullmatch(prefix) else "",
    )  # fmt: skip


def _is_one_of(address: str, networks: tuple[str, ...]) -> bool:
    try:
        found = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return False
    return any(found in ipaddress.ip_network(each, strict=False) for each in networks)

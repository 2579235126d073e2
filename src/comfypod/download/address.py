"""Addresses: what may be shown of one, who is meant by it, and which credentials belong to it."""

from __future__ import annotations

import base64
import re
from typing import TYPE_CHECKING
from urllib.parse import SplitResult, quote, unquote, urlsplit

from comfypod.errors import SourceError

if TYPE_CHECKING:
    from collections.abc import Mapping

_PORTS = {"http": 80, "https": 443}
_LOOPBACK = re.compile(r"localhost|127\.\d+\.\d+\.\d+|::1")
_LOGIN = re.compile(r"(?<=://)[^/\s]*@")
_SECRET = re.compile(
    r"([?&][^=&\s]*(?:token|key|sig|secret|pass|auth|credential|policy)[^=&\s]*=)[^&\s\"']+", re.IGNORECASE
)


def shown(url: str) -> str:
    """Return an address for a message: without the login and the tokens that may stand in it."""
    return _SECRET.sub(r"\1***", _LOGIN.sub("", url))


def parse(url: str) -> SplitResult:
    """Take an address apart.

    Raises:
        SourceError: it is none, or not one of http or https.
    """
    if not url.startswith(("https://", "http://")):
        raise SourceError(f"cannot fetch {shown(url)}: only http and https addresses are fetched")
    try:
        parts = urlsplit(url)
        named = bool(host(parts)) and parts.port != 0
    except ValueError as error:
        raise SourceError(f"{shown(url)} is not an address: {shown(str(error))}", "check how it is written") from error
    if not named:
        raise SourceError(f"{shown(url)} is not an address: it names no host", "check how it is written")
    return parts


def port(parts: SplitResult) -> int:
    """Return the port that is asked."""
    return parts.port or _PORTS[parts.scheme]


def host(parts: SplitResult) -> str:
    """Return the name of the host in lower case, as DNS knows it."""
    return (parts.hostname or "").encode("idna").decode("ascii")


def place(parts: SplitResult) -> str:
    """Return host and port as they stand in the address, without a login."""
    return parts.netloc.rpartition("@")[2]


def path(parts: SplitResult) -> str:
    """Return what is asked for, letters beyond ASCII quoted."""
    query = f"?{parts.query}" if parts.query else ""
    return quote(f"{parts.path or '/'}{query}", safe="/%:?#[]@!$&'()*+,;=-._~")


def authorization(first: SplitResult, now: SplitResult, tokens: Mapping[str, str]) -> str:
    """Return the header for a request to `now`, to which `first` led: a login or a token only for whom it is meant.

    Both are for the host and port that was asked first, a token over TLS or loopback alone.
    """
    upgraded = (port(first), port(now)) == (80, 443)
    if host(first) != host(now) or not (port(first) == port(now) or upgraded):
        return ""
    if first.scheme == "https" and now.scheme != "https":
        return ""
    user, found, _ = first.netloc.rpartition("@")
    if found:
        return "Basic " + base64.b64encode(unquote(user).encode()).decode("ascii")
    token = tokens.get(host(now), "")
    safe = now.scheme == "https" or _LOOPBACK.fullmatch(host(now))
    return f"Bearer {token}" if token and safe else ""

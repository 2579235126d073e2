"""The only download door: bounded connects, stall detection, a digest where one is known."""

from __future__ import annotations

import base64
import hashlib
import http.client
import json
import re
import time
import urllib.error
import urllib.request
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

from comfypod import __version__
from comfypod.errors import IntegrityError, SourceError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from http.client import HTTPResponse
    from pathlib import Path

_CHUNK = 1 << 20
_CONNECT_SECONDS = 15.0
_PATIENCE_SECONDS = 20.0
_SLOWEST = 2000


def shown(url: str) -> str:
    """Return an address for a message: without the login that may stand in it."""
    return re.sub(r"(?<=://)[^/\s]*@", "", url)


def _open(
    url: str, headers: Mapping[str, str], method: str = "GET", *handlers: urllib.request.BaseHandler
) -> HTTPResponse:
    if not url.startswith(("https://", "http://")):
        raise SourceError(f"cannot fetch {shown(url)}: only http and https addresses are fetched")
    try:
        request = urllib.request.Request(  # noqa: S310 - the scheme is checked above
            shown(url), method=method, headers={"User-Agent": f"comfypod/{__version__}", **headers}
        )
        if login := _login(url):
            # Not for whoever a redirect leads to.
            request.add_unredirected_header("Authorization", login)
        response: HTTPResponse = _opener(*handlers).open(request, timeout=_CONNECT_SECONDS)
    except urllib.error.HTTPError as error:
        error.close()
        raise SourceError(f"{shown(url)} answered {error.code} {error.reason}") from error
    except (urllib.error.URLError, http.client.HTTPException, OSError) as error:
        reason = getattr(error, "reason", error)
        raise SourceError(f"{shown(url)} is not reachable: {reason}", "check the network and the address") from error
    except ValueError as error:
        raise SourceError(f"{shown(url)} is not an address: {error}", "check how it is written") from error
    return response


def _login(url: str) -> str:
    """Return the header for the login that stands in an address, nothing where there is none."""
    user, found, _ = urlsplit(url).netloc.rpartition("@")
    return "Basic " + base64.b64encode(unquote(user).encode()).decode("ascii") if found else ""


def _opener(*handlers: urllib.request.BaseHandler) -> urllib.request.OpenerDirector:
    """Return an opener that knows http and https alone, also after a redirect."""
    opener = urllib.request.OpenerDirector()
    redirects = any(isinstance(handler, urllib.request.HTTPRedirectHandler) for handler in handlers)
    for handler in (
        urllib.request.ProxyHandler(), urllib.request.UnknownHandler(), urllib.request.HTTPHandler(),
        urllib.request.HTTPSHandler(), urllib.request.HTTPDefaultErrorHandler(), urllib.request.HTTPErrorProcessor(),
        *(() if redirects else (urllib.request.HTTPRedirectHandler(),)), *handlers,
    ):  # fmt: skip
        opener.add_handler(handler)
    return opener


def get_json(url: str, accept: str = "application/json") -> Any:
    """Return the JSON document at an address.

    Raises:
        SourceError: not reachable, refused, or not JSON.
    """
    with _open(url, {"Accept": accept}) as response:
        try:
            return json.load(response)
        except ValueError as error:
            raise SourceError(f"{shown(url)} did not answer with JSON") from error
        except (OSError, http.client.HTTPException) as error:
            raise SourceError(f"{shown(url)}: the connection broke: {error}", "try again") from error


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects as HEAD and keeps the headers of each answer on the way."""

    def __init__(self) -> None:
        self.seen: dict[str, str] = {}

    def redirect_request(self, req: Any, fp: Any, code: Any, msg: Any, headers: Any, newurl: Any) -> Any:
        self.seen.update({name.lower(): value for name, value in headers.items()})
        request = super().redirect_request(req, fp, code, msg, headers, newurl)
        if request is not None:
            request.method = req.get_method()
        return request


def head(url: str) -> dict[str, str]:
    """Return the headers of an address and of the redirects on the way, names in lower case, the last one wins.

    Raises:
        SourceError: not reachable or refused.
    """
    redirects = _Redirects()
    with _open(url, {}, "HEAD", redirects) as response:
        return redirects.seen | {name.lower(): value for name, value in response.headers.items()}


def download(url: str, target: Path, *, sha256: str | None = None, advance: Callable[[int], None] | None = None) -> int:
    """Download to the new file `target`; return its size in bytes. A stall of 15 seconds ends it, and so does a drip.

    Raises:
        SourceError: not reachable, refused, cut short or stalled.
        IntegrityError: the bytes have another SHA-256 than the one given; the file is removed.
    """
    digest, total, began = hashlib.sha256(), 0, time.monotonic()
    with _open(url, {}) as response, target.open("wb") as sink:
        expected = response.length
        while True:
            try:
                chunk = response.read1(_CHUNK)
            except (OSError, http.client.HTTPException) as error:
                raise SourceError(
                    f"{shown(url)}: the connection broke after {total} bytes: {error}", "try again"
                ) from error
            if not chunk:
                break
            sink.write(chunk)
            if total < _SLOWEST * (time.monotonic() - began - _PATIENCE_SECONDS):
                raise SourceError(f"{shown(url)} sends fewer than {_SLOWEST} bytes a second", "try again, or elsewhere")
            digest.update(chunk)
            total += len(chunk)
            if advance is not None:
                advance(total)
    if expected is not None and total != expected:
        raise SourceError(f"{shown(url)}: {total} of {expected} bytes arrived", "try again")
    if sha256 is not None and digest.hexdigest() != sha256:
        target.unlink()
        raise IntegrityError(
            f"{shown(url)} has sha256 {digest.hexdigest()}, the lock says {sha256}",
            "do not use it; if the change is known to be right, run `comfypod lock --upgrade` and read the difference",
        )
    return total

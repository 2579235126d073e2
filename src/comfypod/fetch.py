"""The only download door: bounded connects, stall detection, a digest where one is known."""

from __future__ import annotations

import hashlib
import json
import urllib.error
import urllib.request
from typing import TYPE_CHECKING, Any

from comfypod import __version__
from comfypod.errors import IntegrityError, SourceError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from http.client import HTTPResponse
    from pathlib import Path

_CHUNK = 1 << 20
_CONNECT_SECONDS = 15.0


def _open(url: str, headers: Mapping[str, str], method: str = "GET") -> HTTPResponse:
    if not url.startswith(("https://", "http://")):
        raise SourceError(f"cannot fetch {url}: only http and https addresses are fetched")
    request = urllib.request.Request(  # noqa: S310 - the scheme is checked above
        url, method=method, headers={"User-Agent": f"comfypod/{__version__}", **headers}
    )
    try:
        response: HTTPResponse = urllib.request.urlopen(request, timeout=_CONNECT_SECONDS)  # noqa: S310
    except urllib.error.HTTPError as error:
        error.close()
        raise SourceError(f"{url} answered {error.code} {error.reason}") from error
    except (urllib.error.URLError, OSError) as error:
        reason = getattr(error, "reason", error)
        raise SourceError(f"{url} is not reachable: {reason}", "check the network, or use --offline") from error
    return response


def get_json(url: str, accept: str = "application/json") -> Any:
    """Return the JSON document at an address.

    Raises:
        SourceError: not reachable, refused, or not JSON.
    """
    with _open(url, {"Accept": accept}) as response:
        try:
            return json.load(response)
        except ValueError as error:
            raise SourceError(f"{url} did not answer with JSON") from error


def head(url: str) -> dict[str, str]:
    """Return the headers of an address, names in lower case.

    Raises:
        SourceError: not reachable or refused.
    """
    with _open(url, {}, "HEAD") as response:
        return {name.lower(): value for name, value in response.headers.items()}


def download(url: str, target: Path, *, sha256: str | None = None, advance: Callable[[int], None] | None = None) -> int:
    """Download to the new file `target`; return its size in bytes. A stall of 15 seconds ends it.

    Raises:
        SourceError: not reachable, refused, cut short or stalled.
        IntegrityError: the bytes have another SHA-256 than the one given; the file is removed.
    """
    digest, total = hashlib.sha256(), 0
    with _open(url, {}) as response, target.open("wb") as sink:
        expected = response.length
        while True:
            try:
                chunk = response.read(_CHUNK)
            except OSError as error:
                raise SourceError(f"{url}: the connection broke after {total} bytes: {error}", "try again") from error
            if not chunk:
                break
            sink.write(chunk)
            digest.update(chunk)
            total += len(chunk)
            if advance is not None:
                advance(total)
    if expected is not None and total != expected:
        raise SourceError(f"{url}: {total} of {expected} bytes arrived", "try again")
    if sha256 is not None and digest.hexdigest() != sha256:
        target.unlink()
        raise IntegrityError(
            f"{url} has sha256 {digest.hexdigest()}, the lock says {sha256}",
            "do not use it; if the change is known to be right, run `comfypod lock --upgrade` and read the difference",
        )
    return total

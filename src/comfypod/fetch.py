"""Small downloads and answers: one connection, stall detection, a digest where one is known.

Large ones go through `download/`, which resumes them; both ask over `download/connection.py`.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import time
from typing import TYPE_CHECKING, Any

from comfypod.download.address import shown
from comfypod.download.connection import Client
from comfypod.errors import IntegrityError, SourceError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

_CHUNK = 1 << 20
_PATIENCE_SECONDS = 20.0
_SLOWEST = 2000
_LONGEST_DOCUMENT = 1 << 26
_DOCUMENT_SECONDS = 300.0


def get_json(
    url: str,
    accept: str = "application/json",
    tokens: Mapping[str, str] | None = None,
    seconds: float = _DOCUMENT_SECONDS,
) -> Any:
    """Return the JSON document at an address, which must come in `seconds`; `tokens` are those of hosts, by name.

    Raises:
        SourceError: not reachable, refused, too late, or not JSON.
    """
    with contextlib.closing(Client(tokens)) as client, client.within(seconds, url):
        try:
            return json.loads(client.ask(url, headers={"Accept": accept}).read(_LONGEST_DOCUMENT))
        except (ValueError, RecursionError) as error:
            raise SourceError(f"{shown(url)} did not answer with JSON") from error


def head(url: str) -> dict[str, str]:
    """Return the headers of an address and of the redirects on the way, names in lower case, the last one wins.

    Raises:
        SourceError: not reachable or refused.
    """
    with contextlib.closing(Client()) as client:
        return client.ask(url, "HEAD").seen


def download(
    url: str,
    target: Path,
    *,
    sha256: str | None = None,
    advance: Callable[[int], None] | None = None,
    tokens: Mapping[str, str] | None = None,
) -> int:
    """Download to the new file `target`; return its size in bytes. A stall of 15 seconds ends it, and so does a drip.

    `tokens` are those of hosts, by name.

    Raises:
        SourceError: not reachable, refused, cut short or stalled.
        IntegrityError: the bytes have another SHA-256 than the one given; the file is removed.
    """
    digest, total, began, buffer = hashlib.sha256(), 0, time.monotonic(), memoryview(bytearray(_CHUNK))
    with contextlib.closing(Client(tokens)) as client:
        answer = client.ask(url)
        with target.open("wb") as sink:
            while count := answer.readinto(buffer):
                sink.write(buffer[:count])
                digest.update(buffer[:count])
                total += count
                if total < _SLOWEST * (time.monotonic() - began - _PATIENCE_SECONDS):
                    hint = "try again, or elsewhere"
                    raise SourceError(f"{shown(url)} sends fewer than {_SLOWEST} bytes a second", hint)
                if advance is not None:
                    advance(total)
    if sha256 is not None and digest.hexdigest() != sha256:
        target.unlink()
        raise IntegrityError(
            f"{shown(url)} has sha256 {digest.hexdigest()}, the lock says {sha256}",
            "do not use it; if the change is known to be right, run `comfypod lock --upgrade` and read the difference",
        )
    return total

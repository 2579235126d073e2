"""What is asked of the download door, and what it knows of a file before the first byte and of its progress."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from comfypod.errors import ComfypodError


@dataclass(frozen=True, slots=True)
class Order:
    """One file to fetch to the new name `target`.

    `sha256` has 64 hex digits or none, `size` is in bytes, 0 where it is not known. `check` looks at the whole file
    before it is published, and raises IntegrityError for what may not be. `below` is the folder that `target` must not
    leave, also not by links; none, and links may lead anywhere.
    """

    url: str
    target: Path
    sha256: str = ""
    size: int = 0
    check: Callable[[Path], None] | None = None
    below: Path | None = None


@dataclass(frozen=True, slots=True)
class Facts:
    """What a host says of a file: `size` in bytes (-1: nothing), SHA-256 (or none), entity tag, whether it has ranges.

    `url` is where the bytes come from in the end, `name` what the host calls the file.
    """

    url: str
    size: int = -1
    sha256: str = ""
    etag: str = ""
    ranges: bool = False
    name: str = ""


@dataclass(frozen=True, slots=True)
class News:
    """What has become of an order: its file is there, or `error` says why not.

    Where it is `waiting` for its host, `error` says why, `seconds` how long until the next try, `longest` how long such
    pauses may go on; it is `going` again when something comes.
    """

    state: Literal["done", "failed", "waiting", "going"]
    error: ComfypodError | None = None
    seconds: float = 0
    longest: float = 0


@dataclass(frozen=True, slots=True)
class Terms:
    """How the door behaves towards hosts, the same for all orders of one run.

    `tokens` are bearer tokens by host name (`huggingface.co`), sent to that host alone and over TLS or loopback alone.
    `rate` is in bytes a second over all connections, 0 without a limit. `connections` are those of one file.
    """

    tokens: Mapping[str, str] = field(default_factory=dict)
    rate: int = 0
    connections: int = 16
    files: int = 3

"""Where a workflow stands in a file: plain JSON, or what ComfyUI has written into a picture."""

from __future__ import annotations

import json
import re
import zlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

LONGEST = 8 << 20
_PNG = b"\x89PNG\r\n\x1a\n"
# `workflow` is as drawn, with addresses of models; `prompt` is what ComfyUI ran.
_KEYS = ("workflow", "prompt")
# In EXIF, as ComfyUI's own nodes write it (WebP): `workflow:{...}`.
_EXIF = {key: re.compile(rb"%s:\s?(\{[^\0]*)" % key.encode()) for key in _KEYS}


def documents(data: bytes) -> Iterator[Any]:
    """Yield what may be a workflow in a file, the best first; whatever is no JSON or is too long is passed over."""
    if data.startswith(_PNG):
        found = _png(data)
    elif data[:100].removeprefix(b"\xef\xbb\xbf").lstrip()[:1] == b"{":
        found = {_KEYS[0]: data}
    else:
        found = {key: match[1] for key, mark in _EXIF.items() if (match := mark.search(data))}
    for key in _KEYS:
        text = found.get(key, b"")
        try:
            document = json.loads(text.decode("utf-8-sig")) if len(text) <= LONGEST else None
        except (ValueError, RecursionError):
            continue
        yield document


def _png(data: bytes) -> dict[str, bytes]:
    """Return the first text of each keyword, in UTF-8 (PNG, third edition, section 11.3.3)."""
    found: dict[str, bytes] = {}
    place = len(_PNG)
    while place + 8 <= len(data):
        length, kind = int.from_bytes(data[place : place + 4]), data[place + 4 : place + 8]
        name, marked, rest = data[place + 8 : place + 8 + length].partition(b"\0")
        place += 12 + length
        key = name.decode("latin-1")
        if not marked or key not in _KEYS or key in found:
            continue
        match kind:
            case b"tEXt":
                found[key] = rest.decode("latin-1").encode()
            case b"zTXt":
                found[key] = _inflated(rest[1:]).decode("latin-1").encode()
            case b"iTXt":
                text = rest[2:].split(b"\0", 2)[-1]
                found[key] = _inflated(text) if rest[:1] == b"\1" else text
    return found


def _inflated(data: bytes) -> bytes:
    """Return what is packed in a chunk, nothing where that is broken or too long."""
    unpacker = zlib.decompressobj()
    try:
        text = unpacker.decompress(data, LONGEST)
    except zlib.error:
        return b""
    return b"" if unpacker.unconsumed_tail else text

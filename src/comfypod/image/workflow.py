"""A small workflow, run against a pod on this machine, with its token; prints what came of it as JSON.

Stands alone on the standard library: `comfypod build` hands its text to the Python of the image that it tries.
"""

from __future__ import annotations

import http.client
import json
import os
import struct
import sys
import time
import zlib
from typing import Any
from urllib.parse import urlencode, urlsplit

COLOUR = (51, 102, 204)
SIZE = (96, 48)
_SECONDS = 300.0
_ANSWER_SECONDS = 60.0


def prompt() -> dict[str, Any]:
    """Return a workflow that needs no model: a plain picture, scaled, saved."""
    red, green, blue = COLOUR
    colour = (red << 16) + (green << 8) + blue
    width, height = SIZE
    scale = {"upscale_method": "nearest-exact", "width": width, "height": height, "crop": "disabled"}
    return {
        "1": {"class_type": "EmptyImage", "inputs": {"width": 64, "height": 64, "batch_size": 1, "color": colour}},
        "2": {"class_type": "ImageScale", "inputs": {"image": ["1", 0], **scale}},
        "3": {"class_type": "SaveImage", "inputs": {"images": ["2", 0], "filename_prefix": "comfypod-smoke"}},
    }


def render(url: str, seconds: float = _SECONDS) -> dict[str, Any]:
    """Run the workflow, for `seconds` at most; return width, height and the colours of the picture.

    Raises:
        RuntimeError: ComfyUI refused or failed, or took too long.
    """
    body = json.dumps({"prompt": prompt()}).encode()
    name = json.loads(_ask(url, "POST", "/prompt", body))["prompt_id"]
    entry = _finished(url, name, seconds)
    images = [image for output in entry["outputs"].values() for image in output.get("images", ())]
    if not images:
        raise RuntimeError(f"the workflow made no picture: {json.dumps(entry.get('status'))}")
    picture = _ask(url, "GET", "/view?" + urlencode(images[0]))
    width, height, colours = read_png(picture)
    return {"width": width, "height": height, "colours": sorted(colours)[:5]}


def _finished(url: str, name: str, seconds: float) -> dict[str, Any]:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        entry: dict[str, Any] | None = json.loads(_ask(url, "GET", f"/history/{name}")).get(name)
        if entry is not None and entry.get("status", {}).get("status_str") == "error":
            raise RuntimeError(f"the workflow failed: {json.dumps(entry['status'])}")
        if entry is not None:
            return entry
        time.sleep(0.2)
    raise RuntimeError(f"the workflow was not done after {seconds:.0f} s")


def _ask(url: str, method: str, path: str, body: bytes | None = None) -> bytes:
    address = urlsplit(url)
    connection = http.client.HTTPConnection(address.hostname or "", address.port or 80, timeout=_ANSWER_SECONDS)
    try:
        headers = {"Authorization": f"Bearer {os.environ.get('COMFYPOD_TOKEN', '')}"}
        connection.request(method, path, body, headers | ({"Content-Type": "application/json"} if body else {}))
        response = connection.getresponse()
        data = response.read()
    except (OSError, http.client.HTTPException) as error:
        raise RuntimeError(f"{method} {path.partition('?')[0]}: {error}") from error
    finally:
        connection.close()
    if response.status != 200:
        told = data[:300].decode("utf-8", "replace")
        raise RuntimeError(f"{method} {path.partition('?')[0]} answered {response.status}: {told}")
    return data


def read_png(data: bytes) -> tuple[int, int, set[tuple[int, ...]]]:
    """Return width, height and the colours of a PNG of eight bits a channel, without interlacing.

    Raises:
        RuntimeError: it is no such PNG.
    """
    chunks = dict[bytes, bytes]()
    place = 8
    while place + 8 <= len(data):
        length, kind = struct.unpack(">I4s", data[place : place + 8])
        chunks[kind] = chunks.get(kind, b"") + data[place + 8 : place + 8 + length]
        place += 12 + length
    if data[:8] != b"\x89PNG\r\n\x1a\n" or b"IHDR" not in chunks or b"IDAT" not in chunks:
        raise RuntimeError("what came back is not a PNG")
    width, height, depth, kind_of_colour, _, _, interlaced = struct.unpack(">IIBBBBB", chunks[b"IHDR"])
    channels = {2: 3, 6: 4}.get(kind_of_colour)
    if depth != 8 or channels is None or interlaced:
        raise RuntimeError("the PNG is not RGB of eight bits a channel")
    rows = _rows(zlib.decompress(chunks[b"IDAT"]), width * channels, channels)
    return width, height, {tuple(row[at : at + 3]) for row in rows for at in range(0, len(row), channels)}


def _rows(data: bytes, length: int, step: int) -> list[bytearray]:
    """Undo the filters of a PNG (RFC 2083, section 6)."""
    rows: list[bytearray] = []
    above = bytearray(length)
    for start in range(0, len(data), length + 1):
        kind, row = data[start], bytearray(data[start + 1 : start + 1 + length])
        for at in range(length):
            left = row[at - step] if at >= step else 0
            corner = above[at - step] if at >= step else 0
            row[at] = (row[at] + _predicted(kind, left, above[at], corner)) & 0xFF
        rows.append(row)
        above = row
    return rows


def _predicted(kind: int, left: int, up: int, corner: int) -> int:
    if kind == 4:
        guess = left + up - corner
        return min((left, up, corner), key=lambda value: abs(guess - value))
    return (0, left, up, (left + up) // 2)[kind]


if __name__ == "__main__":
    try:
        print(json.dumps(render(sys.argv[1])))  # noqa: T201
    except RuntimeError as problem:
        sys.exit(str(problem))

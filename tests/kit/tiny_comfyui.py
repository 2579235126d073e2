"""What an image's smoke test asks of ComfyUI, on the standard library: imports nodes, makes a plain picture.

It stands as `main.py` in the lab's tree (see `images.py`), and never runs in the tests' own process.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import struct
import sys
import time
import zlib
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


def main() -> None:
    """Serve until the interrupt."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--listen", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8188)
    parser.add_argument("--base-directory", default=Path(__file__).parent)
    parser.add_argument("--extra-model-paths-config")
    options, _ = parser.parse_known_args()
    places = [Path(options.base_directory, "custom_nodes")]
    if options.extra_model_paths_config:
        told = json.loads(Path(options.extra_model_paths_config).read_text())
        places += [Path(kind["custom_nodes"]) for kind in told.values() if "custom_nodes" in kind]
    seen = [import_node(path) for place in places if place.is_dir() for path in sorted(place.iterdir())]
    print("\nImport times for custom nodes:", *filter(None, seen), sep="\n", flush=True)
    try:
        ThreadingHTTPServer((options.listen, options.port), Routes).serve_forever()
    except KeyboardInterrupt:
        print("Stopped server", flush=True)


def import_node(path: Path) -> str:
    """Import one node as ComfyUI does, and return its line of the report."""
    if not (path / "__init__.py").is_file() or path.name.endswith(".disabled"):
        return ""
    begun, failed = time.monotonic(), ""
    spec = importlib.util.spec_from_file_location(path.name.replace("-", "_"), path / "__init__.py")
    assert spec is not None
    assert spec.loader is not None
    try:
        spec.loader.exec_module(importlib.util.module_from_spec(spec))
    except Exception as error:  # noqa: BLE001 - whatever a node raises
        print(f"Cannot import {path} module for custom nodes: {error}", file=sys.stderr)
        failed = " (IMPORT FAILED)"
    return f"{time.monotonic() - begun:6.1f} seconds{failed}: {path}"


class Routes(BaseHTTPRequestHandler):
    """The routes, and the last prompt."""

    prompt: dict[str, dict[str, dict[str, int]]] = {}  # noqa: RUF012 - shared on purpose

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        if path == "/view":
            self._answer(picture(self.prompt))
            return
        image = {"filename": "a.png", "subfolder": "", "type": "output"}
        done = {"status": {"status_str": "success"}, "outputs": {"3": {"images": [image]}}}
        body = {"/system_stats": {"system": {}}, "/queue": {"queue_running": [], "queue_pending": []}}
        self._answer(json.dumps(body.get(path, {path.rpartition("/")[2]: done})).encode())

    def do_POST(self) -> None:
        Routes.prompt = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["prompt"]
        self._answer(b'{"prompt_id": "1"}')

    def _answer(self, body: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the name is the base class's
        pass


def picture(prompt: dict[str, dict[str, dict[str, int]]]) -> bytes:
    """Return the PNG that a workflow of an empty image and a scale asks for."""
    inputs = [node["inputs"] for node in prompt.values()]
    colour = next(each["color"] for each in inputs if "color" in each)
    width, height = next((each["width"], each["height"]) for each in inputs if "upscale_method" in each)
    row = b"\0" + colour.to_bytes(3, "big") * width
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(row * height)) + chunk(b"IEND", b"")
    )


def chunk(kind: bytes, data: bytes) -> bytes:
    """Return one part of a PNG."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


if __name__ == "__main__":
    main()

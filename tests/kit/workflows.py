"""Workflows as ComfyUI's editor saves them, and the pictures that carry them."""

from __future__ import annotations

import io
import json
from typing import TYPE_CHECKING, Any

from PIL import Image, PngImagePlugin

if TYPE_CHECKING:
    from collections.abc import Sequence

HUB = "https://huggingface.co/org/repo/resolve/main"


def said(name: str, folder: str, **more: str) -> dict[str, str]:
    """Return an entry of `properties.models`."""
    return {"name": name, "url": f"{HUB}/{name}", "directory": folder, **more}


def node(
    kind: str, *values: Any, models: Sequence[dict[str, str]] = (), mode: int = 0, number: int = 1, widgets: str = ""
) -> dict[str, Any]:
    """Return a node; `widgets` are the names of its values, parted by space, each also an input."""
    inputs = [{"name": name, "widget": {"name": name}, "link": None} for name in widgets.split()]
    return {
        "id": number, "type": kind, "mode": mode, "inputs": inputs, "widgets_values": list(values),
        "properties": {"models": list(models)} if models else {},
    }  # fmt: skip


def graph(*nodes: dict[str, Any], **more: Any) -> dict[str, Any]:
    """Return a workflow."""
    return {"nodes": list(nodes), "links": [], "version": 0.4, **more}


def subgraph(name: str, *nodes: dict[str, Any], promoted: Sequence[tuple[int, int]] = ()) -> dict[str, Any]:
    """Return a subgraph; `promoted` are (node, input) that its own inputs lead to, in their order."""
    links = [
        {"id": 100 + index, "origin_id": -10, "origin_slot": index, "target_id": target, "target_slot": slot}
        for index, (target, slot) in enumerate(promoted)
    ]
    inputs = [{"name": f"input{index}", "linkIds": [link["id"]]} for index, link in enumerate(links)]
    return {"id": name, "name": name, "nodes": list(nodes), "inputs": inputs, "links": links}


def with_subgraphs(document: dict[str, Any], *subgraphs: dict[str, Any]) -> dict[str, Any]:
    return {**document, "definitions": {"subgraphs": list(subgraphs)}}


def data(document: Any) -> bytes:
    return json.dumps(document).encode()


def png(*, packed: bool = False, international: bool = False, **texts: Any) -> bytes:
    """Return a PNG with a text chunk for each keyword, as ComfyUI's SaveImage writes it."""
    info, sink = PngImagePlugin.PngInfo(), io.BytesIO()
    for key, document in texts.items():
        text = json.dumps(document, ensure_ascii=not international)
        if international:
            info.add_itxt(key, text, zip=packed)
        else:
            info.add_text(key, text, zip=packed)
    Image.new("RGB", (1, 1)).save(sink, "PNG", pnginfo=info)
    return sink.getvalue()


def webp(document: Any) -> bytes:
    """Return a WebP with the workflow in EXIF, as ComfyUI's SaveAnimatedWEBP writes it."""
    picture, sink = Image.new("RGB", (1, 1)), io.BytesIO()
    exif = picture.getexif()
    exif[0x010F] = f"workflow:{json.dumps(document)}"
    picture.save(sink, "WEBP", exif=exif)
    return sink.getvalue()

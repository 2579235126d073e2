"""A client library that nobody here wrote, through the gateway, with the token as its only credential."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

import pytest
from comfy_api_simplified import ComfyApiWrapper, ComfyWorkflowWrapper
from comfy_api_simplified.exceptions import ComfyApiError
from PIL import Image

from tests.kit.comfyui import node

if TYPE_CHECKING:
    from pathlib import Path

    from tests.scenarios.conftest import RealSite

pytestmark = [pytest.mark.real, pytest.mark.slow]

_TOKEN = "a-token-of-my-own"


def _workflow(picture: str) -> ComfyWorkflowWrapper:
    nodes = {
        "1": node("LoadImage", image=picture),
        "2": node("ImageInvert", image=["1", 0]),
        "3": node("SaveImage", images=["2", 0], filename_prefix="client"),
    }
    titles = {"1": "Load", "2": "Invert", "3": "Save"}
    return ComfyWorkflowWrapper({name: {**each, "_meta": {"title": titles[name]}} for name, each in nodes.items()})


def test_comfy_api_simplified_uploads_queues_follows_the_websocket_and_fetches_the_picture(
    site: RealSite, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COMFYPOD_TOKEN", _TOKEN)
    site.up("--listen", "0.0.0.0")
    source = tmp_path / "source.png"
    Image.new("RGB", (32, 16), (255, 0, 51)).save(source)
    url = f"http://127.0.0.1:{site.ports[0]}/"
    with pytest.raises(ComfyApiError, match="401"):
        ComfyApiWrapper(url).get_queue()
    api = ComfyApiWrapper(url, user="anyone", password=_TOKEN)
    stored = api.upload_image(str(source))
    found = api.queue_and_wait_images(_workflow(f"{stored['subfolder']}/{stored['name']}"), "Save")
    (data,) = found.values()
    picture = Image.open(io.BytesIO(data)).convert("RGB")
    assert (picture.size, picture.getpixel((3, 3))) == ((32, 16), (0, 255, 204))

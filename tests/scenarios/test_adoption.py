"""A volume that RunPod's and ai-dock's images have filled, taken over by the real ComfyUI and given back."""

from __future__ import annotations

import io
import json
import shutil
from typing import TYPE_CHECKING, Any

import pytest
from PIL import Image

from comfypod import files
from tests.kit import comfyui, models

if TYPE_CHECKING:
    from pathlib import Path

    from tests.scenarios.conftest import RealSite

pytestmark = [pytest.mark.real, pytest.mark.slow]

_NODE = """
class Mine:
    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {}}

    RETURN_TYPES = ("INT",)
    FUNCTION = "run"

    def run(self):
        return (1,)


NODE_CLASS_MAPPINGS = {"MineOfOld": Mine}
"""


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def _filled(site: RealSite) -> Path:
    """Put a clone of the real ComfyUI where RunPod's image has it, used; and models where ai-dock has them."""
    (tree,) = (site.machine.folder / "data" / "store" / "comfyui").glob("*/ComfyUI")
    base = site.layout.root / "runpod-slim" / "ComfyUI"
    shutil.copytree(tree, base, symlinks=True)
    (base / ".comfypod-release.json").unlink()
    _write(base / ".git" / "HEAD", "ref: refs/heads/master\n")
    _write(base / "custom_nodes" / "old_pack" / "__init__.py", _NODE)
    _write(base / "user" / "default" / "workflows" / "old.json", '{"nodes": []}')
    models.upscaler(base / "models" / "upscale_models" / "old.safetensors")
    stored = site.layout.root / "storage" / "stable_diffusion" / "models" / "esrgan" / "stored.safetensors"
    stored.parent.mkdir(parents=True)
    models.upscaler(stored)
    return base


def _kept(base: Path) -> dict[str, str]:
    """Return what may not change in a folder of theirs, by digest."""
    found = (base / name for name in files.content_paths(base, frozenset({"__pycache__"})))
    return {
        str(path): files.sha256_file(path)
        for path in found
        if path.is_file() and not path.is_relative_to(base / "output") and path.suffix not in (".log", ".db", ".lock")
    }


def _ask(site: RealSite, *words: str) -> dict[str, Any]:
    done = site.run("workspace", *words, "--json", "--workspace", str(site.layout.root))
    assert done.returncode == 0, done.stdout + done.stderr
    body: dict[str, Any] = json.loads(done.stdout)["data"]
    return body


def test_a12_nodes_models_workflows_and_pictures_of_another_image_are_used_in_place(site: RealSite) -> None:
    base = _filled(site)
    before = _kept(base)
    (problem,) = site.up()["data"]["status"]["problems"]
    assert problem["code"] == "adoptable"
    assert "MineOfOld" not in json.loads(site.client.get("/object_info"))
    assert site.down().returncode == 0
    shown = _ask(site, "adopt")
    assert shown["found"]["kind"] == "RunPod's runpod-slim and ai-dock"
    assert shown["found"]["folders"]["custom_nodes"]["nodes"] == 1
    assert _ask(site, "adopt", "--yes")["done"] is True

    assert site.up()["data"]["status"]["problems"] == []
    client = site.client
    assert "MineOfOld" in json.loads(client.get("/object_info"))
    assert json.loads(client.get("/userdata/workflows%2Fold.json")) == {"nodes": []}
    sink = io.BytesIO()
    Image.new("RGB", (12, 9), (90, 90, 90)).save(sink, "PNG")
    uploaded = client.upload("source.png", sink.getvalue())
    for model in ("old.safetensors", "stored.safetensors"):
        (picture,) = client.render(comfyui.upscale(uploaded, model))
        assert Image.open(io.BytesIO(picture)).size == (24, 18)
    assert len(list((base / "output").glob("upscaled*.png"))) == 2
    assert site.down().returncode == 0

    assert _ask(site, "adopt", "--undo") == {"undone": 1}
    assert before.items() <= _kept(base).items()
    assert not any(path.is_symlink() for path in site.layout.comfyui.iterdir())

"""Folders of models on real mounts of their own."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from comfypod import proc
from comfypod.models.file import ModelFile
from comfypod.models.places import places_of
from comfypod.models.plan import look, make
from comfypod.workspace.layout import Layout
from comfypod.workspace.plan import mount_table
from tests.kit import disks
from tests.kit.models import write_safetensors

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.root


def test_models_on_read_only_mounts_are_found_and_not_fetched_again(tmp_path: Path) -> None:
    layout, tensors = Layout(tmp_path / "workspace"), {"a": ((1,), [1.0])}
    live = layout.comfyui / "models"
    live.mkdir(parents=True)
    with disks.tmpfs(tmp_path / "runpod volume", megabytes=4) as one, disks.tmpfs(tmp_path / "old", megabytes=4) as two:
        (one / "models" / "unet").mkdir(parents=True)
        write_safetensors(one / "models" / "unet" / "m.safetensors", tensors)
        (two / "stable-diffusion-webui" / "models" / "Stable-diffusion").mkdir(parents=True)
        write_safetensors(two / "stable-diffusion-webui/models/Stable-diffusion/c.safetensors", tensors)
        for mount in (one, two):
            assert proc.run(["mount", "-o", "remount,ro", str(mount)], seconds=30).ok
        places = places_of(layout, live, None, (), mount_table())
        wanted = [
            ModelFile("m", "https://h/m.safetensors", "diffusion_models", "m.safetensors"),
            ModelFile("c", "https://h/c.safetensors", "checkpoints", "c.safetensors"),
            ModelFile("n", "https://h/n.safetensors", "checkpoints", "n.safetensors"),
        ]
        rows = make(wanted, look(wanted, places, {}, {}), ()).rows
    assert [row.state for row in rows] == ["elsewhere", "elsewhere", "fetch"]
    assert rows[0].reason == str(one / "models" / "unet" / "m.safetensors")
    assert list(layout.root.rglob("*.safetensors")) == []

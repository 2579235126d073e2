from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from comfypod.models.file import ModelFile
from comfypod.models.places import Places, extra_paths, places_of
from comfypod.workspace.adopt import RECORD, Adoption
from comfypod.workspace.layout import Layout

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    layout = Layout(tmp_path / "workspace")
    (layout.comfyui / "models" / "checkpoints").mkdir(parents=True)
    return layout


def live(layout: Layout) -> Path:
    return layout.comfyui / "models"


def find(layout: Layout, given: Iterable[Path], mounts: str = "") -> Mapping[str, tuple[Path, ...]]:
    return places_of(layout, live(layout), None, given, mounts).found


def put(*paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")


def mounted(*points: Path) -> str:
    names = (str(point).replace(" ", "\\040") for point in points)
    rows = (f"36 35 98:0 / {name} ro,noatime - ext4 /dev/sda ro" for name in names)
    return "\n".join(("22 1 8:1 / / rw - ext4 /dev/root rw", "23 22 0:21 / /proc rw - proc proc rw", *rows))


def file(folder: str, name: str = "m.safetensors") -> ModelFile:
    return ModelFile(name, f"https://h/{name}", folder, name)


def test_a_folder_that_is_given_is_used_as_comfyui_has_it(layout: Layout, tmp_path: Path) -> None:
    given = tmp_path / "given"
    put(given / "models" / "loras" / "a", given / "models" / "ipadapter" / "b", given / "models" / ".cache" / "c")
    (given / "models" / "vae").mkdir()
    found = find(layout, [given])
    assert found == {"loras": (given / "models" / "loras",), "ipadapter": (given / "models" / "ipadapter",)}
    assert find(layout, [given / "models"]) == found
    assert extra_paths(places_of(layout, live(layout), None, [given])) == {
        "loras": str(given / "models" / "loras"),
        "ipadapter": f"{live(layout) / 'ipadapter'}\n{given / 'models' / 'ipadapter'}",
    }


@pytest.mark.parametrize("inside", ["", "models"])
def test_a_folder_of_a1111s_is_used_by_comfyuis_kinds(layout: Layout, tmp_path: Path, inside: str) -> None:
    webui = tmp_path / "webui"
    names = ("Stable-diffusion", "Lora", "LyCORIS", "VAE", "ESRGAN", "RealESRGAN", "ControlNet", "hypernetworks")
    put(webui / "embeddings" / "e.pt", *(webui / "models" / name / "m" for name in names))
    models = webui / "models"
    assert find(layout, [webui / inside]) == {
        "checkpoints": (models / "Stable-diffusion",),
        "configs": (models / "Stable-diffusion",),
        "vae": (models / "VAE",),
        "loras": (models / "Lora", models / "LyCORIS"),
        "upscale_models": (models / "ESRGAN", models / "RealESRGAN"),
        "embeddings": (webui / "embeddings",),
        "hypernetworks": (models / "hypernetworks",),
        "controlnet": (models / "ControlNet",),
    }


def test_folders_on_several_mounts_are_found_also_where_nothing_can_be_written(layout: Layout, tmp_path: Path) -> None:
    serverless, shared, webui = tmp_path / "runpod-volume", tmp_path / "my models", tmp_path / "old"
    put(serverless / "models" / "loras" / "a", serverless / "runpod-slim/ComfyUI/models/unet/b")
    put(shared / "loras" / "c", shared / "datasets" / "d", shared / "private" / "d")
    put(webui / "stable-diffusion-webui/models/Stable-diffusion/e")
    serverless.chmod(0o555)
    assert find(layout, (), mounted(serverless, shared, webui, layout.root)) == {
        "loras": (serverless / "models" / "loras", shared / "loras"),
        "unet": (serverless / "runpod-slim/ComfyUI/models/unet",),
        "checkpoints": (webui / "stable-diffusion-webui/models/Stable-diffusion",),
        "configs": (webui / "stable-diffusion-webui/models/Stable-diffusion",),
    }


def test_what_the_workspace_has_beside_its_comfyui_is_found_and_its_own_models_are_not(layout: Layout) -> None:
    put(layout.root / "models" / "vae" / "v", layout.comfyui / "models" / "checkpoints" / "own")
    assert find(layout, [layout.comfyui, layout.comfyui / "models"]) == {"vae": (layout.root / "models" / "vae",)}
    (layout.root / "linked").symlink_to(layout.comfyui / "models")
    assert "checkpoints" not in find(layout, [layout.root / "linked"])


def test_a_folder_that_is_not_there_or_holds_no_models_is_none(layout: Layout, tmp_path: Path) -> None:
    put(tmp_path / "data" / "documents" / "a", tmp_path / "data" / "datasets" / "b", tmp_path / "data" / "loras")
    assert find(layout, [tmp_path / "data", tmp_path / "none", tmp_path / "data" / "loras"]) == {}


def test_a_file_is_looked_for_wherever_comfyui_would_find_it(layout: Layout, tmp_path: Path) -> None:
    put(tmp_path / "baked" / "unet" / "m.safetensors", tmp_path / "given" / "diffusion_models" / "x")
    places = places_of(layout, live(layout), str(tmp_path / "baked"), [tmp_path / "given"])
    assert list(places.elsewhere(file("diffusion_models/sub"))) == [
        tmp_path / "given" / "diffusion_models" / "sub" / "m.safetensors",
        live(layout) / "unet" / "sub" / "m.safetensors",
        tmp_path / "baked" / "unet" / "sub" / "m.safetensors",
    ]
    assert list(Places(live(layout)).elsewhere(file("loras"))) == []
    assert list(places.folders()) == [
        live(layout),
        tmp_path / "baked" / "unet",
        tmp_path / "given" / "diffusion_models",
    ]


def test_what_was_adopted_counts(layout: Layout) -> None:
    adopted = Adoption("ai-dock", "r", models={"loras": "storage/lora\nstorage/more"})
    put(layout.adopted / "1" / RECORD)
    (layout.adopted / "1" / RECORD).write_bytes(adopted.encode())
    assert places_of(layout, live(layout), None, ()).further == {
        "loras": (layout.root / "storage" / "lora", layout.root / "storage" / "more")
    }

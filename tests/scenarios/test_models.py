"""What comfypod knows of ComfyUI's loaders and templates, compared with the ComfyUI that was installed."""

from __future__ import annotations

import io
import json
import subprocess
from typing import TYPE_CHECKING

import pytest
from PIL import Image

from comfypod.files import sha256_file
from comfypod.models.loaders import LOADERS
from docs import templates
from tests.kit import comfyui, models
from tests.kit.pods import comfypod
from tests.kit.web import Answer, serve

if TYPE_CHECKING:
    from pathlib import Path

    from tests.scenarios.conftest import FirstUp, RealSite

pytestmark = [pytest.mark.real, pytest.mark.slow]

# The one official template whose only model is an upscaler, and the address that it has for it.
_TEMPLATE = "utility-gan_upscaler"
_AT_THE_HOST = "/Comfy-Org/Real-ESRGAN_repackaged/resolve/main/RealESRGAN_x4plus.safetensors"

# A file in each folder of models; whichever input offers it reads from that folder.
_ASK = r"""
import asyncio, json, sys
from pathlib import Path
tree, base = sys.argv[1:3]
sys.path.insert(0, tree)
sys.argv = ["main.py", "--cpu", "--base-directory", base]
import comfy.options
comfy.options.enable_args_parsing()
import folder_paths
planted = {}
for name, (paths, endings) in folder_paths.folder_names_and_paths.items():
    if ".safetensors" in endings:
        folder = Path(paths[-1])
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"in-{name}.safetensors").touch()
        planted[f"in-{name}.safetensors"] = name
import nodes
asyncio.run(nodes.init_extra_nodes(init_custom_nodes=False, init_api_nodes=False))
found = []
for kind, loader in nodes.NODE_CLASS_MAPPINGS.items():
    for inputs in loader.INPUT_TYPES().values():
        for name, given in inputs.items():
            text = json.dumps(given, default=str)
            found += [(kind, name, folder) for file, folder in planted.items() if f'"{file}"' in text]
print(json.dumps(found))
"""


def _installed(first_up: FirstUp, pattern: str) -> Path:
    (found,) = (first_up.site.machine.folder / "data" / "store").glob(pattern)
    return found


def test_every_loader_of_comfyui_reads_from_the_folder_that_is_written_down(first_up: FirstUp, tmp_path: Path) -> None:
    tree, python = _installed(first_up, "comfyui/*/ComfyUI"), _installed(first_up, "comfyui-env/*/venv/bin/python")
    done = subprocess.run(
        [python, "-c", _ASK, tree, tmp_path], capture_output=True, text=True, timeout=300, cwd=tree, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    asked = [tuple(row) for row in json.loads(done.stdout.splitlines()[-1])]
    by_input = {kind for kinds in LOADERS.values() for kind in kinds if "." in kind}
    assert {(f"{kind}.{name}" if f"{kind}.{name}" in by_input else kind, folder) for kind, name, folder in asked} == {
        (kind, folder) for folder, kinds in LOADERS.items() for kind in kinds
    }


def test_the_table_of_official_templates_is_as_the_installed_packages_have_it(first_up: FirstUp) -> None:
    text = templates.PAGE.read_text("utf-8")
    packages = _installed(first_up, "comfyui-env/*/venv/lib/python3*/site-packages")
    assert templates.renewed(text, packages) == text, f"run `uv run python -m docs.templates {packages}`"


def test_a_pack_that_is_fetched_at_run_time_is_used_by_comfyui_in_a_workflow(site: RealSite, tmp_path: Path) -> None:
    models.upscaler(tmp_path / "fetched.safetensors")
    with serve() as hub:
        hub.answers["/fetched.safetensors"] = Answer((tmp_path / "fetched.safetensors").read_bytes())
        site.layout.root.mkdir(parents=True)
        site.layout.manifest.write_text(
            f'[[pack]]\nname = "kit"\nrequired = true\n[[pack.file]]\nurl = "{hub.url}/fetched.safetensors"\n'
            f'folder = "upscale_models"\nsha256 = "{sha256_file(tmp_path / "fetched.safetensors")}"\n'
        )
        status = site.up()["data"]["status"]
    assert [(row["name"], row["state"]) for row in status["models"]] == [("kit/fetched.safetensors", "present")]
    picture = io.BytesIO()
    Image.new("RGB", (4, 3), (10, 20, 30)).save(picture, "png")
    (result,) = site.client.render(
        comfyui.upscale(site.client.upload("source.png", picture.getvalue()), "fetched.safetensors")
    )
    enlarged = Image.open(io.BytesIO(result)).convert("RGB")
    assert enlarged.size == (8, 6)
    assert enlarged.getpixel((1, 0)) == (30, 40, 50)


def test_an_official_template_is_made_runnable_and_runs(first_up: FirstUp, site: RealSite, tmp_path: Path) -> None:
    (template,) = _installed(first_up, "comfyui-env/*/venv/lib/python3*/site-packages").glob(
        f"comfyui_workflow_templates*/templates/{_TEMPLATE}.json"
    )
    models.upscaler(tmp_path / "small.safetensors")
    site.up()
    with serve() as hub:
        # What stands in for Hugging Face has a model under that name which two cores can run.
        hub.answers[_AT_THE_HOST] = Answer((tmp_path / "small.safetensors").read_bytes())
        done = comfypod(
            "models", "pull", f"template:{_TEMPLATE}", "--json", "--workspace", str(site.layout.root),
            env={**site.environ, "HF_ENDPOINT": hub.url},
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        assert json.loads(done.stdout)["data"]["fetched"] == [f"upscale_models/{_AT_THE_HOST.rpartition('/')[2]}"]
    picture = io.BytesIO()
    Image.new("RGB", (64, 48), (100, 110, 120)).save(picture, "png")
    (video,) = site.client.render(
        {
            "1": comfyui.node("LoadImage", image=site.client.upload("frame.png", picture.getvalue())),
            "2": comfyui.node("CreateVideo", images=["1", 0], fps=30.0),
            "3": comfyui.node("SaveVideo", video=["2", 0], filename_prefix="made", format="auto", codec="auto"),
        }
    )
    (site.layout.comfyui / "input" / "gan_input.mp4").write_bytes(video)
    prompt = comfyui.as_prompt(json.loads(template.read_text()), json.loads(site.client.get("/object_info")))
    (upscaled,) = (number for number, node in prompt.items() if node["class_type"] == "ImageUpscaleWithModel")
    prompt["frames"] = comfyui.node("SaveImage", images=[upscaled, 0], filename_prefix="frames")
    results = site.client.render(prompt)
    assert len(results) == 2, "the template's own video, and its frames as a picture"
    enlarged = next(Image.open(io.BytesIO(each)).convert("RGB") for each in results if each.startswith(b"\x89PNG"))
    assert enlarged.size == (128, 96)
    left, right = (enlarged.getpixel((column, 0)) for column in (0, 1))
    assert isinstance(left, tuple)
    assert isinstance(right, tuple)
    assert [after - before for before, after in zip(left, right, strict=True)] == [20, 20, 20]

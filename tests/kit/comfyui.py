"""A client for ComfyUI's own HTTP routes, and the workflows that the tests send."""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.request
from typing import Any
from urllib.parse import urlencode

# Types of inputs that the editor shows as fields.
_WIDGETS = ("BOOLEAN", "COMBO", "COMFY_DYNAMICCOMBO_V3", "FLOAT", "INT", "STRING")


class Client:
    """Talks to one ComfyUI."""

    def __init__(self, url: str) -> None:
        self.url = url

    def get(self, path: str) -> bytes:
        with urllib.request.urlopen(self.url + path, timeout=30) as response:
            data: bytes = response.read()
            return data

    def post(self, path: str, body: bytes, kind: str = "application/json") -> Any:
        request = urllib.request.Request(self.url + path, body, {"Content-Type": kind})
        try:
            with urllib.request.urlopen(request, timeout=60) as response:
                return json.load(response)
        except urllib.error.HTTPError as error:
            raise AssertionError(f"{path}: {error.code} {error.read()[:2000]!r}") from error

    def upload(self, name: str, image: bytes) -> str:
        """Upload a PNG as the browser does; return the name to use in `LoadImage`."""
        edge = "----comfypod-test"
        head = f'--{edge}\r\nContent-Disposition: form-data; name="image"; filename="{name}"\r\n'
        body = head.encode() + b"Content-Type: image/png\r\n\r\n" + image + f"\r\n--{edge}--\r\n".encode()
        return str(self.post("/upload/image", body, f"multipart/form-data; boundary={edge}")["name"])

    def render(self, workflow: dict[str, Any], seconds: float = 120.0) -> list[bytes]:
        """Queue a workflow, wait for it, and return its saved pictures from `/view`."""
        prompt = self.post("/prompt", json.dumps({"prompt": workflow}).encode())["prompt_id"]
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            entry = json.loads(self.get(f"/history/{prompt}")).get(prompt)
            if entry is not None:
                assert entry["status"]["status_str"] == "success", entry["status"]
                pictures = [picture for output in entry["outputs"].values() for picture in output.get("images", ())]
                return [self.get("/view?" + urlencode(picture)) for picture in pictures]
            time.sleep(0.1)
        raise AssertionError(f"not rendered within {seconds} s")


def node(kind: str, **inputs: Any) -> dict[str, Any]:
    """Return one node in API form; a link is a list of node id and output number."""
    return {"class_type": kind, "inputs": inputs}


def upscale(image: str, model: str) -> dict[str, Any]:
    """Return a workflow: uploaded picture, upscale model file, saved picture."""
    return {
        "1": node("LoadImage", image=image),
        "2": node("UpscaleModelLoader", model_name=model),
        "3": node("ImageUpscaleWithModel", upscale_model=["2", 0], image=["1", 0]),
        "4": node("SaveImage", images=["3", 0], filename_prefix="upscaled"),
    }


def sample(checkpoint: str, *, seed: int, size: int = 64, steps: int = 2) -> dict[str, Any]:
    """Return a workflow over the whole sampling path: checkpoint, text, noise, KSampler, VAE, saved picture."""
    return {
        "1": node("CheckpointLoaderSimple", ckpt_name=checkpoint),
        "2": node("CLIPTextEncode", text="a lighthouse", clip=["1", 1]),
        "3": node("CLIPTextEncode", text="", clip=["1", 1]),
        "4": node("EmptyLatentImage", width=size, height=size, batch_size=1),
        "5": node(
            "KSampler", model=["1", 0], positive=["2", 0], negative=["3", 0], latent_image=["4", 0], seed=seed,
            steps=steps, cfg=2.0, sampler_name="euler", scheduler="normal", denoise=1.0,
        ),
        "6": node("VAEDecode", samples=["5", 0], vae=["1", 2]),
        "7": node("SaveImage", images=["6", 0], filename_prefix="sampled"),
    }  # fmt: skip


def as_prompt(graph: dict[str, Any], kinds: dict[str, Any]) -> dict[str, Any]:
    """Return what the editor sends for a workflow without subgraphs; `kinds` are ComfyUI's `/object_info`."""
    links = {link: [str(source), slot] for link, source, slot, *_ in graph["links"]}
    prompt = {}
    for each in (each for each in graph["nodes"] if each["type"] in kinds):
        inputs = {name: rule for part in kinds[each["type"]]["input"].values() for name, rule in part.items()}
        ordered = [name for part in kinds[each["type"]]["input_order"].values() for name in part]
        widgets = [name for name in ordered if isinstance(inputs[name][0], list) or inputs[name][0] in _WIDGETS]
        linked = {row["name"]: links[row["link"]] for row in each["inputs"] if row.get("link") is not None}
        prompt[str(each["id"])] = node(
            each["type"], **dict(zip(widgets, each["widgets_values"], strict=False)) | linked
        )
    return prompt

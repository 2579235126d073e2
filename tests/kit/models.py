"""Model files small enough for two cores: an upscaler whose pixels can be computed by hand, and a checkpoint."""

from __future__ import annotations

import json
import struct
import subprocess
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

SCALE = 2
LIFT = tuple(step / 255 for step in (0, 20, 40, 60))

_CHECKPOINT = r"""
import json, sys
target, tree = sys.argv[1:3]
sys.path.insert(0, tree)
sys.argv = ["main.py", "--cpu"]
import comfy.options
comfy.options.enable_args_parsing()
import torch
import comfy.ops
from comfy.clip_model import CLIPTextModel
from comfy.ldm.models.autoencoder import AutoencoderKL
from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel
from safetensors.torch import save_file

torch.manual_seed(7)
operations = comfy.ops.disable_weight_init
unet = UNetModel(
    image_size=32, in_channels=4, out_channels=4, model_channels=320, num_res_blocks=[1, 1], channel_mult=(1, 2),
    transformer_depth=[1, 1], transformer_depth_output=[1, 1, 1, 1], transformer_depth_middle=1, num_heads=8,
    context_dim=768, use_spatial_transformer=True, legacy=False, dtype=torch.float32, device="cpu",
    operations=operations,
)
with open(f"{tree}/comfy/sd1_clip_config.json") as handle:
    clip = CLIPTextModel(json.load(handle), torch.float32, "cpu", operations)
shape = dict(double_z=True, z_channels=4, resolution=256, in_channels=3, out_ch=3, ch=128, ch_mult=[1, 2, 4, 4],
             num_res_blocks=2, attn_resolutions=[], dropout=0.0)
vae = AutoencoderKL(ddconfig=shape, embed_dim=4)
weights = {}
for prefix, model in (("model.diffusion_model.", unet), ("cond_stage_model.transformer.", clip),
                      ("first_stage_model.", vae)):
    for name, tensor in model.state_dict().items():
        if tensor.dtype.is_floating_point:
            if tensor.dim() > 1:
                tensor = torch.randn(tensor.shape) / tensor[0].numel() ** 0.5
            else:
                tensor = torch.full(tensor.shape, 1.0 if name.endswith("weight") else 0.0)
            tensor = tensor.half()
        weights[prefix + name] = tensor.contiguous()
save_file(weights, target)
print(sum(tensor.numel() for tensor in weights.values()))
"""


def write_safetensors(path: Path, tensors: Mapping[str, tuple[Sequence[int], Sequence[float]]]) -> None:
    """Write float32 tensors, given as shape and values, in the safetensors format."""
    header: dict[str, object] = {}
    body = b""
    for name, (shape, values) in tensors.items():
        data = struct.pack(f"<{len(values)}f", *values)
        header[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [len(body), len(body) + len(data)]}
        body += data
    head = json.dumps(header).encode()
    head += b" " * (-len(head) % 8)
    path.write_bytes(struct.pack("<Q", len(head)) + head + body)


def upscaler(path: Path, features: int = 4) -> None:
    """Write a compact upscaler (Real-ESRGAN's SRVGGNet layout): nearest neighbour plus `LIFT` by sub-pixel.

    All weights are zero, so the network adds only the last bias to the enlarged input: sub-pixel (row, column) of
    every colour is lifted by `LIFT[2 * row + column]`.
    """
    out = 3 * SCALE * SCALE
    convolution = features * features * 9
    write_safetensors(
        path,
        {
            "body.0.weight": ((features, 3, 3, 3), [0.0] * (features * 27)),
            "body.0.bias": ((features,), [0.0] * features),
            "body.1.weight": ((features,), [0.0] * features),
            "body.2.weight": ((features, features, 3, 3), [0.0] * convolution),
            "body.2.bias": ((features,), [0.0] * features),
            "body.3.weight": ((features,), [0.0] * features),
            "body.4.weight": ((out, features, 3, 3), [0.0] * (out * features * 9)),
            "body.4.bias": ((out,), list(LIFT) * 3),
        },
    )


def checkpoint(path: Path, python: str, tree: Path) -> int:
    """Write a Stable Diffusion 1 checkpoint of random weights with ComfyUI's own classes; return its parameters.

    The UNet has two levels in place of four; text encoder and VAE have the real shapes.
    """
    done = subprocess.run(
        [python, "-c", _CHECKPOINT, str(path), str(tree)],
        capture_output=True,
        text=True,
        timeout=300,
        cwd=tree,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return int(done.stdout.split()[-1])

"""Which folder ComfyUI's loaders read a file from."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

# ComfyUI 0.30.0: types of nodes, with the input where one node reads from several folders. It is compared with ComfyUI
# by `test_every_loader_of_comfyui_reads_from_the_folder_that_is_written_down`.
LOADERS: Mapping[str, tuple[str, ...]] = {
    "audio_encoders": ("AudioEncoderLoader",),
    "background_removal": ("LoadBackgroundRemovalModel",),
    "checkpoints": (
        "CheckpointLoader", "CheckpointLoaderSimple", "CreateHookModelAsLora", "CreateHookModelAsLoraModelOnly",
        "ImageOnlyCheckpointLoader", "LTXAVTextEncoderLoader.ckpt_name", "LTXVAudioVAELoader", "unCLIPCheckpointLoader",
    ),
    "clip_vision": ("CLIPVisionLoader",),
    "controlnet": ("ControlNetLoader", "DiffControlNetLoader"),
    "detection": ("LoadMediaPipeFaceLandmarker",),
    "diffusion_models": ("UNETLoader",),
    "frame_interpolation": ("FrameInterpolationModelLoader",),
    "geometry_estimation": ("LoadDA3Model", "LoadMoGeModel"),
    "gligen": ("GLIGENLoader",),
    "hypernetworks": ("HypernetworkLoader",),
    "latent_upscale_models": ("LatentUpscaleModelLoader",),
    "loras": (
        "CreateHookLora", "CreateHookLoraModelOnly", "LoraLoader", "LoraLoaderBypass", "LoraLoaderBypassModelOnly",
        "LoraLoaderModelOnly", "TrainLoraNode",
    ),
    "model_patches": ("ModelPatchLoader",),
    "optical_flow": ("OpticalFlowLoader",),
    "photomaker": ("PhotoMakerLoader",),
    "style_models": ("StyleModelLoader",),
    "text_encoders": (
        "CLIPLoader", "DualCLIPLoader", "LTXAVTextEncoderLoader.text_encoder", "QuadrupleCLIPLoader",
        "TripleCLIPLoader",
    ),
    "upscale_models": ("UpscaleModelLoader",),
    "vae": ("VAELoader",),
}  # fmt: skip

# Custom nodes call their inputs as ComfyUI does; a name that means several folders in ComfyUI is not here.
_USUAL: Mapping[str, str] = {
    "ckpt_name": "checkpoints", "control_net_name": "controlnet", "lora_name": "loras",
    "style_model_name": "style_models", "unet_name": "diffusion_models", "vae_name": "vae",
}  # fmt: skip


def folder_read(kind: str, name: str, said: str) -> str:
    """Return the folder that a node's input reads from, nothing where it is not known.

    One of ComfyUI's own looks into its own folder, whatever a workflow has `said` of it.
    """
    own = (folder for folder, kinds in LOADERS.items() if kind in kinds or f"{kind}.{name}" in kinds)
    return next(own, "") or said or _USUAL.get(name, "")

"""ComfyUI images that can be trusted, booted into pods that lose nothing."""

__version__ = "0.1.0"

"""What ComfyUI's own Python runs before ComfyUI: on the standard library alone, by path, never imported by the rest."""

"""The one door: HTTP and WebSocket in front of ComfyUI and JupyterLab, with the login. A process of its own."""

"""An image's environment in small, with real wheels, and the layers over it."""

from __future__ import annotations

import os
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from comfypod.environment.layer import Layer, create, put_stubs
from tests.kit.wheels import build_wheel

if TYPE_CHECKING:
    from collections.abc import Sequence

PACKAGES = (
    ("torch", "2.9.1"), ("torchvision", "0.24.1"), ("numpy", "2.3.0"), ("opencv-python-headless", "4.12.0"),
    ("comfyui-frontend-package", "1.40.0"), ("plain", "1.0"), ("other", "1.0"),
)  # fmt: skip
MODULES = {
    "torch": {
        "torch/__init__.py": "from torch import version\n__version__ = version.__version__\n",
        "torch/version.py": "__version__ = '2.9.1+cu128'\ncuda = '12.8'\n",
    },
    "opencv-python-headless": {"cv2/__init__.py": "__version__ = '4.12.0'\n"},
}


@dataclass(frozen=True)
class Lab:
    """A folder with an image's environment, an index of wheels, and a workspace."""

    folder: Path

    @property
    def image(self) -> Path:
        return self.folder / "opt" / "venv"

    @property
    def index(self) -> Path:
        return self.folder / "index"

    @property
    def workspace(self) -> Path:
        return self.folder / "workspace"

    def layer(self, key: str = "k1", *, stubs: bool = True) -> Layer:
        """Make a layer, as the first boot does it."""
        layer = Layer(self.workspace / ".comfypod" / "envs" / key, key, self.image)
        create(layer)
        if stubs:
            put_stubs(layer)
        return layer

    def wheel(self, name: str, version: str, *, requires: Sequence[str] = (), tag: str = "py3-none-any") -> Path:
        return build_wheel(self.index, name, version, requires=requires, tag=tag)

    def environ(self, layer: Layer) -> dict[str, str]:
        """Return what a service sees, with the index of the test's in the place of the world's."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("PIP_", "UV_"))}
        own = {"UV_FIND_LINKS": str(self.index), "UV_NO_INDEX": "1", "UV_PYTHON_DOWNLOADS": "never"}
        own |= {"PIP_FIND_LINKS": str(self.index), "PIP_NO_INDEX": "1", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
        path = f"{layer.root / 'bin'}{os.pathsep}{kept['PATH']}"
        return {**kept, **own, **layer.environ(self.workspace / ".comfypod" / "cache"), "PATH": path}

    def run(self, layer: Layer, *argv: str) -> subprocess.CompletedProcess[str]:
        """Run a program as it runs in the pod."""
        return subprocess.run(
            argv, env=self.environ(layer), capture_output=True, text=True, check=False, cwd=self.folder, timeout=120
        )

    def said(self, layer: Layer, code: str) -> str:
        """Run code with the layer's Python; return what it prints."""
        done = self.run(layer, str(layer.python), "-c", code)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()


def make_lab(folder: Path) -> Lab:
    """Make the image's environment, with pip and the packages above; the index starts with the same wheels."""
    lab = Lab(folder)
    subprocess.run(["uv", "venv", "--quiet", "--no-project", "--seed", str(lab.image)], check=True)
    wheels = [build_wheel(lab.index, name, version, modules=MODULES.get(name)) for name, version in PACKAGES]
    python = str(lab.image / "bin" / "python")
    argv = ["uv", "pip", "install", "--quiet", "--no-index", "--python", python, *map(str, wheels)]
    subprocess.run(argv, check=True)
    lab.workspace.mkdir()
    return lab

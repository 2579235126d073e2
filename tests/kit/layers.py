"""A small image with a torch of a few bytes, its layer on a volume, and the packages that nodes ask for."""

from __future__ import annotations

import os
import shutil
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

from comfypod import proc, uv_program
from comfypod.environment.install import Wanted, install
from comfypod.environment.layer import Layer, create, put_stubs
from comfypod.workspace.layout import Layout
from tests.kit.wheels import build_wheel, only_these

if TYPE_CHECKING:
    from pathlib import Path

    from comfypod.environment.install import Installed

TORCH = "2.9.1"
_IMAGE = {
    ("torch", TORCH): {"torch/__init__.py": "from torch.version import __version__\n", "torch/version.py": ""},
    ("torchvision", "0.24.1"): {"torchvision/__init__.py": ""},
    ("torchaudio", TORCH): {"torchaudio/__init__.py": ""},
    ("numpy", "2.2.0"): {"numpy/__init__.py": '__version__ = "2.2.0"\n'},
    ("opencv-python-headless", "4.10.0"): {"cv2/__init__.py": 'who = "image"\n'},
}
# What must not count as the caller's wish: where packages come from is the test's to say.
_CALLERS = ("PIP_", "UV_", "PYTHON")


@dataclass(frozen=True)
class Volume:
    """A workspace with a layer over an image; `wheels` is all that an index would have."""

    layout: Layout
    layer: Layer
    wheels: Path

    @property
    def environ(self) -> dict[str, str]:
        """What an installer of ours is given."""
        clean = {name: value for name, value in os.environ.items() if not name.startswith(_CALLERS)}
        return {**clean, **only_these(self.wheels), "PIP_CONFIG_FILE": os.devnull}

    def install(self, *wanted: Wanted) -> Installed:
        return install(self.layer, self.layout, wanted, network=False, environ=self.environ)

    def wheel(self, name: str, version: str = "1.0", *requires: str, **modules: str) -> None:
        build_wheel(self.wheels, name, version, requires=requires, modules=modules or None)

    def run(self, *arguments: str, config: bool = True) -> proc.Completed:
        """Run the layer's Python as a script of a node would be, with pip's and uv's packages from `wheels`."""
        links = {"PIP_FIND_LINKS": str(self.wheels), "PIP_NO_INDEX": "1", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
        env = {**self.environ, **links, **(self.layer.environ(self.layout.cache) if config else {})}
        if config:
            del env["PIP_CONFIG_FILE"]
        return proc.run((str(self.layer.python), *arguments), seconds=120, env=env)

    def value(self, code: str) -> str:
        """Return what an expression is in the layer's Python."""
        done = self.run("-c", f"print({code})")
        assert done.ok, done.stderr
        return done.stdout.strip()

    def names(self) -> dict[str, str]:
        """Return all that is in the layer, by name with its contents.

        Locks, bytecode and what a killed writer left for the next one to remove do not count.
        """
        left_out = {"installing.lock", ".lock", "layer.json", ".layer.json.new", ".installing.json.new"}
        paths = (path for path in sorted(self.layer.root.rglob("*")) if "__pycache__" not in path.parts)
        return {
            str(path.relative_to(self.layer.root)): "" if path.is_dir() or path.is_symlink() else path.read_text()
            for path in paths
            if path.name not in left_out
        }

    def copy(self, root: Path) -> Volume:
        """Return a copy of the layer and the records of requests on another volume; paths in it are as before."""
        layout = Layout(root)
        shutil.copytree(self.layout.records, layout.records, symlinks=True)
        return Volume(layout, Layer(layout.envs / self.layer.key, self.layer.key, self.layer.image), self.wheels)


def make_image(folder: Path, torch: str = TORCH) -> Path:
    """Make the virtual environment of an image, with pip."""
    venv, wheels = folder / "venv", folder / "image-wheels"
    made = proc.run((sys.executable, "-m", "venv", str(venv)), seconds=120)
    assert made.ok, made.stderr
    for (name, version), modules in _IMAGE.items():
        contents = {**modules, "torch/version.py": f'__version__ = "{torch}"\ncuda = "12.8"\n'}
        own = {path: contents[path] for path in modules}
        build_wheel(wheels, name, torch if name == "torch" else version, modules=own)
    argv = uv_program.command("pip", "install", "--python", str(venv / "bin" / "python"), *(name for name, _ in _IMAGE))
    done = proc.run(argv, seconds=120, env={**os.environ, **only_these(wheels)})
    assert done.ok, done.stderr
    return venv


def make_volume(folder: Path, image: Path, key: str = "one") -> Volume:
    """Make a workspace with a fresh layer over an image."""
    layout = Layout(folder / "workspace")
    layer = Layer(layout.envs / key, key, image)
    layout.envs.mkdir(parents=True, exist_ok=True)
    create(layer)
    put_stubs(layer)
    wheels = folder / "wheels"
    wheels.mkdir(exist_ok=True)
    return Volume(layout, layer, wheels)


def make_bare_venv(folder: Path) -> Path:
    """Make a virtual environment with nothing in it."""
    made = proc.run(uv_program.command("venv", "--no-project", "--python", sys.executable, str(folder)), seconds=120)
    assert made.ok, made.stderr
    return folder

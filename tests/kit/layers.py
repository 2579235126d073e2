"""A small image with real wheels, layers over it on a volume, and an index of what people and nodes ask for."""

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
    from collections.abc import Sequence
    from pathlib import Path

    from comfypod.environment.install import Installed

TORCH = "2.9.1"
_PACKAGES = {
    "torch": TORCH, "torchvision": "0.24.1", "torchaudio": TORCH, "numpy": "2.3.0", "opencv-python-headless": "4.12.0",
    "comfyui-frontend-package": "1.40.0", "plain": "1.0", "other": "1.0",
}  # fmt: skip
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

    @property
    def seen(self) -> dict[str, str]:
        """What a service sees, with `wheels` in the place of the world's index."""
        links = {"PIP_FIND_LINKS": str(self.wheels), "PIP_NO_INDEX": "1", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
        path = f"{self.layer.root / 'bin'}{os.pathsep}{os.environ['PATH']}"
        found = {**self.environ, **links, **self.layer.environ(self.layout.cache), "PATH": path}
        del found["PIP_CONFIG_FILE"]
        return found

    def install(self, *wanted: Wanted) -> Installed:
        return install(self.layer, self.layout, wanted, network=False, environ=self.environ)

    def wheel(self, name: str, version: str = "1.0", *requires: str, **modules: str) -> None:
        build_wheel(self.wheels, name, version, requires=requires, modules=modules or None)

    def start(self, *argv: str) -> proc.Completed:
        """Run a program as it runs in the pod."""
        return proc.run(argv, seconds=120, env=self.seen)

    def run(self, *arguments: str) -> proc.Completed:
        """Run the layer's Python as a script of a node would be."""
        return self.start(str(self.layer.python), *arguments)

    def said(self, code: str) -> str:
        """Run code with the layer's Python; return what it prints."""
        done = self.run("-c", code)
        assert done.ok, done.stderr
        return done.stdout.strip()

    def value(self, code: str) -> str:
        """Return what an expression is in the layer's Python."""
        return self.said(f"print({code})")

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


@dataclass(frozen=True)
class Lab:
    """A folder with an image's environment, an index of wheels, and a workspace for any number of layers."""

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
        layer = Layer(Layout(self.workspace).envs / key, key, self.image)
        create(layer)
        if stubs:
            put_stubs(layer)
        return layer

    def wheel(self, name: str, version: str, *, requires: Sequence[str] = (), tag: str = "py3-none-any") -> Path:
        return build_wheel(self.index, name, version, requires=requires, tag=tag)

    def run(self, layer: Layer, *argv: str) -> proc.Completed:
        """Run a program as it runs in the pod."""
        return Volume(Layout(self.workspace), layer, self.index).start(*argv)

    def said(self, layer: Layer, code: str) -> str:
        """Run code with the layer's Python; return what it prints."""
        return Volume(Layout(self.workspace), layer, self.index).said(code)


def make_lab(folder: Path) -> Lab:
    """Make the image's environment; the index starts with the same wheels."""
    lab = Lab(folder)
    make_image(lab.image, lab.index)
    lab.workspace.mkdir()
    return lab


def make_volume(folder: Path, image: Path, key: str = "one") -> Volume:
    """Make a workspace with a fresh layer over an image, and an index with nothing in it."""
    layout = Layout(folder / "workspace")
    layer = Layer(layout.envs / key, key, image)
    layout.envs.mkdir(parents=True, exist_ok=True)
    create(layer)
    put_stubs(layer)
    wheels = folder / "wheels"
    wheels.mkdir(exist_ok=True)
    return Volume(layout, layer, wheels)


def make_image(venv: Path, wheels: Path, torch: str = TORCH) -> Path:
    """Make the virtual environment of an image, with pip, and the wheels of what is in it."""
    made = proc.run((sys.executable, "-m", "venv", str(venv)), seconds=120)
    assert made.ok, made.stderr
    modules = {
        "torch": {
            "torch/__init__.py": "from torch.version import __version__\n",
            "torch/version.py": f'__version__ = "{torch}+cu128"\ncuda = "12.8"\n',
        },
        "plain": {
            "plain.py": '__version__ = "1.0"\n',
            "plain-1.0.dist-info/entry_points.txt": "[console_scripts]\nplain = plain:main\n\n[kit.group]\na = plain\n",
        },
        "opencv-python-headless": {"cv2/__init__.py": 'who, __version__ = "image", "4.12.0"\n'},
    }
    for name, version in (_PACKAGES | {"torch": torch}).items():
        build_wheel(wheels, name, version, modules=modules.get(name))
    argv = uv_program.command("pip", "install", "--python", str(venv / "bin" / "python"), *_PACKAGES)
    done = proc.run(argv, seconds=120, env={**os.environ, **only_these(wheels)})
    assert done.ok, done.stderr
    return venv


def make_bare_venv(folder: Path) -> Path:
    """Make a virtual environment with nothing in it."""
    made = proc.run(uv_program.command("venv", "--no-project", "--python", sys.executable, str(folder)), seconds=120)
    assert made.ok, made.stderr
    return folder

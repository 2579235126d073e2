"""Manifests over a tiny ComfyUI in a folder, for tests that lock."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from comfypod.lock.python import own_requirements
from comfypod.manifest.load import parse
from comfypod.manifest.profiles import load_profiles
from tests.kit.repos import write_tree

if TYPE_CHECKING:
    from pathlib import Path

    from comfypod.manifest.schema import Manifest

TORCH = tuple((name, version) for name, _, version in (pin.partition("==") for pin in load_profiles()["cpu"].pins))
# What the running comfypod asks for, in the oldest version that will do.
OWN = tuple(re.split(r"[<>=!~,]+", line)[:2] for line in own_requirements())
HEAD = """\
schema = 1
profiles = [{profiles}]
[comfyui]
version = "{version}"
[[comfyui.source]]
kind = "path"
path = "tree"
[jupyter]
packages = ["jupyterlab"]
[python]
packages = [{packages}]
"""


def write_comfyui(folder: Path, version: str = "0.30.0", requirements: str = "torch\n") -> Path:
    """Write a tree that has what a lock reads of ComfyUI."""
    contents = {
        "main.py": "", "comfyui_version.py": f'__version__ = "{version}"\n', "requirements.txt": requirements,
    }  # fmt: skip
    return write_tree(folder, contents)


def write_manager(folder: Path, version: str = "4.0") -> Path:
    """Let the tree ask for ComfyUI-Manager."""
    return write_tree(folder, {"manager_requirements.txt": f"comfyui_manager=={version}\n"})


def manifest_text(*, profiles: str = '"cpu"', version: str = "0.30.0", packages: str = "", more: str = "") -> str:
    """Return a manifest whose ComfyUI is the folder `tree` beside it."""
    return HEAD.format(profiles=profiles, version=version, packages=packages) + more


def manifest(*, profiles: str = '"cpu"', version: str = "0.30.0", packages: str = "", more: str = "") -> Manifest:
    """Return the same, parsed."""
    return parse(manifest_text(profiles=profiles, version=version, packages=packages, more=more), "comfypod.toml")


def node(name: str, url: str, ref: str) -> str:
    """Return a node's table."""
    return f'[[node]]\nname = "{name}"\ngit = "{url}"\nref = "{ref}"\n'

"""Tiny wheels, trees and locks: small enough that real uv installs them in milliseconds."""

from __future__ import annotations

import sys
import zipfile
from typing import TYPE_CHECKING

from comfypod import files
from comfypod.lock.schema import SCHEMA, Environment, Lock, LockedComfyUI, LockedTarget, Package, Wheel
from comfypod.manifest.values import PathSource
from tests.kit.wheels import build_wheel

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

RUNNING = f"{sys.version_info.major}.{sys.version_info.minor}"


def wheel(
    folder: Path, name: str, version: str = "1.0", modules: Mapping[str, str] | None = None, *, squeeze: bool = False
) -> Package:
    """Write a wheel into a folder and return it as a locked package; `squeeze` compresses it."""
    path = build_wheel(folder, name, version, modules=modules)
    if squeeze:
        with zipfile.ZipFile(path) as archive:
            members = {member: archive.read(member) for member in archive.namelist()}
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for member, data in members.items():
                archive.writestr(member, data)
    return Package(name, version, (Wheel(path.name, files.sha256_file(path), path.stat().st_size),))


def tree(folder: Path) -> LockedComfyUI:
    """Make a ComfyUI tree of two files, and return it as locked with that folder as its source."""
    (folder / "comfy").mkdir(parents=True)
    (folder / "main.py").write_text("import comfy\n")
    (folder / "comfy" / "__init__.py").write_text("")
    facts = files.tree_facts(folder)
    return LockedComfyUI("0.30.0", facts.digest, facts.files, facts.bytes, (PathSource(str(folder)),))


def lock(comfyui: LockedComfyUI, *packages: Package, python: str = RUNNING) -> Lock:
    """Lock a tree and packages for profile cpu; JupyterLab's environment holds the last package alone."""
    return Lock(
        schema=SCHEMA,
        comfyui=comfyui,
        targets=(LockedTarget("cpu", "x86_64", "comfyui", "jupyter"),),
        environments=(
            Environment("comfyui", "comfyui", "x86_64", python, ("tiny",), packages),
            Environment("jupyter", "jupyter", "x86_64", python, ("tiny",), packages[-1:]),
        ),
    )

"""Tiny real wheels and source distributions, and the environment in which uv sees nothing else."""

from __future__ import annotations

import base64
import gzip
import hashlib
import io
import tarfile
import zipfile
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

_EPOCH = (1980, 1, 1, 0, 0, 0)
# A build backend in a few lines, for a wheel named setuptools: what it builds names the version that built it.
_BACKEND = """\
import pathlib, sys, zipfile

def build_editable(target, config_settings=None, metadata_directory=None):
    return build_wheel(target, editable=True)

def build_wheel(target, config_settings=None, metadata_directory=None, editable=False):
    if "{needs}":
        sys.exit("error: command '{needs}' failed: No such file or directory")
    stem = pathlib.Path("stem").read_text()
    target = pathlib.Path(target, stem + "-py3-none-any.whl")
    with zipfile.ZipFile(target, "w", strict_timestamps=False) as bundle:
        if editable:
            bundle.writestr(stem + ".pth", str(pathlib.Path("content").absolute()))
        for path in pathlib.Path("content").rglob("*.*"):
            if path.is_file() and not editable:
                bundle.write(path, path.relative_to("content"))
        bundle.write("PKG-INFO", stem + ".dist-info/METADATA")
        wheel = "Wheel-Version: 1.0\\nGenerator: setuptools {version}\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n"
        bundle.writestr(stem + ".dist-info/WHEEL", wheel)
        bundle.writestr(stem + ".dist-info/RECORD", "")
    return stem + "-py3-none-any.whl"
"""


def build_wheel(
    folder: Path,
    name: str,
    version: str,
    *,
    requires: Sequence[str] = (),
    tag: str = "py3-none-any",
    modules: Mapping[str, str] | None = None,
) -> Path:
    """Write a wheel with the modules given (by default one empty module of its name); the same bytes each time."""
    module = name.replace("-", "_")
    path = folder / f"{module}-{version}-{tag}.whl"
    info = f"{module}-{version}.dist-info"
    metadata = [f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}", *(f"Requires-Dist: {r}" for r in requires)]
    contents = {
        **(modules if modules is not None else {f"{module}.py": f'__version__ = "{version}"\n'}),
        f"{info}/METADATA": "\n".join(metadata) + "\n",
        f"{info}/WHEEL": f"Wheel-Version: 1.0\nGenerator: kit\nRoot-Is-Purelib: true\nTag: {tag}\n",
    }
    record = "".join(f"{file},{_hash(text)},{len(text.encode())}\n" for file, text in contents.items())
    contents[f"{info}/RECORD"] = record + f"{info}/RECORD,,\n"
    folder.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w") as bundle:
        for file, text in contents.items():
            bundle.writestr(zipfile.ZipInfo(file, _EPOCH), text)
    return path


def build_builder(folder: Path, version: str, *, needs: str = "") -> Path:
    """Write a wheel named setuptools that can build what `build_sdist` writes, unless it `needs` a program."""
    backend = _BACKEND.replace("{version}", version).replace("{needs}", needs)
    modules = {"setuptools/__init__.py": "", "setuptools/build_meta.py": backend}
    return build_wheel(folder, "setuptools", version, modules=modules)


def build_sdist(
    folder: Path, name: str, version: str, *, requires: Sequence[str] = (), builders: Sequence[str] = ("setuptools",)
) -> Path:
    """Write a source distribution whose metadata is known only after it is built; the same bytes each time."""
    stem = f"{name.replace('-', '_')}-{version}"
    metadata = [f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}", *(f"Requires-Dist: {r}" for r in requires)]
    listed = ", ".join(f'"{builder}"' for builder in builders)
    contents = {
        "pyproject.toml": f'[build-system]\nrequires = [{listed}]\nbuild-backend = "setuptools.build_meta"\n',
        "PKG-INFO": "\n".join(metadata) + "\n",
        "stem": stem,
        f"content/{name.replace('-', '_')}.py": f'__version__ = "{version}"\n',
    }
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as bundle:
        for file, text in contents.items():
            member = tarfile.TarInfo(f"{stem}/{file}")
            member.size = len(text.encode())
            bundle.addfile(member, io.BytesIO(text.encode()))
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{stem}.tar.gz"
    path.write_bytes(gzip.compress(packed.getvalue(), mtime=0))
    return path


def _hash(text: str) -> str:
    digest = hashlib.sha256(text.encode()).digest()
    return "sha256=" + base64.urlsafe_b64encode(digest).rstrip(b"=").decode()


def only_these(folder: Path) -> dict[str, str]:
    """Return the environment variables under which uv knows the packages of a folder and no index."""
    return {"UV_FIND_LINKS": str(folder), "UV_NO_INDEX": "1", "UV_OFFLINE": "1", "UV_CACHE_DIR": str(folder / ".cache")}

"""Tiny real wheels, and the environment in which uv sees nothing else."""

from __future__ import annotations

import base64
import hashlib
import zipfile
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

_EPOCH = (1980, 1, 1, 0, 0, 0)


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


def _hash(text: str) -> str:
    digest = hashlib.sha256(text.encode()).digest()
    return "sha256=" + base64.urlsafe_b64encode(digest).rstrip(b"=").decode()


def only_these(folder: Path) -> dict[str, str]:
    """Return the environment variables under which uv knows the wheels of a folder and no index."""
    return {"UV_FIND_LINKS": str(folder), "UV_NO_INDEX": "1", "UV_OFFLINE": "1", "UV_CACHE_DIR": str(folder / ".cache")}

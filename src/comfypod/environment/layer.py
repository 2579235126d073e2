"""A virtual environment on the volume that lies over the image's, so that only what the user adds is on the volume.

The image's packages are found through a path file, which is enough for Python and pip. For uv, which reads no path
files, each has a stub in the layer: a `.dist-info` folder with what its `METADATA` says above the description, its
entry points and a `RECORD` of just that folder. To upgrade such a package puts the new one before the image's, and to
remove it uncovers the image's again. Python takes a stub for the package too: without entry points triton would find
no GPU. Stubs are many small files, so they are made when ComfyUI no longer waits for the disk.
"""

from __future__ import annotations

import json
import os
import re
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from comfypod.environment import dists, protect
from comfypod.errors import InstallError
from comfypod.files import is_folder, make_folder, read_small, remove_tree, write_atomic, write_changed

if TYPE_CHECKING:
    from collections.abc import Iterator

    from comfypod.environment.dists import Dist
    from comfypod.podfile import PodFile
    from comfypod.workspace.layout import Layout

SCHEMA = 1
STUB = "comfypod"
PATH_FILE, LOCAL_FILE = "_comfypod_image.pth", "_comfypod_local.pth"
# What is a file, or a link to one; nodes can write there.
_FILES = (
    "layer.json", "pyvenv.cfg", "constraints.txt", "pip.conf", "installing.json", "installing.lock", "bin/python",
    "bin/python3",
)  # fmt: skip
_WRITERS = 8
# What the marker says of stubs that are whole; `true` of ones without entry points.
_STUBS = 2
_SCRIPTS = ("[console_scripts]", "[gui_scripts]")
_PIP = '#!/bin/sh\nexec "$(dirname "$0")/python" -m pip "$@"\n'
# ComfyUI-Manager's command line asks to be told where ComfyUI is; that is beside the records that the layer is in.
_MANAGER = """\
#!/bin/sh
here=$(dirname "$0")
: "${COMFYUI_PATH:=$(cd "$here/../../../../ComfyUI" && pwd)}"
export COMFYUI_PATH
exec "$here/python" -m cm_cli "$@"
"""


@dataclass(frozen=True)
class Layer:
    """The layer of one key, complete or not. `image` is the virtual environment that it lies over."""

    root: Path
    key: str
    image: Path

    @property
    def python(self) -> Path:
        """The interpreter that ComfyUI and installers are started with."""
        return self.root / "bin" / "python"

    @cached_property
    def image_site(self) -> Path:
        """The image's site-packages.

        Raises:
            InstallError: there is none.
        """
        found = sorted(self.image.glob("lib/python3.*/site-packages"))
        if not found:
            raise InstallError(f"{self.image} is no virtual environment", "pull the image again, or run `comfypod up`")
        return found[0]

    @cached_property
    def site(self) -> Path:
        """The layer's own site-packages."""
        return self.root / "lib" / self.image_site.parent.name / "site-packages"

    @property
    def sites(self) -> list[Path]:
        """The layer's own site-packages, whatever Python its image had."""
        return sorted(self.root.glob("lib/python3.*/site-packages"))

    @property
    def constraints(self) -> Path:
        """What holds for every installer, as a constraints file."""
        return self.root / "constraints.txt"

    @property
    def marker(self) -> Path:
        """Says that the layer is complete, and what it was made from."""
        return self.root / "layer.json"

    @cached_property
    def image_dists(self) -> dict[str, Dist]:
        """The image's distributions by name."""
        return dists.scan(self.image_site)

    @cached_property
    def known(self) -> dict[str, Dist]:
        """The image's distributions, and those that count as installed because of them."""
        return {**protect.aliases(self.image_dists), **self.image_dists}

    def environ(self, cache: Path) -> dict[str, str]:
        """Return what an installer must see, whoever starts it: constraints, and caches on the volume."""
        bounds = str(self.constraints)
        return {
            "PIP_CONSTRAINT": bounds, "UV_CONSTRAINT": bounds, "VIRTUAL_ENV": str(self.root),
            "PIP_CACHE_DIR": str(cache / "pip"), "UV_CACHE_DIR": str(cache / "uv"),
        }  # fmt: skip


def layer_of(pod: PodFile, layout: Layout) -> Layer:
    """Return the layer that belongs to an image's environment; nothing is looked at."""
    digits = pod.environment_key.removeprefix("sha256:")[:12]
    key = f"torch{pod.torch or 'none'}-{os.uname().machine}-{digits}"
    return Layer(layout.envs / key, key, Path(pod.python).parent.parent)


def read_marker(layer: Layer) -> dict[str, Any] | None:
    """Return what `create` has written, None where the layer is not complete, or of another schema."""
    try:
        body = json.loads(read_small(layer.marker))
    except (OSError, ValueError, RecursionError):
        return None
    sound = isinstance(body, dict) and body.get("schema") == SCHEMA and isinstance(body.get("root"), str)
    return body if sound and _is_shallow(body, 3) else None


def _is_shallow(value: Any, depth: int) -> bool:
    """Whether a value can be written again: something may be read that is too deep for that."""
    inner = list(value.values()) if isinstance(value, dict) else value
    return not isinstance(inner, list) or (depth > 0 and all(_is_shallow(each, depth - 1) for each in inner))


def create(layer: Layer) -> None:
    """Make a layer with nothing in it but the image's packages.

    Raises:
        InstallError: the image has no environment.
        OSError: the disk failed.
    """
    lay_out(layer)
    remember(layer, stubs=False)


def lay_out(layer: Layer) -> None:
    """Make what `create` makes and do not say yet that it is complete; what is left of an earlier try is removed.

    Raises:
        InstallError: the image has no environment.
        OSError: the disk failed.
    """
    remove_tree(layer.root)
    layer.site.mkdir(parents=True)
    restore(layer)
    (layer.root / "lib64").symlink_to("lib")


def in_the_way(layer: Layer) -> Iterator[Path]:
    """Yield what stands where a folder of the layer has to be and is none, or where a file and is a folder.

    Whoever takes each away at once is not led astray: what lies behind a link is not looked at then.
    """
    for path in (layer.root, layer.root / "bin", layer.root / "lib", layer.site.parent, layer.site):
        if os.path.lexists(path) and not is_folder(path):
            yield path
    names = (layer.root / "bin" / layer.site.parent.name, layer.site / PATH_FILE, layer.site / LOCAL_FILE)
    for path in (*names, *(layer.root / name for name in _FILES)):
        if is_folder(path):
            yield path


def remember(layer: Layer, **facts: Any) -> None:
    """Say that a layer is complete where it is now, and remember more of it than what is known already.

    Raises:
        OSError: the disk failed.
    """
    known = read_marker(layer) or {}
    place = {"schema": SCHEMA, "key": layer.key, "root": str(layer.root), "image": str(layer.image)}
    write_atomic(layer.marker, (json.dumps({**known, **place, **facts}, indent=1) + "\n").encode())


def put_stubs(layer: Layer) -> None:
    """Make the stubs of a layer that has none yet, or not all; afterwards a name without one was removed by somebody.

    What a user has of that name stays, and a stub that was cut short or is of an earlier kind is made again.

    Raises:
        OSError: the disk failed.
    """
    marker = read_marker(layer)
    before = marker.get("stubs") if marker is not None else None
    if before == _STUBS:
        return
    there = dists.scan(layer.site)
    wanted = [
        dist for dist in layer.known.values() if there.get(dist.name) == dist or (not before and dist.name not in there)
    ]
    with ThreadPoolExecutor(_WRITERS) as writers:
        list(writers.map(lambda dist: put_stub(layer, dist), wanted))
    if marker is not None:
        remember(layer, stubs=_STUBS)


def is_stub(layer: Layer, dist: Dist) -> bool:
    """Whether a distribution of the layer only stands for one that the image has."""
    return layer.known.get(dist.name) == dist and dists.installer(layer.site, dist) == STUB


def path_line(image_site: Path) -> str:
    """Return what lets Python find the image's packages after the layer's."""
    return f"import site; site.addsitedir({str(image_site)!r})\n"


def restore(layer: Layer) -> None:
    """Have the layer's Python be the one that the image has here and now, and its constraints as they were made.

    Whoever has changed them meanwhile. The constraints lie also where a pip finds them that has no environment of ours.

    Raises:
        InstallError: the image has no environment.
        OSError: the disk failed.
    """
    program, config = _base(layer)
    make_folder(layer.root / "bin")
    _programs(layer)
    for name in ("python", "python3", program.name):
        link = layer.root / "bin" / name
        if not (link.is_symlink() and link.readlink() == program):
            link.unlink(missing_ok=True)
            link.symlink_to(program)
    bounds = "".join(f"{line}\n" for line in protect.constraints(layer.image_dists))
    wanted = {
        layer.root / "pyvenv.cfg": config.encode(), layer.site / PATH_FILE: path_line(layer.image_site).encode(),
        layer.constraints: bounds.encode(),
        layer.root / "pip.conf": b"[global]\nconstraint = " + os.fsencode(layer.constraints) + b"\n",
    }  # fmt: skip
    for path, data in wanted.items():
        write_changed(path, data, durable=False)


def _base(layer: Layer) -> tuple[Path, str]:
    """Return the program that the image's Python is, and the layer's `pyvenv.cfg`."""
    config = layer.image / "pyvenv.cfg"
    home = next(
        (line.partition("=")[2].strip() for line in config.read_text("utf-8").splitlines() if line.startswith("home")),
        "",
    )
    version = layer.image_site.parent.name.removeprefix("python")
    program = Path(home) / f"python{version}"
    if not home or not os.access(program, os.X_OK):
        raise InstallError(f"{config} names no Python {version}", "pull the image again, or run `comfypod up`")
    return program, f"home = {home}\ninclude-system-site-packages = false\nversion = {version}\n"


def _programs(layer: Layer) -> None:
    """Write the programs whose namesakes in the image would install into the image."""
    texts = {"pip": _PIP, "pip3": _PIP, "cm-cli": _MANAGER}
    for name, text in texts.items():
        script = layer.root / "bin" / name
        if not os.path.lexists(script):
            write_atomic(script, text.encode(), 0o755, durable=False)


def put_stub(layer: Layer, dist: Dist) -> None:
    """Let pip and uv see a distribution of the image (or one that it stands for) as installed in the layer.

    What somebody else has put there stays, and no link is followed.
    """
    folder = layer.site / dist.info
    if os.path.lexists(folder) and not (is_folder(folder) and dists.installer(layer.site, dist) in ("", STUB)):
        return
    source = layer.image_site / dist.info
    own = f"Metadata-Version: 2.1\nName: {dist.name}\nVersion: {dist.version}\n"
    texts = {
        "METADATA": re.split(r"\r?\n\r?\n", _text(source / "METADATA") or own, maxsplit=1)[0].rstrip() + "\n",
        "entry_points.txt": _without_scripts(_text(source / "entry_points.txt")), "INSTALLER": f"{STUB}\n",
    }  # fmt: skip
    texts = {name: text for name, text in texts.items() if text}
    texts["RECORD"] = "".join(f"{dist.info}/{name},,\n" for name in (*texts, "RECORD"))
    folder.mkdir(exist_ok=True)
    for name, text in texts.items():
        write_atomic(folder / name, text.encode("utf-8", "surrogateescape"), durable=False)


def _text(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8", "surrogateescape")
    except FileNotFoundError:
        return ""


def _without_scripts(text: str) -> str:
    """Return entry points but for programs: those are not in the layer, and not for an uninstaller to remove there."""
    sections = re.split(r"(?m)^(?=\[)", text)
    return "".join(each for each in sections if not each.startswith(_SCRIPTS)).strip()

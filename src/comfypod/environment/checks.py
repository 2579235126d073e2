"""Whether packages that wait for their place in a layer may be believed: files, modules, and torch as before."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any

from comfypod import proc
from comfypod.environment import dists, protect, requests
from comfypod.errors import InstallError
from comfypod.uv_program import last_lines

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

    from comfypod.environment.denied import Denied
    from comfypod.environment.dists import Dist
    from comfypod.environment.layer import Layer

_SECONDS = 120.0
# What the image has of these is what is imported; numpy may be another one of the same major.
_KEPT = ("torch", "torchvision", "torchaudio", "triton", "cv2", "onnxruntime", "numpy")
_ENDS = (".py", ".abi3.so", ".so")
# As ComfyUI's Python will find them, with what waits in front: nothing of it is imported or run.
_FIND = """
import importlib.util, json, sys
folder, names = sys.argv[1], json.loads(sys.argv[2])
sys.path.insert(0, folder)
def place(name):
    found = importlib.util.find_spec(name)
    if found is None:
        return None
    return found.origin or next(iter(found.submodule_search_locations or ()), "")
print(json.dumps({name: place(name) for name in names}))
"""


def check(layer: Layer, site: Path, prefix: Path, names: Iterable[str], denied: Denied) -> None:
    """Check what an installer has put below `prefix`; `names` is what it said it would.

    Raises:
        InstallError: something of it is missing or denied, or would take the place of what stays.
    """
    here = dists.scan(site) if site.is_dir() else {}
    for name in names:
        if name not in here:
            raise InstallError(f"the installer said that {name} is installed, and nothing is there")
    modules: dict[str, str] = {}
    for dist in here.values():
        if package := denied.package(dist):
            raise InstallError(f"{dist} is denied: {package.reason}")
        if not protect.is_allowed(layer.image_dists, dist):
            raise InstallError(f"{dist} would take the place of what the image has")
        modules |= dict.fromkeys(_modules_of(site, prefix, dist), dist.name)
    _find(layer, site, modules)


def requires(site: Path) -> dict[str, list[str]]:
    """Return what each distribution of a folder says that it needs, as lines."""
    return {name: _requires(site, dist) for name, dist in (dists.scan(site) if site.is_dir() else {}).items()}


def unrequest(site: Path) -> None:
    """Take away the mark of what was asked for by name: who asked for what stands in our record, this was uv's list.

    Raises:
        OSError: the disk failed.
    """
    for dist in dists.scan(site).values() if site.is_dir() else ():
        mark, record = site / dist.info / "REQUESTED", site / dist.info / "RECORD"
        if mark.exists():
            mark.unlink()
            lines = record.read_text("utf-8", "surrogateescape").splitlines(keepends=True)
            kept = [line for line in lines if not line.startswith(f"{dist.info}/REQUESTED,")]
            # It may be a hard link into uv's cache.
            record.unlink()
            record.write_text("".join(kept), "utf-8", "surrogateescape")


def _requires(site: Path, dist: Dist) -> list[str]:
    head = (site / dist.info / "METADATA").read_text("utf-8", "replace").partition("\n\n")[0]
    return [line.partition(":")[2].strip() for line in head.splitlines() if line.startswith("Requires-Dist:")]


def _modules_of(site: Path, prefix: Path, dist: Dist) -> list[str]:
    """Return the top-level modules of a distribution whose files are all there."""
    try:
        names = [name for name in dists.files_of(site, dist) if not name.startswith(f"{dist.info}/")]
    except OSError as error:
        raise InstallError(f"{dist}: its list of files cannot be read: {error}") from error
    for name in names:
        path = os.path.normpath(site / name)
        if not path.startswith(f"{prefix}{os.sep}"):
            raise InstallError(f"{dist} has a file outside of the environment: {name}")
        if dists.is_ours(os.path.relpath(path, prefix)):
            raise InstallError(f"{dist} brings a file of the environment itself: {name}")
        if not os.path.lexists(path):
            raise InstallError(f"{dist} was installed without its file {name}")
    if not names and not _requires(site, dist):
        raise InstallError(f"{dist} was installed and there is nothing in it")
    return sorted({module for name in names if (module := _module(name)) is not None})


def _module(name: str) -> str | None:
    """Return the top-level module that a file stands for."""
    first, _, rest = name.partition("/")
    if first.startswith("__"):
        return None
    if rest:
        return first if rest == "__init__.py" and first.isidentifier() else None
    stem = first.split(".")[0]
    return stem if first.endswith(_ENDS) and stem.isidentifier() else None


def _find(layer: Layer, site: Path, modules: Mapping[str, str]) -> None:
    kept = _kept(layer, site)
    places = _places(layer, site, [*modules, *kept])
    for module, dist in modules.items():
        if places.get(module) is None:
            raise InstallError(f"{dist} was installed and its module {module} is not found")
    for module in kept:
        if not str(places.get(module)).startswith(f"{layer.image_site}{os.sep}"):
            culprit = modules.get(module, "what was installed")
            raise InstallError(f"{culprit} brings a module {module} that would stand before the image's")


def _kept(layer: Layer, site: Path) -> list[str]:
    """Return the modules that are the image's; numpy is where neither the layer nor what waits has a numpy."""
    own = {*dists.scan(site), *(dist.name for dist in requests.added(layer).values())}
    here = (name for name in _KEPT if any((layer.image_site / f"{name}{end}").exists() for end in ("", ".py")))
    return [name for name in here if name not in own or protect.is_pinned(name)]


def _places(layer: Layer, site: Path, modules: Sequence[str]) -> dict[str, Any]:
    argv = (str(layer.python), "-I", "-c", _FIND, str(site), json.dumps(list(modules)))
    done = proc.run(argv, seconds=_SECONDS)
    if done.timed_out:
        raise InstallError(f"with what was installed Python did not start within {_SECONDS:.0f} s")
    try:
        found: Any = json.loads(done.stdout.splitlines()[-1])
    except (ValueError, IndexError) as error:
        raise InstallError(f"with what was installed Python does not start: {last_lines(done)}") from error
    if not isinstance(found, dict):
        raise InstallError("with what was installed Python does not say what it finds")
    return found

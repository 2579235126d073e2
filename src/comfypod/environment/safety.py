"""What may not stay in a layer is moved out of it before any Python of the layer starts: nothing here runs any of it.

Denied distributions, those that may not stand before the image's, and what a start of Python would run that nobody
knows. The files of a distribution are gathered in one folder first, its `.dist-info` last of all, so that what a kill
cut short is found again.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import TYPE_CHECKING

from comfypod.environment import denied as lists
from comfypod.environment import protect, startup
from comfypod.environment.dists import among, parse_info, recorded
from comfypod.environment.layer import PATH_FILE, is_stub, put_stub, restore
from comfypod.environment.look import examine
from comfypod.errors import Problem
from comfypod.files import is_folder, make_folder, read_small, storage_errors
from comfypod.workspace.aside import put_aside

if TYPE_CHECKING:
    from collections.abc import Iterator

    from comfypod.environment.dists import Dist
    from comfypod.environment.layer import Layer
    from comfypod.environment.startup import Startup
    from comfypod.workspace.layout import Layout

_LEAVING = "leaving"


def clean(layer: Layer, layout: Layout) -> tuple[Problem, ...]:
    """Move out of a layer what may not stay in it; return what that was.

    It looks each time, at names and at few files: what is noted of a layer may have been written by anybody.

    Raises:
        StorageError: the disk refused; what was not moved yet is where it was.
    """
    with storage_errors(f"cannot clean {layer.site}"):
        return tuple(_cleaned(layer, layout))


def _cleaned(layer: Layer, layout: Layout) -> Iterator[Problem]:
    denied, unusable = lists.load(layout.denied)
    if unusable:
        yield Problem("denied", f"{layout.denied} is not used: {unusable}", "mend it, or move it away")
    yield from _left_over(layer, layout)
    changes = examine(layer, guarded=True).changes
    refused = {(each.name, each.version): each.image for each in changes if each.state == "refused"}
    for dist in among(os.listdir(layer.site)):
        package = denied.package(dist)
        if package is not None and not is_stub(layer, dist):
            yield _leave(layer, layout, dist, "denied", f"{dist} is denied: {package.reason}")
        elif (dist.name, dist.version) in refused:
            image = refused[dist.name, dist.version]
            yield _leave(layer, layout, dist, "refused", f"{dist} may not stand before the image's {image}")
    yield from _copies(layer, layout, {name for name, version in refused if not version})
    for found in startup.unknown(layer.site, layer.image_site):
        if _digest(layer.site / found.file) not in denied.allowed:
            yield _started(layer, layout, found)


def _leave(layer: Layer, layout: Layout, dist: Dist, code: str, why: str) -> Problem:
    """Gather a distribution's files, its `.dist-info` last, and set them aside as one thing."""
    stage = layer.root / _LEAVING / dist.info.removesuffix(".dist-info")
    for path in _files(layer, dist):
        _gather(layer, stage, path)
        if path.suffix == ".py":
            for compiled in _compiled(path):
                _gather(layer, stage, compiled)
        _prune(layer, path.parent)
    _gather(layer, stage, layer.site / dist.info)
    place = _away(layer, layout, stage, dist, why)
    return Problem(code, f"{why}; it was taken out of {layer.root}", f"install another version; its files are {place}")


def _away(layer: Layer, layout: Layout, stage: Path, dist: Dist, why: str) -> Path:
    # The stub comes first: once the gathered files are away, nothing says that it is owed.
    if dist.name in layer.known:
        put_stub(layer, layer.known[dist.name])
    return put_aside(layout, stage, why)


def _left_over(layer: Layer, layout: Layout) -> Iterator[Problem]:
    """Set aside what a kill left gathered; what it left in place is gathered anew afterwards."""
    stages = layer.root / _LEAVING
    if stages.is_symlink():
        put_aside(layout, stages, "a link stands where a folder is needed")
    names = sorted(os.listdir(stages)) if stages.is_dir() else []
    for name in (name for name in names if not name.endswith(".disabled")):
        dist = parse_info(f"{name}.dist-info")
        why = f"{dist or name} was taken out of {layer.root}, and the pod was killed meanwhile"
        stage = stages / name
        place = put_aside(layout, stage, why) if dist is None else _away(layer, layout, stage, dist, why)
        yield Problem("refused", why, f"its files are {place}")


def _files(layer: Layer, dist: Dist) -> list[Path]:
    """Return the files that a distribution has by its own account, without those that are not its to name."""
    paths = [Path(os.path.normpath(layer.site / name)) for name in recorded(layer.site, dist)]
    found = [path for path in paths if os.path.lexists(path) and not is_folder(path) and _is_its_own(layer, path)]
    module = layer.site / dist.name.replace("-", "_")
    return found or [path for path in (module, module.with_suffix(".py")) if os.path.lexists(path)]


def _is_its_own(layer: Layer, path: Path) -> bool:
    """Whether a distribution may name a path as its file: in the layer, and nothing that the layer itself needs."""
    if not path.is_relative_to(layer.root) or not path.parent.resolve().is_relative_to(layer.root.resolve()):
        return False
    first, *rest = path.relative_to(layer.root).parts
    ours = first == "bin" and rest[:1] != [] and rest[0].startswith(("python", "pip"))
    return bool(rest) and not ours and not any(part.startswith("_comfypod_") or _is_info(part) for part in rest)


def _is_info(part: str) -> bool:
    return part.endswith(".dist-info")


def _compiled(path: Path) -> list[Path]:
    """Return what Python has compiled of a module, which no `RECORD` names."""
    folder = path.parent / "__pycache__"
    names = os.listdir(folder) if is_folder(folder) else []
    return [folder / name for name in names if name.startswith(f"{path.stem}.")]


def _gather(layer: Layer, stage: Path, path: Path) -> None:
    place = stage / path.relative_to(layer.root)
    make_folder(place.parent)
    path.rename(place)


def _prune(layer: Layer, folder: Path) -> None:
    """Remove folders that are empty now, so that no empty package is left in the way of the image's."""
    for each in (folder / "__pycache__", folder, *folder.parents):
        if layer.site not in each.parents:
            return
        try:
            each.rmdir()
        except FileNotFoundError:
            continue
        except OSError:
            return


def _copies(layer: Layer, layout: Layout, names: set[str]) -> Iterator[Problem]:
    """Set aside modules that stand before the image's though no distribution has brought them."""
    modules = [module for module, name in protect.MODULES.items() if name in names]
    for path in (layer.site / file for module in modules for file in (module, f"{module}.py")):
        if os.path.lexists(path):
            why = f"{path.name} was copied by hand and may not stand before the image's"
            place = put_aside(layout, path, why)
            yield Problem("refused", f"{path} was set aside: {why}", f"nothing of it is lost: it is {place}")


def _started(layer: Layer, layout: Layout, found: Startup) -> Problem:
    path = layer.site / found.file
    digest = _digest(path)
    by = next((f" of {dist}" for dist in among(os.listdir(layer.site)) if path in _files(layer, dist)), "")
    why = f"any start of Python would run its line {found.line}: {found.text}"
    place = put_aside(layout, path, why)
    if not (layer.site / PATH_FILE).exists():
        restore(layer)
    wanted = f"if that is wanted, add {digest!r} to `allowed` in {layout.denied}, then move {place} back"
    return Problem("startup-code", f"{path}{by} was set aside: {why}", wanted if digest else f"it is {place}")


def _digest(path: Path) -> str:
    """Return the SHA-256 of a small file, empty where there is none to read."""
    try:
        return hashlib.sha256(read_small(path)).hexdigest()
    except OSError:
        return ""

"""What any start of Python runs by itself: path files and the modules of `site`. Only read, never run."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from comfypod.environment.layer import path_line
from comfypod.files import read_small

if TYPE_CHECKING:
    from pathlib import Path

_RUN = ("import ", "import\t")
_MODULES = frozenset({"sitecustomize", "usercustomize"})
# What setuptools wrote for namespace packages before Python had them, over and over.
_NAMESPACE = (
    "import sys, types, os;has_mfs = sys.version_info > (3, 5);"
    "p = os.path.join(sys._getframe(1).f_locals['sitedir'], *(PARTS));"
    "importlib = has_mfs and __import__('importlib.util');has_mfs and __import__('importlib.machinery');"
    "m = has_mfs and sys.modules.setdefault('NAME', importlib.util.module_from_spec("
    "importlib.machinery.PathFinder.find_spec('NAME', [os.path.dirname(p)])));"
    "m = m or sys.modules.setdefault('NAME', types.ModuleType('NAME'));"
    "mp = (m or []) and m.__dict__.setdefault('__path__',[]);(p not in mp) and mp.append(p)"
)
# Lines that are known, whatever the name of their file, for a name can be given to anything.
_KNOWN = (
    re.escape(_NAMESPACE).replace("PARTS", r"(?:'\w+',? ?)+").replace("NAME", r"[\w.]+")
    + r"(;m and setattr\(sys\.modules\['[\w.]+'\], '\w+', m\))?",
    r"import os; var = 'SETUPTOOLS_USE_DISTUTILS'; enabled = os\.environ\.get\(var, '(local|stdlib)'\) == 'local'; "
    r"enabled and __import__\('_distutils_hack'\)(\.add_shim\(\))?;?",
    r"import _virtualenv",
    r"import __editable___(?P<name>\w+)_finder; __editable___(?P=name)_finder\.install\(\)",
    # Ours, see `mirror.py`.
    r"import os, sys; place = '[^'\\]*'; os\.path\.isdir\(place\) and "
    r"sys\.path\.insert\(sys\.path\.index\('[^'\\]*'\), place\)",
)


@dataclass(frozen=True, slots=True)
class Startup:
    """A file that a start of Python would run something of: its name in site-packages, the first line of that."""

    file: str
    line: int
    text: str


def unknown(site: Path, image_site: Path) -> tuple[Startup, ...]:
    """Return what a layer's folder would run at any start of Python that nobody knows, sorted by name.

    Raises:
        OSError: the folder cannot be listed.
    """
    known = re.compile("|".join((*_KNOWN, re.escape(path_line(image_site).rstrip()))))
    found = (_look(site, name, known) for name in sorted(os.listdir(site)))
    return tuple(each for each in found if each is not None)


def _look(site: Path, name: str, known: re.Pattern[str]) -> Startup | None:
    path = site / name
    if name.partition(".")[0] in _MODULES:
        return Startup(name, 1, "a module that Python imports")
    if not name.endswith(".pth") or path.is_dir():
        return None
    try:
        data = read_small(path)
    except OSError as error:
        return Startup(name, 1, f"it cannot be read: {error.strerror}")
    # Read as `site` reads it, whichever Python's: a line may end at any of the line ends that there are.
    lines = enumerate(data.decode("utf-8-sig", "replace").splitlines(), 1)
    run = ((number, line) for number, line in lines if line.startswith(_RUN) and not known.fullmatch(line.rstrip()))
    first = next(run, None)
    return Startup(name, first[0], first[1][:200]) if first is not None else None

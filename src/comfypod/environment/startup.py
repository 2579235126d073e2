"""What any start of Python runs by itself: path files and the modules of `site`. Only read, never run.

A line of a path file is run, or it is a folder in which Python looks for modules, those of `site` too. In such a folder
no further path files count.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from comfypod.environment.layer import path_line
from comfypod.files import read_small

_RUN = ("import ", "import\t")
_END = re.compile("\r\n|\r|\n")
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
    r"import os, sys; place = '(?P<place>[^'\\]*)'; os\.path\.isdir\(place\) and "
    r"sys\.path\.insert\(sys\.path\.index\('[^'\\]*'\), place\)",
)


@dataclass(frozen=True, slots=True)
class Startup:
    """A file that a start of Python would run something of: its name in site-packages, the first line of that.

    `text` is the line, and what it leads to.
    """

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
    if _is_module(name):
        return Startup(name, 1, "a module that Python imports")
    if not name.endswith(".pth") or (site / name).is_dir():
        return None
    try:
        text = read_small(site / name).decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        return Startup(name, 1, f"it cannot be read: {error}")
    lines = ((number, line) for number, whole in enumerate(_END.split(text), 1) for line in _readings(whole))
    wrong = ((number, why) for number, line in lines if (why := _why(site, line.rstrip(), known)))
    first = next(wrong, None)
    return Startup(name, *first) if first is not None else None


def _readings(line: str) -> tuple[str, ...]:
    """Return what Pythons make of a line: newer ones leave out a byte order mark, and end lines in more places."""
    return (line, *line.removeprefix("\ufeff").splitlines())


def _why(site: Path, line: str, known: re.Pattern[str]) -> str:
    """Return what a line of a path file would start that nobody knows, empty where there is no such thing."""
    ours = known.fullmatch(line) if line.startswith(_RUN) else None
    if line.startswith(_RUN) and ours is None:
        return line[:200]
    folder = line if ours is None else ours["place"]
    if not folder or folder.startswith("#"):
        return ""
    place = Path(os.path.normpath(site / folder))
    try:
        names = sorted(os.listdir(place))
    except NotADirectoryError:
        return f"{line[:200]} (an archive is there)"
    except (OSError, ValueError):
        # Python does not look there either.
        return ""
    return next((f"{line[:200]} ({place / name} is there)" for name in names if _is_module(name)), "")


def _is_module(name: str) -> bool:
    return name.partition(".")[0] in _MODULES

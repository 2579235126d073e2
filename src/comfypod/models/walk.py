"""All files below a folder, links to folders followed as ComfyUI follows them, each folder once."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator


def files_below(folders: Iterable[Path]) -> Iterator[Path]:
    """Yield files in the order of their names, none that is hidden or lies in a hidden folder."""
    seen: set[str] = set()
    for folder in folders:
        for path, names, files in os.walk(folder, followlinks=True):
            if (real := os.path.realpath(path)) in seen:
                names.clear()
                continue
            seen.add(real)
            names[:] = sorted(name for name in names if not name.startswith("."))
            yield from (Path(path, name) for name in sorted(files) if not name.startswith("."))

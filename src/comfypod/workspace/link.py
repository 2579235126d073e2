"""The image's own link to the live ComfyUI, pointed at the volume by one rename."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path


def leads_to(link: Path, target: Path) -> bool:
    """Whether a link leads there already."""
    return link.is_symlink() and os.path.realpath(link) == os.path.realpath(target)


def repoint(link: Path, target: Path) -> None:
    """Make `link` a link to `target`; there is no moment without one.

    Raises:
        FileExistsError: something that is no link stands there; it is left alone.
        OSError: the folder of the link may not be written.
    """
    if os.path.lexists(link) and not link.is_symlink():
        raise FileExistsError(f"{link} is there and is no link")
    staged = link.with_name(f".{link.name}.new")
    staged.unlink(missing_ok=True)
    staged.symlink_to(target)
    staged.rename(link)

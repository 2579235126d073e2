"""The lines of a requirements file, as whoever reads one needs them."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator


def entries(text: str) -> Iterator[str]:
    """Yield requirements and options, without comments and what is empty; lines that go on are joined."""
    for line in re.sub(r"\\\r?\n", " ", text).splitlines():
        if entry := re.sub(r"(^|\s)#.*", "", line).strip():
            yield entry


def without_options(entry: str) -> str:
    """Return a requirement without the hashes and options that may stand behind it."""
    return re.split(r"\s--", entry)[0].strip()

"""One model file: the type that everything about models passes on."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ModelFile:
    """A file that is wanted: where it comes from, and where below `models/` it belongs.

    `name` is what people call it, `pack` the pack it belongs to, if any. `sha256` has 64 hex digits, or none while it
    is not known; `size` is in bytes, 0 while it is not known. `gated` says that its host asks for a licence to be
    accepted and a token; `pickle`, that a format which can run code when it is loaded was asked for. `trouble` is why
    its host said no more of it.
    """

    name: str
    url: str
    folder: str
    file: str
    sha256: str = ""
    size: int = 0
    licence: str = ""
    gated: bool = False
    pickle: bool = False
    required: bool = False
    pack: str = ""
    trouble: str = ""

    @property
    def place(self) -> str:
        """Its path below `models/`."""
        return f"{self.folder}/{self.file}"

"""What a file really is, by its size and a few of its bytes, whatever its name says; and whether it is whole."""

from __future__ import annotations

import json
import os
from itertools import pairwise
from pathlib import PurePath
from typing import IO, TYPE_CHECKING, Any

from comfypod.download.refusal import disguised
from comfypod.errors import IntegrityError
from comfypod.files import open_plain

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from comfypod.models.file import ModelFile

# Formats of torch that can run code when they are loaded.
PICKLES = frozenset({".bin", ".ckpt", ".pkl", ".pt", ".pt2", ".pth"})
# ComfyUI's own (`supported_pt_extensions`), and what custom nodes load.
SUFFIXES = frozenset({*PICKLES, ".gguf", ".onnx", ".safetensors", ".sft"})
_FIRST = 1024
_DISGUISES = {"page": "it is a web page", "pointer": "it is a pointer of Git LFS in the place of the file"}
_ZIP, _ZIP_END, _ZIP_REACH = b"PK\x03\x04", b"PK\x05\x06", (1 << 16) + 22
# Protocol 2 and later of pickle, with which torch has always written.
_PICKLE = (b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")
# The reference implementation reads headers up to 100 MB; those of real models have up to a few.
_LONGEST_HEADER = 32 << 20


def wrong_with(path: Path, name: str = "", *, pickle: bool = True) -> str:
    """Say in a few words why a file is not the model that its name (or `name`) says; nothing for one that is sound.

    A format that can run code is sound with `pickle` alone.

    Raises:
        OSError: it cannot be read.
    """
    suffix = PurePath(name or path.name).suffix.lower()
    with os.fdopen(open_plain(path, os.O_RDONLY), "rb") as handle:
        size, first = os.fstat(handle.fileno()).st_size, handle.read(_FIRST)
        if wrong := _no_model(first):
            return wrong
        if suffix in (".safetensors", ".sft"):
            return _safetensors(handle, size)
        if suffix == ".gguf":
            return "" if first.startswith(b"GGUF") else "it is not GGUF"
        runs = first.startswith((_ZIP, *_PICKLE))
        if not pickle and (runs or suffix in PICKLES):
            return "it is in a format that can run code when it is loaded"
        return _cut_zip(handle, size) if suffix in PICKLES and first.startswith(_ZIP) else ""


def check_for(file: ModelFile) -> Callable[[Path], None]:
    """Return what looks at a file that was fetched, before it takes the place of a model.

    It raises IntegrityError for one that is not what it was asked for.
    """

    def check(path: Path) -> None:
        if wrong := wrong_with(path, file.file, pickle=file.pickle):
            hint = "look at the address in a browser: it may want a login, or a licence to be accepted"
            raise IntegrityError(f"{file.name} is not the model that was asked for: {wrong}", hint)

    return check


def _no_model(first: bytes) -> str:
    return _DISGUISES.get(disguised(first), "") if first else "it is empty"


def _safetensors(handle: IO[bytes], size: int) -> str:
    """Look at the header: its length in 8 bytes, JSON, and offsets that cover what follows without a gap.

    The format: https://github.com/huggingface/safetensors#format.
    """
    handle.seek(0)
    length = int.from_bytes(handle.read(8), "little")
    if handle.read(1) != b"{":
        return "it is not safetensors"
    if size < 8 + length:
        return f"it is cut short: {size} bytes, and its header alone has {8 + length}"
    if length > _LONGEST_HEADER:
        return f"its header has {length} bytes"
    handle.seek(8)
    try:
        parts = sorted(_offsets(json.loads(handle.read(length))))
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return "its header makes no sense"
    if any(begin != end for (_, end), (begin, _) in pairwise([(0, 0), *parts])):
        return "its header leaves gaps"
    whole = 8 + length + (parts[-1][1] if parts else 0)
    return other_size(size, whole)


def other_size(size: int, whole: int) -> str:
    """Say what is wrong with a size, nothing where it is the right one."""
    if size < whole:
        return f"it is cut short: {size} bytes of {whole}"
    return f"it has {size - whole} bytes too many" if size > whole else ""


def _offsets(header: Any) -> list[tuple[int, int]]:
    """Return where each tensor begins and ends."""
    rows = [row["data_offsets"] for name, row in header.items() if name != "__metadata__"]
    if not all(type(each) is int for row in rows for each in row) or any(begin > end for begin, end in rows):
        raise ValueError
    return [(begin, end) for begin, end in rows]


def _cut_zip(handle: IO[bytes], size: int) -> str:
    """Look for the directory at the end of an archive (APPNOTE.TXT, 4.3.16), in which torch keeps its tensors."""
    handle.seek(max(0, size - _ZIP_REACH))
    return "" if _ZIP_END in handle.read(_ZIP_REACH) else f"it is cut short: {size} bytes, and the end is missing"

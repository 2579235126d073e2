"""Small real file systems for tests; mounting needs root (marker `root`)."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from comfypod import proc

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


def _tool(*argv: str) -> None:
    done = proc.run(argv, seconds=30)
    if not done.ok:
        raise RuntimeError(f"{' '.join(argv)}: {done.stderr.strip()}")


@contextmanager
def tmpfs(
    folder: Path, *, megabytes: int = 128, inodes: int | None = None, read_only: bool = False, noexec: bool = False
) -> Iterator[Path]:
    """Mount a tmpfs of a size on a new folder."""
    options = [
        f"size={megabytes}m",
        *([f"nr_inodes={inodes}"] if inodes else []),
        *(["ro"] if read_only else []),
        *(["noexec"] if noexec else []),
    ]
    folder.mkdir()
    _tool("mount", "-t", "tmpfs", "-o", ",".join(options), "tmpfs", str(folder))
    try:
        yield folder
    finally:
        _tool("umount", "--lazy", str(folder))


@contextmanager
def loop_disk(folder: Path, *, megabytes: int = 64) -> Iterator[Path]:
    """Mount an ext4 file system in a file of its own, beside `folder`, on the new folder."""
    image = folder.with_name(f"{folder.name}.img")
    with image.open("wb") as handle:
        handle.truncate(megabytes * 1_000_000)
    _tool("mkfs.ext4", "-q", "-F", "-m", "0", str(image))
    folder.mkdir()
    _tool("mount", "-o", "loop", str(image), str(folder))
    try:
        yield folder
    finally:
        _tool("umount", "--lazy", str(folder))
        image.unlink()

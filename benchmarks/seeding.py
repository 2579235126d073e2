"""Seeding beside `cp -a` and `mv`: `uv run python -m benchmarks.seeding [--runs N] [--folder DIR]`.

The real ComfyUI of the store (`comfypod up` puts it there) is put on the disk of `--folder`, in turn by boot's first
run, by `cp -a`, and by `mv` from another file system, as a shell entrypoint does; also with `link`. What boot does is
durable when it ends, so the others are followed by `sync -f` and shown without it too. Ratios are of medians.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.question import Question, run
from comfypod.copying import copy_tree
from comfypod.host.store import Store, data_folder
from comfypod.lock.load import read_lock
from comfypod.podfile import release_name
from comfypod.workspace import core
from comfypod.workspace.layout import Layout
from comfypod.workspace.switch import Image

if TYPE_CHECKING:
    from collections.abc import Callable

Way = tuple[str, "Callable[[Path], None]"]


def measure(chosen: argparse.Namespace) -> list[Question]:
    """Put ComfyUI on the disk by each way in turn."""
    image = _image()
    ways: list[Way] = [
        ("boot, move", lambda place: _boot(place, image, "move")),
        ("boot, link", lambda place: _boot(place, image, "link")),
        ("copy alone", lambda place: _copied(image.tree, place)),
        ("cp -a", lambda place: _run("cp", "-a", str(image.tree), str(place / "ComfyUI"))),
        ("cp -a, sync -f", lambda place: _synced(place, "cp", "-a", str(image.tree), str(place / "ComfyUI"))),
        ("mv, sync -f", lambda place: _synced(place, "mv", str(chosen.elsewhere / "ComfyUI"), str(place / "ComfyUI"))),
    ]
    seconds: dict[str, list[float]] = {name: [] for name, _ in ways}
    for _ in range(chosen.runs):
        for name, way in ways:
            seconds[name].append(_once(way, chosen.folder, chosen.elsewhere, image))
    return [Question("seeding", "ComfyUI to an empty volume", "seconds", seconds, "cp -a")]


def options(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    parser.add_argument("--runs", type=int, default=9)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()), help="on the disk to measure")
    parser.add_argument("--elsewhere", type=Path, default=Path("/dev/shm"), help="another file system, for mv")


def _image() -> Image:
    lock = read_lock(None)
    name = release_name(lock.comfyui.version, lock.comfyui.digest)
    found = Store(data_folder(os.environ)).find("comfyui", name)
    if found is None:
        raise SystemExit("ComfyUI is not in the store; run `comfypod up` once")
    return Image(name, found / "ComfyUI", "")


def _once(way: Callable[[Path], None], folder: Path, elsewhere: Path, image: Image) -> float:
    source = elsewhere / "ComfyUI"
    shutil.rmtree(source, ignore_errors=True)
    subprocess.run(["cp", "-a", str(image.tree), str(source)], check=True)
    place = Path(tempfile.mkdtemp(dir=folder))
    subprocess.run(["sync", "-f", str(folder)], check=True)
    began = time.perf_counter()
    way(place)
    seconds = time.perf_counter() - began
    shutil.rmtree(place)
    shutil.rmtree(source, ignore_errors=True)
    return seconds


def _boot(place: Path, image: Image, persist: str) -> None:
    layout = Layout(place)
    layout.records.mkdir()
    core.bring(layout, image, persist=persist, upgrade="auto", network=False, advance=lambda _: None)


def _copied(tree: Path, place: Path) -> None:
    copy_tree(tree, place / "ComfyUI")


def _run(*argv: str) -> None:
    subprocess.run(argv, check=True)


def _synced(place: Path, *argv: str) -> None:
    _run(*argv)
    _run("sync", "-f", str(place))


if __name__ == "__main__":
    run(__doc__, measure, options)

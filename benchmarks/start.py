"""Start to ready and to the first picture, in containers: `uv run --group bench python -m benchmarks.start IMAGE...`.

In turn, in the same image (the first that is named): ComfyUI bare, behind a shell entrypoint (`--entrypoint`, a script
of the usual kind), and by comfypod with its core on the volume (`move`) or linked; further images are started by
comfypod alone. JupyterLab runs but for bare ComfyUI. Asked are later boots, with the page cache warm, dropped, and with
the disk throttled to few operations or bytes a second; first boots; and boots from a volume whose names are slow.
Time is from the engine's start of a container that has been created to the first 200 of `/system_stats`. Needs root.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.question import Question, run

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

PORT, TOKEN = 18188, "benchmark"
URL = f"http://127.0.0.1:{PORT}"
LONGEST = 900.0
SETTINGS = {
    "COMFYPOD_TOKEN": TOKEN, "COMFYPOD_PORT": str(PORT), "COMFYPOD_JUPYTER_PORT": "18888",
    "COMFYPOD_CONTROL_PORT": "18189", "COMFYPOD_LISTEN": "127.0.0.1",
}  # fmt: skip
PICTURE = {
    "1": {"class_type": "EmptyImage", "inputs": {"width": 64, "height": 64, "batch_size": 1, "color": 255}},
    "2": {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": "benchmark"}},
}
BARE, SHELL, MOVE, LINK = "bare", "shell entrypoint", "comfypod, move", "comfypod, link"
CONDITIONS = ("warm", "first", "cold", "iops", "bandwidth", "slow-names")


@dataclass(frozen=True, slots=True)
class Way:
    """How a container starts ComfyUI: options of the engine before the image, and the words after it."""

    name: str
    image: str
    options: tuple[str, ...] = ()
    words: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Start:
    """Seconds to ready and to the first picture."""

    ready: float
    picture: float


def docker(*words: str) -> str:
    """Run the engine and return what it printed."""
    return subprocess.run(["docker", *words], check=True, capture_output=True, text=True).stdout.strip()


def ways(images: Sequence[str], entrypoint: Path | None) -> list[Way]:
    """Return all ways to start; the program of bare ComfyUI and its arguments are those of the image."""
    image = images[0]
    pod = json.loads(docker("run", "--rm", "--entrypoint", "cat", image, "/etc/comfypod/pod.json"))
    words = [*pod["comfyui_args"], "--port", str(PORT), "--disable-auto-launch"]
    found = [
        Way(
            BARE,
            image,
            ("--entrypoint", pod["python"], "--workdir", "/workspace/ComfyUI"),
            ("/workspace/ComfyUI/main.py", *words),
        )
    ]
    if entrypoint is not None:
        mounted = ("--volume", f"{entrypoint.resolve()}:/entrypoint.sh:ro", "--entrypoint", "bash")
        found.append(
            Way(SHELL, _with_tree(image), (*mounted, "--env", f"COMFY_ARGS={' '.join(words)}"), ("/entrypoint.sh",))
        )
    settings = tuple(word for name, value in SETTINGS.items() for word in ("--env", f"{name}={value}"))
    found += [
        Way(MOVE, image, (*settings, "--env", "COMFYPOD_PERSIST=move")),
        Way(LINK, image, (*settings, "--env", "COMFYPOD_PERSIST=link")),
    ]
    return found + [Way(f"comfypod, {other}", other, settings) for other in images[1:]]


def _with_tree(image: str) -> str:
    """Return an image whose `/ComfyUI` is a tree, which that kind of entrypoint moves to the volume."""
    tag = "comfypod-benchmark-tree:1"
    text = f"FROM {image}\nRUN rm /ComfyUI && cp -a /opt/comfyui /ComfyUI\n"
    subprocess.run(
        ["docker", "build", "--quiet", "--tag", tag, "-"], input=text.encode(), check=True, capture_output=True
    )
    return tag


class Bench:
    """The volumes, one for each way, and the starts."""

    def __init__(self, folder: Path, chosen: argparse.Namespace) -> None:
        self._folder, self.chosen = folder, chosen
        root = docker("info", "--format", "{{.DockerRootDir}}")
        number = Path(root).stat().st_dev
        told = Path(f"/sys/dev/block/{os.major(number)}:{os.minor(number)}/uevent").read_text().splitlines()
        self._disk = next(f"/dev/{line.partition('=')[2]}" for line in told if line.startswith("DEVNAME="))

    def volume(self, way: Way, kind: str) -> Path:
        """Return the volume of a way; one for later boots has been booted from once, for as long as a pod learns."""
        volume = self._folder / re.sub(r"\W+", "-", f"{kind}-{way.name}")
        if kind == "later" and not volume.exists():
            self.fill(way, volume)
            self.start(way, volume, "warm", learns=way.name not in {BARE, SHELL})
        return volume

    def fill(self, way: Way, volume: Path) -> None:
        """Put ComfyUI on the volume of a way that does not do so itself."""
        volume.mkdir()
        if way.name == BARE:
            docker(
                "run",
                "--rm",
                "--volume",
                f"{volume}:/workspace",
                "--entrypoint",
                "cp",
                way.image,
                "-a",
                "/opt/comfyui",
                "/workspace/ComfyUI",
            )

    @contextlib.contextmanager
    def container(self, way: Way, volume: Path, condition: str = "warm") -> Iterator[str]:
        """Give a container that has been created and not started; end it as its way allows, and remove it."""
        options = ("--network", "host", "--volume", f"{volume}:/workspace", *self._throttle(condition), *way.options)
        container = docker("create", *options, way.image, *way.words)
        try:
            yield container
        finally:
            if way.name not in {BARE, SHELL}:
                # The others are the container's first process, which hears no signal that it does not handle.
                subprocess.run(["docker", "stop", "--time", "60", container], check=False, capture_output=True)
            docker("rm", "--force", "--volumes", container)

    def start(self, way: Way, volume: Path, condition: str, *, learns: bool = False) -> Start:
        """Start a container, wait for ComfyUI and for a picture, and remove it.

        Where it learns, wait until it has noted which parts of libraries are used.
        """
        if ask("/system_stats"):
            raise SystemExit(f"something answers on port {PORT} already; stop it first")
        with self.container(way, volume, condition) as container:
            if condition in {"cold", "iops", "bandwidth"}:
                os.sync()
                Path("/proc/sys/vm/drop_caches").write_text("3")
            began = time.monotonic()
            docker("start", container)
            ready = until(lambda: ask("/system_stats"), began, container)
            number = ask("/prompt", {"prompt": PICTURE})["prompt_id"]
            picture = until(lambda: ask(f"/history/{number}").get(number, {}).get("outputs"), began, container)
            if learns:
                until((volume / ".comfypod" / "pages.json").exists, began, container)
            return Start(ready, picture)

    def _throttle(self, condition: str) -> tuple[str, ...]:
        match condition:
            case "iops":
                return ("--device-read-iops", f"{self._disk}:{self.chosen.iops}")
            case "bandwidth":
                return ("--device-read-bps", f"{self._disk}:{self.chosen.megabytes}mb")
        return ()


def ask(path: str, body: Any = None) -> Any:
    """Ask ComfyUI; nothing where it does not answer."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(
        URL + path, data, {"Authorization": f"Bearer {TOKEN}", "Content-Type": "application/json"}
    )
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return json.load(answer)
    except (urllib.error.URLError, OSError, ValueError):
        return {}


def until(done: Any, began: float, container: str) -> float:
    """Return the seconds from `began` until something is true."""
    looked = began
    while not done():
        now = time.monotonic()
        if now - looked > 5:
            looked = now
            if docker("inspect", "--format", "{{.State.Running}}", container) != "true":
                raise SystemExit(f"the container ended: {docker('logs', '--tail', '20', container)}")
        if now - began > LONGEST:
            raise SystemExit("not ready in time")
        time.sleep(0.01)
    return time.monotonic() - began


def measure(chosen: argparse.Namespace) -> list[Question]:
    """Start each way in turn under each condition."""
    every = ways(chosen.images, chosen.entrypoint)
    with tempfile.TemporaryDirectory(prefix="comfypod-bench-", dir=chosen.folder) as name:
        bench, found = Bench(Path(name), chosen), list[Question]()
        for condition in chosen.conditions:
            found += (
                _slow_names(bench, every, Path(name)) if condition == "slow-names" else _asked(bench, every, condition)
            )
    return found


def _asked(bench: Bench, every: Sequence[Way], condition: str) -> list[Question]:
    starts: dict[str, list[Start]] = {way.name: [] for way in every}
    for number in range(bench.chosen.runs + 1):
        # Each goes first in turn, and the first round is not counted.
        for way in [*every[number % len(every) :], *every[: number % len(every)]]:
            start = _once(bench, way, condition)
            print_progress(condition, number, way.name, start)
            if number:
                starts[way.name].append(start)
    return list(_questions(condition, starts))


def _once(bench: Bench, way: Way, condition: str) -> Start:
    if condition != "first":
        return bench.start(way, bench.volume(way, "later"), condition)
    volume = bench.volume(way, "first")
    shutil.rmtree(volume, ignore_errors=True)
    bench.fill(way, volume)
    return bench.start(way, volume, "warm")


@contextlib.contextmanager
def slow(folder: Path, mount: Path, milliseconds: float) -> Iterator[Path]:
    """Show `folder` at `mount` meanwhile, with slow names."""
    mount.mkdir()
    argv = [sys.executable, "-m", "benchmarks.slow_volume", str(folder), str(mount), str(milliseconds)]
    with subprocess.Popen(argv) as server:
        try:
            while not os.path.ismount(mount):
                if server.poll() is not None:
                    raise SystemExit("a file system of our own is not to be had here")
                time.sleep(0.05)
            yield mount
        finally:
            subprocess.run(["umount", "--lazy", str(mount)], check=False)


def _slow_names(bench: Bench, every: Sequence[Way], folder: Path) -> list[Question]:
    """Boot from a volume whose names are slow, for the first time and again."""
    way = Way("comfypod", every[0].image, next(way for way in every if way.name == MOVE).options[:-2])
    found: dict[str, list[Start]] = {"later boot": [], "first boot": []}
    for number in range(bench.chosen.runs):
        (behind := folder / f"slow-{number}").mkdir()
        with slow(behind, folder / f"mount-{number}", bench.chosen.milliseconds) as volume:
            for name in ("first boot", "later boot"):
                found[name].append(bench.start(way, volume, "warm"))
                print_progress("slow-names", number, name, found[name][-1])
    values = {name: [start.ready for start in starts] for name, starts in found.items()}
    title = f"Start to ready, every operation on names of the volume takes {bench.chosen.milliseconds:g} ms"
    return [Question("start-slow-names", title, "seconds", values, "later boot", 1.1, ("first boot",))]


TITLES = {
    "warm": "a later boot, page cache warm",
    "first": "the first boot on an empty volume (bare: ComfyUI is there already)",
    "cold": "a later boot, page cache dropped",
    "iops": "a later boot, page cache dropped, few operations a second",
    "bandwidth": "a later boot, page cache dropped, few bytes a second",
}
TARGETS = {"warm": 0.85, "cold": 0.75, "iops": 0.6}


def _questions(condition: str, starts: Mapping[str, Sequence[Start]]) -> Iterator[Question]:
    aim, aimed = TARGETS.get(condition), tuple(name for name in starts if name.startswith("comfypod"))
    ready = {name: [start.ready for start in each] for name, each in starts.items()}
    picture = {name: [start.picture for start in each] for name, each in starts.items()}
    yield Question(f"start-{condition}", f"Start to ready: {TITLES[condition]}", "seconds", ready, BARE, aim, aimed)
    yield Question(f"picture-{condition}", f"Start to the first picture: {TITLES[condition]}", "seconds", picture, BARE)


def print_progress(condition: str, number: int, name: str, start: Start) -> None:
    """Say on the error stream what has been measured."""
    os.write(2, f"{condition} {number}: {name} {start.ready:.2f} s, picture {start.picture:.2f} s\n".encode())


def options(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    parser.add_argument("images", nargs="+", metavar="IMAGE")
    parser.add_argument("--runs", type=int, default=5, help="rounds to measure after one that is not counted")
    parser.add_argument("--conditions", nargs="+", choices=CONDITIONS, default=CONDITIONS)
    parser.add_argument("--entrypoint", type=Path, help="a shell entrypoint to compare with")
    parser.add_argument("--iops", type=int, default=500)
    parser.add_argument("--megabytes", type=int, default=50, help="a second, of the throttled disk")
    parser.add_argument("--milliseconds", type=float, default=2, help="of each operation on a slow volume's names")
    parser.add_argument("--folder", type=Path, help="where the volumes are (default: the temporary folder)")


if __name__ == "__main__":
    run(__doc__, measure, options)

"""What images weigh: every layer, the wheels in it unpacked, and the usual way to build the same beside them.

`python -m benchmarks.images comfypod:cpu-slim comfypod:cpu` looks at images that are here; `--seed` also builds one
from the same packages with a compiler, pip's defaults and one environment, as most Dockerfiles for ComfyUI do, and
removes it again (15 GB of disk). The figures in docs/images.md come from here.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.question import Question, run
from comfypod.copying import copy_tree
from comfypod.host.store import Store, data_folder
from comfypod.image.detect import find
from comfypod.lock.load import read_lock
from comfypod.podfile import release_name
from tests.kit.real_images import changed_bytes

if TYPE_CHECKING:
    from comfypod.image.engine import Engine

_MB = 1_000_000
_SEED = "comfypod-seed:benchmark"
# What the wheels' own records say that they unpack to; bytecode is made in the build.
_UNPACKED = """
import csv, glob, json
records = [path for top in ("venv", "comfypod", "jupyter")
           for path in glob.glob(f"/opt/{top}/lib/python3*/site-packages/*.dist-info/RECORD")]
print(json.dumps(sum(int(row[2] or 0) for path in records for row in csv.reader(open(path)))))
"""


def measure(chosen: argparse.Namespace) -> list[Question]:
    """Weigh the images, and what an upgrade fetches."""
    engine = find("docker")
    usual = {"the usual way": [_seed(engine) / _MB]} if chosen.seed else {}
    found = []
    for image in chosen.images:
        wheels = {"base and wheels, unpacked": [(_unpacked(engine, image) + _size(engine, chosen.base)) / _MB]}
        sizes = {**wheels, image: [_size(engine, image) / _MB], **usual}
        name = image.rpartition("/")[2].replace(":", "-")
        found.append(Question(f"size-{name}", f"Size of {image}", "MB", sizes, next(iter(wheels)), 1.15, (image,)))
        found.append(Question(f"layers-{name}", f"Layers of {image}", "MB", _layers(engine, image)))
    if chosen.upgrade_from:
        fetched = changed_bytes(engine, chosen.upgrade_from, chosen.images[0])
        rows = {_numbered(*key.split(" ", 1)): [size / _MB] for key, size in fetched.items()}
        rows["whole"] = [sum(fetched.values()) / _MB]
        title = f"Fetched for {chosen.images[0]} where {chosen.upgrade_from} is, compressed"
        found.append(Question("upgrade", title, "MB", rows))
    return found


def options(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    parser.add_argument("images", nargs="+", metavar="IMAGE")
    parser.add_argument("--base", default="debian:bookworm-slim", help="what their sizes are compared with")
    parser.add_argument("--seed", action="store_true", help="also build an image the usual way")
    parser.add_argument("--upgrade-from", metavar="IMAGE", help="also weigh what an upgrade to the first image fetches")


def _size(engine: Engine, image: str) -> int:
    found = engine.image(image)
    if found is None:
        raise SystemExit(f"{image} is not here; `comfypod build` makes it")
    return found.size


def _unpacked(engine: Engine, image: str) -> int:
    argv = [engine.program, "run", "--rm", "--network", "none", "--entrypoint", "/usr/bin/python3", image]
    return int(json.loads(subprocess.run([*argv, "-c", _UNPACKED], check=True, capture_output=True, text=True).stdout))


def _layers(engine: Engine, image: str) -> dict[str, list[float]]:
    found = engine.image(image)
    assert found is not None
    rows = enumerate(layer for layer in found.layers if layer.size)
    return {_numbered(str(number), layer.step): [(layer.size or 0) / _MB] for number, layer in rows}


def _numbered(number: str, step: str) -> str:
    """Return what a step is called: its number, and the layer that it copies or the command that it runs."""
    copied = re.match(r"COPY /layers/([^/]+)/", step)
    return f"{number} {copied[1] if copied else step.rpartition(' pipefail -c ')[2][:40].replace('|', '/')}"


def _seed(engine: Engine) -> int:
    """Build the usual image, return its size and remove it."""
    lock = read_lock(None)
    target = lock.target("4090", "x86_64")
    packages = [*lock.environment(target.comfyui).packages, *lock.environment(target.jupyter).packages]
    tree = Store(data_folder(os.environ)).find("comfyui", release_name(lock.comfyui.version, lock.comfyui.digest))
    if tree is None:
        raise SystemExit("ComfyUI is not in the store; run `comfypod up` once")
    versions = {package.name: package.version for package in reversed(packages)}
    with tempfile.TemporaryDirectory() as folder:
        context = Path(folder)
        (context / "requirements.txt").write_text("".join(f"{name}=={version}\n" for name, version in versions.items()))
        copy_tree(tree / "ComfyUI", context / "ComfyUI")
        dockerfile = Path(__file__).parent / "seed" / "Dockerfile"
        argv = [engine.program, "build", "--network", "host", "--file", str(dockerfile), "--tag", _SEED]
        if ca := os.environ.get("SSL_CERT_FILE"):
            argv += ["--secret", f"id=ca,src={ca}", "--build-arg", "PIP_CERT=/run/secrets/ca"]
        subprocess.run([*argv, folder], check=True, env={**os.environ, "DOCKER_BUILDKIT": "1"})
    size = _size(engine, _SEED)
    engine.remove_image(_SEED)
    return size


if __name__ == "__main__":
    run(__doc__, measure, options)

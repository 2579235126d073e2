"""What images weigh: every layer, the wheels in it unpacked, and the usual way to build the same beside them.

`python benchmarks/images.py comfypod:cpu-slim comfypod:cpu` looks at images that are here; `--seed` also builds one
from the same packages with a compiler, pip's defaults and one environment, as most Dockerfiles for ComfyUI do, and
removes it again (15 GB of disk). The figures in docs/images.md come from here.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from comfypod.copying import copy_tree
from comfypod.host.store import Store, data_folder
from comfypod.image.detect import find
from comfypod.lock.load import read_lock
from comfypod.log import human_bytes
from comfypod.podfile import release_name

if TYPE_CHECKING:
    from comfypod.image.engine import Engine

_SEED = "comfypod-seed:benchmark"
# What the wheels' own records say that they unpack to; bytecode is made in the build.
_UNPACKED = """
import csv, glob, json
records = [path for top in ("venv", "comfypod", "jupyter")
           for path in glob.glob(f"/opt/{top}/lib/python3*/site-packages/*.dist-info/RECORD")]
print(json.dumps(sum(int(row[2] or 0) for path in records for row in csv.reader(open(path)))))
"""


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", nargs="+", metavar="IMAGE")
    parser.add_argument("--base", default="debian:bookworm-slim", help="what their sizes are compared with")
    parser.add_argument("--seed", action="store_true", help="also build an image the usual way")
    options = parser.parse_args()
    engine = find("docker")
    base = _size(engine, options.base)
    print("| image | size | wheels unpacked and base | ratio |\n| --- | --- | --- | --- |")
    for image in options.images:
        wheels = _unpacked(engine, image) + base
        size = _size(engine, image)
        print(f"| `{image}` | {human_bytes(size)} | {human_bytes(wheels)} | {size / wheels:.3f} |")
    if options.seed:
        print(f"| the usual way | {human_bytes(_seed(engine))} | | |")
    for image in options.images:
        _layers(engine, image)


def _size(engine: Engine, image: str) -> int:
    found = engine.image(image)
    if found is None:
        raise SystemExit(f"{image} is not here; `comfypod build` makes it")
    return found.size


def _unpacked(engine: Engine, image: str) -> int:
    argv = [engine.program, "run", "--rm", "--network", "none", "--entrypoint", "/usr/bin/python3", image]
    return int(json.loads(subprocess.run([*argv, "-c", _UNPACKED], check=True, capture_output=True, text=True).stdout))


def _layers(engine: Engine, image: str) -> None:
    found = engine.image(image)
    assert found is not None
    print(f"\n{image}\n\n| layer | size |\n| --- | --- |")
    for layer in found.layers:
        print(f"| `{layer.step[:100] or 'base'}` | {human_bytes(layer.size or 0)} |")


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
    main()

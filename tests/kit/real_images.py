"""The real images of the default lock, built once per session by `comfypod build`, with a node of the kit's in them.

The default lock's own node comes from a Git host that is not reachable everywhere; its packages stay.
"""

from __future__ import annotations

import base64
import gzip
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from comfypod import files
from comfypod.lock.load import read_lock
from comfypod.lock.schema import LockedModel, LockedNode, encode
from comfypod.manifest.load import default_text
from tests.kit.comfyui import Client
from tests.kit.images import GIT_HOST
from tests.kit.models import upscaler
from tests.kit.pods import comfypod
from tests.kit.repos import make_repository, write_tree
from tests.kit.web import Answer

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from comfypod.image.engine import Engine
    from comfypod.lock.schema import Lock
    from tests.kit.web import Site

NODE = "kit_node"
REPOSITORY = "comfypod-kit"
LABEL = "io.comfypod.kit=1"
MODEL = "kit-tiny.safetensors"
TOKEN = "kit-token-5f2c"
# A torch that the profile does not have, for an older ComfyUI; most of its CUDA libraries are the same.
OTHER_TORCH = {"0.18.2": ("torch==2.8.0", "torchvision==0.23.0", "torchaudio==2.8.0")}
NODE_FILES = {
    "__init__.py": """
class Invert:
    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"image": ("IMAGE",)}}

    RETURN_TYPES = ("IMAGE",)
    FUNCTION = "run"
    CATEGORY = "kit"

    def run(self, image):
        return (1.0 - image,)


NODE_CLASS_MAPPINGS = {"KitInvert": Invert}
""",
    "requirements.txt": "",
}


def make_node(folder: Path, more: Mapping[str, str] | None = None) -> LockedNode:
    """Make the node's repository `folder/kit_node`, and say how a lock names it."""
    repository = make_repository(folder / NODE, {**NODE_FILES, **(more or {})})
    digest = files.tree_facts(repository.folder).digest
    return LockedNode(NODE, f"{GIT_HOST}{NODE}", "main", repository.git("rev-parse", "HEAD"), digest)


def make_pack(folder: Path, site: Site) -> LockedModel:
    """Make the file of a baked pack, served as Hugging Face does; the lock is the same wherever the site is."""
    path = folder / MODEL
    upscaler(path)
    site.answers[f"/kit/pack/resolve/{'c' * 40}/{MODEL}"] = Answer(path.read_bytes())
    url, digest = f"hf:kit/pack@{'c' * 40}/{MODEL}", files.sha256_file(path)
    return LockedModel(
        f"kit/{MODEL}", url, "upscale_models", MODEL, digest, path.stat().st_size, bake=True, licence="cc0-1.0",
        gated=True, pack="kit",
    )  # fmt: skip


def with_node(lock: Lock, node: LockedNode) -> Lock:
    """Return a lock with this node and no other."""
    return msgspec.structs.replace(lock, nodes=(node,))


# Bytecode is made in the image, so it does not count.
_UNPACKED = (
    "import csv, glob, json\n"
    "records = [path for top in ('venv', 'comfypod', 'jupyter')"
    " for path in glob.glob(f'/opt/{top}/lib/python3*/site-packages/*.dist-info/RECORD')]\n"
    "print(json.dumps(sum(int(row[2] or 0) for path in records for row in csv.reader(open(path)))))"
)


@dataclass
class RealImages:
    """Images of one lock, each built when it is first asked for.

    `git` is where the node's repository is served, `site` stands for Hugging Face.
    """

    folder: Path
    engine: Engine
    git: str
    site: Site
    lock: Path
    results: dict[tuple[str, str], dict[str, Any]] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    here: set[tuple[str, str]] = field(default_factory=set)
    profile: str = ""

    def older(self, version: str) -> str:
        """Return the tag of the small image for the CPU with another ComfyUI, all else as in the lock."""
        self.take_place("cpu")
        if version not in self.tags:
            (node,) = read_lock(self.lock).nodes
            lock = older_lock(self.folder / f"older-{version}", version)
            self.tags[version] = self.other("cpu", "slim", with_node(lock, node))
        return self.tags[version]

    def other(self, profile: str, variant: str, lock: Lock) -> str:
        """Build an image of another lock and return its tag."""
        path = write_lock(self.folder / "other.lock", lock)
        done = self.build(profile, variant, "--lock", str(path))
        assert done.returncode == 0, done.stdout + done.stderr[-4000:]
        return str(json.loads(done.stdout)["data"]["images"][0]["tags"][0])

    def build(self, profile: str, variant: str, *more: str) -> subprocess.CompletedProcess[str]:
        """Run `comfypod build --json` for the lock."""
        return subprocess.run(
            [
                sys.executable, "-m", "comfypod", "build", profile, "--variant", variant, "--lock", str(self.lock),
                "--network", "host", "--git-mirror", f"{GIT_HOST}={self.git}", "--repository", REPOSITORY, "--json",
                *more,
            ],
            capture_output=True, text=True, check=False, cwd=self.folder, timeout=3600,
            env={
                **os.environ, "COMFYPOD_DATA": str(self.folder / "data"), "HF_ENDPOINT": self.site.url,
                "HF_TOKEN": TOKEN,
            },
        )  # fmt: skip

    def result(self, profile: str, variant: str) -> dict[str, Any]:
        """Return what the build said of an image, also of one that has made room since."""
        if (profile, variant) not in self.results:
            self.take_place(profile)
            done = self.build(profile, variant)
            assert done.returncode == 0, done.stdout + done.stderr[-4000:]
            self.results[profile, variant] = json.loads(done.stdout)["data"]["images"][0]
            self.here.add((profile, variant))
        return self.results[profile, variant]

    def take_place(self, profile: str) -> None:
        """Give up, under CI alone, the images of other profiles and what their builds have cached: 20 GB each."""
        if self.profile != profile and os.environ.get("CI") == "true":
            self.forget()
            self.clear_cache()
            self.here.clear()
            self.tags.clear()
        self.profile = profile

    def make_room(self) -> None:
        """Give up, under CI alone, all but the small image for the CPU: what builds have cached is as large as it."""
        if os.environ.get("CI") == "true":
            for each in self.here - {("cpu", "slim")}:
                for tag in self.results[each]["tags"]:
                    self.engine.remove_image(tag)
            self.here &= {("cpu", "slim")}
            self.clear_cache()

    def clear_cache(self) -> None:
        """Give up what builds have cached."""
        argv = [self.engine.program, "builder", "prune", "--force"]
        subprocess.run(argv, check=True, capture_output=True, timeout=600)

    def image(self, profile: str, variant: str) -> str:
        """Return the tag of an image that never moves; one that has made room is built again."""
        if (profile, variant) not in self.here:
            self.results.pop((profile, variant), None)
        return str(self.result(profile, variant)["tags"][0])

    def python(self, image: str, code: str) -> Any:
        """Run code with ComfyUI's Python in a container of its own; it prints JSON."""
        options = ["--rm", "--network", "none", "--entrypoint", "/opt/venv/bin/python"]
        argv = [self.engine.program, "run", *options, image, "-c", code]
        return json.loads(subprocess.run(argv, capture_output=True, text=True, check=True, timeout=300).stdout)

    def ensure_tried(self, profile: str, variant: str) -> None:
        """Look at what the build tried, and at the names that it gave."""
        result = self.result(profile, variant)
        checks = {check["name"]: check for check in result["smoke"]}
        assert {"structure", "boot", "nodes", "workflow", "logs", "stop"} <= set(checks)
        assert ("jupyter" in checks) == (variant == "full")
        assert checks["nodes"]["detail"] == "1 of 1 import"
        assert checks["record"]["detail"] == "imports come from the record of a start"
        fixed, moving = result["tags"]
        assert fixed.startswith(f"{REPOSITORY}:0.30.0-{profile}-{variant}-")
        assert moving == f"{REPOSITORY}:{profile}" + ("" if variant == "full" else "-slim")
        assert all(self.engine.image(tag) is not None for tag in result["tags"])

    def ensure_lean(self, profile: str, variant: str) -> None:
        """Compare the image with what its wheels' own records say that they unpack to."""
        base = self.engine.image("debian:bookworm-slim")
        assert base is not None
        wheels = self.python(self.image(profile, variant), _UNPACKED)
        assert self.result(profile, variant)["size"] <= 1.15 * (wheels + base.size)

    def forget(self) -> None:
        """Remove every image of this repository, also what an earlier session that was killed has left."""
        for container in self.engine.containers(LABEL):
            self.engine.remove(container)
        for name in self.engine.ask("image", "ls", "--format", "{{.Repository}}:{{.Tag}}", REPOSITORY).split():
            self.engine.remove_image(name)


# What a container's ComfyUI is asked with: the token of its workspace.
_TOKEN = (
    "import pathlib\ntoken = pathlib.Path('/workspace/.comfypod/token').read_text().strip()\n"
    "auth = {'Authorization': 'Bearer ' + token}"
)


@dataclass
class Container:
    """A container of an image."""

    engine: Engine
    id: str

    def status(self) -> dict[str, Any]:
        done = self.engine.exec(self.id, ["comfypod", "status", "--json"])
        try:
            body: dict[str, Any] = json.loads(done.stdout)["data"]
        except (ValueError, KeyError):
            return {}
        return body

    def wait_ready(self, seconds: float = 180.0) -> dict[str, Any]:
        """Wait until it is ready; its logs stand in the failure."""
        return self.wait_for("ready", seconds)

    def wait_for(self, phase: str, seconds: float = 180.0, pause: float = 0.5) -> dict[str, Any]:
        deadline, seen = time.monotonic() + seconds, {}
        while time.monotonic() < deadline:
            seen = self.status()
            if seen.get("phase") == phase:
                return seen
            state = self.engine.container(self.id)
            if state is None or not state.running:
                break
            time.sleep(pause)
        raise AssertionError(f"never {phase}: {seen.get('reasons')}; {self.engine.logs(self.id)[-4000:]}")

    def python(self, code: str, interpreter: str = "/opt/venv/bin/python") -> str:
        """Run code in it and return what it printed."""
        done = self.engine.exec(self.id, [interpreter, "-c", code], seconds=120)
        assert done.ok, done.stderr
        return done.stdout.strip()

    def ask(self, path: str, *, port: int = 8188, post: str | None = None) -> tuple[int, str]:
        """Ask over HTTP from inside, with `post` as the body of a POST: status and body."""
        data = None if post is None else post.encode()
        code = (
            f"{_TOKEN}\nimport urllib.request as r, urllib.error as e\n"
            f"q = r.Request('http://127.0.0.1:{port}{path}', {data!r}, auth | {{'Content-Type': 'application/json'}})\n"
            "try:\n a = r.urlopen(q, timeout=60)\n print(a.status)\n"
            " print(a.read().decode())\n"
            "except e.HTTPError as x: print(x.code); print(x.read().decode())\n"
        )
        status, _, body = self.python(code, "/opt/comfypod/bin/python").partition("\n")
        return int(status), body

    def comfypod(self, *words: str) -> dict[str, Any]:
        """Run a reporting verb in it and return the envelope; it must succeed."""
        done = self.engine.exec(self.id, ["comfypod", *words, "--json"], seconds=120)
        assert done.ok, done.stdout + done.stderr
        body: dict[str, Any] = json.loads(done.stdout)
        return body

    def nodes(self) -> set[str]:
        """Return the classes that ComfyUI knows."""
        return set(json.loads(self.ask("/object_info")[1]))


class Inside(Client):
    """A client of a container's ComfyUI, asking from inside."""

    def __init__(self, container: Container) -> None:
        super().__init__("http://127.0.0.1:8188")
        self._container = container

    def get(self, path: str) -> bytes:
        return self._ask(path, b"", "")

    def post(self, path: str, body: bytes, kind: str = "application/json") -> Any:
        return json.loads(self._ask(path, body, kind))

    def _ask(self, path: str, body: bytes, kind: str) -> bytes:
        given = f"data={body!r}, headers=auth | {{'Content-Type': {kind!r}}}" if kind else "headers=auth"
        code = (
            f"{_TOKEN}\nimport base64, urllib.request as r\n"
            f"answer = r.urlopen(r.Request({self.url + path!r}, {given}), timeout=60)\n"
            "print(base64.b64encode(answer.read()).decode())\n"
        )
        return base64.b64decode(self._container.python(code, "/opt/comfypod/bin/python"))


@contextmanager
def running(
    engine: Engine, image: str, *options: str, env: dict[str, str] | None = None, command: Sequence[str] = ()
) -> Iterator[Container]:
    """Start a container and remove it at the end, with its anonymous volumes."""
    container = Container(engine, engine.run(image, ("--label", LABEL, *options), tuple(command), env or {}))
    try:
        yield container
    finally:
        engine.remove(container.id)


def problems(status: dict[str, Any]) -> dict[str, str]:
    """Return the problems of a status, message by code."""
    return {problem["code"]: problem["message"] for problem in status["problems"]}


def changed_bytes(engine: Engine, before: str, after: str) -> dict[str, int]:
    """Return what a machine that has `before` fetches for `after`: gzipped bytes by step. For docker's overlay2."""
    old, new = engine.image(before), engine.image(after)
    assert old is not None
    assert new is not None
    known = [layer.digest for layer in old.layers]
    same = next((n for n, layer in enumerate(new.layers) if n >= len(known) or layer.digest != known[n]), 0)
    folders = _folders(engine, after)
    return {
        f"{number} {layer.step[:90]}": _gzipped(folders[number])
        for number, layer in enumerate(new.layers)
        if number >= same
    }


def _folders(engine: Engine, image: str) -> Sequence[Path]:
    """Return the folder of each layer, the base's first."""
    argv = [engine.program, "image", "inspect", "--format", "{{json .GraphDriver.Data}}", image]
    done = subprocess.run(argv, capture_output=True, text=True, check=True)
    data = json.loads(done.stdout)
    return [*(Path(folder) for folder in reversed(data["LowerDir"].split(":"))), Path(data["UpperDir"])]


class _Counter:
    def __init__(self) -> None:
        self.count = 0

    def write(self, data: bytes) -> int:
        self.count += len(data)
        return len(data)

    def flush(self) -> None:
        pass


def _gzipped(folder: Path) -> int:
    counter = _Counter()
    with (
        gzip.GzipFile(fileobj=counter, mode="wb", compresslevel=6) as sink,
        tarfile.open(fileobj=sink, mode="w|") as bundle,
    ):
        bundle.add(folder, arcname=".")
    return counter.count


def disk_left(path: Path) -> int:
    """Return free bytes."""
    return shutil.disk_usage(path).free


def older_lock(folder: Path, version: str) -> Lock:
    """Lock an older ComfyUI with all else as in the default lock, whose node is stood in for by its requirements.

    The oldest one has another torch, too.
    """
    folder.mkdir()
    (node,) = default_lock().nodes
    write_tree(folder / "node", {"requirements.txt": "".join(f"{line}\n" for line in node.requirements)})
    text, found = re.subn(r"(?m)^git = .*\nref = .*$", 'path = "node"', default_text())
    assert found == 1
    pins = "".join(f'"{pin}", ' for pin in OTHER_TORCH.get(version, ()))
    text = text.replace("overrides = [", f"overrides = [{pins}", 1)
    (folder / "comfypod.toml").write_text(re.sub(r'(?m)^version = ".*"$', f'version = "{version}"', text))
    stand_in = msgspec.structs.replace(node, url="", ref="", commit="", path="node", digest=f"sha256:{'0' * 64}")
    write_lock(folder / "comfypod.lock", with_node(default_lock(), stand_in))
    done = comfypod("lock", "--manifest", str(folder / "comfypod.toml"), "--upgrade", "comfyui", node.name, seconds=600)
    assert done.returncode == 0, done.stdout + done.stderr
    return read_lock(folder / "comfypod.lock")


def write_lock(path: Path, lock: Lock) -> Path:
    """Write a lock."""
    path.write_bytes(encode(lock))
    return path


def default_lock() -> Lock:
    """Return the lock that comes with comfypod."""
    return read_lock(None)

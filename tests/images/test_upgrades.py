"""Upgrades between real versions of ComfyUI in real containers, forward and back, on one volume.

Slow: three images, which share nearly all of their layers, and a boot of ComfyUI per step.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import sqlite3
import subprocess
from contextlib import closing
from typing import TYPE_CHECKING, Any

import pytest

from tests.kit.comfyui import node
from tests.kit.real_images import Container, Inside, RealImages, problems, running
from tests.kit.wheels import build_wheel

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = [pytest.mark.slow, pytest.mark.real]

OLD, MIDDLE, NEW = "0.18.2", "0.27.0", "0.30.0"
WORKFLOW = {
    "1": node("EmptyImage", width=64, height=64, batch_size=1, color=255),
    "2": node("KitInvert", image=["1", 0]),
    "3": node("SaveImage", images=["2", 0], filename_prefix="kept"),
}
SAVED = {"nodes": [], "version": 0.4, "mine": "a workflow"}
_NODE = """
class {name}:
    @classmethod
    def INPUT_TYPES(cls):
        return {{"required": {{}}}}
    RETURN_TYPES = ("INT",)
    FUNCTION = "run"
    CATEGORY = "mine"
    def run(self):
        return (1,)
NODE_CLASS_MAPPINGS = {{"{name}": {name}}}
"""
_DATABASE_TROUBLE = re.compile(
    "failed to initialize database|can't locate revision|database is locked|alembic.util|OperationalError",
    re.IGNORECASE,
)
_MINE = {"MineOne", "MineTwo", "MineThree"}
# Has ComfyUI's process end before it serves and after all nodes are loaded, so that nothing says that it was a node.
_DEADLY = """
import os
import comfyui_version
import server
if comfyui_version.__version__ == "{version}":
    server.PromptServer.start_multi_address = lambda *_, **__: os._exit(1)
NODE_CLASS_MAPPINGS = {{}}
"""


@pytest.fixture(scope="module")
def images(real_images: RealImages) -> Iterator[dict[str, str]]:
    real_images.make_room()
    yield {
        OLD: real_images.older(OLD), MIDDLE: real_images.older(MIDDLE), NEW: real_images.image("cpu", "slim"),
    }  # fmt: skip
    real_images.engine.remove_image(real_images.tags.pop(OLD))


@pytest.fixture
def workspace(tmp_path: Path) -> Path:
    """Give a volume of the usual user's with three nodes on it, and nothing else."""
    folder = tmp_path / "ws"
    for name in _MINE:
        write(folder / "ComfyUI" / "custom_nodes" / name.lower() / "__init__.py", _NODE.format(name=name))
    own(folder)
    return folder


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def own(folder: Path) -> None:
    """Give everything to the usual user."""
    for path in (folder, *folder.rglob("*")):
        os.chown(path, 1000, 1000, follow_symlinks=False)


def users_files(workspace: Path) -> dict[str, str]:
    """Return what users have and may not lose, by digest: pictures, workflows, nodes."""
    base = workspace / "ComfyUI"
    places = (base / "output", base / "input", base / "user" / "default" / "workflows", base / "custom_nodes")
    found = (path for place in places if place.is_dir() for path in place.rglob("*") if "__pycache__" not in path.parts)
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in found if path.is_file()}


def revision(workspace: Path) -> str:
    """Return the migration that ComfyUI's database is at."""
    with closing(sqlite3.connect(workspace / "ComfyUI" / "user" / "comfyui.db")) as database:
        ((found,),) = database.execute("SELECT version_num FROM alembic_version").fetchall()
        return str(found)


def ensure_works(container: Container, version: str) -> dict[str, Any]:
    """Wait until it is ready and look at all that a user would; return the status."""
    status = container.wait_ready()
    assert json.loads(container.ask("/system_stats")[1])["system"]["comfyui_version"] == version
    whole = container.comfypod("workspace", "verify")
    facts = json.loads(container.python("print(open('/etc/comfypod/pod.json').read())"))
    if facts["comfyui_version"] == version:
        digest = facts["comfyui_digest"].partition(":")[2]
        assert whole["data"]["release"] == f"{version}-{digest[:12]}"
    assert whole["data"]["release"].startswith(f"{version}-"), whole
    assert {*_MINE, "KitInvert"} <= container.nodes()
    assert container.python("import os; print(os.path.realpath('/ComfyUI'))") == "/workspace/ComfyUI"
    (picture,) = Inside(container).render(WORKFLOW)
    assert picture.startswith(b"\x89PNG")
    return status


def test_b1_b2_f10_real_upgrades_and_the_way_back_lose_nothing_of_the_users(
    real_images: RealImages, images: dict[str, str], workspace: Path
) -> None:
    volume = ("--network", "none", "-v", f"{workspace}:/workspace")
    known: dict[str, str] = {}
    revisions: dict[str, str] = {}
    previous = ""
    for step, version in enumerate((OLD, MIDDLE, NEW, MIDDLE, OLD)):
        with running(real_images.engine, images[version], *volume) as container:
            status = ensure_works(container, version)
            found = users_files(workspace)
            assert known.items() <= found.items(), set(known) - set(found)
            client = Inside(container)
            if step == 0:
                client.post("/userdata/workflows%2Fmine.json?overwrite=true", json.dumps(SAVED).encode())
            assert client.get("/userdata/workflows%2Fmine.json") == json.dumps(SAVED).encode()
            assert problems(status) == {}
            kept = container.comfypod("workspace", "status")["data"]["previous"]
            assert kept.startswith(previous)
            assert bool(kept) == bool(previous)
            log = (workspace / "logs" / "comfyui.log").read_text()
            assert not _DATABASE_TROUBLE.search(log), log
        (workspace / "logs" / "comfyui.log").unlink()
        known, previous = users_files(workspace), f"{version}-"
        print(f"{version}: database at {revision(workspace)}")
        assert revisions.setdefault(version, revision(workspace)) == revision(workspace)
    # What 0.18.2 cannot open was set aside, and is there for the way forward.
    copies = {path.stem.partition("-")[2] for path in (workspace / ".comfypod" / "databases").iterdir()}
    assert revisions[NEW] in copies
    assert len([path for path in known if path.endswith(".png") and "kept" in path]) == 5


def test_b1_an_upgrade_whose_comfyui_does_not_start_is_taken_back_in_a_container(
    real_images: RealImages, images: dict[str, str], workspace: Path
) -> None:
    volume = ("--network", "none", "-v", f"{workspace}:/workspace")
    write(workspace / "ComfyUI" / "custom_nodes" / "deadly" / "__init__.py", _DEADLY.format(version=NEW))
    own(workspace)
    with running(real_images.engine, images[MIDDLE], *volume) as container:
        ensure_works(container, MIDDLE)
    with running(real_images.engine, images[NEW], *volume) as container:
        status = ensure_works(container, MIDDLE)
        assert f"ComfyUI {NEW} did not start" in problems(status)["rolled-back"]
        assert container.comfypod("workspace", "status")["data"]["stays"]
    # Once the node is gone, the upgrade is asked for again.
    (workspace / "ComfyUI" / "custom_nodes" / "deadly").rename(workspace / "deadly")
    with running(real_images.engine, images[NEW], *volume) as container:
        ensure_works(container, MIDDLE)
        assert container.comfypod("workspace", "upgrade")["data"]["done"] is False
        _restart(real_images, container)
        assert problems(ensure_works(container, NEW)) == {}
        # And back by hand: the older core with the newer environment.
        assert container.comfypod("workspace", "rollback")["data"]["done"] is False
        _restart(real_images, container)
        assert problems(ensure_works(container, MIDDLE)) == {}


def _restart(images: RealImages, container: Container) -> None:
    subprocess.run([images.engine.program, "restart", container.id], check=True, capture_output=True, timeout=60)


_NEEDS = "import kit_extra\nimport kit_more\n"


def test_c5_b1_b2_what_a_node_needs_survives_the_container_an_upgrade_and_the_way_back_without_a_network(
    real_images: RealImages, images: dict[str, str], workspace: Path
) -> None:
    volume = ("--network", "none", "-v", f"{workspace}:/workspace")
    for name in ("kit-extra", "kit-more"):
        build_wheel(workspace / "wheels", name, "1.0")
    node = workspace / "ComfyUI" / "custom_nodes" / "needy" / "__init__.py"
    write(node, _NEEDS + _NODE.format(name="NeedsExtra"))
    own(workspace)
    with running(real_images.engine, images[NEW], *volume) as container:
        status = container.wait_ready()
        (needy,) = [row for row in status["nodes"] if row["name"] == "needy"]
        assert (needy["state"], "kit_extra" in needy["reason"]) == ("failed", True)
        python = f"/workspace/.comfypod/envs/{status['environment']['key']}/bin/python"
        found = ("--no-index", "--find-links", "/workspace/wheels")
        for tool in (
            (python, "-m", "pip", "install", *found, "kit-extra"),
            ("uv", "pip", "install", "--python", python, *found, "kit-more"),
        ):
            done = real_images.engine.exec(container.id, tool, user="1000", environment={"HOME": "/tmp"}, seconds=120)
            assert done.ok, done.stderr
    keys = set()
    for version in (NEW, MIDDLE, NEW):
        with running(real_images.engine, images[version], *volume) as container:
            status = container.wait_ready()
            keys.add(status["environment"]["key"])
            assert "NeedsExtra" in container.nodes(), status["problems"]
            changed = {row["name"]: row["state"] for row in status["environment"]["changed"]}
            assert changed == {"kit-extra": "added", "kit-more": "added"}
            assert problems(status) == {}
    assert len(keys) == 2

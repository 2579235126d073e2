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
from tests.kit.lab import until
from tests.kit.offers import ENVIRON, Offers, install_by_manager, serve
from tests.kit.real_images import OTHER_TORCH, Container, Inside, RealImages, problems, running
from tests.kit.repos import write_tree

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


def test_f10_b1_b2_real_upgrades_and_the_way_back_lose_nothing_of_the_users(
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


_NEEDS = "import {module}\n"
# Nodes by what installs them or, for a person's own, their package.
_BY_HAND = {"by-pip": "ByPip", "by-uv": "ByUv"}
_BY_URL = "ByUrl"
_BY_MANAGER = {"by-registry": "ByRegistry", "by-cli": "ByCli", "by-url": _BY_URL}

# What one of Manager's nodes brings as its own install script, and imports as well.
_SCRIPT = "import subprocess, sys\nsubprocess.check_call([sys.executable, '-m', 'pip', 'install', 'for-by-script'])\n"
_FOUND = ("--no-index", "--find-links", "/offers/wheels")


def _contents(name: str, kind: str) -> dict[str, str]:
    code = _NEEDS.format(module=f"for_{name.replace('-', '_')}") + _NODE.format(name=kind)
    return {"__init__.py": code, "requirements.txt": f"for-{name}\n"}


def _offers(folder: Path, workspace: Path) -> Offers:
    """Offer nodes and packages; on the volume are nodes of a person's own and a Manager of the old kind."""
    offers, nodes = Offers(folder), workspace / "ComfyUI" / "custom_nodes"
    for name in (*_BY_HAND, *_BY_MANAGER, "by-script"):
        offers.wheel(f"for-{name}")
    offers.publish("by-registry", _contents("by-registry", "ByRegistry"))
    offers.repository("by-url", _contents("by-url", _BY_URL))
    scripted = _contents("by-cli", "ByCli")
    scripted["__init__.py"] += _NEEDS.format(module="for_by_script")
    offers.repository("by-cli", {**scripted, "install.py": _SCRIPT})
    for name, kind in _BY_HAND.items():
        write_tree(nodes / name, _contents(name, kind))
    write_tree(nodes / "ComfyUI-Manager", {"__init__.py": "raise RuntimeError('there is another')\n"})
    own(workspace)
    return offers


def _install(container: Container, layer: str) -> None:
    """Install as people do in a terminal, where `cm-cli` may take any address, and as Manager's page does."""
    for argv in (
        (f"{layer}/bin/pip", "install", "for-by-pip"),
        ("uv", "pip", "install", "--python", f"{layer}/bin/python", *_FOUND, "for-by-uv"),
        (f"{layer}/bin/cm-cli", "install", "git://127.0.0.1/by-cli"),
    ):
        done = container.engine.exec(container.id, argv, user="1000", environment={"HOME": "/tmp"}, seconds=120)
        assert done.ok, done.stdout + done.stderr
    install_by_manager(container, "by-registry")


def _ensure_whole(container: Container, nodes: dict[str, str]) -> str:
    """Wait until it is ready, look for the nodes and their packages, and return which torch ComfyUI runs with."""
    status = container.wait_ready()
    assert problems(status) == {}
    assert set(nodes.values()) <= container.nodes()
    changed = {row["name"]: row["state"] for row in status["environment"]["changed"]}
    assert changed == {f"for-{name}": "added" for name in (*nodes, "by-script")}
    torch = str(json.loads(container.ask("/system_stats")[1])["system"]["pytorch_version"]).partition("+")[0]
    assert status["environment"]["key"].startswith(f"torch{torch}-")
    return torch


def test_c5_b1_b2_b7_e6_what_was_installed_survives_the_container_another_torch_and_the_way_back_without_a_network(
    real_images: RealImages, images: dict[str, str], workspace: Path, tmp_path: Path
) -> None:
    volume = ("--network", "none", "-v", f"{workspace}:/workspace")
    offers = _offers(tmp_path / "offers", workspace)
    nodes = {**_BY_HAND, **_BY_MANAGER}
    with running(real_images.engine, images[NEW], *volume, *offers.options, env=ENVIRON) as container:
        status = container.wait_ready()
        assert problems(status)["legacy-manager"].endswith("the image's ComfyUI-Manager is in use")
        assert "for_by_pip" in {row["name"]: row["reason"] for row in status["nodes"]}["by-pip"]
        serve(container)
        _install(container, f"/workspace/.comfypod/envs/{status['environment']['key']}")
        assert container.ask("/v2/manager/reboot", post="")[0] == 200
        until(lambda: set(nodes.values()) - {_BY_URL} <= container.nodes(), "the nodes after a restart", 180)
        assert container.status()["boot"]["pid"] == status["boot"]["pid"]
    # In a new container nothing serves yet. By a Git address Manager's older pages alone install, under `open` alone.
    more = {"COMFYPOD_NODE_POLICY": "open", "COMFYPOD_COMFYUI_ARGS": "--enable-manager-legacy-ui"}
    with running(real_images.engine, images[NEW], *volume, *offers.options, env={**ENVIRON, **more}) as container:
        newer = _ensure_whole(container, {name: kind for name, kind in nodes.items() if kind != _BY_URL})
        serve(container)
        assert container.ask("/v2/customnode/install/git_url", post="git://127.0.0.1/by-url")[0] == 200
    # No boot of that image has seen what came last.
    for version, torch in ((OLD, OTHER_TORCH[OLD][0].partition("==")[2]), (NEW, newer)):
        with running(real_images.engine, images[version], *volume) as container:
            assert _ensure_whole(container, nodes) == torch
    assert newer != OTHER_TORCH[OLD][0].partition("==")[2]

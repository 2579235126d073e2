"""A real engine for these tests, the lab's servers, and nothing left of what the tests made."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgspec
import pytest

from tests.kit import engine
from tests.kit.images import ImageLab, serve_git, serve_index
from tests.kit.real_images import RealImages, default_lock, make_node, make_pack, with_node, write_lock
from tests.kit.web import serve

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from comfypod.image.engine import Engine
    from tests.kit.images import Index


@pytest.fixture(scope="session")
def local() -> Engine:
    """Give the engine as comfypod finds it."""
    found = engine.found()
    if isinstance(found, str):
        pytest.skip(f"no engine, see test_engine_is_there: {found}")
    return found


@pytest.fixture(scope="session")
def docker() -> Iterator[engine.Docker]:
    """Give docker; what it has under the lab's names afterwards is removed, by name."""
    found = engine.found()
    if isinstance(found, str):
        pytest.skip(f"no engine, see test_engine_is_there: {found}")
    docker = engine.Docker(found)
    yield docker
    for name in docker.names():
        if name.startswith(engine.LAB):
            docker.call("image", "rm", name)


@dataclass(frozen=True)
class Servers:
    """What a lab is locked and built from; each test has its own."""

    index: Index
    git: str


@pytest.fixture
def servers(tmp_path: Path) -> Iterator[Servers]:
    (tmp_path / "wheels").mkdir()
    (tmp_path / "git").mkdir()
    with serve_index(tmp_path / "wheels") as index, serve_git(tmp_path / "git") as git:
        yield Servers(index, git)


@pytest.fixture
def lab(tmp_path: Path, servers: Servers) -> ImageLab:
    """Give a lab with a node, not locked yet."""
    made = ImageLab(tmp_path, servers.index, servers.git)
    made.add_node("lab-node", {"__init__.py": "NODE_CLASS_MAPPINGS = {}\n"})
    return made


@pytest.fixture(scope="session")
def system(docker: engine.Docker, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Name a base that has Debian's packages already, for builds that may not use the cache."""
    folder = tmp_path_factory.mktemp("system")
    (folder / "wheels").mkdir()
    with serve_index(folder / "wheels") as index:
        made = ImageLab(folder, index, "git://127.0.0.1:1/")
        made.make_lock()
        return made.image(docker.engine, f"{engine.LAB}-system:1", stage="system")


@pytest.fixture(scope="package")
def real_images(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealImages]:
    found = engine.found()
    if isinstance(found, str):
        pytest.skip(f"no engine, see test_engine_is_there: {found}")
    folder = tmp_path_factory.mktemp("real-images")
    node = make_node(folder / "git")
    with serve_git(folder / "git") as address, serve() as site:
        wanted = msgspec.structs.replace(with_node(default_lock(), node), models=(make_pack(folder, site),))
        images = RealImages(folder, found, address, site, write_lock(folder / "comfypod.lock", wanted))
        images.forget()
        yield images
        images.forget()
        if os.environ.get("CI") == "true":
            images.clear_cache()

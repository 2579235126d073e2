"""A real engine for these tests, the lab's servers, and nothing left of what the tests made."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest

from tests.kit import engine
from tests.kit.images import ImageLab, serve_git, serve_index

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.kit.images import Index


@pytest.fixture(scope="session")
def docker() -> Iterator[engine.Docker]:
    """Give docker; what it has more of afterwards under the lab's names is removed, by name."""
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
    """What labs are locked and built from."""

    index: Index
    git: str


@pytest.fixture
def servers(tmp_path: Path) -> Iterator[Servers]:
    (tmp_path / "wheels").mkdir()
    (tmp_path / "git").mkdir()
    with serve_index(tmp_path / "wheels") as index, serve_git(tmp_path / "git") as git:
        yield Servers(index, git)

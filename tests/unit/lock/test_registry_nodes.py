"""Nodes of the registry, locked: its answer carries no digest, so the lock takes one."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
import pytest

from comfypod.errors import IntegrityError, SourceError
from comfypod.lock.trees import Site, lock_node
from comfypod.log import Console
from comfypod.manifest.schema import Node
from tests.kit.nodes import GOOD, publish
from tests.kit.web import serve

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.kit.web import Site as Web

NODE = Node("pack", registry="pack", version="1.0.0")


@pytest.fixture
def web() -> Iterator[Web]:
    with serve() as web:
        publish(web, "pack", "1.0.0", {**GOOD, "requirements.txt": "numpy\n"})
        yield web


def site(tmp_path: Path, web: Web, number: int) -> Site:
    scratch = tmp_path / str(number)
    scratch.mkdir()
    return Site(tmp_path, scratch, "", Console(quiet=True), web.url)


def test_a_node_of_the_registry_is_locked_by_its_archive(tmp_path: Path, web: Web) -> None:
    locked = lock_node(NODE, None, site(tmp_path, web, 1))
    assert (locked.url, locked.ref, locked.registry) == (f"{web.url}/pack-1.0.0.zip", "1.0.0", "pack")
    assert (len(locked.archive), locked.requirements) == (64, ("numpy",))
    web.requests.clear()
    assert lock_node(NODE, locked, site(tmp_path, web, 2)) == locked
    assert web.requests == [("GET", "/pack-1.0.0.zip")]


def test_another_archive_under_the_same_version_is_refused(tmp_path: Path, web: Web) -> None:
    locked = lock_node(NODE, None, site(tmp_path, web, 1))
    publish(web, "pack", "1.0.0", {**GOOD, "evil.py": ""})
    with pytest.raises(IntegrityError, match="sha256"):
        lock_node(NODE, locked, site(tmp_path, web, 2))


def test_another_version_is_looked_up(tmp_path: Path, web: Web) -> None:
    locked = lock_node(NODE, None, site(tmp_path, web, 1))
    publish(web, "pack", "1.1.0", GOOD)
    newer = lock_node(msgspec.structs.replace(NODE, version="1.1.0"), locked, site(tmp_path, web, 2))
    assert newer.ref == "1.1.0"
    assert newer.archive != locked.archive


@pytest.mark.parametrize("status", ["Banned", "Deleted", "Flagged"])
def test_what_the_registry_has_withdrawn_is_refused(tmp_path: Path, web: Web, status: str) -> None:
    publish(web, "pack", "1.0.0", GOOD, status=f"NodeVersionStatus{status}")
    with pytest.raises(SourceError, match=status.lower()):
        lock_node(NODE, None, site(tmp_path, web, 1))

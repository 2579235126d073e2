from __future__ import annotations

import io
from typing import TYPE_CHECKING

import pytest

from comfypod.log import Console
from tests.kit.lockable import OWN, TORCH
from tests.kit.web import Site, serve
from tests.kit.wheels import build_wheel, only_these

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def console() -> Console:
    return Console(io.StringIO())


@pytest.fixture
def site() -> Iterator[Site]:
    with serve() as running:
        yield running


@pytest.fixture
def wheels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that is all the packages there are: stand-ins for torch and for what comfypod needs, two of `lib`."""
    folder = tmp_path / "wheels"
    for name, version in (*TORCH, ("torch", "2.99.0"), ("jupyterlab", "4.0"), ("lib", "1.0"), ("lib", "2.0"), *OWN):
        build_wheel(folder, name, version)
    for name, value in only_these(folder).items():
        monkeypatch.setenv(name, value)
    return folder

"""A package index of tiny wheels, for real uv, with a cache of its own."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.kit.wheels import only_these

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def wheels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the folder whose wheels are all that uv can find."""
    folder = tmp_path / "wheels"
    folder.mkdir()
    for name, value in only_these(folder).items():
        monkeypatch.setenv(name, value)
    return folder

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

import pytest

from tests.kit.layers import Lab, make_lab

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(scope="session")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Lab:
    return make_lab(tmp_path_factory.mktemp("image"))


@pytest.fixture
def lab(pristine: Lab, tmp_path: Path) -> Lab:
    """Give a lab of its own; the image is the session's, for no test may write to it."""
    (tmp_path / "opt").symlink_to(pristine.folder / "opt")
    shutil.copytree(pristine.index, tmp_path / "index")
    (tmp_path / "workspace").mkdir()
    return Lab(tmp_path)

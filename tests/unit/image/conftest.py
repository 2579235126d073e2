from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from comfypod.lock.load import read_lock
from comfypod.manifest.profiles import load_profiles

if TYPE_CHECKING:
    from comfypod.lock.schema import Lock
    from comfypod.manifest.profiles import Profile


@pytest.fixture(scope="session")
def lock() -> Lock:
    """comfypod's own lock."""
    return read_lock(None)


@pytest.fixture(params=list(load_profiles()))
def profile(request: pytest.FixtureRequest) -> Profile:
    return load_profiles()[request.param]

"""That there is an engine: under CI its absence is this one failure, and the other tests of images are skipped."""

from __future__ import annotations

import os

import pytest

from tests.kit import engine


def test_engine_is_there() -> None:
    found = engine.found()
    if isinstance(found, str) and os.environ.get("CI") != "true":
        pytest.skip(f"no engine: {found}")
    assert not isinstance(found, str), found

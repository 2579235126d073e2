"""Two containers on one volume, with a real engine, around an image of the stand-in ComfyUI."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from tests.kit import standin_image
from tests.kit.real_images import problems, running

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from comfypod.image.engine import Engine


@pytest.fixture(scope="module")
def image(local: Engine, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    tag = standin_image.build(local, tmp_path_factory.mktemp("shared"), f"comfypod-shared-{os.getpid()}:1")
    yield tag
    local.remove_image(tag)


def test_a8_two_pods_on_one_empty_volume_both_become_ready_and_the_next_does_not_wait_for_one_that_is_killed(
    local: Engine, image: str, tmp_path: Path
) -> None:
    (tmp_path / "ws").mkdir()
    volume = ("--network", "none", "-v", f"{tmp_path}/ws:/workspace")
    with running(local, image, *volume) as one, running(local, image, *volume) as other:
        found = [one.wait_ready(), other.wait_ready()]
        told = sorted(status["stages"][0]["detail"].split(" ")[0] for status in found)
        assert told == ["ComfyUI", "seeded"]
        assert sorted(len(problems(status)) for status in found) == [0, 1]
        assert len(os.listdir(tmp_path / "ws" / ".comfypod" / "pods")) == 2
        # The engine removes a container with SIGKILL: its ticket stays.
        local.remove(one.id)
        assert other.status()["ready"]
        with running(local, image, *volume) as third:
            assert "shared" in problems(third.wait_ready())
            assert other.status()["ready"]

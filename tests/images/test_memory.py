"""A container with a memory limit, with a real engine, around an image of the stand-in ComfyUI."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from tests.kit import standin_image
from tests.kit.lab import until
from tests.kit.real_images import problems, running
from tests.kit.standin import Orders

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from comfypod.image.engine import Engine


@pytest.fixture(scope="module")
def image(local: Engine, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder, tag = tmp_path_factory.mktemp("memory"), f"comfypod-memory-{os.getpid()}:1"
    yield standin_image.build(local, folder, tag, Orders(eats=True))
    local.remove_image(tag)


@pytest.mark.slow
def test_e2_comfyui_that_a_containers_memory_limit_kills_is_said_with_limit_and_peak(
    local: Engine, image: str, tmp_path: Path
) -> None:
    """Slow because it is killed until it is given up."""
    limit = ("--memory", "256m", "--memory-swap", "256m")
    with running(local, image, "--network", "none", *limit, "-v", f"{tmp_path}:/workspace") as container:
        until(lambda: "out-of-memory" in problems({"problems": [], **container.status()}), "out of memory", 60)
        status = container.status()
        assert status["memory"]["limit"] == 256 << 20
        told = problems(status)["out-of-memory"]
        assert told.startswith("comfyui ran out of memory and was killed (limit 268 MB")
        assert local.exec(container.id, ["comfypod", "health", "--live"]).ok
        # Asked all the time, it takes memory itself: whom the kernel ends then, it is not the pod.
        container.wait_for("failed", 60, pause=0.005)
        assert local.exec(container.id, ["comfypod", "health", "--live"]).ok

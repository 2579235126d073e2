"""The images for GPUs, run by a real engine without a GPU.

Each has a disk's worth of layers of its own, so the tests of one come together: the next build takes their place.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from tests.kit.real_images import RealImages, running

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [pytest.mark.slow, pytest.mark.real]

# torch.cuda.get_arch_list() is empty without a GPU; it returns these flags with one.
_FLAGS = "import json, torch; print(json.dumps([torch.version.cuda, torch._C._cuda_getArchFlags().split()]))"


def test_h6_the_image_that_is_built_in_place_is_tried_like_the_others(real_images: RealImages) -> None:
    real_images.ensure_tried("5090", "slim")


def test_the_5090_image_has_a_torch_with_sm_120(real_images: RealImages) -> None:
    cuda, flags = real_images.python(real_images.image("5090", "slim"), _FLAGS)
    assert cuda == "12.8"
    assert "sm_120" in flags


def test_h5_the_5090_image_is_little_more_than_its_wheels_unpacked(real_images: RealImages) -> None:
    real_images.ensure_lean("5090", "slim")


def test_h6_the_4090_image_boots_on_cpu_loads_all_baked_nodes_and_runs_a_workflow_before_its_tag(
    real_images: RealImages,
) -> None:
    real_images.ensure_tried("4090", "slim")


def test_the_4090_image_has_a_torch_with_native_code_for_its_cards(real_images: RealImages) -> None:
    cuda, flags = real_images.python(real_images.image("4090", "slim"), _FLAGS)
    assert cuda == "12.8"
    # Code for 8.6 runs on 8.9: a binary runs on any later minor version of its major one.
    assert {"sm_86", "sm_89"} & set(flags), flags


def test_h5_the_4090_image_is_little_more_than_its_wheels_unpacked(real_images: RealImages) -> None:
    real_images.ensure_lean("4090", "slim")


def test_e10_a_gpu_image_without_a_gpu_is_refused_with_a_sentence_and_allow_cpu_runs(
    real_images: RealImages, tmp_path: Path
) -> None:
    image = real_images.image("4090", "slim")
    volume = ("-v", f"{tmp_path}/ws:/workspace")
    with running(real_images.engine, image, "--network", "none", *volume) as container:
        status = container.wait_for("failed")
        (reason,) = status["reasons"]
        assert "needs an NVIDIA GPU" in reason
        told = json.dumps(status["problems"])
        assert "COMFYPOD_ALLOW_CPU=1" in told
        assert "--gpus all" in told
    allowed = {"COMFYPOD_ALLOW_CPU": "1"}
    with running(real_images.engine, image, "--network", "none", *volume, env=allowed) as container:
        container.wait_ready()
        assert json.loads(container.ask("/system_stats")[1])["devices"][0]["type"] == "cpu"

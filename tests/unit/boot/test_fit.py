from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from comfypod import gpu
from comfypod.boot.fit import check_gpu
from comfypod.boot.health import StageView
from comfypod.errors import HostError
from comfypod.podfile import GpuNeed
from tests.unit.boot.contexts import context_of

if TYPE_CHECKING:
    from pathlib import Path

NEED = GpuNeed("4090", "RTX 40 series", ("8.9",), 525)
NONE = gpu.Survey(trouble="no NVIDIA driver is installed")


def machine(capability: str, driver: str = "570.1") -> gpu.Survey:
    return gpu.Survey(driver, (gpu.Gpu("NVIDIA Test", 24_000_000_000, capability),))


@pytest.mark.parametrize("need", [None, GpuNeed("cpu", "", (), 0)])
def test_a_pod_that_needs_no_gpu_asks_for_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, need: GpuNeed | None
) -> None:
    monkeypatch.delattr(gpu, "probe")
    assert check_gpu(context_of(tmp_path, gpu=need), StageView("gpu")) == "no GPU is needed"


def test_a_fitting_gpu_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "probe", lambda: machine("8.9"))
    context = context_of(tmp_path, gpu=NEED)
    assert check_gpu(context, StageView("gpu")) == "NVIDIA Test (24.0 GB, sm_89); driver 570.1"
    assert not context.cpu


@pytest.mark.parametrize(
    ("found", "lack", "profile"),
    [
        (NONE, "needs an NVIDIA GPU: no NVIDIA driver is installed", "cpu"),
        (machine("12.0"), "NVIDIA Test has compute capability 12.0, profile 4090 is for 8.9", "5090"),
        (machine("8.9", "470.1"), "NVIDIA driver 470.1 is older than 525", "cpu"),
    ],
)
def test_e10_an_unfit_gpu_is_refused_with_the_profile_to_use_or_left_out_when_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, found: gpu.Survey, lack: str, profile: str
) -> None:
    monkeypatch.setattr(gpu, "probe", lambda: found)
    with pytest.raises(HostError) as caught:
        check_gpu(context_of(tmp_path, gpu=NEED), StageView("gpu"))
    for words in (lack, f"use the image of profile {profile}", "COMFYPOD_ALLOW_CPU=1"):
        assert words in caught.value.message
    assert ("--gpus all" in caught.value.message) is not bool(found.gpus)
    context = context_of(tmp_path, gpu=NEED, environ={"COMFYPOD_ALLOW_CPU": "1"})
    assert check_gpu(context, StageView("gpu")).endswith("runs on the CPU because COMFYPOD_ALLOW_CPU=1")
    assert context.cpu
    assert [problem.code for problem in context.health.problems] == ["no-gpu"]

from __future__ import annotations

import pytest

from comfypod.boot.watch import disk_check, gpu_check, queue_check, required_check
from comfypod.gpu import Gpu, Survey


@pytest.mark.parametrize(
    ("prompts", "limit", "well", "text"),
    [(12, 0, True, "queue 12"), (10, 10, True, "queue 10 of 10"), (12, 10, False, "queue 12 of 10")],
)
def test_e7_a_queue_is_judged_by_its_limit(prompts: int, limit: int, well: bool, text: str) -> None:
    check = queue_check(prompts, limit)
    assert (check.well, check.text) == (well, text)


@pytest.mark.parametrize(
    ("free", "floor", "text"),
    [
        (10_000_000, 10_000_000, "disk has 10.0 MB free"),
        (9_000_000, 10_000_000, "disk has 9.0 MB free of at least 10.0 MB"),
        (0, 0, "disk has 0 B free"),
        (None, 0, "the workspace's disk fails: it does not answer"),
        ("Stale file handle", 0, "the workspace's disk fails: Stale file handle"),
    ],
)
def test_a_disk_is_judged_by_its_floor(free: int | str | None, floor: int, text: str) -> None:
    check = disk_check(free, floor)
    assert check.text == text
    assert check.well is (isinstance(free, int) and free >= floor)


_GPU = Gpu("NVIDIA Test", 1, "8.9")


@pytest.mark.parametrize(
    ("found", "before", "text"),
    [
        (Survey("570.1", (_GPU, _GPU)), 2, "GPU answers"),
        (Survey("570.1", (_GPU,)), 2, "the GPU is gone: 1 of 2 are left"),
        (Survey("570.1", (), "the GPU has fallen off the bus"), 1, "the GPU is gone: the GPU has fallen off the bus"),
        (None, 1, "the GPU is gone: the NVIDIA driver does not answer"),
    ],
)
def test_e8_fewer_gpus_than_at_boot_or_none_that_answer_are_lost(found: Survey | None, before: int, text: str) -> None:
    check = gpu_check(found, before)
    assert (check.well, check.text) == (text == "GPU answers", text)


def test_what_is_required_must_be_there_by_name() -> None:
    rows: list[dict[str, object]] = [
        {"name": "pack", "state": "baked"},
        {"name": "mine", "state": "disabled"},
        {"name": "vae", "state": "incomplete"},
    ]
    assert required_check(["pack"], rows).well
    files = [
        {"name": f"sdxl/{name}", "state": state, "pack": "sdxl"}
        for name, state in (("a", "present"), ("b", "fetching"))
    ]
    assert required_check(["sdxl"], files).text == "required: sdxl is fetching"
    assert required_check(["sdxl"], files[::-1]).text == "required: sdxl is fetching"
    assert required_check(["sdxl"], files[:1]).well
    found = required_check(["pack", "mine", "vae", "lora"], rows)
    assert (found.well, found.text) == (False, "required: mine is disabled, vae is incomplete, lora is missing")

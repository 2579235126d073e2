from __future__ import annotations

from comfypod.boot.stages import STAGES


def test_what_comes_before_comfyui_stops_a_boot_and_what_it_can_do_without_does_not() -> None:
    policies = {stage.name: stage.policy for stage in STAGES}
    assert policies == {
        "workspace": "stop", "gpu": "stop", "environment": "stop", "nodes": "degrade",
        "models": "degrade",
    }  # fmt: skip
    assert STAGES[0].name == "workspace"


def test_every_stage_has_a_function_that_says_what_it_does() -> None:
    assert all(stage.work.__doc__ for stage in STAGES)

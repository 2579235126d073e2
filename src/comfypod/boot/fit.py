"""The GPU stage: what the machine has, against what the image was built for."""

from __future__ import annotations

from typing import TYPE_CHECKING

from comfypod.errors import HostError, Problem
from comfypod.podfile import GpuNeed

if TYPE_CHECKING:
    from comfypod.boot.context import Context
    from comfypod.boot.health import StageView
    from comfypod.gpu import Survey


def check_gpu(context: Context, view: StageView) -> str:
    """Compare GPU and driver with what the image was built for; ComfyUI would fail later and say less."""
    del view
    need = context.pod.gpu
    if need is None or not need.needs_gpu:
        return "no GPU is needed"
    from comfypod import gpu

    found = gpu.probe()
    lack = gpu.lack(found, need)
    if not lack:
        context.gpus = len(found.gpus)
        return found.summary
    if context.settings.allow_cpu:
        context.cpu = True
        told = f"{lack}; it runs on the CPU because COMFYPOD_ALLOW_CPU=1"
        context.warn(Problem("no-gpu", told, "give the container its GPU with --gpus all"))
        return told
    devices = "" if found.gpus else "give the container its GPU with --gpus all, "
    raise HostError(
        f"{lack}; {devices}use the image of profile {_fitting(found)}, "
        "or set COMFYPOD_ALLOW_CPU=1 to run on the CPU, slowly",
        "`comfypod doctor` shows what this machine has",
    )


def _fitting(found: Survey) -> str:
    """Return the name of the profile for what was found."""
    import tomllib
    from importlib import resources

    from comfypod.gpu import choose

    text = resources.files("comfypod.resources").joinpath("profiles.toml").read_text("utf-8")
    rows = (
        GpuNeed(row["name"], row["summary"], tuple(row["capabilities"]), row["driver"])
        for row in tomllib.loads(text)["profile"]
    )
    return choose(found, {row.name: row for row in rows}).profile.name

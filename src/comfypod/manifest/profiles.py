"""Profiles: which GPUs, which torch, which base image; one table, read from `resources/profiles.toml`."""

from __future__ import annotations

import tomllib
from importlib import resources
from typing import Literal

import msgspec

from comfypod.errors import UsageError

# The driver branch that came with each CUDA version, by which platforms tell machines apart: release notes of the
# CUDA Toolkit, table 3; 12.7 is what driver 565 reports.
_DRIVERS = {
    "11.8": 520, "12.0": 525, "12.1": 530, "12.2": 535, "12.3": 545, "12.4": 550, "12.5": 555, "12.6": 560, "12.7": 565,
    "12.8": 570, "12.9": 575, "13.0": 580,
}  # fmt: skip


class Profile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One row of the table.

    `capabilities` are CUDA compute capabilities such as "8.9"; `driver` is the oldest NVIDIA driver branch that runs
    it, 0 where none is needed.
    """

    name: str
    summary: str
    families: tuple[str, ...]
    capabilities: tuple[str, ...]
    python: str
    torch: str
    torchvision: str
    torchaudio: str
    cuda: str
    driver: int
    base: str
    stages: Literal["single", "multi"]
    architectures: tuple[Literal["x86_64", "aarch64"], ...]
    comfyui_args: tuple[str, ...] = ()

    @property
    def needs_gpu(self) -> bool:
        """Whether it is of use only with an NVIDIA GPU."""
        return bool(self.capabilities)

    @property
    def hosts(self) -> tuple[str, ...]:
        """The CUDA versions of machines that run it, as platforms filter by them; nothing where no driver is needed."""
        return tuple(version for version, driver in _DRIVERS.items() if self.driver and driver >= self.driver)

    @property
    def pins(self) -> tuple[str, ...]:
        """The torch triple as requirements; a resolver left alone pairs it wrongly (docs/decisions)."""
        return (f"torch=={self.torch}", f"torchvision=={self.torchvision}", f"torchaudio=={self.torchaudio}")


def load_profiles() -> dict[str, Profile]:
    """Return the table by name, in its order."""
    text = resources.files("comfypod.resources").joinpath("profiles.toml").read_text("utf-8")
    rows = msgspec.convert(tomllib.loads(text)["profile"], tuple[Profile, ...])
    return {row.name: row for row in rows}


def profile(name: str) -> Profile:
    """Return one profile.

    Raises:
        UsageError: there is none of this name.
    """
    table = load_profiles()
    if name not in table:
        raise UsageError(f"there is no profile {name!r}", f"profiles are: {', '.join(table)}")
    return table[name]

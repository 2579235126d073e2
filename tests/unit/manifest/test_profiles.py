from __future__ import annotations

import re

import pytest

from comfypod.errors import UsageError
from comfypod.lock.load import read_lock
from comfypod.manifest.profiles import Profile, load_profiles, profile

PROFILES = list(load_profiles().values())


def test_a_profile_is_found_by_its_name() -> None:
    assert profile("cpu") == load_profiles()["cpu"]
    assert list(load_profiles()) == [row.name for row in PROFILES]


@pytest.mark.parametrize("name", ["", "CPU", "3090", "../cpu"])
def test_an_unknown_profile_is_refused_with_those_there_are(name: str) -> None:
    with pytest.raises(UsageError, match="there is no profile") as caught:
        profile(name)
    assert all(row.name in caught.value.hint for row in PROFILES)


@pytest.mark.parametrize("row", PROFILES, ids=lambda row: row.name)
def test_every_row_agrees_with_itself(row: Profile) -> None:
    assert row.needs_gpu is (row.driver > 0) is bool(row.families)
    assert all(re.fullmatch(r"\d+\.\d", capability) for capability in row.capabilities)
    assert row.architectures
    assert re.fullmatch(r"3\.\d+", row.python)
    assert row.pins == (
        f"torch=={row.torch}", f"torchvision=={row.torchvision}", f"torchaudio=={row.torchaudio}",
    )  # fmt: skip
    assert all(re.fullmatch(r"\w+==\d+(\.\d+)+(\+\w+)?", pin) for pin in row.pins)


def test_no_gpu_family_belongs_to_two_profiles() -> None:
    families = [family for row in PROFILES for family in row.families]
    assert len(families) == len(set(families))


def test_one_profile_needs_no_gpu() -> None:
    assert [row.name for row in PROFILES if not row.needs_gpu] == ["cpu"]


def test_what_the_table_pins_is_what_the_packaged_lock_has() -> None:
    lock = read_lock(None)
    environments = {environment.name: environment for environment in lock.environments}
    assert {target.profile for target in lock.targets} == {row.name for row in PROFILES}
    for target in lock.targets:
        row, environment = profile(target.profile), environments[target.comfyui]
        assert environment.python == row.python
        for name in ("torch", "torchvision", "torchaudio"):
            assert (environment.version(name) or "").partition("+")[0] == getattr(row, name)

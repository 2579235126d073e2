"""Scenario E9: from GPU and driver to a profile, or to a sentence that says why not."""

from __future__ import annotations

import json
import os
import sys
from typing import TYPE_CHECKING

import pytest

from comfypod import proc
from comfypod.gpu import Gpu, Load, Survey, choose, lack, loads, probe, verdict
from comfypod.manifest.profiles import load_profiles, profile
from tests.kit import driver

if TYPE_CHECKING:
    from pathlib import Path

_ASK = """
import dataclasses, json
from comfypod.gpu import choose, probe
from comfypod.manifest.profiles import load_profiles
found = probe()
choice = choose(found, load_profiles())
print(json.dumps([dataclasses.asdict(found), choice.profile.name, choice.reason]))
"""


def _machine(capability: str, version: str) -> Survey:
    return Survey(version, (Gpu("NVIDIA Test", 24_000_000_000, capability),))


@pytest.mark.parametrize(
    ("found", "name", "reason"),
    [
        (_machine("8.9", "570.86.15"), "4090", "compute capability 8.9, driver 570.86.15"),
        (_machine("8.9", "525.60.13"), "4090", "compute capability 8.9, driver 525.60.13"),
        (_machine("12.0", "570.86.15"), "5090", "compute capability 12.0, driver 570.86.15"),
        (_machine("10.0", "610.10"), "5090", "compute capability 10.0, driver 610.10"),
        (
            _machine("12.0", "550.54"),
            "cpu",
            "NVIDIA driver 550.54 is older than 570, which profile 5090 needs; update the driver or use --profile cpu",
        ),
        (_machine("8.6", "470.256.02"), "cpu", "older than 525, which profile 4090 needs"),
        (_machine("3.5", "570.86.15"), "cpu", "no profile is for compute capability 3.5 (NVIDIA Test)"),
        (_machine("8.9", "unknown"), "cpu", "driver version 'unknown' is not understood"),
        (Survey("570.1", (), "the NVIDIA driver 570.1 sees no GPU"), "cpu", "sees no GPU; ComfyUI runs on the CPU"),
        (Survey(trouble="no NVIDIA driver is installed"), "cpu", "no NVIDIA driver is installed; ComfyUI runs"),
    ],
)
def test_e9_the_first_gpu_and_the_driver_decide_the_profile(found: Survey, name: str, reason: str) -> None:
    choice = choose(found, load_profiles())
    assert choice.profile.name == name
    assert reason in choice.reason


def test_e9_the_first_gpu_counts_when_there_are_several() -> None:
    gpus = (Gpu("new", 1, "12.0"), Gpu("old", 1, "8.9"))
    assert choose(Survey("580.1", gpus), load_profiles()).profile.name == "5090"


@pytest.mark.parametrize(
    ("found", "name", "sentence"),
    [
        (_machine("8.9", "570.1"), "4090", ""),
        (Survey(trouble="none here"), "cpu", ""),
        (Survey(trouble="none here"), "4090", "profile 4090 needs an NVIDIA GPU: none here; use --profile cpu"),
        (_machine("8.9", "570.1"), "5090", "NVIDIA Test has compute capability 8.9, profile 5090 is for 10.0, 12.0"),
    ],
)
def test_e9_a_profile_chosen_by_hand_is_judged_too(found: Survey, name: str, sentence: str) -> None:
    assert verdict(found, profile(name)).startswith(sentence)
    assert bool(verdict(found, profile(name))) == bool(sentence)
    assert verdict(found, profile(name)).startswith(lack(found, profile(name)))
    assert "--profile" not in lack(found, profile(name))


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return driver.build(tmp_path_factory.mktemp("nvml"))


def _ask(library: Path, **facts: str) -> tuple[Survey, str, str]:
    environ = {**os.environ, **driver.environ(library, facts)}
    done = proc.run([sys.executable, "-c", _ASK], seconds=20, env=environ)
    assert done.ok, done.stderr
    found, name, reason = json.loads(done.stdout)
    gpus = tuple(Gpu(**gpu) for gpu in found["gpus"])
    return Survey(found["driver"], gpus, found["trouble"]), name, reason


def test_e9_a_driver_library_is_asked_for_devices_and_version(library: Path) -> None:
    found, name, _ = _ask(library, NAME="NVIDIA GeForce RTX 5090", CAPABILITY="12.0", MEMORY="34190917632", COUNT="2")
    assert found == Survey("570.86.15", (Gpu("NVIDIA GeForce RTX 5090", 34_190_917_632, "12.0"),) * 2)
    assert name == "5090"
    assert found.summary.endswith("NVIDIA GeForce RTX 5090 (34.2 GB, sm_120); driver 570.86.15")


@pytest.mark.parametrize(
    ("facts", "trouble"),
    [
        ({"INIT": "9"}, "the NVIDIA driver is not loaded"),
        ({"INIT": "18"}, "are of different versions; restart the machine"),
        ({"INIT": "999"}, "the NVIDIA library answered error 999 to nvmlInit_v2"),
        ({"COUNT": "0"}, "the NVIDIA driver 570.86.15 sees no GPU"),
        ({"HANDLE": "15"}, "the GPU has fallen off the bus"),
    ],
)
def test_e9_a_driver_that_fails_is_a_reason_for_the_cpu(library: Path, facts: dict[str, str], trouble: str) -> None:
    found, name, reason = _ask(library, **facts)
    assert (found.gpus, name) == ((), "cpu")
    assert trouble in found.trouble
    assert trouble in reason


def test_e9_an_old_driver_names_the_version_that_is_needed(library: Path) -> None:
    _, name, reason = _ask(library, DRIVER="550.54", CAPABILITY="12.0")
    assert name == "cpu"
    assert "NVIDIA driver 550.54 is older than 570, which profile 5090 needs" in reason


def test_e9_a_library_without_a_function_is_a_value(tmp_path: Path) -> None:
    found = probe([str(driver.build(tmp_path, old=True))])
    assert found.trouble == "the NVIDIA library is too old: it has no nvmlDeviceGetCudaComputeCapability"


def test_e9_a_missing_or_foreign_library_is_a_value(tmp_path: Path) -> None:
    (tmp_path / "text.so").write_text("not a library")
    found = probe([str(tmp_path / "none.so"), str(tmp_path / "text.so")])
    assert found.trouble.startswith("no NVIDIA driver is installed")


def _loads(library: Path, monkeypatch: pytest.MonkeyPatch, **facts: str) -> tuple[Load, ...]:
    for name, value in facts.items():
        monkeypatch.setenv(f"STANDIN_{name}", value)
    return loads([str(library)])


def test_how_busy_every_device_is(library: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    facts = {"NAME": "card", "COUNT": "2", "BUSY": "75", "MEMORY": "1000", "USED": "400", "DEGREES": "61"}
    found = _loads(library, monkeypatch, **facts)
    assert found == (Load(0, "card", 0.75, 400, 1000, 61), Load(1, "card", 0.75, 400, 1000, 61))


def test_what_a_device_does_not_say_is_left_out_alone(library: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (found,) = _loads(library, monkeypatch, THERMOMETER="3", BUSY="10")
    assert (found.temperature, found.utilisation) == (None, 0.1)


@pytest.mark.parametrize("facts", [{"INIT": "9"}, {"HANDLE": "15"}, {"COUNT": "0"}])
def test_devices_that_do_not_answer_are_left_out(
    library: Path, monkeypatch: pytest.MonkeyPatch, facts: dict[str, str]
) -> None:
    assert _loads(library, monkeypatch, **facts) == ()


def test_functions_that_an_old_library_lacks_are_skipped(tmp_path: Path) -> None:
    assert loads([str(driver.build(tmp_path, old=True))]) == (Load(0, "Stand-in GPU", None, 0, 24_000_000_000, None),)


def test_without_a_driver_there_are_no_loads(tmp_path: Path) -> None:
    assert loads([str(tmp_path / "none.so")]) == ()

from __future__ import annotations

import io
from typing import TYPE_CHECKING

import msgspec
import pytest

from comfypod.lock.load import read_lock
from comfypod.lock.make import Upgrade, make
from comfypod.lock.reconcile import Drift, drift
from comfypod.log import Console
from comfypod.manifest.load import load_manifest
from comfypod.manifest.profiles import load_profiles
from tests.kit.lockable import manifest, node, write_comfyui
from tests.kit.repos import make_repository

if TYPE_CHECKING:
    from pathlib import Path

    from comfypod.lock.schema import Lock
    from comfypod.manifest.schema import Manifest

MODEL = (
    '[[model]]\nname = "m"\nurl = "http://127.0.0.1:9/a.safetensors"\nfolder = "loras"\nsize = 3\n'
    f'sha256 = "{"a" * 64}"\n'
)  # fmt: skip


@pytest.fixture
def url(tmp_path: Path) -> str:
    return make_repository(tmp_path / "repo", {"__init__.py": ""}).url


@pytest.fixture
def lock(tmp_path: Path, wheels: Path, url: str) -> Lock:
    write_comfyui(tmp_path / "tree")
    wanted = manifest(packages='"lib"', more=node("n", url, "main") + MODEL)
    return make(wanted, None, Upgrade(), tmp_path, Console(io.StringIO()))


def items(wanted: Manifest, lock: Lock) -> list[str]:
    return [each.item for each in drift(wanted, load_profiles(), lock)]


def test_a_lock_is_in_step_with_the_manifest_it_was_made_from(lock: Lock, url: str) -> None:
    assert drift(manifest(packages='"lib"', more=node("n", url, "main") + MODEL), load_profiles(), lock) == ()


def test_the_lock_in_the_package_is_in_step_with_the_manifest_in_the_package() -> None:
    lock = read_lock(None)
    assert drift(load_manifest(None), load_profiles(), lock) == ()
    assert len(lock.environment("comfyui-x86_64").packages) > 90


def test_each_change_of_the_manifest_is_named(lock: Lock, url: str) -> None:
    same = node("n", url, "main")
    for wanted, item in (
        (manifest(packages='"lib"', version="0.31.0", more=same + MODEL), "ComfyUI"),
        (manifest(packages='"lib", "x"', more=same + MODEL), "python.packages"),
        (manifest(more=same + MODEL), "python.packages"),
        (manifest(packages='"lib"', more=node("n", url, "v2") + MODEL), "node n"),
        (manifest(packages='"lib"', more=node("o", url, "main") + same + MODEL), "node o"),
        (manifest(packages='"lib"', more=MODEL), "node n"),
        (manifest(packages='"lib"', more=same), "model m"),
        (manifest(packages='"lib"', more=same + MODEL.replace("loras", "vae")), "model m, place"),
        (
            manifest(
                packages='"lib"',
                more=same + MODEL.replace("a.safetensors", "b.safetensors") + 'file = "a.safetensors"\n',
            ),
            "model m, url",
        ),
        (manifest(packages='"lib"', more=same + MODEL.replace("aaa", "bbb")), "model m, sha256"),
        (manifest(packages='"lib"', more=same + MODEL.replace("size = 3", "size = 4")), "model m, size"),
        (manifest(packages='"lib"', profiles='"cpu", "4090"', more=same + MODEL), "profile 4090 on x86_64"),
        (manifest(packages='"lib"', more=same + MODEL + "bake = true\n"), "model m, bake"),
        (manifest(packages='"lib"', more='[[node]]\nname = "n"\npath = "n"\n' + MODEL), "node n"),
        (manifest(packages='"lib"', more='overrides = ["lib"]\n' + same + MODEL), "python.overrides"),
        (manifest(packages='"lib"', more='sdists = ["lib"]\n' + same + MODEL), "python.sdists"),
    ):
        assert items(wanted, lock) == [item]


def test_other_bounds_jupyter_packages_and_sources_are_drift(lock: Lock, url: str) -> None:
    wanted = manifest(packages='"lib"', more=node("n", url, "main") + MODEL)
    python = msgspec.structs.replace(wanted.python, constraints=("lib<2",))
    jupyter = msgspec.structs.replace(wanted.jupyter, packages=())
    comfyui = msgspec.structs.replace(wanted.comfyui, source=(), manager=False)
    changed = msgspec.structs.replace(wanted, python=python, jupyter=jupyter, comfyui=comfyui)
    found = drift(changed, load_profiles(), lock)
    assert [each.item for each in found] == [
        "ComfyUI's sources", "comfyui.manager", "python.constraints", "jupyter.packages",
    ]  # fmt: skip
    assert (found[1].manifest, found[1].lock) == ("false", "true")
    assert found[0].command == "comfypod lock"


def test_a_profile_that_moved_to_another_torch_or_python_is_drift(lock: Lock, url: str) -> None:
    wanted = manifest(packages='"lib"', more=node("n", url, "main") + MODEL)
    table = load_profiles()
    table["cpu"] = msgspec.structs.replace(table["cpu"], torch="2.99.0", python="3.12", architectures=("x86_64",))
    found = [each.item for each in drift(wanted, table, lock)]
    assert found == [
        "profile cpu on x86_64, Python of comfyui-x86_64", "profile cpu on x86_64, Python of jupyter-x86_64",
        "profile cpu on x86_64, torch", "profile cpu on aarch64",
    ]  # fmt: skip


def test_a_drift_names_both_sides_and_the_command_that_mends_it() -> None:
    problem = Drift("node n", "a", "b").problem
    assert problem.message == "node n: the manifest says a, the lock says b"
    assert problem.hint == "run `comfypod lock`"

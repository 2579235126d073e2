from __future__ import annotations

import re

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from comfypod.errors import LockError
from comfypod.image.labels import PREFIX, labels
from comfypod.image.recipe import MEDIA, make_recipe, model_layer
from comfypod.lock.schema import Lock, Package
from comfypod.manifest.profiles import Profile, load_profiles
from tests.kit import locks

CPU = load_profiles()["cpu"]
FAMILIES = ("nvidia-", "cuda-", "comfyui-", "comfy-", MEDIA, "torch", "lib-", "")
NAMES = st.builds(str.__add__, st.sampled_from(FAMILIES), st.from_regex(r"[a-z][a-z0-9]{0,6}", fullmatch=True))
FIXED = st.sampled_from(["torch", "torchvision", "torchaudio", "triton", "numpy"])
PACKAGES = st.dictionaries(NAMES | FIXED, st.integers(1, 1_500_000_000), max_size=25).map(
    lambda found: [locks.package(name, size) for name, size in found.items()]
)


@given(PACKAGES, PACKAGES)
def test_every_package_is_in_exactly_one_layer_of_its_environment(intel: list[Package], arm: list[Package]) -> None:
    recipe = make_recipe(locks.lock({"x86_64": intel, "aarch64": arm}, [CPU]), CPU)
    for (_, arch), environment in recipe.environments.items():
        found = [each for layer in recipe.packages for each in layer.lists.get(environment.name, ())]
        assert sorted(found, key=lambda each: each.name) == list(environment.packages), arch
    names = [layer.name for layer in recipe.packages]
    assert len(names) == len(set(names))


@given(PACKAGES)
def test_a_layer_has_more_than_its_bytes_only_for_one_package(packages: list[Package]) -> None:
    recipe = make_recipe(locks.lock({"x86_64": packages, "aarch64": packages}, [CPU]), CPU)
    for layer in recipe.packages:
        assert layer.download_bytes <= 1_000_000_000 or all(len(each) == 1 for each in layer.lists.values())


@given(PACKAGES)
def test_what_changes_with_comfyui_stands_after_everything_else(packages: list[Package]) -> None:
    recipe = make_recipe(locks.lock({"x86_64": packages, "aarch64": packages}, [CPU]), CPU)
    late = [layer.late for layer in recipe.packages]
    assert late == sorted(late)
    for layer in recipe.packages:
        for each in (each for found in layer.lists.values() for each in found):
            assert layer.late == each.name.startswith("comfy")
            assert not each.name.startswith(MEDIA) or layer.full_only


def test_layers_of_the_default_lock_can_be_pulled_side_by_side(lock: Lock, profile: Profile) -> None:
    recipe = make_recipe(lock, profile)
    names = {layer.name for layer in recipe.packages}
    assert {"cuda-1", "torch", "torch-more", "packages-1", "comfyui-frontend-package", "comfypod-packages"} <= names
    assert all(layer.download_bytes < 1_000_000_000 for layer in recipe.packages)


def test_lists_are_found_where_profiles_share_an_environment_on_one_architecture_only() -> None:
    table = load_profiles()
    packages = [locks.package("torch")]
    lock = locks.lock(
        {"x86_64": packages, "aarch64": packages}, [table["5090"], table["cpu"]], per_profile=True
    )  # fmt: skip
    torch = next(layer for layer in make_recipe(lock, table["cpu"]).packages if layer.name == "torch")
    assert list(torch.lists) == ["comfyui-x86_64-cpu", "comfyui-aarch64"]
    assert torch.list_name("x86_64") == "comfyui-x86_64-cpu"
    assert torch.list_name("aarch64") == "comfyui-aarch64-cpu"
    assert torch.list_name("$(uname -m)") == "comfyui-$(uname -m)-cpu"


def test_the_torch_that_is_locked_counts_where_an_override_says_otherwise_than_the_profile() -> None:
    packages = [locks.package(name, version="1.13") for name in ("torch", "torchvision", "torchaudio")]
    recipe = make_recipe(locks.lock({"x86_64": packages, "aarch64": packages}, [CPU]), CPU)
    assert recipe.triple == dict.fromkeys(("torch", "torchvision", "torchaudio"), "1.13")
    assert labels(recipe, "slim")[f"{PREFIX}.torch"] == "1.13"


def test_a_lock_older_than_images_is_refused(lock: Lock) -> None:
    old = tuple(msgspec.structs.replace(target, comfypod="") for target in lock.targets)
    with pytest.raises(LockError, match="what comfypod itself needs") as caught:
        make_recipe(msgspec.structs.replace(lock, targets=old), CPU)
    assert caught.value.hint == "run `comfypod lock`"


def test_without_jupyterlab_there_is_no_layer_for_it() -> None:
    packages = {"x86_64": [locks.package("torch")], "aarch64": [locks.package("torch")]}
    assert "jupyter" not in {layer.name for layer in make_recipe(locks.lock(packages, [CPU]), CPU).packages}
    with_jupyter = locks.lock(packages, [CPU], jupyter=[locks.package("jupyterlab")])
    layer = next(layer for layer in make_recipe(with_jupyter, CPU).packages if layer.name == "jupyter")
    assert layer.full_only


def test_only_models_that_ask_for_it_are_built_in() -> None:
    models = [locks.model("baked", bake=True), locks.model("fetched", bake=False)]
    lock = locks.lock({"x86_64": (), "aarch64": ()}, [CPU], models=models)
    assert [model.name for model in make_recipe(lock, CPU).models] == ["baked"]


def test_d6_what_two_packs_share_is_built_in_once() -> None:
    models = [locks.model("x", bake=True, pack=pack) for pack in ("a", "b")]
    lock = locks.lock({"x86_64": (), "aarch64": ()}, [CPU], models=[*models, locks.model("y", bake=True, pack="b")])
    assert [model.file for model in make_recipe(lock, CPU).models] == ["x.bin", "y.bin"]


def test_layers_of_a_packs_files_have_names_that_are_safe_and_differ() -> None:
    files = [locks.model(name, bake=True, pack="a") for name in ("x y", "x-y", 'x"$(y)')]
    names = {model_layer(model) for model in files}
    assert len(names) == 3
    assert all(re.fullmatch(r"model-a-[\w.-]+", name) for name in names)
    assert model_layer(locks.model("plain", bake=True)) == "model-plain"

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from comfypod import __version__, podfile
from comfypod.errors import LockError, StorageError
from comfypod.image.context import pod_file, rendered, write_context
from comfypod.image.labels import PREFIX, labels, lock_digest
from comfypod.image.recipe import make_recipe
from comfypod.lock.schema import Lock
from comfypod.manifest.profiles import Profile, load_profiles
from tests.kit import locks
from tests.kit.pods import ROOT
from tests.kit.repos import write_tree

if TYPE_CHECKING:
    from pathlib import Path

TABLE = load_profiles()
CPU = TABLE["cpu"]
PACKAGES = {"x86_64": [locks.package("torch"), locks.package("old", sdist=True)], "aarch64": [locks.package("torch")]}


def lab_lock(**more: Any) -> Lock:
    return locks.lock(PACKAGES, [CPU], nodes=[locks.node("a"), locks.node("mine", path="nodes/mine")], **more)


def test_the_same_lock_renders_the_same_bytes_and_names_no_machine(lock: Lock) -> None:
    one, other = (rendered(lock, list(TABLE.values())) for _ in range(2))
    assert one == other
    assert list(one) == sorted(one)
    assert all(data.endswith(b"\n") or not data for data in one.values())


def test_lists_carry_every_hash_and_what_builds_from_source() -> None:
    found = rendered(lab_lock(), [CPU])
    folder = "Dockerfiles/locked/packages-1"
    assert found[f"{folder}/comfyui-x86_64.txt"].decode() == (
        f"# from source: old\nold==1.0 --hash=sha256:{locks.sha256('old')}\n"
    )
    assert found[f"{folder}/comfyui-x86_64.build.txt"].decode().startswith("setuptools==1.0 --hash=sha256:")
    assert found[f"{folder}/comfyui-aarch64.txt"] == b""
    assert f"{folder}/comfyui-aarch64.build.txt" not in found
    own = "Dockerfiles/locked/comfypod-packages/comfypod-x86_64"
    assert found[f"{own}.uv.txt"].decode().startswith("uv==1.0 ")
    assert found[f"{own}.uv.txt"].decode() in found[f"{own}.txt"].decode()


def test_h2_a_name_that_is_more_than_a_name_is_refused() -> None:
    bad = locks.lock({"x86_64": [locks.package("x --index-url http://evil")], "aarch64": []}, [CPU])
    with pytest.raises(LockError, match="the lock names the package"):
        rendered(bad, [CPU])


def test_trees_are_named_with_digest_and_place() -> None:
    found = rendered(lab_lock(models=[locks.model("m", bake=True), locks.model("n", bake=False)]), [CPU])
    comfyui, git, folder, model = (
        json.loads(found[f"Dockerfiles/locked/{name}/facts.json"])
        for name in ("comfyui", "node-a", "node-mine", "model-m")
    )
    assert (comfyui["target"], comfyui["digest"]) == ("/opt/comfyui", locks.DIGEST)
    assert git["sources"] == [{"kind": "git", "url": "https://host.invalid/a", "ref": locks.sha256("a")[:40]}]
    assert folder["sources"] == [{"kind": "path", "path": "/run/build/local/node-mine"}]
    assert folder["target"] == "/opt/nodes/mine/mine"
    assert (model["target"], model["size"]) == ("/opt/models/checkpoints/m.bin", 7)
    assert "Dockerfiles/locked/model-n/facts.json" not in found


def test_the_pod_file_says_what_the_image_has() -> None:
    lock = lab_lock(models=[locks.model("m", bake=True)], jupyter=[locks.package("jupyterlab")])
    recipe = make_recipe(lock, CPU)
    slim, full = (pod_file(recipe, variant, "x86_64") for variant in ("slim", "full"))
    assert slim.jupyter is None
    assert full.jupyter == "/opt/jupyter/bin/jupyter-lab"
    assert slim.lock == lock_digest(lock)
    assert [(node.name, node.path) for node in slim.nodes] == [
        ("a", "/opt/nodes/a/a"),
        ("mine", "/opt/nodes/mine/mine"),
    ]
    assert slim.models_path == "/opt/models"
    assert slim.models == (lock.models[0].for_pod(),)
    assert slim.models[0].url == "https://host.invalid/m"
    assert (slim.engine, slim.gpu, slim.torch) == ("image", None, "1.0")


def test_what_boot_reads_is_what_was_written(lock: Lock, profile: Profile, tmp_path: Path) -> None:
    found = rendered(lock, [profile])
    for variant in ("slim", "full"):
        for arch in profile.architectures:
            path = tmp_path / f"{variant}-{arch}.json"
            path.write_bytes(found[f"Dockerfiles/locked/{profile.name}-{variant}/{arch}.pod.json"])
            pod = podfile.load(path)
            assert (pod.profile, pod.variant, pod.arch) == (profile.name, variant, arch)
            assert (pod.gpu is not None) == profile.needs_gpu


def test_a_context_has_the_source_and_local_folders_and_nothing_else(tmp_path: Path) -> None:
    write_tree(tmp_path / "base", {"tree/main.py": "x\n", "nodes/mine/__init__.py": "y\n", "secret": "z\n"})
    folder = tmp_path / "context"
    write_context(lab_lock(), [CPU], folder, tmp_path / "base")
    there = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert {"src/comfypod/image/layer.py", "Dockerfiles/local/comfyui/main.py"} <= there
    assert "Dockerfiles/local/node-mine/__init__.py" in there
    assert not [name for name in there if "__pycache__" in name or name.endswith("secret")]
    assert rendered(lab_lock(), [CPU]).keys() <= there


def test_a_local_folder_that_is_gone_is_named(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="cannot write the build context"):
        write_context(lab_lock(), [CPU], tmp_path / "context", tmp_path / "nowhere")


def test_e11_labels_say_what_the_profile_says(lock: Lock, profile: Profile) -> None:
    found = labels(make_recipe(lock, profile), "slim")
    assert found[f"{PREFIX}.torch"] == profile.torch
    assert found[f"{PREFIX}.version"] == __version__
    assert (f"{PREFIX}.driver" in found) == profile.needs_gpu
    if profile.needs_gpu:
        assert found[f"{PREFIX}.driver"] == str(profile.driver)
        template = json.loads((ROOT / "deploy" / "runpod" / f"{profile.name}.json").read_text())
        assert tuple(template["allowedCudaVersions"]) == profile.hosts
        assert found[f"{PREFIX}.cuda"] in template["allowedCudaVersions"]
        assert found[f"{PREFIX}.capabilities"].split() == list(profile.capabilities)


def test_h1_labels_are_the_same_for_the_same_lock_and_others_for_another() -> None:
    lock = lab_lock()
    one, other = (labels(make_recipe(each, CPU), "slim") for each in (lock, lab_lock()))
    assert one == other
    changed = msgspec.structs.replace(lock, settings={"port": "1"})
    assert labels(make_recipe(changed, CPU), "slim")[f"{PREFIX}.lock"] != one[f"{PREFIX}.lock"]


def test_the_licences_of_baked_models_are_in_a_label() -> None:
    models = [locks.model("m", bake=True, licence="mit"), locks.model("n", bake=True, licence="apache-2.0")]
    models += [locks.model("o", bake=False, licence="other"), locks.model("p", bake=True)]
    found = labels(make_recipe(lab_lock(models=models), CPU), "slim")
    assert found[f"{PREFIX}.models.licences"] == "apache-2.0, mit"
    assert f"{PREFIX}.models.licences" not in labels(make_recipe(lab_lock(), CPU), "slim")


def test_no_label_can_end_its_own_quotes(lock: Lock, profile: Profile) -> None:
    for variant in ("slim", "full"):
        for value in labels(make_recipe(lock, profile), variant).values():
            assert not set(value.removeprefix("${BASE}")) & set('"\\$\n')

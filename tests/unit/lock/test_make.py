from __future__ import annotations

import io
from typing import TYPE_CHECKING

import pytest

from comfypod.errors import IntegrityError, LockError, SourceError
from comfypod.lock import schema
from comfypod.lock.make import Upgrade, make
from comfypod.lock.trees import requirement_lines
from comfypod.log import Console
from comfypod.manifest.load import parse
from comfypod.manifest.profiles import load_profiles
from comfypod.manifest.values import PathSource
from tests.kit.lockable import OWN, manifest, manifest_text, node, write_comfyui, write_manager
from tests.kit.repos import make_repository, write_tree
from tests.kit.web import Answer, Site
from tests.kit.wheels import build_builder, build_sdist, build_wheel

if TYPE_CHECKING:
    from pathlib import Path

    from comfypod.manifest.schema import Manifest


@pytest.fixture
def base(tmp_path: Path, wheels: Path) -> Path:
    write_comfyui(tmp_path / "tree", requirements="torch\nlib\n# comment\n")
    return tmp_path


def locked(
    base: Path, wanted: Manifest, previous: schema.Lock | None = None, *upgrade: str, everything: bool = False
) -> schema.Lock:
    allowed = Upgrade(frozenset(upgrade), everything)
    return make(wanted, previous, allowed, base, Console(io.StringIO()))


def test_making_a_lock_twice_gives_the_same_bytes(base: Path) -> None:
    repository = make_repository(base / "repo", {"__init__.py": "", "requirements.txt": "lib\n"})
    wanted = manifest(
        packages='"lib", "jupyterlab"', more=node("b", repository.url, "main") + node("a", repository.url, "main")
    )
    first = locked(base, wanted)
    assert schema.encode(locked(base, wanted)) == schema.encode(first)
    assert schema.encode(locked(base, wanted, first)) == schema.encode(first)
    assert schema.decode(schema.encode(first), "x") == first
    assert [each.name for each in first.nodes] == ["a", "b"]


def test_profiles_that_ask_for_the_same_share_an_environment(base: Path) -> None:
    lock = locked(base, manifest(profiles='"5090", "cpu", "4090"'))
    assert [environment.name for environment in lock.environments] == [
        "comfypod-aarch64", "comfypod-x86_64", "comfyui-aarch64", "comfyui-x86_64", "jupyter-aarch64",
        "jupyter-x86_64",
    ]  # fmt: skip
    assert [(target.profile, target.arch, target.comfyui) for target in lock.targets] == [
        ("4090", "x86_64", "comfyui-x86_64"), ("5090", "x86_64", "comfyui-x86_64"),
        ("cpu", "aarch64", "comfyui-aarch64"), ("cpu", "x86_64", "comfyui-x86_64"),
    ]  # fmt: skip


def test_profiles_that_differ_have_environments_named_after_them(
    base: Path, wheels: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import msgspec

    table = load_profiles()
    table["5090"] = msgspec.structs.replace(table["5090"], torch="2.99.0")
    monkeypatch.setattr("comfypod.lock.make.load_profiles", lambda: table)
    lock = locked(base, manifest(profiles='"4090", "5090"'))
    assert {target.profile: target.comfyui for target in lock.targets} == {
        "4090": "comfyui-x86_64-4090", "5090": "comfyui-x86_64-5090",
    }  # fmt: skip
    assert lock.environment("comfyui-x86_64-5090").version("torch") == "2.99.0"
    assert {target.jupyter for target in lock.targets} == {"jupyter-x86_64"}


def test_h4_an_index_with_a_newer_torch_still_gives_the_profiles(base: Path, wheels: Path) -> None:
    for name in ("torchvision", "torchaudio"):
        build_wheel(wheels, name, "99.0")
    environment = locked(base, manifest()).environment("comfyui-x86_64")
    assert tuple(f"{name}=={environment.version(name)}" for name in ("torch", "torchvision", "torchaudio")) == (
        load_profiles()["cpu"].pins
    )
    assert locked(base, manifest(), everything=True).environment("comfyui-x86_64") == environment


def test_locked_versions_stay_until_they_are_upgraded_by_name(base: Path, wheels: Path) -> None:
    first = locked(base, manifest(packages='"jupyterlab"'))
    build_wheel(wheels, "lib", "3.0")
    build_wheel(wheels, "jupyterlab", "5.0")
    kept = locked(base, manifest(packages='"jupyterlab"'), first)
    assert schema.encode(kept) == schema.encode(first)
    moved = locked(base, manifest(packages='"jupyterlab"'), first, "lib").environment("comfyui-x86_64")
    assert (moved.version("lib"), moved.version("jupyterlab")) == ("3.0", "4.0")
    assert locked(base, manifest(), first, everything=True).environment("comfyui-x86_64").version("lib") == "3.0"


def test_a_wheel_that_the_index_replaced_is_refused(base: Path, wheels: Path) -> None:
    first = locked(base, manifest())
    build_wheel(wheels, "lib", "2.0", modules={"lib.py": "import evil\n"})
    with pytest.raises(IntegrityError, match=r"lib-2\.0-py3-none-any\.whl"):
        locked(base, manifest(), first)
    assert locked(base, manifest(), first, "lib") != first


def test_comfyui_of_another_version_than_written_is_refused(base: Path) -> None:
    with pytest.raises(LockError, match=r"the tree is ComfyUI 0\.30\.0, comfypod\.toml says 0\.31\.0"):
        locked(base, manifest(version="0.31.0"))
    (base / "tree" / "comfyui_version.py").unlink()
    with pytest.raises(LockError, match="of no known version"):
        locked(base, manifest())


def test_contents_that_changed_under_the_same_version_are_refused_until_upgraded(base: Path) -> None:
    first = locked(base, manifest())
    (base / "tree" / "main.py").write_text("import evil\n")
    with pytest.raises(IntegrityError, match=first.comfyui.digest):
        locked(base, manifest(), first)
    assert locked(base, manifest(), first, "comfyui").comfyui.digest != first.comfyui.digest


def test_a_node_stays_at_its_commit_until_its_reference_or_an_upgrade_moves_it(base: Path) -> None:
    repository = make_repository(base / "repo", {"__init__.py": "", "requirements.txt": "lib<2\n"}, tag="v1")
    wanted = manifest(more=node("n", repository.url, "main"))
    first = locked(base, wanted)
    later = repository.commit({"__init__.py": "x = 1\n"})
    assert locked(base, wanted, first).nodes == first.nodes
    assert locked(base, wanted, first, "n").nodes[0].commit == later
    assert locked(base, manifest(more=node("n", repository.url, later)), first).nodes[0].commit == later
    assert first.nodes[0].requirements == ("lib<2",)
    assert first.environment("comfyui-x86_64").version("lib") == "1.0"


def test_h2_a_reference_that_names_no_commit_is_refused(base: Path) -> None:
    repository = make_repository(base / "repo", {"__init__.py": ""})
    with pytest.raises(SourceError, match=r"node n: .* 'v9'"):
        locked(base, manifest(more=node("n", repository.url, "v9")))


def test_h2_a_lock_with_a_branch_in_place_of_a_commit_is_refused(base: Path) -> None:
    repository = make_repository(base / "repo", {"__init__.py": ""})
    lock = locked(base, manifest(more=node("n", repository.url, "main")))
    data = schema.encode(lock).replace(lock.nodes[0].commit.encode(), b"main")
    with pytest.raises(LockError, match="commit"):
        schema.decode(data, "comfypod.lock")


def test_a_node_that_does_not_resolve_with_the_rest_is_named_by_uv(base: Path) -> None:
    repository = make_repository(base / "repo", {"requirements.txt": "torch==2.99.0\n"})
    with pytest.raises(LockError, match=r"torch==2\.99\.0"):
        locked(base, manifest(more=node("n", repository.url, "main")))


def test_requirements_lose_comments_options_and_hashes_and_nothing_else() -> None:
    text = "a # why\n\n--extra-index-url https://x.example\nb==1 \\\n  --hash=sha256:0\nc; python_version<'4'\nd#e\n"
    out = io.StringIO()
    assert list(requirement_lines(text, "n", Console(out))) == ["a", "b==1", "c; python_version<'4'", "d#e"]
    assert "--extra-index-url" in out.getvalue()
    with pytest.raises(LockError, match=r"-r more\.txt"):
        list(requirement_lines("-r more.txt\n", "n", Console(out)))


def model(url: str, more: str = "") -> str:
    return f'[[model]]\nname = "m"\nurl = "{url}"\nfolder = "checkpoints"\n{more}'


def test_a_model_is_locked_from_what_the_server_tells_of_it(base: Path, site: Site) -> None:
    tells = {"X-Linked-Etag": f'"{"a" * 64}"', "X-Linked-Size": "3", "Location": "/cdn"}
    site.answers["/m.safetensors"] = Answer(status=302, headers=tells)
    site.answers["/cdn"] = Answer(b"123")
    wanted = manifest(more=model(f"{site.url}/m.safetensors"))
    first = locked(base, wanted)
    assert (first.models[0].sha256, first.models[0].size, first.models[0].file) == ("a" * 64, 3, "m.safetensors")
    assert site.requests == [("HEAD", "/m.safetensors"), ("HEAD", "/cdn")]
    assert locked(base, wanted, first) == first
    assert len(site.requests) == 2


def test_a_model_that_is_to_be_baked_is_locked_so(base: Path) -> None:
    told = f'sha256 = "{"b" * 64}"\nsize = 3\n'
    wanted = model("http://127.0.0.1:9/m.safetensors", told)
    for more, baked in (("", False), ("bake = true\n", True), ("bake = false\n", False)):
        assert locked(base, manifest(more=wanted + more)).models[0].bake is baked


def test_comfypod_itself_is_locked_for_every_target(base: Path) -> None:
    lock = locked(base, manifest(profiles='"4090", "cpu"'))
    assert {(target.profile, target.arch): target.comfypod for target in lock.targets} == {
        ("4090", "x86_64"): "comfypod-x86_64", ("cpu", "x86_64"): "comfypod-x86_64",
        ("cpu", "aarch64"): "comfypod-aarch64",
    }  # fmt: skip
    environment = lock.environment("comfypod-x86_64")
    assert environment.purpose == "comfypod"
    assert {package.name for package in environment.packages} == {name for name, _ in OWN}


def test_a_lock_that_is_older_than_comfypods_own_environment_is_renewed(base: Path) -> None:
    import msgspec

    lock = locked(base, manifest())
    targets = tuple(msgspec.structs.replace(target, comfypod="") for target in lock.targets)
    environments = tuple(each for each in lock.environments if each.purpose != "comfypod")
    older = msgspec.structs.replace(lock, targets=targets, environments=environments)
    assert schema.encode(locked(base, manifest(), schema.decode(schema.encode(older), "x"))) == schema.encode(lock)


SDISTS = 'sdists = ["pure", "absent"]\noverrides = [\'lib; python_version < "3"\']\n'


def test_what_builds_a_source_distribution_is_locked_with_it(base: Path, wheels: Path) -> None:
    build_builder(wheels, "9.0")
    build_wheel(wheels, "wheel", "1.0")
    build_sdist(wheels, "pure", "1.0")
    lock = locked(base, manifest(packages='"pure"', more=SDISTS))
    environment = lock.environment("comfyui-x86_64")
    assert [(package.name, package.version) for package in environment.build] == [
        ("setuptools", "9.0"),
        ("wheel", "1.0"),
    ]
    assert [package.name for package in environment.packages if package.sdist] == ["pure"]
    assert environment.version("lib") is None
    assert (lock.requested.sdists, len(lock.requested.overrides)) == (("absent", "pure"), 1)
    assert not lock.environment("jupyter-x86_64").build
    assert schema.decode(schema.encode(lock), "x") == lock
    without = locked(base, manifest(more=SDISTS)).environment("comfyui-x86_64")
    assert without.build == ()


def test_build_packages_stay_until_they_are_upgraded_by_name(base: Path, wheels: Path) -> None:
    build_builder(wheels, "9.0")
    build_wheel(wheels, "wheel", "1.0")
    build_sdist(wheels, "pure", "1.0")
    wanted = manifest(packages='"pure"', more=SDISTS)
    first = locked(base, wanted)
    build_builder(wheels, "10.0")
    assert schema.encode(locked(base, wanted, first)) == schema.encode(first)
    moved = locked(base, wanted, first, "setuptools").environment("comfyui-x86_64")
    assert moved.build[0].version == "10.0"
    assert moved.packages == first.environment("comfyui-x86_64").packages
    bounded = manifest(packages='"pure"', more=SDISTS + 'constraints = ["setuptools<10"]\n')
    assert locked(base, bounded).environment("comfyui-x86_64").build[0].version == "9.0"


def test_a_source_distribution_that_the_index_replaced_is_refused(base: Path, wheels: Path) -> None:
    build_builder(wheels, "9.0")
    build_wheel(wheels, "wheel", "1.0")
    build_sdist(wheels, "pure", "1.0")
    wanted = manifest(packages='"pure"', more=SDISTS)
    first = locked(base, wanted)
    build_sdist(wheels, "pure", "1.0", requires=["torch"])
    with pytest.raises(IntegrityError, match=r"pure-1\.0\.tar\.gz"):
        locked(base, wanted, first)
    assert locked(base, wanted, first, "pure") != first


def _without_manager() -> Manifest:
    return parse(manifest_text().replace('version = "0.30.0"\n', 'version = "0.30.0"\nmanager = false\n'), "m")


def test_the_manager_that_the_tree_names_is_locked_unless_it_is_switched_off(base: Path, wheels: Path) -> None:
    assert locked(base, manifest()).comfyui.manager == ""
    build_wheel(wheels, "comfyui_manager", "4.0")
    build_wheel(wheels, "comfyui_manager", "5.0")
    write_manager(base / "tree", "4.0")
    lock = locked(base, manifest())
    assert (lock.comfyui.manager, lock.requested.manager) == ("4.0", True)
    assert lock.environment("comfyui-x86_64").version("comfyui-manager") == "4.0"
    off = locked(base, _without_manager())
    assert (off.comfyui.manager, off.requested.manager) == ("", False)
    assert off.environment("comfyui-x86_64").version("comfyui-manager") is None


def test_a_manager_that_an_override_drops_is_not_named(base: Path, wheels: Path) -> None:
    build_wheel(wheels, "comfyui_manager", "4.0")
    write_manager(base / "tree", "4.0")
    assert (
        locked(base, manifest(more="overrides = ['comfyui-manager; python_version < \"3\"']\n")).comfyui.manager == ""
    )


def test_a_node_from_a_folder_is_locked_by_its_contents(base: Path) -> None:
    write_tree(base / "nodes" / "mine", {"__init__.py": "", "requirements.txt": "lib<2\n", ".git/HEAD": "x"})
    wanted = manifest(more='[[node]]\nname = "mine"\npath = "nodes/mine"\n')
    first = locked(base, wanted)
    (found,) = first.nodes
    assert (found.path, found.url, found.ref, found.commit) == ("nodes/mine", "", "", "")
    assert found.source == PathSource("nodes/mine")
    assert first.environment("comfyui-x86_64").version("lib") == "1.0"
    assert schema.encode(locked(base, wanted, first)) == schema.encode(first)
    (base / "nodes" / "mine" / "__init__.py").write_text("x = 1\n")
    with pytest.raises(IntegrityError, match=found.digest):
        locked(base, wanted, first)
    assert locked(base, wanted, first, "mine").nodes[0].digest != found.digest


def test_a_node_whose_folder_is_missing_is_a_source_error(base: Path) -> None:
    with pytest.raises(SourceError, match="nodes/mine is not a folder"):
        locked(base, manifest(more='[[node]]\nname = "mine"\npath = "nodes/mine"\n'))


def test_a_node_is_locked_through_a_mirror_under_its_own_address(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    repository = make_repository(base / "mirror" / "me" / "n.git", {"__init__.py": ""})
    wanted = manifest(more=node("n", "https://host.invalid/me/n.git", "main"))
    monkeypatch.setenv("COMFYPOD_GIT_MIRRORS", f"https://host.invalid/=file://{base}/mirror/")
    (found,) = locked(base, wanted).nodes
    assert (found.url, found.commit) == ("https://host.invalid/me/n.git", repository.git("rev-parse", "HEAD"))

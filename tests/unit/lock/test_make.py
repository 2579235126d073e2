from __future__ import annotations

import io
from typing import TYPE_CHECKING

import pytest

from comfypod.errors import IntegrityError, LockError, SourceError
from comfypod.lock import schema
from comfypod.lock.make import Upgrade, make
from comfypod.lock.trees import requirement_lines
from comfypod.log import Console
from comfypod.manifest.profiles import load_profiles
from tests.kit.lockable import manifest, node, write_comfyui
from tests.kit.repos import make_repository
from tests.kit.web import Answer, Site
from tests.kit.wheels import build_wheel

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
        "comfyui-aarch64", "comfyui-x86_64", "jupyter-aarch64", "jupyter-x86_64",
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
    tells = {"X-Linked-Etag": f'"{"a" * 64}"', "X-Linked-Size": "12345", "Location": "/cdn"}
    site.answers["/m.safetensors"] = Answer(status=302, headers=tells)
    site.answers["/cdn"] = Answer(b"123")
    wanted = manifest(more=model(f"{site.url}/m.safetensors"))
    first = locked(base, wanted)
    assert (first.models[0].sha256, first.models[0].size, first.models[0].file) == ("a" * 64, 12345, "m.safetensors")
    assert site.requests == [("HEAD", "/m.safetensors"), ("HEAD", "/cdn")]
    assert locked(base, wanted, first) == first
    assert len(site.requests) == 2


def test_h2_a_model_without_a_digest_is_refused_with_what_to_write(base: Path, site: Site) -> None:
    site.answers["/m.bin"] = Answer(b"123", headers={"ETag": '"weak"'})
    with pytest.raises(LockError, match="digest and size") as caught:
        locked(base, manifest(more=model(f"{site.url}/m.bin")))
    assert 'sha256 = "..."' in caught.value.hint
    lock = locked(base, manifest(more=model(f"{site.url}/m.bin", f'sha256 = "{"b" * 64}"\n')))
    assert (lock.models[0].sha256, lock.models[0].size) == ("b" * 64, 3)

from __future__ import annotations

from importlib.metadata import PackageNotFoundError
from typing import TYPE_CHECKING

import pytest

from comfypod import files
from comfypod.errors import LockError
from comfypod.lock.python import own_requirements, resolve
from comfypod.lock.schema import SourceFile
from tests.kit.web import Answer, Site
from tests.kit.wheels import build_builder, build_sdist, build_wheel

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from comfypod.lock.schema import Package
    from comfypod.log import Console


def versions(packages: tuple[Package, ...]) -> dict[str, str]:
    return {package.name: package.version for package in packages}


def resolved(
    console: Console, *requests: str, bounds: tuple[str, ...] = (), preferred: Mapping[str, str] | None = None,
    arch: str = "x86_64", overrides: tuple[str, ...] = (), sdists: tuple[str, ...] = (),
) -> tuple[Package, ...]:  # fmt: skip
    build = resolve(("setuptools",), (), python="3.11", arch=arch, preferred={}, console=console) if sdists else ()
    return resolve(
        requests, bounds, python="3.11", arch=arch, preferred=preferred or {}, console=console, overrides=overrides,
        sdists=sdists, build=build,
    )  # fmt: skip


def test_wheels_are_named_by_file_digest_and_size(wheels: Path, console: Console) -> None:
    (package,) = resolved(console, "lib")
    path = wheels / package.wheels[0].file
    assert package.version == "2.0"
    assert package.wheels[0].size == path.stat().st_size
    assert len(package.wheels) == 1


def test_an_earlier_version_is_preferred_while_it_fits(wheels: Path, console: Console) -> None:
    assert versions(resolved(console, "lib", preferred={"lib": "1.0", "gone": "1"})) == {"lib": "1.0"}
    assert versions(resolved(console, "lib>1", preferred={"lib": "1.0"})) == {"lib": "2.0"}


def test_constraints_bind_what_others_ask_for(wheels: Path, console: Console) -> None:
    build_wheel(wheels, "user", "1.0", requires=["lib"])
    assert versions(resolved(console, "user", bounds=("lib<2",))) == {"lib": "1.0", "user": "1.0"}
    assert versions(resolved(console, "user", bounds=("torch<1",))) == {"lib": "2.0", "user": "1.0"}


def test_an_override_replaces_what_anyone_asks_for(wheels: Path, console: Console) -> None:
    build_wheel(wheels, "user", "1.0", requires=["lib>=2"])
    assert versions(resolved(console, "user", "lib>=2", overrides=("lib<2",))) == {"lib": "1.0", "user": "1.0"}
    assert versions(resolved(console, "user", overrides=("torch<1",))) == {"lib": "2.0", "user": "1.0"}
    assert versions(resolved(console, "user", overrides=("lib",), bounds=("lib<2",)))["lib"] == "1.0"


def test_an_override_whose_marker_is_never_true_drops_a_package(wheels: Path, console: Console) -> None:
    build_wheel(wheels, "user", "1.0", requires=["lib"])
    assert versions(resolved(console, "user", overrides=('lib; python_version < "3"',))) == {"user": "1.0"}


@pytest.mark.parametrize(("arch", "found"), [("x86_64", {"user", "lib"}), ("aarch64", {"user", "torch"})])
def test_markers_are_those_of_the_target(wheels: Path, console: Console, arch: str, found: set[str]) -> None:
    build_wheel(wheels, "user", "1.0", requires=["lib"])
    asked = ("user", 'torch; platform_machine == "aarch64"')
    overrides = ('lib; platform_machine == "x86_64"',)
    assert versions(resolved(console, *asked, arch=arch, overrides=overrides)).keys() == found


def test_a_package_without_a_wheel_is_refused_unless_it_is_named(wheels: Path, console: Console) -> None:
    build_builder(wheels, "9.0")
    build_sdist(wheels, "pure", "1.0", requires=["lib"])
    with pytest.raises(LockError, match="No solution found"):
        resolved(console, "pure")
    with pytest.raises(LockError, match="No solution found"):
        resolved(console, "pure", sdists=("another",))


@pytest.mark.parametrize("name", ["some-pure", "Some_Pure"])
def test_a_source_distribution_is_named_by_file_digest_and_size(wheels: Path, console: Console, name: str) -> None:
    build_builder(wheels, "9.0")
    path = build_sdist(wheels, "some-pure", "1.0", requires=["lib"])
    lib, pure = resolved(console, "some-pure", sdists=(name,))
    assert (pure.name, pure.version, pure.wheels) == ("some-pure", "1.0", ())
    assert pure.sdist == SourceFile(path.name, files.sha256_file(path), path.stat().st_size)
    assert (lib.name, lib.sdist, len(lib.wheels)) == ("lib", None, 1)


def test_a_source_distribution_that_something_unlocked_builds_is_refused(wheels: Path, console: Console) -> None:
    build_builder(wheels, "9.0")
    build_wheel(wheels, "cython", "3.0")
    build_sdist(wheels, "pure", "1.0", builders=("setuptools", "Cython>=3"))
    with pytest.raises(LockError, match="source distribution of pure is built with cython") as caught:
        resolved(console, "pure", sdists=("pure",))
    assert "take pure out of [python] sdists" in caught.value.hint


def test_a_source_distribution_is_fetched_to_see_what_builds_it(
    wheels: Path, console: Console, site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    for path in (build_builder(wheels, "9.0"), build_sdist(wheels, "pure", "1.0")):
        name, digest = path.name.partition("-")[0], files.sha256_file(path)
        link = f'<a href="/f/{path.name}#sha256={digest}">x</a>'.encode()
        site.answers[f"/simple/{name}/"] = Answer(link, headers={"Content-Type": "text/html"})
        site.answers[f"/f/{path.name}"] = Answer(path.read_bytes())
    for name in ("UV_FIND_LINKS", "UV_NO_INDEX", "UV_OFFLINE"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("UV_DEFAULT_INDEX", f"{site.url}/simple")
    (package,) = resolved(console, "pure", sdists=("pure",))
    assert package.sdist is not None
    assert package.sdist.size == (wheels / package.sdist.file).stat().st_size


def test_what_comfypod_itself_needs_leaves_extras_out(monkeypatch: pytest.MonkeyPatch) -> None:
    assert {line.partition(">")[0] for line in own_requirements()} == {"h11", "msgspec", "packaging", "rich", "uv"}
    asked = ["a>=1", 'b; python_version < "3"', "c; extra == 'dev'", "d>1 ; sys_platform == 'x' and extra == \"dev\""]
    monkeypatch.setattr("importlib.metadata.requires", lambda name: asked)
    assert own_requirements() == ("a>=1", 'b; python_version < "3"')


def test_a_comfypod_that_is_not_installed_cannot_lock_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise PackageNotFoundError(name)

    monkeypatch.setattr("importlib.metadata.requires", missing)
    with pytest.raises(LockError, match="is not installed"):
        own_requirements()


def test_only_wheels_of_the_architecture_are_taken(wheels: Path, console: Console) -> None:
    for arch in ("x86_64", "aarch64"):
        build_wheel(wheels, "native", "1.0", tag=f"cp311-cp311-manylinux_2_28_{arch}")
    (package,) = resolved(console, "native", arch="aarch64")
    assert [wheel.file for wheel in package.wheels] == ["native-1.0-cp311-cp311-manylinux_2_28_aarch64.whl"]


def test_the_environment_of_the_user_does_not_decide(
    wheels: Path, console: Console, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "bound.txt").write_text("lib<2\n")
    monkeypatch.setenv("UV_CONSTRAINT", str(tmp_path / "bound.txt"))
    monkeypatch.setenv("UV_RESOLUTION", "lowest")
    monkeypatch.setenv("UV_OVERRIDE", str(tmp_path / "bound.txt"))
    assert versions(resolved(console, "lib")) == {"lib": "2.0"}


def test_no_solution_is_a_lock_error_in_uvs_own_words_however_narrow_the_terminal(
    wheels: Path, console: Console, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    build_wheel(wheels, "user", "1.0", requires=["lib>=3"])
    with pytest.raises(LockError, match="No solution found") as caught:
        resolved(console, "user")
    assert "all versions of user depend on lib>=3" in caught.value.message
    assert "Traceback" not in caught.value.message


def test_h2_a_requirement_by_address_is_refused(wheels: Path, console: Console) -> None:
    with pytest.raises(LockError, match="by an address"):
        resolved(console, f"lib @ file://{wheels}/lib-1.0-py3-none-any.whl")


def test_sizes_that_an_index_does_not_list_are_asked_for(
    wheels: Path, console: Console, site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = build_wheel(wheels, "remote", "1.0")
    digest = files.sha256_file(path)
    link = f'<a href="/f/{path.name}#sha256={digest}">x</a>'.encode()
    site.answers["/simple/remote/"] = Answer(link, headers={"Content-Type": "text/html"})
    site.answers[f"/f/{path.name}"] = Answer(path.read_bytes())
    for name in ("UV_FIND_LINKS", "UV_NO_INDEX", "UV_OFFLINE"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("UV_DEFAULT_INDEX", f"{site.url}/simple")
    (package,) = resolved(console, "remote")
    assert package.wheels[0].sha256 == digest
    assert package.wheels[0].size == path.stat().st_size


def test_nothing_asked_for_is_an_empty_environment(console: Console) -> None:
    assert resolved(console) == ()


@pytest.mark.real
def test_h4_the_real_index_pairs_torch_as_the_profile_says(console: Console) -> None:
    pins = ("torch==2.9.1", "torchvision==0.24.1", "torchaudio==2.9.1")
    found = versions(resolved(console, *pins, "torch", "torchaudio"))
    assert [f"{name}=={found[name]}" for name in ("torch", "torchvision", "torchaudio")] == list(pins)

from __future__ import annotations

import msgspec
import pytest

from comfypod.errors import LockError
from comfypod.lock.listing import build_constraints, file_options, listing
from comfypod.lock.schema import Environment, Package, SourceFile, Wheel

LIB = Package("lib", "1.0", (Wheel("a.whl", "a" * 64, 1), Wheel("b.whl", "b" * 64, 1)))
PURE = Package("pure", "2.0+x", sdist=SourceFile("pure.tar.gz", "c" * 64, 1))


def environment(*packages: Package, build: tuple[Package, ...] = ()) -> Environment:
    return Environment("e", "comfyui", "x86_64", "3.11", (), packages, build)


def test_every_file_that_may_arrive_is_listed_by_its_hash() -> None:
    assert listing((LIB, PURE)) == (
        f"lib==1.0 --hash=sha256:{'a' * 64} --hash=sha256:{'b' * 64}\npure==2.0+x --hash=sha256:{'c' * 64}\n"
    )
    assert listing(()) == ""


def test_what_builds_is_listed_alone() -> None:
    assert build_constraints(environment(PURE, build=(LIB,))) == listing((LIB,))
    assert build_constraints(environment(LIB)) == ""


def test_only_what_is_locked_as_a_source_distribution_may_be_built() -> None:
    assert file_options(environment(LIB)) == ("--only-binary", ":all:")
    *options, setting = file_options(environment(LIB, PURE, build=(LIB,)))
    assert options == ["--only-binary", ":all:", "--no-binary", "pure", "--config-settings-package"]
    assert setting.startswith("pure:comfypod-build=")
    assert file_options(environment(PURE, build=(LIB,)))[-1] == setting
    assert file_options(environment(PURE, build=(LIB, LIB)))[-1] != setting


@pytest.mark.parametrize(
    "bad", [{"name": "good\n--index-url=http://host.invalid"}, {"version": "1.0 # "}, {"name": "-r"}, {"version": ""}]
)
def test_a_name_that_would_be_an_option_of_uv_is_refused(bad: dict[str, str]) -> None:
    changed = msgspec.structs.replace(LIB, **bad)
    with pytest.raises(LockError, match="the lock names the package"):
        listing((changed,))
    with pytest.raises(LockError, match="the lock names the package"):
        build_constraints(environment(PURE, build=(changed,)))

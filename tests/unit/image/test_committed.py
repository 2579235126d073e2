"""The rendered files in the repository say what the default lock says."""

from __future__ import annotations

from comfypod.image.context import rendered
from comfypod.lock.load import read_lock
from comfypod.manifest.profiles import load_profiles
from tests.kit.pods import ROOT


def test_what_is_committed_is_what_the_default_lock_renders() -> None:
    wanted = rendered(read_lock(None), list(load_profiles().values()))
    there = {
        path.relative_to(ROOT).as_posix(): path.read_bytes()
        for path in [*(ROOT / "Dockerfiles").rglob("*"), *(ROOT / name for name in wanted)]
        if path.is_file()
    }
    different = {name for name in {*wanted, *there} if wanted.get(name) != there.get(name)}
    assert not different, "run `comfypod render all --output .`"

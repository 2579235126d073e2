from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import pytest

from comfypod.models.places import Places
from comfypod.models.verify import files_in, verify
from tests.kit.models import write_safetensors

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def places(tmp_path: Path) -> Places:
    (tmp_path / "models" / "loras" / "sub").mkdir(parents=True)
    (tmp_path / "given").mkdir()
    return Places(tmp_path / "models", {"vae": (tmp_path / "given",)})


def test_all_files_with_a_models_name_are_looked_at_whoever_put_them_there(places: Places, tmp_path: Path) -> None:
    (outside,) = places.further["vae"]
    for path in (places.live / "loras" / "sub" / "a.safetensors", outside / "b.SAFETENSORS", places.live / "c.gguf"):
        path.write_bytes(b"")
    for name in ("put_loras_here", "readme.md", ".hidden.safetensors"):
        (places.live / "loras" / name).write_bytes(b"")
    (places.live / ".cache").mkdir()
    (places.live / ".cache" / "d.safetensors").write_bytes(b"")
    (places.live / "again").symlink_to(places.live)
    (places.live / "linked").symlink_to(outside)
    found = [path.relative_to(tmp_path).as_posix() for path in files_in(places)]
    assert found == ["models/c.gguf", "models/linked/b.SAFETENSORS", "models/loras/sub/a.safetensors"]


def test_d4_what_is_cut_or_no_model_is_named(places: Places) -> None:
    loras = places.live / "loras"
    write_safetensors(loras / "good.safetensors", {"a": ((1,), [1])})
    data = (loras / "good.safetensors").read_bytes()
    (loras / "cut.safetensors").write_bytes(data[:-1])
    (loras / "pointer.ckpt").write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    (loras / "page.pt").write_bytes(b"<html>")
    (loras / "short.onnx").write_bytes(b"123")
    (loras / "nowhere.pth").symlink_to("nothing")
    found = verify(places, {loras / "short.onnx": (4, "")}, digests=False, watch=lambda _: None)
    assert {path.name: why for path, why in found.items()} == {
        "good.safetensors": "", "cut.safetensors": f"it is cut short: {len(data) - 1} bytes of {len(data)}",
        "pointer.ckpt": "it is a pointer of Git LFS in the place of the file", "page.pt": "it is a web page",
        "short.onnx": "it is cut short: 3 bytes of 4", "nowhere.pth": "it is a link to nothing",
    }  # fmt: skip


def test_digests_are_compared_when_they_are_asked_for(places: Places) -> None:
    one, other = places.live / "one.onnx", places.live / "other.onnx"
    one.write_bytes(b"123")
    other.write_bytes(b"456")
    digest = hashlib.sha256(b"123").hexdigest()
    known = {one: (3, digest), other: (3, digest)}
    said: list[int] = []
    assert set(verify(places, known, digests=False, watch=said.append).values()) == {""}
    found = verify(places, known, digests=True, watch=said.append)
    assert (found[one], said) == ("", [3, 6])
    assert digest in found[other]

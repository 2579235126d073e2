"""Which names are believed, and how what several nodes say of a file becomes one need."""

from __future__ import annotations

from pathlib import PurePosixPath

import pytest
from hypothesis import given
from hypothesis import strategies as st

from comfypod.models.needs import Need, Needs, folder_of, inside, is_model, merged

_FILES = st.sampled_from(["a.pt", "b.pt"])
_NEEDS = st.builds(
    Need,
    _FILES,
    folder=st.sampled_from(["", "vae", "loras"]),
    url=st.sampled_from(["", "https://h/1", "https://h/2"]),
    idle=st.booleans(),
)


@given(st.text(st.sampled_from("ab./\\: \0~é"), max_size=12) | st.text(max_size=20))
def test_a_name_that_is_believed_stays_below_its_folder(text: str) -> None:
    if not (name := inside(text)):
        return
    path = PurePosixPath(name)
    assert not path.is_absolute()
    assert all(part not in ("..", ".") and part.isprintable() for part in name.split("/"))
    assert str(path) == name
    assert inside(name) == name


@pytest.mark.parametrize("name", ["a.pt", "sdxl/a b.safetensors", "模型/ü.gguf", "~a.pt"])
def test_names_as_people_give_them_are_believed(name: str) -> None:
    assert inside(name) == name
    assert inside(name.replace("/", "\\")) == name


def test_folders_that_were_renamed_are_known_by_their_names_of_now() -> None:
    assert [folder_of(name) for name in ("unet", "clip", "vae", "../vae")] == [
        "diffusion_models",
        "text_encoders",
        "vae",
        "",
    ]


def test_model_files_are_told_by_their_endings_in_any_case() -> None:
    assert all(map(is_model, ["a.SAFETENSORS", "b.ckpt", "c.gguf", "d.onnx", "e.pth", "f.bin"]))
    assert not any(map(is_model, ["a.png", "safetensors", "a.safetensors\n", "http://h/a.pt", "x" * 2000 + ".pt"]))


@given(st.lists(_NEEDS, max_size=8))
def test_merging_keeps_every_file_and_what_any_node_knows_of_it(found: list[Need]) -> None:
    one = merged(found)
    assert {need.file for need in one} == {need.file for need in found}
    assert len({(need.file, need.folder) for need in one}) == len(one)
    assert {(need.file, need.folder) for need in found if need.folder} == {
        (need.file, need.folder) for need in one if need.folder
    }
    for file in ("a.pt", "b.pt"):
        of = [need for need in found if need.file == file]
        assert all(need.idle for need in one if need.file == file) == all(need.idle for need in of)
        assert any(need.url for need in one if need.file == file) == any(need.url for need in of)
    assert merged(one) == one


def test_a_digest_stays_with_its_address() -> None:
    first, second = Need("a.pt", "vae", "https://h/1"), Need("a.pt", "vae", "https://h/2", "ab" * 32)
    assert merged([first, second]) == (first,)
    assert merged([first, Need("a.pt", "vae", "https://h/1", "ab" * 32)])[0].sha256 == "ab" * 32


def test_needs_are_complete_when_all_that_is_active_can_be_had() -> None:
    known, idle = Need("a.pt", "vae", "https://h/1"), Need("b.pt", idle=True)
    assert Needs((known, idle)).complete
    assert not Needs((known, Need("b.pt", "vae"))).complete
    assert not Needs((known,), refused=("'../x.pt'",)).complete

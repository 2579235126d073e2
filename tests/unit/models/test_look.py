from __future__ import annotations

import json
import pickle
import struct
import zipfile
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from comfypod.errors import IntegrityError
from comfypod.models.file import ModelFile
from comfypod.models.look import check_for, wrong_with
from tests.kit.models import write_safetensors

if TYPE_CHECKING:
    from pathlib import Path

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:%s\nsize 12345\n" % (b"4d" * 32)
PAGE = b"\n<!DOCTYPE html><html><title>Log in</title></html>"


def model(path: Path) -> bytes:
    write_safetensors(path, {"a": ((2, 2), [1, 2, 3, 4]), "b": ((1,), [5]), "none": ((0,), [])})
    return path.read_bytes()


def crafted(header: object, body: bytes = b"") -> bytes:
    head = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(head)) + head + body


def test_a_whole_file_is_sound(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    model(path)
    assert wrong_with(path) == ""
    path.write_bytes(crafted({"__metadata__": {"format": "pt"}}))
    assert wrong_with(path) == ""


@pytest.mark.parametrize("name", ["m.safetensors", "m.gguf", "m.ckpt", "m.onnx"])
@pytest.mark.parametrize(
    ("data", "told"), [(POINTER, "Git LFS"), (PAGE, "web page"), (b"\xef\xbb\xbf<html>", "web page"), (b"", "empty")]
)
def test_d4_what_is_no_model_is_named_whatever_it_is_called(tmp_path: Path, name: str, data: bytes, told: str) -> None:
    path = tmp_path / name
    path.write_bytes(data)
    assert told in wrong_with(path)


@given(cut=st.integers(0, 10_000))
def test_d4_a_safetensors_file_that_is_cut_anywhere_is_not_sound(
    tmp_path_factory: pytest.TempPathFactory, cut: int
) -> None:
    path = tmp_path_factory.mktemp("cut") / "m.safetensors"
    data = model(path)
    path.write_bytes(data[: cut % len(data)])
    assert wrong_with(path) != ""
    path.write_bytes(data + b"\0" * (1 + cut))
    assert wrong_with(path) == f"it has {1 + cut} bytes too many"


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (b"whatever it is, it is no header", "not safetensors"),
        (struct.pack("<Q", 1 << 62) + b"{", "cut short"),
        (crafted(b"{nonsense"), "makes no sense"),
        (crafted(b"{" + b"[" * 100_000), "makes no sense"),
        (crafted({"a": {"data_offsets": [0, 1.5]}}, b"xx"), "makes no sense"),
        (crafted({"a": {"data_offsets": [2, 0]}}, b"xx"), "makes no sense"),
        (crafted({"a": {"data_offsets": [0, 1, 2]}}, b"xx"), "makes no sense"),
        (crafted({"a": 1}), "makes no sense"),
        (crafted({"a": {"data_offsets": [1, 2]}}, b"xx"), "gaps"),
        (crafted({"a": {"data_offsets": [0, 4]}, "b": {"data_offsets": [2, 6]}}, b"xxxxxx"), "gaps"),
    ],
)
def test_a_header_that_makes_no_sense_is_named(tmp_path: Path, data: bytes, told: str) -> None:
    path = tmp_path / "m.sft"
    path.write_bytes(data)
    assert told in wrong_with(path)


@given(data=st.binary(max_size=200), suffix=st.sampled_from([".safetensors", ".gguf", ".pt", ".onnx", ""]))
def test_no_bytes_break_it(tmp_path_factory: pytest.TempPathFactory, data: bytes, suffix: str) -> None:
    path = tmp_path_factory.mktemp("any") / f"m{suffix}"
    path.write_bytes(data)
    assert isinstance(wrong_with(path), str)
    path.write_bytes(struct.pack("<Q", len(data)) + data)
    assert isinstance(wrong_with(path), str)


def test_a_cut_archive_of_torch_is_named_and_a_whole_one_is_sound(tmp_path: Path) -> None:
    path = tmp_path / "m.pt"
    with zipfile.ZipFile(path, "w") as bundle:
        bundle.writestr("archive/data.pkl", pickle.dumps({"a": 1}))
        bundle.writestr("archive/data/0", b"x" * 200_000)
    assert wrong_with(path) == ""
    assert "can run code" in wrong_with(path, pickle=False)
    path.write_bytes(path.read_bytes()[:-1000])
    assert "cut short" in wrong_with(path)


def test_a_format_that_runs_code_has_to_be_asked_for_whatever_its_name_is(tmp_path: Path) -> None:
    path = tmp_path / "part"
    path.write_bytes(pickle.dumps({"a": 1}))
    for name in ("m.ckpt", "m.dat", "m"):
        asked = ModelFile("m", "https://h/m", "checkpoints", name, pickle=True)
        check_for(asked)(path)
        with pytest.raises(IntegrityError, match="can run code"):
            check_for(ModelFile("m", "https://h/m", "checkpoints", name))(path)
    with pytest.raises(IntegrityError, match="not safetensors"):
        check_for(ModelFile("m", "https://h/m", "loras", "m.safetensors", pickle=True))(path)


def test_d3_a_login_page_is_refused_before_it_takes_a_models_place(tmp_path: Path) -> None:
    path = tmp_path / "part"
    path.write_bytes(PAGE)
    with pytest.raises(IntegrityError, match="m is not the model that was asked for: it is a web page") as refused:
        check_for(ModelFile("m", "https://h/m", "loras", "m.safetensors"))(path)
    assert "login" in refused.value.hint

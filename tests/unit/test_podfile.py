from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from comfypod import podfile
from comfypod.errors import UsageError
from comfypod.podfile import BakedNode, GpuNeed, LockedModel, PodFile

_TEXT = st.text(st.characters(codec="utf-8"), max_size=8)
_MODELS = st.builds(
    LockedModel, _TEXT, _TEXT, _TEXT, _TEXT, st.integers(0), _TEXT, _TEXT, st.booleans(), st.booleans(), _TEXT
)
_NODES = st.builds(BakedNode, _TEXT, _TEXT, _TEXT)
_NEEDS = st.builds(GpuNeed, _TEXT, _TEXT, st.lists(_TEXT, max_size=3).map(tuple), st.integers(0))
_PODS = st.builds(
    PodFile,
    profile=_TEXT, arch=_TEXT, lock=_TEXT, comfyui_version=_TEXT, comfyui_digest=_TEXT, comfyui_path=_TEXT,
    environment_key=_TEXT, torch=_TEXT, python=_TEXT, jupyter=st.none() | _TEXT, engine=_TEXT,
    comfyui_args=st.lists(_TEXT, max_size=3).map(tuple), settings=st.dictionaries(_TEXT, _TEXT, max_size=3),
    models=st.lists(_MODELS, max_size=3).map(tuple), variant=_TEXT, nodes=st.lists(_NODES, max_size=3).map(tuple),
    models_path=st.none() | _TEXT, gpu=st.none() | _NEEDS,
)  # fmt: skip
POD = PodFile(
    profile="cpu", arch="x86_64", lock="0" * 64, comfyui_version="0.30.0", comfyui_digest="sha256:" + "ab" * 32,
    comfyui_path="/opt/comfyui", environment_key="k", torch="2.0", python="/opt/venv/bin/python",
    settings={"port": "9"}, models=(LockedModel("m", "vae", "m.bin", "0" * 64, 5),),
)  # fmt: skip


def body(**changes: Any) -> dict[str, Any]:
    fields: dict[str, Any] = json.loads(POD.encode())
    return {**fields, **changes}


def load(tmp_path: Path, data: bytes) -> PodFile:
    path = tmp_path / "pod.json"
    path.write_bytes(data)
    return podfile.load(path)


@given(_PODS)
def test_facts_come_back_as_they_were_written(pod: PodFile) -> None:
    with TemporaryDirectory() as folder:
        again = load(Path(folder), pod.encode())
    assert again == pod
    assert again.encode() == pod.encode()


def test_the_same_facts_are_the_same_bytes() -> None:
    shuffled = replace(POD, settings={"b": "1", "a": "2"})
    assert shuffled.encode() == replace(POD, settings={"a": "2", "b": "1"}).encode()
    assert POD.encode() != shuffled.encode()
    assert POD.encode().endswith(b"}\n")


def test_a_release_is_version_and_the_first_digits_of_the_digest() -> None:
    assert POD.release == "0.30.0-abababababab"


def test_a_file_from_before_there_were_images_is_read_as_ever(tmp_path: Path) -> None:
    newer = {"variant", "nodes", "models_path", "gpu"}
    old = {name: value for name, value in body().items() if name not in newer}
    assert load(tmp_path, json.dumps(old).encode()) == POD
    assert (POD.variant, POD.nodes, POD.models_path, POD.gpu) == ("full", (), None, None)


def test_settings_are_replaced_and_nothing_else() -> None:
    changed = POD.with_settings({"port": "10"})
    assert changed == replace(POD, settings={"port": "10"})
    assert POD.settings == {"port": "9"}


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "is not JSON"),
        (b"{", "is not JSON"),
        (b"\xff\xfe", "is not JSON"),
        (b"[]", "an object is expected"),
        (b"null", "an object is expected"),
        (json.dumps(body(schema=2)).encode(), "its schema is 2"),
        (json.dumps({key: value for key, value in body().items() if key != "schema"}).encode(), "its schema is None"),
        (json.dumps(body(colour="red")).encode(), "unknown field 'colour'"),
        (json.dumps({key: value for key, value in body().items() if key != "python"}).encode(), "'python'"),
        (json.dumps(body(models=[{"name": "m"}])).encode(), "the field 'folder' is missing"),
        (json.dumps(body(models=[3])).encode(), "'models' is of another type"),
        (json.dumps(body(nodes=[{"name": "n", "path": "/n", "version": "1", "colour": "red"}])).encode(), "'colour'"),
        (json.dumps(body(gpu={"name": "4090"})).encode(), "the field 'summary' is missing"),
        (json.dumps(body(models=None)).encode(), "pod.json of schema 1"),
    ],
)
def test_another_file_is_refused_with_what_is_wrong(tmp_path: Path, data: bytes, words: str) -> None:
    with pytest.raises(UsageError) as caught:
        load(tmp_path, data)
    assert words in caught.value.message
    assert str(tmp_path / "pod.json") in caught.value.message
    assert "--pod" in caught.value.hint


@pytest.mark.parametrize(
    "changes",
    [
        {"settings": []},
        {"settings": {"port": 8188}},
        {"comfyui_digest": 3},
        {"comfyui_path": None},
        {"comfyui_args": "--cpu"},
        {"comfyui_args": [3]},
        {"variant": None},
        {"models": [{"name": "m", "folder": "vae", "file": "f", "sha256": "0", "size": True}]},
        {"nodes": {}},
        {"nodes": [{"name": "n", "path": "/n", "version": 1}]},
        {"models": [{"name": "m", "folder": "vae", "file": "f", "sha256": "0", "size": 1, "gated": 1}]},
        {"models_path": 3},
        {"jupyter": 3},
        {"gpu": "4090"},
        {"gpu": {"name": "n", "summary": "", "capabilities": ["8.9"], "driver": "525"}},
        {"gpu": {"name": "n", "summary": "", "capabilities": [8.9], "driver": 525}},
    ],
    ids=str,
)
def test_a_field_of_another_type_is_refused(tmp_path: Path, changes: dict[str, object]) -> None:
    with pytest.raises(UsageError):
        load(tmp_path, json.dumps(body(**changes)).encode())


def test_a_file_that_cannot_be_read_is_named_with_the_reason(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"none\.json: No such file") as caught:
        podfile.load(tmp_path / "none.json")
    assert "--pod" in caught.value.hint
    with pytest.raises(UsageError, match="Is a directory"):
        podfile.load(tmp_path)


@given(st.binary(max_size=60) | st.recursive(st.none() | _TEXT, lambda x: st.lists(x) | st.dictionaries(_TEXT, x)))
def test_nothing_but_a_pod_file_is_accepted(data: Any) -> None:
    encoded = data if isinstance(data, bytes) else json.dumps(data).encode()
    with TemporaryDirectory() as folder, pytest.raises(UsageError):
        load(Path(folder), encoded)


def test_outside_an_image_there_is_no_pod_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(podfile, "IN_IMAGE", tmp_path / "pod.json")
    assert podfile.find() is None
    (tmp_path / "pod.json").write_bytes(POD.encode())
    assert podfile.find() == tmp_path / "pod.json"

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from comfypod.models.file import ModelFile
from comfypod.models.places import Places
from comfypod.models.plan import Row, There, look, make, token_of
from comfypod.models.record import Entry
from tests.kit.models import write_safetensors

if TYPE_CHECKING:
    from pathlib import Path

A, B = "aa" * 32, "bb" * 32
FILE = ModelFile("p/m", "https://h/m.safetensors", "loras", "m.safetensors", A, 100)
GATED = replace(FILE, url="hf:o/r/m.safetensors", gated=True)


def row(file: ModelFile, there: There | None = None, *tokens: str) -> Row:
    (found,) = make([file], {file.place: there} if there else {}, tokens).rows
    return found


@pytest.mark.parametrize(
    ("file", "there", "state", "told"),
    [
        (FILE, None, "fetch", ""),
        (FILE, There(part=40), "part", ""),
        (FILE, There(100), "have", ""),
        (FILE, There(100, sha256=A), "have", ""),
        (replace(FILE, size=0), There(100), "have", ""),
        (FILE, There(elsewhere="/opt/models/loras/m.safetensors"), "elsewhere", "/opt/models/loras/m.safetensors"),
        (replace(FILE, url=""), There(100), "have", ""),
        (replace(FILE, url=""), None, "unknown", "where it can be fetched"),
        (replace(FILE, folder=""), None, "refused", "which folder"),
        (replace(FILE, file=""), None, "refused", "which folder"),
        (replace(FILE, folder="../x"), None, "refused", "no place below"),
        (replace(FILE, file="../x"), None, "refused", "no place below"),
        (replace(FILE, file="m.ckpt"), None, "refused", "can run code"),
        (replace(FILE, file="m.PT"), None, "refused", "can run code"),
        (replace(FILE, file="m.ckpt", pickle=True), None, "fetch", ""),
        (FILE, There(leaves=True), "refused", "a link leads out"),
        (GATED, None, "refused", "HF_TOKEN"),
    ],
)
def test_each_file_has_one_state_and_the_reason_for_it(
    file: ModelFile, there: There | None, state: str, told: str
) -> None:
    found = row(file, there)
    assert found.state == state
    assert told in found.reason


@pytest.mark.parametrize(
    "there",
    [There(100, "it is a pointer of Git LFS"), There(60), There(130), There(0, "it is empty"), There(100, sha256=B)],
)
def test_d4_what_stands_there_and_is_another_thing_is_named_and_not_fetched_over(there: There) -> None:
    found = row(FILE, there)
    assert (found.state, found.fetched, bool(found.reason)) == ("wrong", False, True)


def test_a_token_that_was_given_lets_a_gated_file_be_fetched() -> None:
    assert (row(GATED, None, "HF_TOKEN").state, row(GATED, None, "HF_TOKEN").token) == ("fetch", "HF_TOKEN")
    assert row(GATED, None, "CIVITAI_TOKEN").state == "refused"
    assert token_of(replace(FILE, url="civitai:12")) == "CIVITAI_TOKEN"
    assert token_of(FILE) == token_of(replace(FILE, url="")) == ""


def test_d6_two_that_want_one_file_have_it_once() -> None:
    other = replace(FILE, name="q/m", url="https://mirror/m.safetensors", required=True, licence="MIT")
    found = make([FILE, replace(other, size=0)], {}, ())
    assert [each.file for each in found.rows] == [replace(FILE, required=True, licence="MIT")]
    assert found.bytes == 100
    twice = make([FILE, replace(FILE, folder="vae")], {}, ())
    assert (len(twice.rows), twice.bytes) == (2, 100)
    held = make([FILE], {}, (), {A})
    assert (held.rows[0].fetched, held.rows[0].held, held.bytes) == (True, True, 0)


@pytest.mark.parametrize(
    ("one", "other", "there", "clash"),
    [
        ({}, {"sha256": B}, None, "digests"),
        ({}, {"sha256": B}, There(100), "digests"),
        ({"sha256": ""}, {"size": 101}, None, "sizes"),
        ({"sha256": ""}, {"url": "https://other/m"}, None, "addresses"),
        ({"sha256": ""}, {"url": "https://other/m"}, There(100), ""),
        ({"sha256": ""}, {"url": "https://other/m"}, There(elsewhere="/x"), ""),
        ({"sha256": ""}, {}, None, ""),
        ({"url": "hf:o/r/m", "sha256": ""}, {"url": "https://huggingface.co/o/r/blob/main/m"}, None, ""),
    ],
)  # fmt: skip
def test_d6_two_that_want_different_files_in_one_place_are_a_conflict(
    one: dict[str, Any], other: dict[str, Any], there: There | None, clash: str
) -> None:
    found = make([replace(FILE, **one), replace(FILE, name="q/m", **other)], {FILE.place: there} if there else {}, ())
    assert bool(found.clashes) is bool(clash)
    assert all(clash in each.reason and not each.fetched for each in found.clashes)
    assert found.bytes == 0 or not clash


@given(
    files=st.lists(
        st.builds(
            ModelFile, st.just("n"), st.sampled_from(["https://h/a", "https://h/b", "", "civitai:1", "hf:o/r/x"]),
            st.sampled_from(["loras", "", "../x", "/x", "vae/sub"]),
            st.sampled_from(["a.safetensors", "b.pt", "", ".."]), st.sampled_from(["", A, B]), st.integers(0, 3),
            gated=st.booleans(), pickle=st.booleans(),
        ),
        max_size=6,
    )
)  # fmt: skip
def test_d7_whatever_is_wanted_only_sound_places_are_fetched(files: list[ModelFile]) -> None:
    found = make(files, {}, ())
    for each in found.rows:
        if each.fetched:
            assert each.file.folder in ("loras", "vae/sub")
            assert each.file.file == "a.safetensors" or each.file.pickle
            assert each.file.url
    fetched = [each.file.place for each in found.rows if each.fetched]
    assert len(fetched) == len(set(fetched))


def test_disks_are_looked_at(tmp_path: Path) -> None:
    live, other = tmp_path / "models", tmp_path / "other"
    (live / "loras").mkdir(parents=True)
    (live / "folder" / "m.safetensors").mkdir(parents=True)
    (live / "dangling").mkdir()
    (live / "dangling" / "m.safetensors").symlink_to(tmp_path / "none")
    (live / "out").symlink_to(tmp_path)
    (live / "loop").symlink_to("loop")
    (live / "dangling" / "loop.safetensors").symlink_to("loop.safetensors")
    (other / "vae").mkdir(parents=True)
    write_safetensors(live / "loras" / "m.safetensors", {"a": ((1,), [1])})
    write_safetensors(other / "vae" / "m.safetensors", {"a": ((1,), [1])})
    size = (other / "vae" / "m.safetensors").stat().st_size
    places = Places(live, {"vae": (other / "vae",)})
    files = [
        replace(FILE, folder=name, size=0)
        for name in ("loras", "folder", "dangling", "out/deep", "vae", "clip", "../other/vae", "")
    ]
    loops = [replace(FILE, folder="loop"), replace(FILE, folder="dangling", file="loop.safetensors")]
    assert [make([each], look([each], places, {}, {}), ()).rows[0].state for each in loops] == ["wrong", "wrong"]
    ours = {"loras/m.safetensors": Entry("u", B, size, 0)}
    found = look(files, places, ours, {live / "clip" / "m.safetensors": (7, 9)})
    assert found == {
        "loras/m.safetensors": There(size, sha256=B),
        "folder/m.safetensors": There(0, "it is a folder"),
        "dangling/m.safetensors": There(0, "it is a link to nothing", leaves=True),
        "out/deep/m.safetensors": There(leaves=True),
        "vae/m.safetensors": There(elsewhere=str(other / "vae" / "m.safetensors")),
        "clip/m.safetensors": There(part=7),
    }
    another = replace(FILE, folder="vae", size=size + 1)
    assert look([another], places, {}, {}) == {"vae/m.safetensors": There()}

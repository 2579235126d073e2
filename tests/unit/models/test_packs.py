from __future__ import annotations

import re
import tomllib
from importlib import resources

import pytest

from comfypod.models.packs import shipped


def test_every_file_of_a_shipped_pack_is_pinned_by_commit_digest_and_size() -> None:
    assert len(shipped()) >= 3
    for name, files in shipped().items():
        assert files
        for file in files:
            assert re.fullmatch(r"hf:[\w.-]+/[\w.-]+@[0-9a-f]{40}/\S+\.safetensors", file.url), file.name
            assert re.fullmatch(r"[0-9a-f]{64}", file.sha256), file.name
            assert file.size > 10**8
            assert file.licence
            assert not file.gated
            assert (file.pack, file.name) == (name, f"{name}/{file.file}")


def test_packs_that_share_a_place_share_the_file() -> None:
    digests = dict[str, str]()
    for file in (file for files in shipped().values() for file in files):
        assert digests.setdefault(file.place, file.sha256) == file.sha256


def test_every_file_says_where_its_digest_and_size_were_published() -> None:
    body = tomllib.loads(resources.files("comfypod.resources").joinpath("packs.toml").read_text("utf-8"))
    for row in (row for pack in body["pack"] for row in pack["file"]):
        assert row["source"].startswith("all: ") or {"digest", "size", "revision"} <= {
            part.partition(":")[0].strip() for part in row["source"].split(";")
        }


def test_the_table_stays_as_it_is_whoever_asks() -> None:
    with pytest.raises(AttributeError):
        next(iter(shipped().values()))[0].size = 1  # type: ignore[misc]
    shipped().clear()
    assert shipped()

"""How models and packs are locked: from a local host that stands for Hugging Face."""

from __future__ import annotations

import hashlib
import io
import json
from typing import TYPE_CHECKING

import msgspec
import pytest

from comfypod.errors import IntegrityError, LockError, SourceError
from comfypod.lock import schema
from comfypod.lock.hosts import hosts
from comfypod.lock.models import key, lock_models, wanted
from comfypod.lock.reconcile import drift
from comfypod.log import Console
from comfypod.manifest.profiles import load_profiles
from comfypod.models.packs import shipped
from tests.kit import locks
from tests.kit.lockable import manifest
from tests.kit.models import upscaler
from tests.kit.web import Answer

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from tests.kit.web import Site

COMMIT = "c" * 40
MINE = "hf:me/mine@main/sub/a.safetensors"


def pack(url: str, more: str = "", name: str = "p") -> str:
    return f'[[pack]]\nname = "{name}"\n[[pack.file]]\nurl = "{url}"\nfolder = "loras"\n{more}'


def locked(
    text: str, site: Site, scratch: Path, held: Sequence[schema.LockedModel] = (), out: io.StringIO | None = None
) -> tuple[schema.LockedModel, ...]:
    terms, endpoints = hosts({"HF_ENDPOINT": site.url, "HF_TOKEN": "hf-mine"})
    return lock_models(
        wanted(manifest(more=text)), held, terms, endpoints, scratch, Console(out or io.StringIO())
    )  # fmt: skip


def hugging_face(site: Site, revision: str = "main", digest: str = "a" * 64, size: int = 5) -> None:
    """Let the site say of `me/mine` what Hugging Face says of a repository and of a file in it."""
    blobs = [{"rfilename": "sub/a.safetensors", "size": size, "lfs": {"sha256": digest, "size": size}}]
    facts = {"sha": COMMIT, "gated": "manual", "cardData": {"license": 'mi"t'}, "siblings": blobs}
    body = Answer(json.dumps(facts).encode(), headers={"Content-Type": "application/json"})
    for asked in (f"/api/models/me/mine/revision/{revision}", f"/api/models/me/mine/revision/{COMMIT}?blobs=true"):
        site.answers[asked] = body
    told = {"X-Linked-Etag": f'"{digest}"', "X-Linked-Size": str(size)}
    site.answers[f"/me/mine/resolve/{COMMIT}/sub/a.safetensors"] = Answer(b"12345", headers=told)


def test_a_branch_is_locked_to_the_commit_that_it_is_with_what_the_host_says(site: Site, tmp_path: Path) -> None:
    hugging_face(site)
    (found,) = locked(pack(MINE), site, tmp_path)
    assert (found.name, found.pack, found.place) == ("p/a.safetensors", "p", "loras/a.safetensors")
    assert (found.url, found.asked) == (f"hf:me/mine@{COMMIT}/sub/a.safetensors", MINE)
    assert (found.sha256, found.size, found.licence, found.gated) == ("a" * 64, 5, "mit", True)
    assert not [path for method, path in site.requests if method == "GET" and "/resolve/" in path]
    # A private repository says nothing without it.
    assert set(site.logins) == {"Bearer hf-mine"}


def test_what_a_lock_says_stays_without_a_question_although_the_branch_moves_on(site: Site, tmp_path: Path) -> None:
    hugging_face(site)
    first = locked(pack(MINE), site, tmp_path)
    site.answers.clear()
    site.requests.clear()
    assert locked(pack(MINE), site, tmp_path, first) == first
    assert site.requests == []
    with pytest.raises(SourceError):
        locked(pack(MINE.replace("main", "other")), site, tmp_path, first)


def test_a_shipped_pack_is_locked_and_in_step_without_any_question(site: Site, tmp_path: Path) -> None:
    text = "".join(f'[[pack]]\nname = "{name}"\n' for name in shipped())
    found = locked(text, site, tmp_path)
    assert site.requests == []
    assert {model.name for model in found} == {file.name for files in shipped().values() for file in files}
    lock = msgspec.structs.replace(locks.lock({"x86_64": (), "aarch64": ()}, []), models=found)
    assert schema.decode(schema.encode(lock), "x").models == found
    assert not [each for each in drift(manifest(more=text), load_profiles(), lock) if each.item.startswith("model")]


def test_a_host_that_tells_no_digest_is_downloaded_from_once_and_says_so(site: Site, tmp_path: Path) -> None:
    upscaler(tmp_path / "m")
    body = (tmp_path / "m").read_bytes()
    site.answers["/m.safetensors"] = Answer(body, headers={"ETag": '"weak"'})
    out = io.StringIO()
    text = pack(f"{site.url}/m.safetensors")
    first = locked(text, site, tmp_path, out=out)
    assert (first[0].sha256, first[0].size) == (hashlib.sha256(body).hexdigest(), len(body))
    assert "does not tell its digest, so all of it is downloaded" in out.getvalue()
    assert set(site.logins) == {"Bearer hf-mine"}
    assert [path.name for path in tmp_path.iterdir()] == ["m"]
    site.requests.clear()
    assert locked(text, site, tmp_path, first) == first
    assert site.requests == []


def test_d3_a_login_page_is_not_locked_as_a_model(site: Site, tmp_path: Path) -> None:
    site.answers["/m.safetensors"] = Answer(b"<!DOCTYPE html><title>Log in</title>")
    with pytest.raises(LockError, match="is no model"):
        locked(pack(f"{site.url}/m.safetensors"), site, tmp_path)


def test_h2_a_host_with_other_contents_than_the_manifest_says_is_refused(site: Site, tmp_path: Path) -> None:
    hugging_face(site)
    with pytest.raises((SourceError, IntegrityError)):
        locked(pack(MINE, f'sha256 = "{"b" * 64}"\n'), site, tmp_path)


def test_a_host_that_refuses_is_named_with_what_to_write(site: Site, tmp_path: Path) -> None:
    site.answers["/m.safetensors"] = Answer(status=403)
    with pytest.raises(SourceError, match="403"):
        locked(pack(f"{site.url}/m.safetensors"), site, tmp_path)


def test_d6_two_packs_with_one_place_and_other_contents_are_refused_and_the_same_file_is_not(
    site: Site, tmp_path: Path
) -> None:
    told = 'file = "x.safetensors"\nsize = 3\nsha256 = "{}"\n'
    first, same, other = (
        pack(f"{site.url}/{name}.safetensors", told.format(digest * 64), name)
        for name, digest in (("one", "a"), ("two", "a"), ("three", "b"))
    )
    assert [model.name for model in locked(first + same, site, tmp_path)] == ["one/x.safetensors", "two/x.safetensors"]
    models = (*locked(first, site, tmp_path), *locked(other, site, tmp_path))
    (clash,) = schema.clashes(models)
    assert "one/x.safetensors and three/x.safetensors are both to be loras/x.safetensors" in clash
    bad = msgspec.structs.replace(locks.lock({"x86_64": (), "aarch64": ()}, []), models=models)
    with pytest.raises(LockError, match="are both to be"):
        schema.decode(schema.encode(bad), "x")
    # The digest of the second is known to its host alone.
    site.answers["/x.safetensors"] = Answer(b"123", headers={"X-Linked-Etag": f'"{"b" * 64}"', "X-Linked-Size": "3"})
    with pytest.raises(LockError, match="are both to be"):
        locked(first + pack(f"{site.url}/x.safetensors", name="q"), site, tmp_path)


def test_each_change_of_a_pack_is_drift(site: Site, tmp_path: Path) -> None:
    hugging_face(site)
    text = pack(MINE, 'licence = "mit"\n')
    lock = msgspec.structs.replace(locks.lock({"x86_64": (), "aarch64": ()}, []), models=locked(text, site, tmp_path))

    def items(changed: str) -> list[str]:
        found = drift(manifest(more=changed), load_profiles(), lock)
        return [each.item for each in found if each.item.startswith("model")]

    assert items(text) == []
    for changed, item in (
        (text.replace('"mit"', '"other"'), ["model p/a.safetensors, licence"]),
        (text + 'file = "b.safetensors"\n', ["model p/a.safetensors, place"]),
        (text.replace("main", "v1"), ["model p/a.safetensors", "model p/a.safetensors"]),
        (text.replace('name = "p"', 'name = "p"\nbake = true'), ["model p/a.safetensors, bake"]),
        ("", ["model p/a.safetensors"]),
    ):
        assert items(changed) == item


def test_a_pack_and_a_model_of_one_name_are_two_things() -> None:
    file = locks.model("x", bake=False, pack="same")
    assert key(file) != key(locks.model("same", bake=False))


def test_a_token_is_for_its_own_host_or_the_mirror_that_stands_for_it() -> None:
    terms, endpoints = hosts({"HF_TOKEN": "h", "CIVITAI_TOKEN": "c"})
    assert terms.tokens == {"huggingface.co": "h", "civitai.com": "c"}
    assert endpoints.hugging_face == "https://huggingface.co"
    assert hosts({"HF_TOKEN": "h", "HF_ENDPOINT": "https://m.example/"})[0].tokens == {"m.example": "h"}

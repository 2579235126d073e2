"""What hosts say of a file, asked of a real server that answers as Hugging Face and as Civitai do."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from comfypod.download.order import Terms
from comfypod.models import facts
from comfypod.models.file import ModelFile
from comfypod.models.source import Endpoints
from tests.kit.pods import free_port
from tests.kit.web import Answer, Site, serve

if TYPE_CHECKING:
    from collections.abc import Iterator

DIGEST = "ab" * 32
COMMIT = "462165984030d82259a11f4367a4eed129e94a7b"
HUB = ModelFile("a.safetensors", "hf:org/repo/split/a.safetensors", "vae", "a.safetensors")
VERSION = ModelFile("civitai:7", "civitai:7", "", "")
PLACE = "/org/repo/resolve/main/split/a.safetensors"
API = "/api/models/org/repo?blobs=true"
LFS = {"rfilename": "split/a.safetensors", "size": 335304388, "lfs": {"sha256": DIGEST, "size": 335304388}}
MAIN = {
    "name": "a_v1.safetensors", "type": "Model", "primary": True, "sizeKB": 6775430.384765625,
    "metadata": {"format": "SafeTensor", "fp": "fp16"}, "hashes": {"SHA256": DIGEST.upper(), "AutoV2": "AB"},
}  # fmt: skip
PICKLED = {**MAIN, "name": "a_v1.ckpt", "primary": False, "metadata": {"format": "PickleTensor"}, "hashes": {}}


@pytest.fixture
def site() -> Iterator[Site]:
    with serve() as running:
        yield running


def _json(document: Any) -> Answer:
    return Answer(json.dumps(document).encode(), headers={"Content-Type": "application/json"})


def _repository(site: Site, *files: dict[str, Any], **more: Any) -> None:
    site.answers[API] = _json({"id": "org/repo", "siblings": [{"rfilename": "README.md"}, *files], **more})


def _version(site: Site, *files: dict[str, Any], kind: str = "Checkpoint", **more: Any) -> None:
    model = {"name": "A", "type": kind}
    site.answers["/api/v1/model-versions/7"] = _json({"id": 7, "modelId": 5, "model": model, "files": files, **more})


def _learn(site: Site, file: ModelFile, **tokens: str) -> ModelFile:
    return facts.learn(file, Terms({name.replace("_", "."): token for name, token in tokens.items()}), _ends(site))


def _ends(site: Site) -> Endpoints:
    return Endpoints(site.url, site.url)


def test_hugging_face_tells_size_digest_and_licence_in_one_question(site: Site) -> None:
    _repository(site, LFS, gated=False, cardData={"license": "apache-2.0"})
    assert _learn(site, HUB) == replace(HUB, sha256=DIGEST, size=335304388, licence="apache-2.0")
    assert site.requests == [("GET", API)]


def test_a_revision_is_asked_for_by_its_name(site: Site) -> None:
    site.answers[f"/api/models/org/repo/revision/{COMMIT}?blobs=true"] = _json({"siblings": [LFS]})
    file = _learn(site, replace(HUB, url=f"hf:org/repo@{COMMIT}/split/a.safetensors"))
    assert (file.sha256, file.trouble) == (DIGEST, "")


@pytest.mark.parametrize(
    ("card", "licence"),
    [
        ({"license": "other", "license_name": "flux-1-dev"}, "flux-1-dev"),
        ({"license": "other"}, "other"),
        ({"license": ["a", "b"]}, ""),
        ({"license": "a\x1b[31m"}, ""),
        (None, ""),
    ],
)
def test_a_licence_of_another_name_is_told_by_that_name(site: Site, card: Any, licence: str) -> None:
    _repository(site, LFS, cardData=card)
    assert _learn(site, HUB).licence == licence


@pytest.mark.parametrize(("gated", "expected"), [("auto", True), ("manual", True), (False, False), (None, False)])
def test_gated_files_are_known_as_such_without_a_token(site: Site, gated: Any, expected: bool) -> None:
    _repository(site, LFS, gated=gated)
    file = _learn(site, HUB)
    assert (file.gated, file.size, file.trouble) == (expected, 335304388, "")


def test_a_mirror_without_the_api_is_asked_for_the_file_itself(site: Site) -> None:
    with serve() as store:
        store.answers["/blob"] = Answer(b"12345")
        linked = {"X-Linked-Size": "5", "X-Linked-Etag": f'"{DIGEST}"', "Location": f"{store.url}/blob"}
        site.answers[PLACE] = Answer(status=302, headers=linked)
        assert _learn(site, HUB, **{"127_0_0_1": "secret"}) == replace(HUB, sha256=DIGEST, size=5)
        assert site.requests == [("GET", API), ("HEAD", PLACE)]
        assert site.logins == ["Bearer secret"] * 2
        assert store.logins == [""], "the token is for the host that it belongs to"


def test_what_refuses_says_what_to_do_and_the_rest_stays_known(site: Site) -> None:
    _repository(site, gated="manual", cardData={"license": "apache-2.0"})
    site.answers[PLACE] = Answer(status=401, headers={"X-Error-Code": "GatedRepo"})
    file = _learn(site, HUB)
    assert (file.gated, file.licence, file.size, file.sha256) == (True, "apache-2.0", 0, "")
    assert "answered 401" in file.trouble


def test_without_a_network_nothing_is_learnt_and_nothing_is_lost() -> None:
    nowhere = Endpoints(*[f"http://127.0.0.1:{free_port()}"] * 2)
    for known in (HUB, VERSION, replace(HUB, size=7, licence="mit"), replace(HUB, url=f"{nowhere.civitai}/a.pt")):
        file = facts.learn(known, Terms(), nowhere)
        assert replace(file, trouble="") == known
        assert "not reachable" in file.trouble


def test_a_file_of_which_all_is_known_is_not_asked_for(site: Site) -> None:
    known = replace(HUB, sha256=DIGEST, size=5, licence="mit")
    assert _learn(site, known) == known
    assert site.requests == []


def test_other_contents_than_the_wanted_are_told_and_their_size_is_not_taken(site: Site) -> None:
    _repository(site, LFS)
    file = _learn(site, replace(HUB, sha256="cd" * 32))
    assert (file.sha256, file.size) == ("cd" * 32, 0)
    assert DIGEST in file.trouble


def test_any_other_host_is_asked_for_the_file(site: Site) -> None:
    site.answers["/a.pt"] = Answer(b"12345")
    file = ModelFile("a.pt", f"{site.url}/a.pt", "vae", "a.pt")
    assert _learn(site, file) == replace(file, size=5)


def test_civitai_tells_name_folder_size_digest_and_what_the_author_demands(site: Site) -> None:
    _version(site, PICKLED, MAIN)
    permits = {"allowCommercialUse": ["Image", "Rent"], "allowNoCredit": False, "allowDerivatives": True}
    site.answers["/api/v1/models/5"] = _json(permits)
    assert _learn(site, VERSION, **{"127_0_0_1": "secret"}) == replace(
        VERSION, name="a_v1.safetensors", file="a_v1.safetensors", folder="checkpoints", sha256=DIGEST, size=6938040714,
        licence="commercial use: Image, Rent; credit the author",
    )  # fmt: skip
    assert site.logins == ["Bearer secret"] * 2


def test_the_choice_in_an_address_says_which_file_of_a_version_is_meant(site: Site) -> None:
    _version(site, MAIN, PICKLED)
    file = _learn(site, replace(VERSION, url="https://civitai.com/api/download/models/7?format=PickleTensor"))
    assert (file.file, file.sha256) == ("a_v1.ckpt", "")
    none = _learn(site, replace(VERSION, url="https://civitai.com/api/download/models/7?format=GGUF"))
    assert (none.file, none.sha256, none.size) == ("", "", 0)


@pytest.mark.parametrize(
    ("kind", "of_file", "folder"),
    [
        ("LORA", "Model", "loras"), ("DoRA", "Model", "loras"), ("TextualInversion", "Model", "embeddings"),
        ("Checkpoint", "VAE", "vae"), ("Checkpoint", "Training Data", ""), ("Workflows", "Model", ""),
    ],
)  # fmt: skip
def test_the_folder_follows_from_civitai_s_types(site: Site, kind: str, of_file: str, folder: str) -> None:
    _version(site, {**MAIN, "type": of_file}, kind=kind)
    assert _learn(site, VERSION).folder == folder
    assert _learn(site, replace(VERSION, folder="mine")).folder == "mine"


def test_a_size_that_may_have_been_rounded_is_asked_of_the_file(site: Site) -> None:
    _version(site, {**MAIN, "sizeKB": 2048})
    site.answers["/api/download/models/7"] = Answer(b"x" * 11)
    assert _learn(site, VERSION).size == 11


@pytest.mark.parametrize("name", ["../a.safetensors", "a/b.pt", "/etc/passwd", "..", "a\x1b[0m.pt", None, 7])
def test_d7_g8_a_name_that_a_host_gives_must_be_a_plain_one(site: Site, name: Any) -> None:
    _version(site, {**MAIN, "name": name})
    file = _learn(site, VERSION)
    assert (file.file, file.name) == ("", "civitai:7")


def test_early_access_is_as_good_as_gated(site: Site) -> None:
    _version(site, MAIN, availability="EarlyAccess")
    assert _learn(site, VERSION).gated


@pytest.mark.parametrize(
    "body", [b"<html>", b"[1]", b"7", b"[" * 100_000, b'{"siblings": 7, "files": {}, "model": []}']
)
def test_answers_that_make_no_sense_are_as_good_as_none(site: Site, body: bytes) -> None:
    site.answers[API] = site.answers["/api/v1/model-versions/7"] = Answer(body)
    for file in (HUB, VERSION):
        learnt = _learn(site, file)
        assert replace(learnt, trouble="") == file
        assert "answered 404" in learnt.trouble


def test_a_text_that_is_no_source_is_told() -> None:
    assert "is no address" in facts.learn(replace(HUB, url="nonsense"), Terms(), Endpoints()).trouble

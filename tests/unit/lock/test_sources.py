from __future__ import annotations

import hashlib
import io
import json
import tarfile
from pathlib import Path

import pytest

from comfypod import files
from comfypod.errors import IntegrityError, SourceError
from comfypod.lock.sources import Obtained, default_sources, index_url, obtain
from comfypod.log import Console
from comfypod.manifest.values import ArchiveSource, GitSource, PathSource, SdistSource, Source
from tests.kit.repos import make_repository, write_tree
from tests.kit.web import Answer, Site

CONTENTS = {"main.py": "print()\n", "comfy/__init__.py": "", ".github/x.yml": "a: 1\n"}
NOWHERE = ArchiveSource("http://127.0.0.1:9/tree.tar.gz")


def archive(contents: dict[str, str], top: str = "top") -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for name, text in contents.items():
            member = tarfile.TarInfo(f"{top}/{name}")
            member.size = len(text)
            tar.addfile(member, io.BytesIO(text.encode()))
    return buffer.getvalue()


def digest_of(folder: Path) -> str:
    return files.tree_facts(write_tree(folder, CONTENTS)).digest


def get(
    tmp_path: Path, *sources: Source, digest: str | None = None, index: str = "", out: io.StringIO | None = None
) -> Obtained:
    scratch = tmp_path / "scratch"
    scratch.mkdir(exist_ok=True)
    console = Console(out or io.StringIO())
    try:
        return obtain(
            sources, tmp_path / "target", digest=digest, base=tmp_path, scratch=scratch, index=index, console=console
        )
    finally:
        assert list(scratch.iterdir()) == []


def list_sdist(site: Site, body: bytes, **row: object) -> str:
    """Put a source distribution on the server's index; return its SHA-256."""
    sha256 = hashlib.sha256(body).hexdigest()
    listed = {"filename": "tiny_comfy-1.0.tar.gz", "url": "../../files/t.tar.gz", "size": len(body), **row}
    other = {"filename": "tiny_comfy-1.0-py3-none-any.whl", "url": "../../files/t.whl"}
    site.answers["/simple/tiny-comfy/"] = Answer(json.dumps({"files": [other, listed]}).encode())
    site.answers["/files/t.tar.gz"] = Answer(body)
    return sha256


def test_every_kind_of_source_gives_the_same_contents(tmp_path: Path, site: Site) -> None:
    digest = digest_of(tmp_path / "tree")
    (tmp_path / "tree" / "__pycache__").mkdir()
    (tmp_path / "tree" / "__pycache__" / "main.pyc").write_text("x")
    repository = make_repository(tmp_path / "repo", CONTENTS, tag="v1")
    site.answers["/a.tar.gz"] = Answer(archive(CONTENTS))
    sha256 = list_sdist(site, archive({f"vendor/ComfyUI/{name}": text for name, text in CONTENTS.items()}))
    sources: tuple[Source, ...] = (
        PathSource("tree"),
        GitSource(repository.url, "v1"),
        ArchiveSource(f"{site.url}/a.tar.gz"),
        SdistSource("Tiny.Comfy", "1.0", sha256, "vendor/ComfyUI"),
    )
    for number, source in enumerate(sources):
        got = get(tmp_path, source, digest=digest, index=f"{site.url}/simple")
        assert got.source == source
        assert got.facts == files.tree_facts(tmp_path / "target")
        assert not (tmp_path / "target" / "__pycache__").exists()
        (tmp_path / "target").rename(tmp_path / f"done{number}")


def test_a_source_that_does_not_answer_is_passed_over_and_named(tmp_path: Path) -> None:
    digest = digest_of(tmp_path / "tree")
    out = io.StringIO()
    got = get(tmp_path, NOWHERE, PathSource("missing"), PathSource("tree"), digest=digest, out=out)
    assert got.source == PathSource("tree")
    assert "refused: http://127.0.0.1:9/tree.tar.gz is not reachable" in out.getvalue()
    assert "got 3 files" in out.getvalue()


def test_other_contents_are_refused_and_the_next_source_is_tried(tmp_path: Path, site: Site) -> None:
    digest = digest_of(tmp_path / "tree")
    site.answers["/a.tar.gz"] = Answer(archive({**CONTENTS, "main.py": "import evil\n"}))
    got = get(tmp_path, ArchiveSource(f"{site.url}/a.tar.gz"), PathSource("tree"), digest=digest)
    assert got.source == PathSource("tree")
    assert got.facts.digest == digest


def test_wrong_contents_outweigh_sources_that_do_not_answer(tmp_path: Path, site: Site) -> None:
    digest = digest_of(tmp_path / "tree")
    site.answers["/a.tar.gz"] = Answer(archive({"main.py": "import evil\n"}))
    with pytest.raises(IntegrityError) as caught:
        get(tmp_path, NOWHERE, ArchiveSource(f"{site.url}/a.tar.gz"), digest=digest)
    assert "127.0.0.1:9" in caught.value.message
    assert digest in caught.value.message
    assert not (tmp_path / "target").exists()


def test_when_nothing_answers_every_source_is_listed_with_its_reason(tmp_path: Path, site: Site) -> None:
    with pytest.raises(SourceError) as caught:
        get(tmp_path, NOWHERE, ArchiveSource(f"{site.url}/gone.zip"), GitSource(f"file://{tmp_path}/no", "main"))
    for part in ("not reachable", "answered 404", f"{tmp_path}/no at main"):
        assert part in caught.value.message
    assert caught.value.hint


def test_a_tampered_archive_is_refused_by_its_own_digest(tmp_path: Path, site: Site) -> None:
    site.answers["/a.tar.gz"] = Answer(archive(CONTENTS))
    with pytest.raises(IntegrityError, match="sha256"):
        get(tmp_path, ArchiveSource(f"{site.url}/a.tar.gz", "0" * 64))


def test_a_tampered_source_distribution_is_refused(tmp_path: Path, site: Site) -> None:
    sha256 = list_sdist(site, archive(CONTENTS))
    site.answers["/files/t.tar.gz"] = Answer(archive({"main.py": "import evil\n"}))
    with pytest.raises(IntegrityError, match=sha256):
        get(tmp_path, SdistSource("tiny-comfy", "1.0", sha256), index=f"{site.url}/simple")


@pytest.mark.parametrize("page", [b"<html>", b"[]", b'{"files": 3}', b'{"files": []}', b'{"files": [3, {}]}'])
def test_an_index_without_the_source_distribution_is_a_source_that_failed(
    tmp_path: Path, site: Site, page: bytes
) -> None:
    site.answers["/simple/tiny-comfy/"] = Answer(page)
    with pytest.raises(SourceError):
        get(tmp_path, SdistSource("tiny-comfy", "1.0", "0" * 64), index=f"{site.url}/simple")


def test_a_transfer_that_is_cut_short_leaves_nothing(tmp_path: Path, site: Site) -> None:
    site.answers["/a.tar.gz"] = Answer(archive(CONTENTS), cut=20)
    with pytest.raises(SourceError, match="bytes arrived"):
        get(tmp_path, ArchiveSource(f"{site.url}/a.tar.gz"))
    assert not (tmp_path / "target").exists()


def test_g8_an_archive_that_reaches_outside_is_refused(tmp_path: Path, site: Site) -> None:
    site.answers["/a.tar.gz"] = Answer(archive({"../../../../evil": "x"}))
    with pytest.raises(IntegrityError, match="outside"):
        get(tmp_path, ArchiveSource(f"{site.url}/a.tar.gz"))


def test_a_subfolder_that_is_missing_or_leads_outside_is_refused(tmp_path: Path) -> None:
    repository = make_repository(tmp_path / "repo", CONTENTS)
    (repository.folder / "away").symlink_to("/usr")
    repository.commit({})
    for subdir in ("nothing", "away"):
        with pytest.raises(SourceError, match="no folder"):
            get(tmp_path, GitSource(repository.url, "main", subdir))


@pytest.mark.parametrize(
    ("environ", "url"),
    [
        ({}, "https://pypi.org/simple"),
        ({"PIP_INDEX_URL": "https://a.example/s/"}, "https://a.example/s"),
        ({"PIP_INDEX_URL": "https://a/", "UV_DEFAULT_INDEX": "name=https://b.example/s"}, "https://b.example/s"),
        ({"UV_INDEX_URL": "https://user:secret@c.example:8443/s?x=1"}, "https://user:secret@c.example:8443/s?x=1"),
    ],
)
def test_the_index_comes_from_the_environment_without_a_login(environ: dict[str, str], url: str) -> None:
    assert index_url(environ) == url


def test_a_version_without_a_known_source_distribution_comes_from_git() -> None:
    assert [type(source) for source in default_sources("0.30.0")] == [SdistSource, GitSource, ArchiveSource]
    assert [type(source) for source in default_sources("9.9.9")] == [GitSource, ArchiveSource]

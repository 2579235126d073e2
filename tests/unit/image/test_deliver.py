from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any

import pytest

from comfypod import files
from comfypod.image.deliver import main
from comfypod.image.layer import EPOCH
from tests.kit.repos import make_repository, write_tree
from tests.kit.web import Answer, serve

if TYPE_CHECKING:
    from pathlib import Path

NODE = {"__init__.py": "NODE_CLASS_MAPPINGS = {}\n", "js/a.js": "x\n"}
STATUS = "Package: libc6\nStatus: install ok installed\nArchitecture: amd64\nVersion: 1\n"


def write_facts(folder: Path, **facts: Any) -> str:
    path = folder / "facts.json"
    path.write_text(json.dumps(facts))
    return str(path)


def tree(folder: Path, source: dict[str, str], digest: str) -> list[str]:
    facts = write_facts(folder, item="node n", target="/opt/nodes/n/n", digest=digest, sources=[source])
    return ["tree", "--facts", facts, "--root", str(folder / "layer")]


def test_a_node_from_git_becomes_a_layer_without_its_history(tmp_path: Path) -> None:
    repository = make_repository(tmp_path / "n", NODE)
    commit, digest = repository.git("rev-parse", "HEAD"), files.tree_facts(tmp_path / "n").digest
    assert main(tree(tmp_path, {"kind": "git", "url": repository.url, "ref": commit}, digest)) == 0
    place = tmp_path / "layer" / "opt" / "nodes" / "n" / "n"
    assert files.tree_facts(place).digest == digest
    assert [path.name for path in (tmp_path / "layer").iterdir()] == ["opt"]
    assert not list(place.rglob(".git"))
    assert list(place.rglob("*.pyc"))
    assert {int(path.lstat().st_mtime) for path in (tmp_path / "layer").rglob("*")} == {EPOCH}


def test_a_tree_with_another_digest_is_refused_in_one_line_and_leaves_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_tree(tmp_path / "mine", NODE)
    assert main(tree(tmp_path, {"kind": "path", "path": str(tmp_path / "mine")}, "sha256:" + "0" * 64)) == 1
    said = capsys.readouterr()
    last = (said.out + said.err).splitlines()[-1]
    assert last.startswith("COMFYPOD FAILED node n: no source has the contents that the lock names: ")
    assert list((tmp_path / "layer").iterdir()) == []


def test_h2_without_a_digest_only_a_commit_will_do(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    repository = make_repository(tmp_path / "n", NODE)
    for source in (
        {"kind": "path", "path": str(tmp_path / "n")},
        {"kind": "git", "url": repository.url, "ref": "main"},
        {"kind": "archive", "url": "http://127.0.0.1:1/n.zip"},
    ):
        assert main(tree(tmp_path, source, "")) == 1
        said = capsys.readouterr()
        assert "COMFYPOD FAILED node n: the lock names neither its digest nor a commit" in said.out + said.err
    commit = repository.git("rev-parse", "HEAD")
    assert main(tree(tmp_path, {"kind": "git", "url": repository.url, "ref": commit}, "")) == 0


def test_a_local_folder_brings_neither_its_modes_nor_what_is_no_content(tmp_path: Path) -> None:
    mine = write_tree(tmp_path / "mine", {**NODE, ".git/config": "secret\n", "__pycache__/a.pyc": "old\n"})
    (mine / "__init__.py").chmod(0o600)
    digest = files.tree_facts(mine).digest
    assert main(tree(tmp_path, {"kind": "path", "path": str(mine)}, digest)) == 0
    place = tmp_path / "layer" / "opt" / "nodes" / "n" / "n"
    assert (place / "__init__.py").stat().st_mode & 0o777 == 0o644
    assert not (place / ".git").exists()
    assert not (place / "__pycache__" / "a.pyc").exists()


def test_a_model_is_fetched_by_its_digest(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    body = b"weights" * 100
    (tmp_path / "same").write_bytes(body)
    with serve() as site:
        site.answers["/m.bin"] = Answer(body)
        given = {"item": "model m", "target": "/opt/models/vae/m.bin", "url": f"{site.url}/m.bin", "size": len(body)}
        argv = ["model", "--root", str(tmp_path / "layer"), "--facts"]
        assert main([*argv, write_facts(tmp_path, **given, sha256="0" * 64)]) == 1
        assert list((tmp_path / "layer").iterdir()) == []
        assert main([*argv, write_facts(tmp_path, **given, sha256=files.sha256_file(tmp_path / "same"))]) == 0
    assert (tmp_path / "layer/opt/models/vae/m.bin").read_bytes() == body
    said = capsys.readouterr()
    assert "COMFYPOD FAILED model m: " in said.out + said.err


def test_g9_a_gated_model_is_fetched_with_its_hosts_token_and_another_one_without(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    body = b"weights"
    (tmp_path / "same").write_bytes(body)
    with serve() as hub, serve() as other:
        monkeypatch.setenv("HF_ENDPOINT", hub.url.replace("127.0.0.1", "localhost"))
        monkeypatch.setenv("HF_TOKEN", "t0ken")
        hub.answers["/me/m/resolve/v1/a.safetensors"] = other.answers["/a.safetensors"] = Answer(body)
        given = {"item": "model m", "size": len(body), "sha256": files.sha256_file(tmp_path / "same")}
        for number, url in enumerate(("hf:me/m@v1/a.safetensors", f"{other.url}/a.safetensors")):
            facts = write_facts(tmp_path, **given, target=f"/opt/models/loras/{number}.safetensors", url=url)
            assert main(["model", "--root", str(tmp_path / "layer"), "--facts", facts]) == 0
    assert set(hub.logins) == {"Bearer t0ken"}
    assert set(other.logins) == {""}
    said = capsys.readouterr()
    assert "t0ken" not in said.out + said.err
    assert sorted(path.name for path in (tmp_path / "layer/opt/models/loras").iterdir()) == [
        "0.safetensors", "1.safetensors",
    ]  # fmt: skip


@pytest.fixture
def root(tmp_path: Path) -> Path:
    contents = {
        "etc/passwd": "root:x:0:0::/root:/bin/sh\n", "etc/group": "root:x:0:\n", "var/lib/dpkg/status": STATUS,
        "opt/comfyui/main.py": "", "opt/nodes/n/n/__init__.py": "", "usr/local/bin/.keep": "",
    }  # fmt: skip
    (tmp_path / "locked.pod.json").write_text('{"schema": 1}')
    (tmp_path / "locked.cdx.json").write_text('{"components": [], "metadata": {"component": {}}}')
    return write_tree(tmp_path / "image", contents)


def test_an_image_says_what_it_is_and_has_the_names_that_users_look_for(root: Path, tmp_path: Path) -> None:
    assert main(["facts", "--locked", str(tmp_path / "locked"), "--root", str(root)]) == 0
    assert (root / "etc/comfypod/pod.json").read_text() == '{"schema": 1}'
    assert "libc6" in (root / "etc/comfypod/sbom.cdx.json").read_text()
    links = {
        "ComfyUI": "/opt/comfyui", "usr/local/bin/comfypod": "/opt/comfypod/bin/comfypod",
        "opt/comfyui/custom_nodes/n": "/opt/nodes/n/n",
    }  # fmt: skip
    for name, target in links.items():
        assert os.readlink(root / name) == target  # noqa: PTH115
        assert int((root / name).lstat().st_mtime) == EPOCH
    assert (root / "workspace").stat().st_mode & 0o777 == 0o775
    assert "comfypod:x:1000:1000:" in (root / "etc/passwd").read_text()
    assert "comfypod:x:1000:" in (root / "etc/group").read_text()


def test_a_base_with_a_user_of_this_number_is_refused_in_one_line(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with (root / "etc/passwd").open("a") as handle:
        handle.write("someone:x:1000:1000::/home/someone:/bin/sh\n")
    assert main(["facts", "--locked", str(tmp_path / "locked"), "--root", str(root)]) == 1
    said = capsys.readouterr()
    assert "COMFYPOD FAILED the base image: it has a user or group 1000 already" in said.out + said.err

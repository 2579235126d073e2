from __future__ import annotations

import hashlib
import json
import os
import shlex
from typing import TYPE_CHECKING, Any

import pytest

from comfypod import cli
from comfypod.models import record
from comfypod.workspace import run
from comfypod.workspace.layout import Layout
from tests.kit import standin, web
from tests.kit.models import write_safetensors
from tests.kit.repos import write_tree
from tests.kit.web import Answer

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

CANARY = "canary-secret-9"


class Desk:
    """A workspace, a server with small models, and the command line in between."""

    def __init__(self, layout: Layout, server: web.Site, capsys: pytest.CaptureFixture[str]) -> None:
        self.layout, self.server, self._capsys = layout, server, capsys
        self.live = layout.comfyui / "models"

    def publish(self, name: str, value: float = 1) -> str:
        path = self.layout.records / "published"
        write_safetensors(path, {"a": ((100,), [value] * 100)})
        self.server.answers[f"/{name}"] = Answer(path.read_bytes())
        return f"{self.server.url}/{name}"

    def run(self, *words: str) -> dict[str, Any]:
        """Run `comfypod models` and return its envelope."""
        code = cli.run(["models", *words, "--workspace", str(self.layout.root), "--json"], 0.0)
        said = self._capsys.readouterr()
        assert CANARY not in said.out + said.err
        found: dict[str, Any] = json.loads(said.out)
        assert found["exit_code"] == code
        return found

    def states(self, *words: str) -> dict[str, str]:
        return {row["place"]: row["state"] for row in self.run(*words)["data"]["models"]}


@pytest.fixture
def desk(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Iterator[Desk]:
    layout = Layout(tmp_path / "workspace")
    layout.records.mkdir(parents=True)
    facts = {"python": str(tmp_path / "image" / "bin" / "python")}
    pod = standin.pod_file(tmp_path, write_tree(tmp_path / "pristine", {"main.py": ""}), facts=facts)
    layout.pod_file.write_bytes(pod.read_bytes())
    with web.serve() as server:
        yield Desk(layout, server, capsys)


def test_a_model_is_planned_fetched_listed_checked_and_removed(desk: Desk) -> None:
    word = f"loras={desk.publish('a.safetensors')}"
    size = len(desk.server.answers["/a.safetensors"].body)
    plan = desk.run("plan", word)
    assert (plan["status"], plan["data"]["bytes"], plan["data"]["unsized"]) == ("success", size, 0)
    assert [row["state"] for row in plan["data"]["models"]] == ["fetch"]
    done = desk.run("pull", word)
    assert (done["status"], done["data"]["fetched"], done["errors"]) == ("success", ["loras/a.safetensors"], [])
    assert desk.states("list") == {"loras/a.safetensors": "fetched"}
    assert desk.run("pull", word)["data"]["fetched"] == []
    assert desk.run("verify", "--digests")["data"] == {"files": 1, "wrong": {}}
    assert [row["place"] for row in desk.run("prune")["data"]["models"]] == ["loras/a.safetensors"]
    assert desk.states("list") == {"loras/a.safetensors": "fetched"}
    assert desk.run("prune", "--yes")["data"]["freed"] == size
    assert desk.states("list") == {}
    assert desk.run("prune", "--yes")["data"]["models"] == []


def test_what_the_volume_wants_is_fetched_and_not_pruned(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    url = desk.publish("a.safetensors")
    desk.layout.manifest.write_text(
        f'[[pack]]\nname = "mine"\n[[pack.file]]\nurl = "{url}"\nfolder = "loras"\n[[model]]\nurl = 3\n'
    )
    monkeypatch.setenv("COMFYPOD_MODELS", f"vae={url} ../nonsense")
    assert desk.states("list") == {"loras/a.safetensors": "fetch", "vae/a.safetensors": "fetch"}
    done = desk.run("pull")
    assert (done["status"], done["exit_code"], len(done["errors"])) == ("partial", 16, 2)
    assert sorted(done["data"]["fetched"]) == ["loras/a.safetensors", "vae/a.safetensors"]
    assert desk.states("plan", "mine") == {"loras/a.safetensors": "have"}
    refused = desk.run("prune", "--yes")
    assert (refused["status"], refused["exit_code"]) == ("error", 2)
    desk.layout.manifest.unlink()
    monkeypatch.setenv("COMFYPOD_MODELS", f"vae={url}")
    assert [row["place"] for row in desk.run("prune", "--yes")["data"]["models"]] == ["loras/a.safetensors"]
    assert desk.states("list") == {"vae/a.safetensors": "have"}


def test_nothing_is_removed_where_it_is_not_known_what_an_image_or_a_pod_wants(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    word = f"loras={desk.publish('a.safetensors')}"
    desk.run("pull", word)
    status = {"boot": {}, "settings": {"models": {"value": shlex.join([word]), "origin": "environment"}}}
    desk.server.answers["/status"] = Answer(json.dumps(status).encode())
    run.write(desk.layout.run_record, run.RunRecord(run.this_process(), desk.server.url))
    assert desk.run("prune")["data"]["models"] == []
    assert desk.states("list") == {"loras/a.safetensors": "have"}
    desk.server.answers["/status"] = Answer(b"{}")
    assert desk.run("prune", "--yes")["exit_code"] == 2
    desk.layout.pod_file.unlink()
    assert desk.run("prune", "--yes")["exit_code"] == 13
    assert (desk.live / "loras" / "a.safetensors").exists()


def test_d6_a_conflict_is_told_before_the_first_byte(desk: Desk) -> None:
    one, other = desk.publish("one/a.safetensors"), desk.publish("other/a.safetensors", 2)
    rows = "".join(
        f'[[model]]\nname = "{name}"\nurl = "{url}"\nfolder = "loras"\nsha256 = "{digest * 32}"\n'
        for name, url, digest in (("one", one, "aa"), ("other", other, "bb"))
    )
    desk.layout.manifest.write_text(rows)
    assert desk.run("plan")["exit_code"] == 16
    refused = desk.run("pull")
    assert (refused["status"], refused["exit_code"]) == ("partial", 16)
    assert "one and other want different files" in refused["errors"][0]["message"]
    assert not [path for method, path in desk.server.requests if method == "GET"]
    assert not desk.live.exists()
    third = desk.publish("third.safetensors", 3)
    desk.layout.manifest.write_text(f'{rows}[[model]]\nname = "third"\nurl = "{third}"\nfolder = "vae"\n')
    assert desk.run("pull")["data"]["fetched"] == ["vae/third.safetensors"]
    assert not (desk.live / "loras").exists()


def test_d4_what_stands_there_is_named_and_replaced_only_when_that_is_asked_for(desk: Desk) -> None:
    word = f"loras={desk.publish('a.safetensors')}"
    (desk.live / "loras").mkdir(parents=True)
    pointer = b"version https://git-lfs.github.com/spec/v1\n"
    (desk.live / "loras" / "a.safetensors").write_bytes(pointer)
    (desk.live / "loras" / "b.safetensors").write_bytes(b"<html>")
    found = desk.run("verify")
    assert (found["exit_code"], len(found["data"]["wrong"]), len(found["errors"])) == (6, 2, 2)
    left = desk.run("pull", word)
    assert (left["exit_code"], left["data"]["fetched"]) == (16, [])
    assert "Git LFS" in left["errors"][0]["message"]
    assert "--replace" in left["errors"][0]["hint"]
    assert (desk.live / "loras" / "a.safetensors").read_bytes() == pointer
    assert not [path for method, path in desk.server.requests if method == "GET"]
    assert desk.run("pull", word, "--replace")["data"]["fetched"] == ["loras/a.safetensors"]
    assert (desk.layout.set_aside / "a.safetensors-1").read_bytes() == pointer
    assert (desk.live / "loras" / "b.safetensors").read_bytes() == b"<html>"


def test_a_digest_that_is_another_by_now_is_found(desk: Desk) -> None:
    word = f"loras={desk.publish('a.safetensors')}"
    desk.run("pull", word)
    path = desk.live / "loras" / "a.safetensors"
    facts, data = path.stat(), path.read_bytes()
    path.write_bytes(data[:-1] + b"\1")
    os.utime(path, ns=(facts.st_atime_ns, facts.st_mtime_ns))
    assert desk.run("verify")["exit_code"] == 0
    assert hashlib.sha256(data).hexdigest() in desk.run("verify", "--digests")["errors"][0]["message"]


def test_one_failure_has_its_own_exit_code_and_the_rest_is_fetched(desk: Desk) -> None:
    good = f"vae={desk.publish('a.safetensors')}"
    desk.server.answers["/text.safetensors"] = Answer(b"whatever this is, it is no model")
    done = desk.run("pull", good, f"loras={desk.server.url}/text.safetensors")
    assert (done["exit_code"], done["data"]["fetched"]) == (6, ["vae/a.safetensors"])
    assert desk.run("pull", f"loras={desk.server.url}/none.safetensors")["exit_code"] == 5
    assert desk.run("pull", f"{desk.server.url}/none.safetensors", "nope")["exit_code"] == 16


def test_offline_the_plan_is_shown_and_nothing_is_asked(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COMFYPOD_OFFLINE", "1")
    word = f"loras={desk.publish('a.safetensors')}"
    plan = desk.run("plan", word)
    assert (plan["data"]["unsized"], plan["data"]["models"][0]["total"]) == (1, 0)
    done = desk.run("pull", word)
    assert (done["exit_code"], len(done["errors"])) == (5, 1)
    assert desk.server.requests == []


def test_models_of_the_image_and_of_other_folders_are_used_where_they_are(
    desk: Desk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = tmp_path / "given" / "models" / "Lora"
    given.mkdir(parents=True)
    (given.parent / "Stable-diffusion").mkdir()
    write_safetensors(given.parent / "Stable-diffusion" / "c.safetensors", {"a": ((1,), [1])})
    write_safetensors(given / "a.safetensors", {"a": ((1,), [1])})
    monkeypatch.setenv("COMFYPOD_MODEL_FOLDERS", str(tmp_path / "given"))
    found = desk.run("pull", f"loras={desk.server.url}/a.safetensors")
    assert (found["exit_code"], found["data"]["fetched"]) == (0, [])
    assert found["data"]["models"][0]["state"] == "elsewhere"
    assert desk.server.requests == []
    assert str(given / "a.safetensors") in desk.states("list")
    monkeypatch.setenv("COMFYPOD_MODEL_FOLDERS", str(tmp_path / "not mounted").replace(" ", "\\ "))
    (problem,) = desk.run("list")["errors"]
    assert "not mounted" in problem["message"]
    assert desk.run("prune")["exit_code"] == 0


def test_an_official_template_is_made_runnable(desk: Desk, tmp_path: Path) -> None:
    packages = tmp_path / "image" / "lib" / "python3.11" / "site-packages"
    templates = packages / "comfyui_workflow_templates_core" / "templates"
    templates.mkdir(parents=True)
    model = {"name": "a.safetensors", "url": desk.publish("a.safetensors"), "directory": "checkpoints"}
    node = {
        "id": 1, "type": "CheckpointLoaderSimple", "widgets_values": ["a.safetensors"],
        "properties": {"models": [model]},
    }  # fmt: skip
    (templates / "small.json").write_text(json.dumps({"nodes": [node], "links": [], "version": 0.4}))
    done = desk.run("pull", "template:small")
    assert done["data"]["fetched"] == ["checkpoints/a.safetensors"]
    assert record.read(desk.layout)["checkpoints/a.safetensors"].by == "template:small"


def test_a_gated_file_is_planned_without_its_token_and_fetched_with_it(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", desk.server.url)
    desk.publish("o/r/resolve/main/m.safetensors")
    body = desk.server.answers["/o/r/resolve/main/m.safetensors"].body
    digest = hashlib.sha256(body).hexdigest()
    blob = {"rfilename": "m.safetensors", "size": len(body), "lfs": {"sha256": digest}}
    said = {"gated": "auto", "cardData": {"license": "mit"}, "siblings": [blob]}
    desk.server.answers["/api/models/o/r?blobs=true"] = Answer(json.dumps(said).encode())
    word = "loras=hf:o/r/m.safetensors"
    (row,) = desk.run("plan", word)["data"]["models"]
    assert (row["state"], row["token"], row["total"], row["licence"]) == ("refused", "HF_TOKEN", len(body), "mit")
    left = desk.run("pull", word)
    assert (left["exit_code"], left["data"]["fetched"]) == (16, [])
    assert not [path for _, path in desk.server.requests if "resolve" in path]
    monkeypatch.setenv("HF_TOKEN", CANARY)
    assert desk.run("pull", word)["data"]["fetched"] == ["loras/m.safetensors"]
    assert record.read(desk.layout)["loras/m.safetensors"].sha256 == digest
    assert f"Bearer {CANARY}" in desk.server.logins


def test_g6_no_token_is_shown_in_a_plan_an_error_or_a_record(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HF_TOKEN", "CIVITAI_TOKEN"):
        monkeypatch.setenv(name, CANARY)
    desk.publish(f"a.safetensors?token={CANARY}")
    login = desk.server.url.replace("//", f"//me:{CANARY}@")
    for word in (
        f"loras={desk.server.url}/a.safetensors?token={CANARY}", f"vae={login}/none.safetensors",
        f"../x?token={CANARY}", f"https://civitai.com/api/download/models/1?token={CANARY}",
        f"https://me:{CANARY}@h/..", f"clip={login}/page.html?api_key={CANARY}",
    ):  # fmt: skip
        monkeypatch.setenv("COMFYPOD_OFFLINE", "1" if "civitai" in word else "0")
        desk.run("plan", word)
        desk.run("pull", word)
    for word in ("list", "verify", "prune"):
        desk.run(word)
    assert CANARY not in desk.layout.models.read_text()


@pytest.mark.parametrize("word", ["loras=https://h/..", "../x", "template:", "/etc/passwd", "a/../../b=https://h/x"])
def test_g8_words_that_name_nothing_are_refused(desk: Desk, word: str) -> None:
    found = desk.run("pull", word)
    assert (found["exit_code"], len(found["errors"])) == (2, 1)
    assert not desk.live.exists()


@pytest.mark.parametrize(
    "words",
    [["list", "x"], ["verify", "x"], ["prune", "x"], ["list", "--yes"], ["pull", "--digests"], ["prune", "--replace"]],
)  # fmt: skip
def test_words_that_do_not_belong_together_are_refused(desk: Desk, words: list[str]) -> None:
    assert desk.run(*words)["exit_code"] == 2


def test_people_read_lines(desk: Desk, capsys: pytest.CaptureFixture[str]) -> None:
    word = f"loras={desk.publish('a.safetensors')}"
    where = ["--workspace", str(desk.layout.root)]
    assert cli.run(["models", "plan", word, *where], 0.0) == 0
    assert "1 to fetch" in capsys.readouterr().out
    assert cli.run(["models", "pull", word, *where], 0.0) == 0
    assert "loras/a.safetensors is there" in capsys.readouterr().out
    assert cli.run(["models", "list", *where], 0.0) == 0
    assert capsys.readouterr().out.startswith("fetched")


def test_a_folder_that_is_no_workspace_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["models", "list", "--workspace", str(tmp_path), "--json"], 0.0) == 8
    assert "no workspace" in capsys.readouterr().out

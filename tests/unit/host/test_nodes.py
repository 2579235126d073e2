from __future__ import annotations

import json
import os
import sys
from typing import TYPE_CHECKING

import pytest

from comfypod import cli, podfile
from comfypod.environment.layer import layer_of
from comfypod.errors import BusyError, NodeError, UsageError
from comfypod.host import nodes
from comfypod.log import Console
from comfypod.result import Result
from comfypod.workspace.layout import Layout
from comfypod.workspace.lease import Lease
from tests.kit import standin
from tests.kit.nodes import CORE, GOOD, Recorded
from tests.kit.repos import Repository, make_repository, write_tree
from tests.kit.volumes import Volume
from tests.unit.host.test_workspace import runs

if TYPE_CHECKING:
    from pathlib import Path

QUIET = Console(quiet=True)


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    """A workspace that was booted on this machine, by an image whose ComfyUI imports nodes."""
    layout = Layout(tmp_path / "workspace")
    (layout.comfyui / "custom_nodes").mkdir(parents=True)
    layout.records.mkdir()
    pod = standin.pod_file(tmp_path, write_tree(tmp_path / "pristine", CORE))
    layout.pod_file.write_bytes(pod.read_bytes())
    python = layer_of(podfile.load(pod), layout).python
    python.parent.mkdir(parents=True)
    python.symlink_to(os.path.realpath(sys.executable))
    return layout


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    return make_repository(tmp_path / "git" / "pack", GOOD, tag="v1")


def add(layout: Layout, source: str, ref: str = "", name: str = "") -> Result:
    return nodes.add(layout, source, ref, name, Recorded(), QUIET)


def rows(layout: Layout) -> dict[str, dict[str, str]]:
    return {row["name"]: row for row in nodes.show(layout).data["nodes"]}


def test_a_node_is_added_listed_tried_and_removed(layout: Layout, repository: Repository) -> None:
    done = add(layout, repository.url, "v1", "mine")
    assert done.data == {"changed": ["mine"], "failed": {}}
    assert 'ref = "v1"' in layout.manifest.read_text()
    found = rows(layout)["mine"]
    assert (found["state"], found["version"]) == ("present", repository.git("rev-parse", "HEAD"))
    assert found["source"] == f"{repository.url}@v1"
    assert nodes.check(layout, ()).data == {"nodes": {"mine": ""}}
    removed = nodes.remove(layout, "mine")
    assert (layout.set_aside / "mine-1" / "__init__.py").is_file()
    assert str(layout.set_aside / "mine-1") in removed.text
    assert rows(layout) == {}
    with pytest.raises(UsageError, match="no node"):
        nodes.remove(layout, "mine")
    assert nodes.switch(layout, "mine", on=True).text.startswith(f"{layout.comfyui / 'custom_nodes' / 'mine'} is back")
    assert rows(layout)["mine"]["state"] == "present"


def test_one_that_cannot_be_installed_is_reported_and_listed(layout: Layout, tmp_path: Path) -> None:
    bad = make_repository(tmp_path / "git" / "bad", {"__init__.py": "raise ValueError('why')"})
    done = add(layout, bad.url)
    assert (done.status, done.exit_code, done.data["failed"]) == ("partial", 15, {"bad": "ValueError: why"})
    assert done.errors[0].code == NodeError.code
    assert (rows(layout)["bad"]["state"], rows(layout)["bad"]["reason"]) == ("failed", "ValueError: why")
    bad.commit(GOOD)
    assert nodes.sync(layout, (), Recorded(), QUIET).data["changed"] == ["bad"]


def test_check_names_what_cannot_be_imported(layout: Layout) -> None:
    folder = layout.comfyui / "custom_nodes"
    write_tree(folder / "good", GOOD)
    write_tree(folder / "bad", {"__init__.py": "import nowhere_to_be_found"})
    found = nodes.check(layout, ())
    assert (found.exit_code, found.data["nodes"]["good"]) == (15, "")
    assert "nowhere_to_be_found" in found.data["nodes"]["bad"]
    assert nodes.check(layout, ["good"]).exit_code == 0
    with pytest.raises(UsageError, match="no node"):
        nodes.check(layout, ["other"])


def test_what_is_wanted_and_not_there_is_listed(layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COMFYPOD_NODES", "registry:some@1.0 https://h/pack@main")
    assert {name: row["state"] for name, row in rows(layout).items()} == {"some": "wanted", "pack": "wanted"}
    with pytest.raises(UsageError, match="COMFYPOD_NODES"):
        nodes.remove(layout, "pack")
    monkeypatch.setenv("COMFYPOD_OFFLINE", "1")
    assert nodes.sync(layout, ["pack"], Recorded(), QUIET).exit_code == 15
    with pytest.raises(UsageError, match="is not wanted"):
        nodes.sync(layout, ["other"], Recorded(), QUIET)


def test_while_a_pod_runs_nodes_are_changed_and_a_restart_is_asked_for(layout: Layout, repository: Repository) -> None:
    runs(Volume(layout.root))
    assert "when it starts again" in add(layout, repository.url).text
    assert "when it starts again" in nodes.switch(layout, "pack", on=False).text
    assert rows(layout)["pack.disabled"]["state"] == "disabled"
    assert "when it starts again" in nodes.remove(layout, "pack").text


def test_a_workspace_that_is_being_prepared_is_left_alone(layout: Layout, repository: Repository) -> None:
    lease = Lease(layout.pods)
    lease.take()
    with pytest.raises(BusyError):
        add(layout, repository.url)
    lease.release()
    assert nodes.sync(layout, (), Recorded(), QUIET).data["changed"] == ["pack"]


def test_where_no_image_is_known_a_node_is_written_down(layout: Layout, repository: Repository) -> None:
    layout.pod_file.unlink()
    assert "the next boot installs it" in add(layout, repository.url).text
    assert rows(layout)["pack"]["state"] == "wanted"


@pytest.mark.parametrize("source", ["--upload-pack=x", "ext::sh", "https://h/..", "registry:../x"])
def test_g8_what_is_no_node_is_not_written_down(layout: Layout, source: str) -> None:
    with pytest.raises(UsageError):
        add(layout, source)
    with pytest.raises(UsageError):
        add(layout, "https://h/pack", name="../../x")
    with pytest.raises(UsageError):
        nodes.remove(layout, "../../x")
    assert not layout.manifest.exists()


@pytest.mark.parametrize(
    "words",
    [["list", "x"], ["add"], ["add", "a", "b"], ["remove"], ["list", "--ref", "x"], ["sync", "--name", "x"],
     ["check", "--upgrade"], ["enable"]],
)  # fmt: skip
def test_words_that_do_not_belong_together_are_refused(layout: Layout, words: list[str]) -> None:
    assert cli.run(["nodes", *words, "--workspace", str(layout.root), "--json"], 0.0) == 2


def test_the_command_line_reaches_every_verb(
    layout: Layout, repository: Repository, capsys: pytest.CaptureFixture[str]
) -> None:
    def data(*words: str) -> dict[str, object]:
        cli.run(["nodes", *words, "--workspace", str(layout.root), "--json"], 0.0)
        found: dict[str, object] = json.loads(capsys.readouterr().out)["data"]
        return found

    assert data("add", repository.url)["changed"] == ["pack"]
    assert data("sync", "--upgrade") == {"changed": [], "failed": {}}
    assert data("disable", "pack") == {"name": "pack", "on": False}
    assert data("enable", "pack") == {"name": "pack", "on": True}
    assert data("check", "pack") == {"nodes": {"pack": ""}}
    assert data("remove", "pack")["name"] == "pack"
    assert data("list") == {"nodes": []}

from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from comfypod import podfile, proc
from comfypod.errors import HostError, NotRunningError
from comfypod.host import running
from comfypod.workspace import run
from comfypod.workspace.layout import Layout
from tests.kit import standin
from tests.kit.web import Answer, serve

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def boot() -> Iterator[int]:
    """Return the pid of a process that looks like a boot."""
    script = "import time; time.sleep(60)"
    with subprocess.Popen([sys.executable, "-c", script, "boot"]) as child:
        yield child.pid
        child.kill()


def test_the_record_of_the_pod_that_runs_is_found_and_no_other(tmp_path: Path, boot: int) -> None:
    layout = Layout(tmp_path)
    layout.records.mkdir()
    with pytest.raises(NotRunningError, match=f"no pod runs on the workspace {tmp_path}") as caught:
        running.find(layout)
    assert "comfypod up" in caught.value.hint
    started = proc.start_ticks(boot)
    assert started is not None
    record = run.RunRecord(run.Boot(boot, started), "http://127.0.0.1:1")
    run.write(layout.run_record, record)
    assert running.find(layout) == record
    run.write(layout.run_record, run.RunRecord(run.Boot(boot, started + 1), "http://127.0.0.1:1"))
    with pytest.raises(NotRunningError):
        running.find(layout)


def test_a_record_or_an_answer_that_names_another_process_is_not_believed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What runs in a pod can write the record, and anyone can answer on the port: neither ends what is not a boot."""
    layout = Layout(tmp_path)
    layout.records.mkdir()
    with serve() as site, subprocess.Popen(["sleep", "60"]) as other:
        started = proc.start_ticks(other.pid)
        assert started is not None
        run.write(layout.run_record, run.RunRecord(run.Boot(other.pid, started), site.url))
        with pytest.raises(NotRunningError):
            running.find(layout)
        layout.run_record.unlink()
        monkeypatch.setenv("COMFYPOD_CONTROL_PORT", site.url.rpartition(":")[2])
        body = {"boot": {"pid": other.pid}, "settings": {"workspace": {"value": str(tmp_path)}}}
        site.answers["/status"] = Answer(json.dumps(body).encode())
        with pytest.raises(NotRunningError):
            running.find(layout)
        other.kill()


def test_a_pod_without_a_record_is_found_where_it_would_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, boot: int
) -> None:
    with serve() as site:
        monkeypatch.setenv("COMFYPOD_CONTROL_PORT", site.url.rpartition(":")[2])
        for workspace, found in ((tmp_path, True), (tmp_path / "other", False)):
            body = {"boot": {"pid": boot}, "settings": {"workspace": {"value": str(workspace)}}}
            site.answers["/status"] = Answer(json.dumps(body).encode())
            if found:
                assert running.find(Layout(tmp_path)).control == site.url
            else:
                with pytest.raises(NotRunningError):
                    running.find(Layout(tmp_path))


def test_a_pod_in_a_container_can_be_asked_and_is_no_process_of_ours(tmp_path: Path) -> None:
    layout = Layout(tmp_path)
    layout.records.mkdir()
    with serve() as site:
        record = run.RunRecord(run.Boot(7, 7, "pid:[1]"), site.url)
        run.write(layout.run_record, record)
        site.answers["/status"] = Answer(json.dumps({"boot": {"pid": 7, "namespace": "pid:[1]"}}).encode())
        assert running.find(layout, elsewhere=True) == record
        with pytest.raises(HostError, match="runs in a container") as caught:
            running.find(layout)
        assert "docker stop" in caught.value.hint


def test_in_an_image_its_own_settings_say_where_the_pod_answers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, boot: int
) -> None:
    with serve() as site:
        port = site.url.rpartition(":")[2]
        monkeypatch.setattr(podfile, "IN_IMAGE", standin.pod_file(tmp_path, tmp_path, control_port=port))
        body = {"boot": {"pid": boot}, "settings": {"workspace": {"value": str(tmp_path)}}}
        site.answers["/status"] = Answer(json.dumps(body).encode())
        assert running.find(Layout(tmp_path)).control == site.url

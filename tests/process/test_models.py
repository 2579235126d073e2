"""`comfypod models` as real processes, against a server that sends slowly."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from comfypod.download.partial import progress
from comfypod.models import record
from comfypod.workspace.layout import Layout
from tests.kit import standin
from tests.kit.hosts import File, Host, host
from tests.kit.models import write_safetensors
from tests.kit.pods import ROOT, free_port
from tests.kit.repos import write_tree

if TYPE_CHECKING:
    from collections.abc import Iterator

CANARY = "canary-token-7"
_VALUES = 400_000


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    layout = Layout(tmp_path / "workspace")
    layout.records.mkdir(parents=True)
    return layout


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Host]:
    path = tmp_path / "published"
    write_safetensors(path, {"a": ((_VALUES,), [1.5] * _VALUES)})
    with host() as server:
        server.files["/a.safetensors"] = File(path.read_bytes(), cap=200_000)
        yield server


def start(layout: Layout, *words: str) -> subprocess.Popen[str]:
    """Run `comfypod models` in a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "comfypod", "models", *words, "--workspace", str(layout.root), "--json"],
        cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        env={**os.environ, "HF_TOKEN": CANARY, "HF_ENDPOINT": "http://127.0.0.1:9"},
    )  # fmt: skip


def run(layout: Layout, *words: str) -> dict[str, Any]:
    out, err = start(layout, *words).communicate(timeout=120)
    assert CANARY not in out + err
    found: dict[str, Any] = json.loads(out)
    return found


def begun(layout: Layout, process: subprocess.Popen[str]) -> None:
    """Wait until some of it has arrived."""
    while not any(so_far > 100_000 for so_far, _ in progress(layout.downloads).values()):
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)


def said(process: subprocess.Popen[str], what: str) -> str:
    """Return the first line for people that has this in it, as soon as it is there."""
    assert process.stderr is not None
    while what not in (line := process.stderr.readline()):
        assert line, process.communicate()
    return line


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_d1_e5_a_pull_that_is_stopped_is_seen_by_others_and_gone_on_with(
    layout: Layout, server: Host, how: signal.Signals
) -> None:
    size, word = len(server.files["/a.safetensors"].body), f"loras={server.url}/a.safetensors"
    process = start(layout, "pull", word)
    begun(layout, process)
    assert CANARY not in Path("/proc", str(process.pid), "cmdline").read_text()
    process.send_signal(how)
    out, err = process.communicate(timeout=20)
    codes = {signal.SIGTERM: 143, signal.SIGINT: 130, signal.SIGKILL: -signal.SIGKILL}
    assert process.returncode == codes[how], err
    if how != signal.SIGKILL:
        assert json.loads(out)["errors"][0]["hint"].startswith("run the same command again")
    (row,) = run(layout, "plan", word)["data"]["models"]
    assert (row["state"], row["total"]) == ("part", size)
    assert 100_000 < row["bytes"] < size
    assert not (layout.comfyui / "models" / "loras" / "a.safetensors").exists()
    assert record.read(layout) == {}
    server.files["/a.safetensors"].cap = 0
    assert run(layout, "pull", word)["data"]["fetched"] == ["loras/a.safetensors"]
    path = layout.comfyui / "models" / "loras" / "a.safetensors"
    assert path.read_bytes() == server.files["/a.safetensors"].body
    assert list(record.ours(layout, layout.comfyui / "models")) == ["loras/a.safetensors"]
    assert server.sent < size * 1.5


def test_a_failure_is_told_when_it_happens_and_does_not_stay_when_it_is_tried_again(
    layout: Layout, server: Host
) -> None:
    large, none = (f"{server.url}/{name}.safetensors" for name in ("a", "none"))
    server.files["/none.safetensors"] = File(no_head=404, statuses=[404] * 99)
    rows = (f'[[model]]\nurl = "{url}"\nfolder = "loras"\n' for url in (large, none))
    layout.manifest.write_text("".join(rows))
    process = start(layout, "pull", f"loras={large}", f"loras={none}", f"vae={none}")
    line = said(process, "none.safetensors could not be fetched")
    assert "answered 404 Not Found; check the address" in line
    begun(layout, process)
    found = {row["place"]: row for row in run(layout, "list")["data"]["models"]}
    assert process.poll() is None
    assert found["loras/a.safetensors"]["state"] == "part"
    for place in ("loras/none.safetensors", "vae/none.safetensors"):
        assert found[place]["state"] == "failed"
        assert "404" in found[place]["reason"]
    server.files["/a.safetensors"].cap = 0
    process.communicate(timeout=60)
    left = {row["place"]: row["state"] for row in run(layout, "list")["data"]["models"]}
    assert left == {"loras/a.safetensors": "have", "loras/none.safetensors": "failed"}
    server.files["/none.safetensors"] = File(server.files["/a.safetensors"].body, cap=200_000)
    process = start(layout, "pull")
    begun(layout, process)
    states = {row["place"]: row["state"] for row in run(layout, "list")["data"]["models"]}
    assert states["loras/none.safetensors"] == "part"
    process.terminate()
    process.communicate(timeout=20)


@pytest.mark.parametrize("verb", ["plan", "pull"])
@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])
def test_e5_a_plan_that_is_stopped_ends_at_once_also_while_a_host_drips_its_answer(
    layout: Layout, server: Host, how: signal.Signals, verb: str
) -> None:
    server.files["/a.safetensors"].drip_head = 0.1
    process = start(layout, verb, f"loras={server.url}/a.safetensors", f"vae={server.url}/a.safetensors")
    while len(server.requests) < 2:
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    began = time.monotonic()
    process.send_signal(how)
    process.communicate(timeout=20)
    assert time.monotonic() - began < 2
    assert process.returncode == {signal.SIGTERM: 143, signal.SIGINT: 130}[how]


def test_a_pull_says_that_it_waits_for_a_host_that_is_not_there_and_gives_up_within_seconds(layout: Layout) -> None:
    url, began = f"http://127.0.0.1:{free_port()}/a.safetensors", time.monotonic()
    layout.manifest.write_text(f'[[model]]\nurl = "{url}"\nfolder = "loras"\n')
    process = start(layout, "pull")
    line = said(process, "loras/a.safetensors waits")
    assert f"waits 1 s and is tried again, with pauses of 7 s in all: {url} is not reachable" in line
    (row,) = run(layout, "list")["data"]["models"]
    assert process.poll() is None
    assert (row["state"], "is not reachable" in row["reason"]) == ("waiting", True)
    _, err = process.communicate(timeout=60)
    assert time.monotonic() - began < 15
    assert "waits" not in err
    assert run(layout, "list")["data"]["models"][0]["state"] == "failed"
    process = start(layout, "pull")
    said(process, "loras/a.safetensors waits")
    process.kill()
    process.communicate()
    assert run(layout, "list")["data"]["models"][0]["state"] == "fetch"


def test_what_a_killed_pull_has_left_is_counted_named_and_removed_and_what_one_holds_is_not(
    layout: Layout, server: Host, tmp_path: Path
) -> None:
    facts = {"python": str(tmp_path / "image" / "bin" / "python")}
    pod = standin.pod_file(tmp_path, write_tree(tmp_path / "pristine", {"main.py": ""}), facts=facts)
    layout.pod_file.write_bytes(pod.read_bytes())
    size = len(server.files["/a.safetensors"].body)
    process = start(layout, "pull", f"loras={server.url}/a.safetensors")
    begun(layout, process)
    (row,) = run(layout, "list")["data"]["models"]
    assert (row["place"], row["state"], row["reason"]) == ("loras/a.safetensors", "part", "a pull fetches it")
    assert run(layout, "prune", "--yes")["data"]["models"] == []
    assert process.poll() is None
    process.kill()
    process.communicate()
    found = run(layout, "list")["data"]
    assert (found["parts"], found["models"][0]["reason"]) == (1, "left of a pull")
    assert 100_000 < found["models"][0]["bytes"] < size <= found["parts_bytes"]
    (row,) = run(layout, "prune")["data"]["models"]
    assert (row["place"], row["state"], row["total"]) == ("loras/a.safetensors", "part", found["parts_bytes"])
    assert run(layout, "prune", "--yes")["data"]["freed"] == row["total"]
    assert list(layout.downloads.iterdir()) == []
    assert run(layout, "list")["data"] == {"models": [], "parts": 0, "parts_bytes": 0}


def test_two_pulls_of_one_file_fetch_it_once(layout: Layout, server: Host) -> None:
    server.files["/a.safetensors"].cap = 1_000_000
    word = f"loras={server.url}/a.safetensors"
    processes = [start(layout, "pull", word) for _ in range(2)]
    found = [json.loads(process.communicate(timeout=120)[0]) for process in processes]
    assert [each["status"] for each in found] == ["success", "success"]
    assert server.sent < len(server.files["/a.safetensors"].body) * 1.1
    assert run(layout, "verify", "--digests")["data"] == {"files": 1, "wrong": {}}
    assert list(record.ours(layout, layout.comfyui / "models")) == ["loras/a.safetensors"]

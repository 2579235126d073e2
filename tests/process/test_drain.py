"""What becomes of ComfyUI's queue when the pod is stopped, with the boot program as a real process."""

from __future__ import annotations

import signal
import time
import uuid
from typing import TYPE_CHECKING

import pytest

from comfypod import proc
from comfypod.workspace import queue, run
from tests.kit.comfyui import Client, node
from tests.kit.lab import until
from tests.kit.pods import Running, Site, booted
from tests.kit.standin import submit

if TYPE_CHECKING:
    from pathlib import Path

_RESUME = ("--set", "resume=on")


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


def ran(site: Site) -> list[str]:
    """Return what the stand-in did with prompts, as `begin ID`, `end ID` or `broken ID`."""
    path = site.folder / "ran"
    return path.read_text().splitlines() if path.exists() else []


def kept(site: Site) -> dict[str, int]:
    """Return the attempts of each prompt in the record, in its order."""
    return {prompt.prompt_id: prompt.attempts for prompt in queue.read(site.layout.queue)}


def stopped(pod: Running, within: float) -> None:
    """Stop the pod and see that it took no longer and left no process."""
    began = time.monotonic()
    assert pod.stop() == 0
    assert time.monotonic() - began < within
    assert proc.with_variable(f"{run.MARK}={pod.site.layout.root}") == []
    assert "Traceback" not in pod.output_so_far()


def begun(site: Site, name: str) -> None:
    until(lambda: f"begin {name}" in ran(site), "at work")


def parked(pod: Running) -> list[dict[str, str]]:
    return [row for row in (pod.status() or {})["problems"] if row["code"] == "parked-prompt"]


def test_e5_sigterm_in_mid_prompt_lets_it_finish_and_writes_the_rest_down(site: Site) -> None:
    with booted(site) as pod:
        pid = pod.wait_for("ready")["services"][0]["pid"]
        first = submit(site.port, seconds=2.0)
        begun(site, first)
        second = submit(site.port)
        pod.process.send_signal(signal.SIGTERM)
        status = pod.wait_for("stopping")
        assert status["reasons"] == ["the pod is draining"]
        assert pod.probe("/readyz") == (503, "stopping")
        assert pod.probe("/livez") == (200, "live")
        until(lambda: list(kept(site)) == [first, second], "written down")
        with pytest.raises(AssertionError, match="503 b'the pod is stopping"):
            submit(site.port)
        assert pod.process.wait(8) == 0
        assert proc.start_ticks(pid) is None
    assert ran(site) == [f"begin {first}", f"end {first}"]
    assert kept(site) == {second: 0}
    assert queue.read(site.layout.queue)[0].client_id == "me"
    assert site.layout.queue.stat().st_mode & 0o777 == 0o600


def test_e5_sigterm_in_mid_prompt_that_takes_longer_puts_it_back(site: Site) -> None:
    with booted(site, "--set", "drain_seconds=1") as pod:
        pod.wait_for("ready")
        name = submit(site.port, seconds=60.0)
        begun(site, name)
        stopped(pod, 6)
    assert f"end {name}" not in ran(site)
    assert kept(site) == {name: 0}


def test_e5_a_second_sigterm_in_mid_prompt_stops_at_once_and_loses_nothing(site: Site) -> None:
    with booted(site, "--set", "drain_seconds=60") as pod:
        pid = pod.wait_for("ready")["services"][0]["pid"]
        name = submit(site.port, seconds=60.0)
        begun(site, name)
        pod.process.send_signal(signal.SIGTERM)
        until(lambda: list(kept(site)) == [name], "written down")
        time.sleep(0.4)
        began = time.monotonic()
        pod.stop()
        assert time.monotonic() - began < 2
        assert proc.start_ticks(pid) is None
    assert kept(site) == {name: 0}


def test_an_empty_queue_leaves_no_record_and_costs_no_time(site: Site) -> None:
    with booted(site, "--set", "drain_seconds=60") as pod:
        pod.wait_for("ready")
        stopped(pod, 4)
    assert not site.layout.queue.exists()


def test_e12_the_queue_is_put_back_in_its_order_when_asked_and_only_then(site: Site) -> None:
    with booted(site, "--set", "drain_seconds=0") as pod:
        pod.wait_for("ready")
        names = [submit(site.port, seconds=60.0)]
        begun(site, names[0])
        names += [submit(site.port, number=number) for number in (1, 2, 0)]
        names[1:] = [names[3], names[1], names[2]]
        stopped(pod, 4)
    assert list(kept(site)) == names
    _shorten(site)
    with booted(site) as pod:
        pod.wait_for("ready")
        until(lambda: (pod.status() or {})["comfyui"]["queue_saved"] == 4, "counted")
        assert (pod.status() or {})["problems"] == []
        assert "4 prompts of an earlier run are kept" in pod.output_so_far()
        stopped(pod, 4)
    assert list(kept(site)) == names
    (site.folder / "ran").unlink()
    with booted(site, *_RESUME) as pod:
        until(lambda: not site.layout.queue.exists() and site.starts(), "all done")
        assert (pod.status() or {})["comfyui"]["queue_saved"] == 0
        assert (pod.status() or {})["problems"] == []
    assert [line.split()[1] for line in ran(site) if line.startswith("end")] == names


def _shorten(site: Site) -> None:
    """Let the prompts in the record take no time."""
    text = site.layout.queue.read_text()
    site.layout.queue.write_text(text.replace('"seconds": 60.0', '"seconds": 0.0'))


def _left(site: Site, *kinds: str) -> list[str]:
    """Leave a record with one prompt of each kind."""
    site.layout.records.mkdir(parents=True, exist_ok=True)
    rows = [queue.Saved(str(uuid.uuid4()), 0, {"1": node(kind, seconds=0.0)}, {}) for kind in kinds]
    queue.write(site.layout.queue, rows)
    return [row.prompt_id for row in rows]


def test_e12_a_prompt_that_kills_comfyui_is_parked_and_the_others_run(site: Site) -> None:
    killer, harmless = _left(site, "Kill", "Sleep")
    with booted(site, *_RESUME) as pod:
        until(lambda: ran(site)[-1:] == [f"end {harmless}"], "past the killer", seconds=30)
        until(lambda: list(kept(site)) == [killer], "forgotten")
        assert ran(site)[:2] == [f"begin {killer}"] * 2
        (problem,) = parked(pod)
        assert killer in problem["message"]
        assert str(site.layout.queue) in problem["hint"]
        assert (pod.status() or {})["services"][0]["restarts"] == 2
        stopped(pod, 4)
    assert kept(site) == {killer: 2}


def test_e12_a_prompt_that_ends_the_whole_pod_is_parked_by_the_third_boot(site: Site) -> None:
    """What the killer takes along may be boot itself; the attempt stands in the record before it is made."""
    (name,) = _left(site, "Sleep")
    site.layout.queue.write_text(site.layout.queue.read_text().replace('"seconds": 0.0', '"seconds": 60.0'))
    for attempt in (1, 2):
        with booted(site, *_RESUME) as pod:
            until(lambda: ran(site) == [f"begin {name}"] * attempt, "at work")  # noqa: B023
            assert kept(site) == {name: attempt}
            pod.process.kill()
            pod.process.wait()
    with booted(site, *_RESUME) as pod:
        pod.wait_for("ready")
        until(lambda: len(parked(pod)) == 1, "parked")
        assert ran(site) == [f"begin {name}"] * 2
        stopped(pod, 4)
    assert kept(site) == {name: 2}


def test_e12_a_resumed_prompt_that_is_stopped_twice_is_parked(site: Site) -> None:
    first, waits = _left(site, "Sleep", "Sleep")
    site.layout.queue.write_text(site.layout.queue.read_text().replace('"seconds": 0.0', '"seconds": 60.0', 1))
    for attempt in (1, 2):
        with booted(site, *_RESUME, "--set", "drain_seconds=0") as pod:
            until(lambda: ran(site).count(f"begin {first}") == attempt, "at work")  # noqa: B023
            stopped(pod, 6)
        assert kept(site) == {first: attempt, waits: 0}
    with booted(site, *_RESUME) as pod:
        until(lambda: list(kept(site)) == [first], "the other one done")
        assert len(parked(pod)) == 1


def test_a_prompt_that_comfyui_refuses_is_kept_and_named(site: Site) -> None:
    refused, fails, fine = _left(site, "Refused", "Fail", "Sleep")
    with booted(site, *_RESUME) as pod:
        until(lambda: f"end {fine}" in ran(site) and list(kept(site)) == [refused], "past it")
        (problem,) = parked(pod)
        assert "was refused by ComfyUI with 400" in problem["message"]
        assert f"broken {fails}" in ran(site)
        stopped(pod, 4)
    assert kept(site) == {refused: 1}


def test_a_prompt_that_somebody_takes_out_of_the_queue_does_not_come_back(site: Site) -> None:
    (name,) = _left(site, "Sleep")
    site.layout.queue.write_text(site.layout.queue.read_text().replace('"seconds": 0.0', '"seconds": 60.0'))
    with booted(site, *_RESUME) as pod:
        begun(site, name)
        Client(f"http://127.0.0.1:{site.port}").post("/interrupt", b"{}")
        until(lambda: not site.layout.queue.exists(), "forgotten")
        stopped(pod, 4)


@pytest.mark.parametrize("data", [b"", b"null", b"[" * 100_000, b'{"prompts": [3]}', b"\xff"], ids=range(5))
def test_a_damaged_record_is_named_and_never_overwritten(site: Site, data: bytes) -> None:
    site.layout.records.mkdir(parents=True)
    site.layout.queue.write_bytes(data)
    with booted(site, *_RESUME) as pod:
        pod.wait_for("ready")
        until(lambda: [row["code"] for row in (pod.status() or {})["problems"]] == ["queue"], "named")
        stopped(pod, 4)
    assert site.layout.queue.read_bytes() == data

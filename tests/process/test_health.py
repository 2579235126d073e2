"""A running pod that is not well, around a stand-in ComfyUI: out of memory, wedged, without its GPU, overloaded."""

from __future__ import annotations

import signal
import time
from typing import TYPE_CHECKING, Any

import pytest

from comfypod import proc
from comfypod.podfile import GpuNeed, LockedModel
from tests.kit import driver
from tests.kit.pods import Running, Site, booted
from tests.kit.standin import Orders

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

# As `comfypod`, but with control groups of the test's.
_WITH_CGROUP = """
import sys, time
from functools import partial
from pathlib import Path
from comfypod import cli
from comfypod.boot import main
from comfypod.boot.context import Surroundings
main.boot = partial(main.boot, surroundings=Surroundings(cgroup=Path(sys.argv[1])))
raise SystemExit(cli.run(sys.argv[2:], time.monotonic()))
"""
# As `comfypod`, but a service can not be ended, as one that hangs in a dead driver.
_UNKILLABLE = """
import asyncio, sys, time
from comfypod import cli
from comfypod.boot.process import Supervised
async def stop(self):
    await asyncio.sleep(3600)
Supervised.stop = stop
raise SystemExit(cli.run(sys.argv[1:], time.monotonic()))
"""
_NEED = GpuNeed("4090", "stand-in", ("8.9",), 525)


def until(pod: Running, wanted: Callable[[dict[str, Any]], bool], seconds: float = 20.0) -> dict[str, Any]:
    """Wait until `/status` is as wanted."""
    deadline, seen = time.monotonic() + seconds, None
    while time.monotonic() < deadline:
        seen = pod.status()
        if seen is not None and wanted(seen):
            return seen
        time.sleep(0.05)
    raise AssertionError(f"never as wanted: {seen}; {pod.output_so_far()}")


def has_problem(status: dict[str, Any], code: str) -> bool:
    return any(problem["code"] == code for problem in status["problems"])


def message(status: dict[str, Any], code: str) -> str:
    (found,) = [problem["message"] for problem in status["problems"] if problem["code"] == code]
    return str(found)


def test_e2_comfyui_that_the_memory_limit_kills_is_said_with_limit_and_peak(tmp_path: Path) -> None:
    cgroup = tmp_path / "cgroup"
    cgroup.mkdir()
    for name, text in {"max": "2000000000", "peak": "1999000000", "current": "5", "events": "oom_kill 0\n"}.items():
        (cgroup / f"memory.{name}").write_text(text)
    site = Site(tmp_path, Orders(out_of_memory=str(cgroup / "memory.events")))
    with booted(site, command=("-c", _WITH_CGROUP, str(cgroup))) as pod:
        pod.wait_for("ready")
        status = until(pod, lambda seen: has_problem(seen, "out-of-memory"))
        told = "ran out of memory and was killed (limit 2.0 GB, peak 2.0 GB)"
        assert message(status, "out-of-memory") == f"comfyui {told}"
        assert told in " ".join(status["reasons"])
        assert status["memory"] == {"limit": 2000000000, "peak": 1999000000, "used": 5}
        site.obey(Orders())
        status = pod.wait_for("ready")
        assert has_problem(status, "out-of-memory")
        assert pod.stop() == 0


def test_e3_comfyui_that_never_answers_is_killed_and_started_again(tmp_path: Path) -> None:
    site = Site(tmp_path, Orders(mute=True), settings={"wedged_seconds": "2"})
    with booted(site) as pod:
        pod.wait_for("starting")
        status = until(pod, lambda seen: has_problem(seen, "wedged"))
        assert "accepted connections, did not answer for 2 s and was killed" in message(status, "wedged")
        assert pod.probe("/readyz")[0] == 503
        site.obey(Orders())
        assert pod.wait_for("ready")["services"][0]["restarts"] >= 1
        assert pod.stop() == 0


def test_e3_comfyui_that_turns_mute_is_killed_and_started_again(tmp_path: Path) -> None:
    site = Site(tmp_path, Orders(mute_later=1.0), settings={"wedged_seconds": "3"})
    with booted(site) as pod:
        pod.wait_for("ready")
        site.obey(Orders())
        until(pod, lambda seen: has_problem(seen, "wedged"))
        status = pod.wait_for("ready")
        assert (status["services"][0]["restarts"], len(site.starts())) == (1, 2)
        assert pod.stop() == 0


def test_e3_comfyui_that_is_wedged_each_time_ends_in_safe_mode(tmp_path: Path) -> None:
    site = Site(tmp_path, Orders(mute=True), settings={"wedged_seconds": "0.5"})
    with booted(site) as pod:
        status = pod.wait_for("failed", 40)
        assert "did not answer" in status["reasons"][0]
        starts = ["--disable-all-custom-nodes" in start["argv"] for start in site.starts()]
        assert starts == [False] * 3 + [True] * 2


@pytest.mark.slow
def test_e3_comfyui_that_is_busy_with_a_prompt_has_ten_times_as_long(tmp_path: Path) -> None:
    """Ten times two seconds, because shorter ones would measure how busy the machine is."""
    site = Site(tmp_path, Orders(mute_later=3.0, busy=True), settings={"wedged_seconds": "2"})
    with booted(site) as pod:
        pod.wait_for("ready")
        status = until(pod, lambda seen: seen["services"][0]["state"] == "degraded")
        began = time.monotonic()
        status = until(pod, lambda seen: seen["reasons"] == ["comfyui is busy with a prompt and does not answer"])
        assert not status["ready"]
        status = until(pod, lambda seen: has_problem(seen, "wedged"), 30)
        assert time.monotonic() - began > 10
        assert len(site.starts()) == 1


def test_e3_comfyui_that_stops_to_work_on_its_prompt_is_wedged(tmp_path: Path) -> None:
    site = Site(tmp_path, Orders(mute_later=3.0, busy=True, works=6.0), settings={"wedged_seconds": "2"})
    with booted(site) as pod:
        pod.wait_for("ready")
        until(pod, lambda seen: seen["services"][0]["state"] == "degraded")
        began = time.monotonic()
        until(pod, lambda seen: has_problem(seen, "wedged"))
        assert 2 < time.monotonic() - began < 10


def test_e3_comfyui_may_be_silent_for_ever_where_that_is_asked_for(tmp_path: Path) -> None:
    site = Site(tmp_path, Orders(mute=True), settings={"wedged_seconds": "0"})
    with booted(site) as pod:
        pod.wait_for("starting")
        time.sleep(3)
        assert len(site.starts()) == 1
        assert pod.stop() == 0


def test_e3_comfyui_that_closes_connections_is_not_silent(tmp_path: Path) -> None:
    """One that speaks TLS does that: it is never ready, and of use all the same."""
    site = Site(tmp_path, Orders(closes=True), settings={"wedged_seconds": "1"})
    with booted(site) as pod:
        pod.wait_for("starting")
        time.sleep(3)
        assert (pod.wait_for("starting")["problems"], len(site.starts())) == ([], 1)


@pytest.fixture
def gpu(tmp_path: Path) -> dict[str, str]:
    """The environment of a machine whose GPU answers as the files in `facts` say."""
    (tmp_path / "facts").mkdir()
    (tmp_path / "library").mkdir()
    return {**driver.environ(driver.build(tmp_path / "library"), {}), "STANDIN_FACTS": str(tmp_path / "facts")}


def _gpu_site(folder: Path) -> Site:
    return Site(folder, facts={"gpu": _NEED}, settings={"gpu_seconds": "0.5"})


@pytest.mark.parametrize(
    ("fact", "value", "told"),
    [
        ("HANDLE", "15", "the GPU is gone: the GPU has fallen off the bus; restart the machine"),
        ("COUNT", "1", "the GPU is gone: 1 of 2 are left"),
        ("INIT", "999", "the GPU is gone: the NVIDIA library answered error 999 to nvmlInit_v2"),
    ],
)
def test_e8_a_gpu_that_is_lost_ends_the_pod(
    tmp_path: Path, gpu: dict[str, str], fact: str, value: str, told: str
) -> None:
    (tmp_path / "facts" / "STANDIN_COUNT").write_text("2")
    with booted(_gpu_site(tmp_path), environ=gpu) as pod:
        pod.wait_for("ready")
        (tmp_path / "facts" / f"STANDIN_{fact}").write_text(value)
        status = pod.wait_for("degraded")
        assert status["reasons"] == [told]
        assert pod.process.wait(20) == 13
    assert f"ERROR {told}" in pod.output_so_far()


def test_e8_a_driver_that_hangs_is_a_lost_gpu_and_holds_up_no_end(tmp_path: Path, gpu: dict[str, str]) -> None:
    with booted(_gpu_site(tmp_path), environ=gpu) as pod:
        pod.wait_for("ready")
        (tmp_path / "facts" / "STANDIN_HANG").write_text("600")
        status = pod.wait_for("degraded")
        assert status["reasons"] == ["the GPU is gone: the NVIDIA driver does not answer"]
        assert pod.process.wait(20) == 13


def test_e8_a_comfyui_that_cannot_even_be_killed_holds_up_no_end(tmp_path: Path, gpu: dict[str, str]) -> None:
    site = _gpu_site(tmp_path)
    with booted(site, "--set", "stop_seconds=0", command=("-c", _UNKILLABLE), environ=gpu) as pod:
        child = pod.wait_for("ready")["services"][0]["pid"]
        (tmp_path / "facts" / "STANDIN_INIT").write_text("9")
        assert pod.process.wait(20) == 13
        proc.signal_group(child, signal.SIGKILL)
    assert not site.layout.run_record.exists()


def test_e8_a_gpu_that_comes_back_in_time_ends_nothing(tmp_path: Path, gpu: dict[str, str]) -> None:
    site = Site(tmp_path, facts={"gpu": _NEED}, settings={"gpu_seconds": "1"})
    with booted(site, environ=gpu) as pod:
        pod.wait_for("ready")
        for _ in range(3):
            (tmp_path / "facts" / "STANDIN_INIT").write_text("9")
            pod.wait_for("degraded")
            assert "[-]the GPU is gone: the NVIDIA driver is not loaded" in pod.probe("/readyz?verbose")[1].splitlines()
            (tmp_path / "facts" / "STANDIN_INIT").unlink()
            pod.wait_for("ready")
        assert pod.stop() == 0


def test_e7_a_queue_over_its_limit_takes_readiness_and_not_life(tmp_path: Path) -> None:
    site = Site(tmp_path, settings={"queue_limit": "10", "disk_floor": "1K"})
    queue = tmp_path / "queue"
    with booted(site) as pod:
        pod.wait_for("ready")
        queue.write_text("12")
        status = pod.wait_for("degraded")
        assert status["reasons"] == ["queue 12 of 10"]
        assert status["comfyui"]["queue_pending"] == 12
        assert pod.probe("/readyz") == (503, "degraded")
        assert pod.probe("/livez") == (200, "live")
        assert pod.probe("/startupz") == (200, "started")
        assert status["services"][0]["state"] == "ready"
        queue.write_text("10")
        pod.wait_for("ready")
        assert pod.probe("/readyz") == (200, "ready")
        assert "not ready: queue 12 of 10" in pod.output_so_far()
        assert "well again: queue 10 of 10" in pod.output_so_far()


def test_e7_verbose_probes_say_each_reason_on_a_line(tmp_path: Path) -> None:
    site = Site(tmp_path, Orders(slow=2.0), settings={"queue_limit": "10"})
    (tmp_path / "queue").write_text("12")
    with booted(site, environ={"COMFYPOD_TOKEN": "canary-7f3a"}) as pod:
        pod.wait_for("starting")
        code, text = pod.probe("/readyz?verbose")
        assert (code, text.splitlines()[:2]) == (503, ["starting", "[-]comfyui is starting"])
        code, text = pod.probe("/startupz?verbose")
        assert code == 503
        assert {"starting", "[+]stage workspace done", "[-]ComfyUI has answered once"} <= set(text.splitlines())
        pod.wait_for("degraded")
        code, text = pod.probe("/readyz?verbose")
        word, answers, *rest = text.splitlines()
        assert (code, word, answers) == (503, "degraded", "[+]ComfyUI answers")
        assert "[-]queue 12 of 10" in rest
        assert any(line.startswith("[+]disk has ") for line in rest)
        assert pod.probe("/livez?verbose") == (200, "live\n[+]boot runs")
        assert pod.probe("/startupz?verbose")[1].startswith("started\n")
        assert "canary" not in text


def test_e7_a_node_that_the_volume_requires_keeps_the_pod_from_being_ready(tmp_path: Path) -> None:
    site = Site(tmp_path)
    site.layout.root.mkdir()
    site.layout.manifest.write_text('[[node]]\nname = "lost"\ngit = "file:///nowhere/lost"\nrequired = true\n')
    with booted(site) as pod:
        status = until(pod, lambda status: "required: lost is failed" in status["reasons"])
        assert status["phase"] == "degraded"
        assert has_problem(status, "node-install")


def test_e7_a_pod_without_what_it_requires_is_not_ready_until_it_is_there(tmp_path: Path) -> None:
    wanted = LockedModel("upscaler", "upscale_models", "small.bin", "0" * 64, 10)
    site = Site(tmp_path, settings={"require": "pack, upscaler"}, facts={"models": (wanted,)})
    pack = site.layout.comfyui / "custom_nodes" / "pack"
    pack.mkdir(parents=True)
    (pack / "__init__.py").write_text("NODE_CLASS_MAPPINGS = {}\n")
    with booted(site) as pod:
        assert pod.wait_for("degraded")["reasons"] == ["required: upscaler is missing"]
        assert pod.probe("/readyz") == (503, "degraded")
        model = site.layout.comfyui / "models" / "upscale_models" / "small.bin"
        model.parent.mkdir(parents=True, exist_ok=True)
        model.write_bytes(b"x" * 9)
        until(pod, lambda status: status["reasons"] == ["required: upscaler is wrong"])
        model.write_bytes(b"x" * 10)
        pod.wait_for("ready")
        assert "[+]required: 2 are there" in pod.probe("/readyz?verbose")[1].splitlines()

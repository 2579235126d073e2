"""Metrics of real boots around a stand-in ComfyUI."""

from __future__ import annotations

import os
import signal
import time
import urllib.request
from typing import TYPE_CHECKING

from prometheus_client.parser import text_string_to_metric_families

from tests.kit.pods import Site, booted
from tests.kit.standin import Orders, submit

if TYPE_CHECKING:
    from pathlib import Path

    from tests.kit.pods import Running

Values = dict[tuple[str, ...], float]


def _scrape(pod: Running) -> Values:
    with urllib.request.urlopen(f"{pod.site.control}/metrics", timeout=5) as answer:
        assert answer.headers["Content-Type"] == "text/plain; version=0.0.4; charset=utf-8"
        families = text_string_to_metric_families(answer.read().decode())
    return {
        (sample.name.removeprefix("comfypod_"), *sample.labels.values()): sample.value
        for family in families
        for sample in family.samples
    }


def _wait_for(pod: Running, name: tuple[str, ...], value: float, seconds: float = 20.0) -> Values:
    deadline = time.monotonic() + seconds
    while (seen := _scrape(pod)).get(name) != value and time.monotonic() < deadline:
        time.sleep(0.1)
    assert seen.get(name) == value, pod.output_so_far()
    return seen


def test_a_scrape_shows_the_boot_and_what_prompts_have_done(tmp_path: Path) -> None:
    site = Site(tmp_path)
    with booted(site) as pod:
        pod.wait_for("ready")
        before = _scrape(pod)
        assert (before["ready",], before["phase", "ready"], before["up",]) == (1, 1, 1)
        assert before["boot_ready_seconds",] > 0
        assert before["boot_stage_seconds", "workspace", "done"] > 0
        assert (before["queue_prompts", "running"], before["queue_prompts", "pending"]) == (0, 0)
        assert 0 < before["volume_free_bytes",] <= before["volume_size_bytes",]
        assert before["prompts_total", "done"] == 0
        submitted = time.monotonic()
        submit(site.port, seconds=1.5)
        submit(site.port, "Fail")
        after = _wait_for(pod, ("prompts_total", "failed"), 1)
        assert after["prompts_total", "done"] == 1
        took = after["prompt_duration_seconds_sum", "done"]
        assert 1.4 < took < time.monotonic() - submitted
        assert after["prompt_duration_seconds_bucket", "done", "1"] == 0
        assert after["prompt_duration_seconds_bucket", "done", "2.5"] == (took <= 2.5)
        counted = _wait_for(pod, ("gateway_requests_total", "write", "2xx"), 2)
        assert counted["gateway_request_duration_seconds_count",] >= 2
        assert counted["gateway_open_connections",] >= 0
        began = time.monotonic()
        assert pod.stop() == 0
        assert time.monotonic() - began < 4
    assert "ERROR" not in pod.output_so_far()


def test_metrics_are_there_before_comfyui_is_and_count_its_deaths(tmp_path: Path) -> None:
    site = Site(tmp_path, Orders(die=7, heals_in_safe_mode=True))
    with booted(site) as pod:
        pod.wait_for("starting")
        early = _scrape(pod)
        assert (early["ready",], early["service_up", "comfyui"]) == (0, 0)
        assert ("queue_prompts", "running") not in early
        pod.wait_for("ready", 30)
        late = _scrape(pod)
        assert late["service_restarts_total", "comfyui", "exit"] == 3
        assert late["problems", "safe-mode"] == 1


def test_a_comfyui_that_no_longer_answers_does_not_hold_up_a_scrape(tmp_path: Path) -> None:
    with booted(Site(tmp_path)) as pod:
        pid = pod.wait_for("ready")["services"][0]["pid"]
        os.kill(pid, signal.SIGSTOP)
        try:
            began = time.monotonic()
            found = _scrape(pod)
            assert time.monotonic() - began < 3
        finally:
            os.kill(pid, signal.SIGCONT)
        assert ("queue_prompts", "running") not in found
        assert found["volume_size_bytes",] > 0
        assert _scrape(pod)["queue_prompts", "running"] == 0

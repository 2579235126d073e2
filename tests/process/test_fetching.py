"""Models that a boot fetches: beside ComfyUI, shown while they come, asked for on the page, gone on with later."""

from __future__ import annotations

import hashlib
import http.client
import json
import signal
import time
from contextlib import closing
from typing import TYPE_CHECKING, Any

import pytest

from tests.kit.hosts import File, Host, host
from tests.kit.models import upscaler
from tests.kit.pods import Running, Site, booted, free_port

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

_CANARY = "hf_canary_0123456789"
_SLOW = 256 << 10


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Host]:
    """A host with a small model, and with one that takes its time."""
    upscaler(tmp_path / "up.safetensors", features=4)
    upscaler(tmp_path / "large.safetensors", features=200)
    with host() as hub:
        hub.files["/up.safetensors"] = File((tmp_path / "up.safetensors").read_bytes())
        hub.files["/large.safetensors"] = File((tmp_path / "large.safetensors").read_bytes(), cap=_SLOW)
        yield hub


def wait_until(done: Callable[[], Any], seconds: float = 30.0) -> Any:
    deadline = time.monotonic() + seconds
    while not (found := done()):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return found


def row(pod: Running, name: str) -> dict[str, Any]:
    rows: list[dict[str, Any]] = (pod.status() or {}).get("models", [])
    return next((row for row in rows if row["name"] == name), {})


def metric(pod: Running, name: str) -> float:
    _, text = pod.probe("/metrics")
    return next(float(line.split()[-1]) for line in text.splitlines() if line.startswith(f"comfypod_{name}"))


def test_models_come_while_comfyui_starts_and_what_is_required_holds_back_readiness(tmp_path: Path, hub: Host) -> None:
    site = Site(tmp_path)
    words = f"loras={hub.url}/large.safetensors upscale_models={hub.url}/up.safetensors?download=true&x='1'"
    environ = {"COMFYPOD_MODELS": words, "COMFYPOD_REQUIRE": "large.safetensors", "HF_TOKEN": _CANARY}
    with booted(site, environ=environ) as pod:
        pod.wait_for("degraded")
        coming = wait_until(lambda: (found := row(pod, "large.safetensors")).get("rate") and found)
        assert coming["state"] == "fetching"
        assert 0 < coming["bytes"] < coming["total"] == len(hub.files["/large.safetensors"].body)
        assert metric(pod, "download_rate_bytes") > 0
        assert pod.probe("/readyz")[0] == 503
        wait_until(lambda: pod.status()["reasons"] == ["required: large.safetensors is fetching"])  # type: ignore[index]
        hub.files["/large.safetensors"].cap = 0
        pod.wait_for("ready", 60)
        assert row(pod, "large.safetensors")["state"] == row(pod, "up.safetensors")["state"] == "present"
        assert metric(pod, 'downloads_total{result="done"}') == 2
        assert metric(pod, "download_bytes_total") >= len(hub.files["/large.safetensors"].body)
        assert _CANARY not in json.dumps(pod.status()) + pod.output_so_far()
        assert all(_CANARY not in json.dumps(start) for start in site.starts())
    for kind, name in (("loras", "large"), ("upscale_models", "up")):
        place = site.layout.comfyui / "models" / kind / f"{name}.safetensors"
        assert place.read_bytes() == hub.files[f"/{name}.safetensors"].body


def test_e5_a_stop_during_a_download_is_in_time_and_the_next_boot_goes_on(tmp_path: Path, hub: Host) -> None:
    site = Site(tmp_path)
    large = hub.files["/large.safetensors"]
    environ = {"COMFYPOD_MODELS": f"loras={hub.url}/large.safetensors"}
    with booted(site, environ=environ) as pod:
        pod.wait_for("ready")
        wait_until(lambda: row(pod, "large.safetensors").get("bytes", 0) > 0)
        began = time.monotonic()
        assert pod.stop(signal.SIGTERM) == 0
        assert time.monotonic() - began < 9
    assert not (site.layout.comfyui / "models" / "loras" / "large.safetensors").exists()
    before, large.cap = hub.sent, 0
    with booted(site, environ=environ) as pod:
        pod.wait_for("ready")
        wait_until(lambda: row(pod, "large.safetensors").get("state") == "present")
    found = (site.layout.comfyui / "models" / "loras" / "large.safetensors").read_bytes()
    assert hashlib.sha256(found).digest() == hashlib.sha256(large.body).digest()
    assert hub.sent - before < len(large.body)
    assert hub.sent < 1.2 * len(large.body)


def test_a_model_is_fetched_that_somebody_asks_for_on_the_page(tmp_path: Path, hub: Host) -> None:
    site = Site(tmp_path)
    with booted(site) as pod:
        pod.wait_for("ready")
        assert act(site, "pull", {"what": "no such pack:"})[0] == 409
        assert act(site, "pull", {"what": ""})[0] == 409
        status, said = act(site, "pull", {"what": f"loras={hub.url}/up.safetensors"})
        assert (status, said["ok"]) == (200, True)
        place = site.layout.comfyui / "models" / "loras" / "up.safetensors"
        wait_until(place.exists)
        hub.files["/none.safetensors"] = File(no_head=404, statuses=[404] * 99)
        status, said = act(site, "pull", {"what": f"loras={hub.url}/none.safetensors"})
        assert status == 200
        problem = wait_until(lambda: [each for each in pod.status()["problems"] if "none" in each["message"]])  # type: ignore[index]
        assert "404" in problem[0]["message"]
        assert problem[0]["hint"]
        assert pod.status()["ready"]  # type: ignore[index]


def test_a_failure_is_shown_when_it_happens_and_not_when_it_is_tried_again(tmp_path: Path, hub: Host) -> None:
    site = Site(tmp_path)
    hub.files["/none.safetensors"] = File(no_head=404, statuses=[404] * 99)
    environ = {"COMFYPOD_MODELS": f"loras={hub.url}/large.safetensors loras={hub.url}/none.safetensors"}
    with booted(site, environ=environ) as pod:
        failed = wait_until(lambda: (found := row(pod, "none.safetensors")).get("state") == "failed" and found)
        assert "answered 404 Not Found; check the address" in failed["reason"]
        assert wait_until(lambda: row(pod, "large.safetensors").get("state") == "fetching")
        assert row(pod, "none.safetensors")["state"] == "failed"
        assert metric(pod, 'models{state="failed"}') == 1
    hub.files["/none.safetensors"] = File(hub.files["/large.safetensors"].body, cap=_SLOW)
    with booted(site, environ=environ) as pod:
        coming = wait_until(lambda: (found := row(pod, "none.safetensors")).get("state") == "fetching" and found)
        assert coming["reason"] == ""


def test_a_host_that_is_waited_for_is_shown_with_the_reason(tmp_path: Path) -> None:
    environ = {"COMFYPOD_MODELS": f"loras=http://127.0.0.1:{free_port()}/none.safetensors"}
    with booted(Site(tmp_path), environ=environ) as pod:
        waiting = wait_until(lambda: (found := row(pod, "none.safetensors")).get("state") == "waiting" and found)
        assert "is tried again" in waiting["reason"]
        assert "is not reachable" in waiting["reason"]
        assert metric(pod, 'models{state="waiting"}') == 1
        wait_until(lambda: row(pod, "none.safetensors")["state"] == "failed")


def test_a_pod_without_a_network_names_what_is_missing_and_fetches_nothing(tmp_path: Path, hub: Host) -> None:
    site = Site(tmp_path)
    environ = {"COMFYPOD_MODELS": f"loras={hub.url}/up.safetensors", "COMFYPOD_OFFLINE": "on"}
    with booted(site, environ=environ) as pod:
        status = pod.wait_for("ready")
        assert [stage["state"] for stage in status["stages"] if stage["name"] == "models"] == ["degraded"]
        assert any("up.safetensors" in each["message"] for each in status["problems"])
        code, said = act(site, "pull", {"what": f"loras={hub.url}/up.safetensors"})
        assert code == 409
        assert "COMFYPOD_OFFLINE" in said["message"]
    assert hub.requests == []


def act(site: Site, action: str, body: dict[str, str]) -> tuple[int, dict[str, Any]]:
    with closing(http.client.HTTPConnection("127.0.0.1", site.port, timeout=30)) as ask:
        ask.request("POST", f"/_pod/do/{action}", json.dumps(body), {"Content-Type": "application/json"})
        answer = ask.getresponse()
        return answer.status, json.loads(answer.read())

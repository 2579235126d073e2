"""The pod's page in a real browser, around a stand-in ComfyUI."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.kit.browser import Seen, chromium
from tests.kit.hosts import File, host
from tests.kit.lab import until
from tests.kit.models import upscaler
from tests.kit.pods import Site, booted

if TYPE_CHECKING:
    from pathlib import Path


def test_a_model_that_is_asked_for_on_the_page_is_seen_to_come(tmp_path: Path) -> None:
    site, seen = Site(tmp_path), Seen()
    upscaler(tmp_path / "up.safetensors", features=200)
    place = site.layout.comfyui / "models" / "upscale_models" / "up.safetensors"
    with host() as hub, booted(site) as pod, chromium() as browser:
        served = hub.files["/up.safetensors"] = File((tmp_path / "up.safetensors").read_bytes(), cap=256 << 10)
        pod.wait_for("ready")
        page = seen.watch(browser.new_page())
        page.goto(f"http://127.0.0.1:{site.port}/_pod/")
        page.wait_for_selector("#models >> text=none asked for")
        page.fill("#what", f"upscale_models={hub.url}/up.safetensors")
        page.click("#pull button")
        page.wait_for_selector("#models >> text=fetching")
        bar = page.wait_for_selector("#models progress")
        assert bar is not None
        assert int(bar.get_attribute("max") or 0) == len(served.body)
        assert not place.exists()
        served.cap = 0
        page.wait_for_selector("#models >> text=present", timeout=60_000)
        until(place.exists, "the model")
        page.fill("#what", "no such pack:")
        page.click("#pull button")
        page.wait_for_selector("#said >> text=write a pack")
    assert place.read_bytes() == served.body
    assert seen.errors == []

"""A person with a real browser in front of a container with the real ComfyUI and JupyterLab, through the gateway.

Slow, and worth it: it is what people do. It comes after the tests that have built the image that it needs.
"""

from __future__ import annotations

import os
import subprocess
import sys
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from comfypod import control
from tests.kit.browser import Seen, chromium
from tests.kit.lab import until
from tests.kit.pods import ROOT, free_port

if TYPE_CHECKING:
    from collections.abc import Iterator

    from playwright.sync_api import Page

    from tests.kit.real_images import RealImages

pytestmark = [pytest.mark.real, pytest.mark.slow]

TOKEN = "a token of my own"
WORKFLOW = {
    "1": {"class_type": "EmptyImage", "inputs": {"width": 320, "height": 200, "batch_size": 1, "color": 0x3366CC}},
    "2": {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": "from-the-page"}},
}
# Queues a workflow as the page's own button does, and returns what came over its WebSocket until it was done.
RUN = """
async workflow => {
  const app = window.app || window.comfyAPI.app.app, api = app.api, seen = [];
  const done = new Promise(end => {
    for (const name of ["status", "execution_start", "executing", "progress_state", "executed"])
      api.addEventListener(name, event => {
        seen.push(name);
        if (name === "executed") end(event.detail.output.images[0]);
      });
  });
  const late = new Promise((_, fail) => setTimeout(() => fail(new Error(`late, after ${seen}`)), 60000));
  await app.loadApiJson(workflow, "from the test");
  await app.queuePrompt(0);
  const image = await Promise.race([done, late]), picture = new Image();
  picture.src = api.apiURL(`/view?${new URLSearchParams(image)}`);
  await picture.decode();
  return { seen, width: picture.naturalWidth, height: picture.naturalHeight };
}
"""


@dataclass(frozen=True)
class Place:
    """A workspace and the ports of its pod."""

    workspace: Path
    image: str
    ports: tuple[int, int, int] = field(default_factory=lambda: (free_port(), free_port(), free_port()))

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.ports[0]}"

    def start(self) -> subprocess.Popen[bytes]:
        """Begin to bring the pod up."""
        port, jupyter, control = map(str, self.ports)
        given = ["--workspace", str(self.workspace), "--port", port, "--jupyter-port", jupyter]
        up = ["up", "--engine", "docker", "--image", self.image, "--detach", "--wait", "600", "--listen", "0.0.0.0"]
        return subprocess.Popen(
            [sys.executable, "-m", "comfypod", *up, *given, "--control-port", control],
            env={**os.environ, "COMFYPOD_TOKEN": TOKEN}, cwd=ROOT, stdout=subprocess.DEVNULL,
        )  # fmt: skip

    def service(self, name: str) -> dict[str, Any]:
        """Return a service's row of `/status`, empty while there is none."""
        status = control.status(f"http://127.0.0.1:{self.ports[2]}") or {"services": []}
        row: dict[str, Any] = next((row for row in status["services"] if row["name"] == name), {})
        return row


@pytest.fixture
def place(real_images: RealImages, tmp_path: Path) -> Iterator[Place]:
    found = Place(tmp_path / "workspace", real_images.image("cpu", "full"))
    found.workspace.mkdir()
    yield found
    down = [sys.executable, "-m", "comfypod", "down", "--workspace", str(found.workspace)]
    subprocess.run(down, cwd=ROOT, check=True, capture_output=True)


def picture(page: Page, name: str) -> None:
    """Keep a picture for the docs, where one was asked for."""
    if folder := os.environ.get("TEST_SCREENSHOTS"):
        page.screenshot(path=Path(folder) / f"{name}.png")


def test_a_person_with_a_browser_gets_from_the_boot_page_to_a_picture_a_terminal_and_the_pods_page(
    place: Place,
) -> None:
    starting = place.start()
    try:
        with chromium() as browser:
            seen = Seen()
            page = seen.watch(browser.new_page())
            _logs_in_while_it_boots(page, place)
            assert starting.wait(900) == 0
            _comfyui_shows_itself_and_makes_a_picture(page, seen)
            _jupyterlab_opens_a_terminal(page, place)
            _the_pods_page_acts(page, place)
            assert seen.errors == []
    finally:
        starting.wait(900)


def _logs_in_while_it_boots(page: Page, place: Place) -> None:
    until(lambda: _answers(place.url), "the gateway", 600)
    page.goto(place.url)
    page.fill("#token", "not the token")
    page.click("button")
    page.wait_for_selector("text=That is not this pod's token.")
    picture(page, "login")
    page.fill("#token", TOKEN)
    page.click("button")
    page.wait_for_selector("html[data-mode=boot] >> text=Services")
    page.wait_for_selector("#services >> text=comfyui")
    picture(page, "boot")
    assert TOKEN not in page.url


def _answers(url: str) -> bool:
    try:
        urllib.request.urlopen(f"{url}/livez", timeout=5).close()
    except OSError:
        return False
    return True


def _comfyui_shows_itself_and_makes_a_picture(page: Page, seen: Seen) -> None:
    page.wait_for_function("() => (window.app || window.comfyAPI?.app?.app)?.graph && document.querySelector('canvas')")
    # The front end goes on setting itself up after it has drawn its canvas, and queues nothing before that is done.
    page.wait_for_load_state("networkidle")
    page.keyboard.press("Escape")
    page.wait_for_timeout(500)
    seen.refused.clear()
    found: dict[str, Any] = page.evaluate(RUN, WORKFLOW)
    assert (found["width"], found["height"]) == (320, 200)
    assert {"status", "execution_start", "executing", "executed"} <= set(found["seen"])
    assert seen.frames >= 4
    page.wait_for_timeout(1000)
    picture(page, "comfyui")
    assert [each for each in seen.refused if "401" in each or "403" in each or "/ws" in each] == []


def _jupyterlab_opens_a_terminal(page: Page, place: Place) -> None:
    until(lambda: place.service("jupyter").get("state") == "ready", "JupyterLab", 60)
    page.goto(f"{place.url}/jupyter/lab?reset")
    page.click(".jp-LauncherCard >> text=Terminal", timeout=60_000)
    page.wait_for_selector(".jp-Terminal .xterm-screen", timeout=60_000)
    page.click(".jp-Terminal .xterm-screen")
    page.wait_for_timeout(1500)
    page.keyboard.type("touch /workspace/made-in-a-terminal\n")
    until((place.workspace / "made-in-a-terminal").exists, "the terminal's file")
    picture(page, "jupyterlab")


def _the_pods_page_acts(page: Page, place: Place) -> None:
    page.goto(f"{place.url}/_pod/")
    page.wait_for_selector("#phase >> text=ready")
    page.wait_for_selector("#lines >> text=To see the GUI go to")
    picture(page, "pod")
    before = place.service("comfyui")
    page.click("text=Restart ComfyUI")
    page.wait_for_selector("#said >> text=ComfyUI starts again")
    page.wait_for_selector("#phase >> text=starting")
    page.wait_for_selector("#phase >> text=ready", timeout=120_000)
    assert place.service("comfyui")["pid"] != before["pid"]
    page.click("#safe")
    page.wait_for_selector("text=Leave safe mode", timeout=120_000)
    assert place.service("comfyui")["safe_mode"] is True
    page.click("#nodes >> text=Disable")
    page.wait_for_selector("#said >> text=is off from ComfyUI's next start on")
    page.click("#nodes >> text=Enable")
    page.wait_for_selector("#said >> text=is on from ComfyUI's next start on")
    page.click("text=New token")
    page.wait_for_selector("#said >> text=the token was given from outside")
    page.set_viewport_size({"width": 390, "height": 844})
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    picture(page, "pod-phone")
    page.click("text=Log out")
    page.wait_for_selector("#token")

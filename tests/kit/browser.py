"""A real chromium that looks at a pod, and remembers what went wrong in it."""

from __future__ import annotations

import os
import shutil
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import pytest
from playwright.sync_api import sync_playwright

if TYPE_CHECKING:
    from collections.abc import Iterator

    from playwright.sync_api import BrowserContext, Page, Response, WebSocket

_NAMES = ("chromium", "chromium-browser", "google-chrome")


@dataclass
class Seen:
    """What pages of one visitor have met: answers of 400 and more, errors in scripts, frames of WebSockets."""

    refused: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    frames: int = 0

    def watch(self, page: Page) -> Page:
        page.on("response", self._response)
        page.on("pageerror", lambda error: self.errors.append(str(error)))
        page.on("websocket", self._websocket)
        return page

    def _response(self, response: Response) -> None:
        if response.status >= 400:
            self.refused.append(f"{response.status} {response.url}")

    def _websocket(self, line: WebSocket) -> None:
        line.on("framereceived", self._frame)

    def _frame(self, _: object) -> None:
        self.frames += 1


def program() -> str:
    """Return a chromium; without one the test is skipped with that reason, and fails under CI."""
    found = next(filter(None, map(shutil.which, _NAMES)), None)
    if found is None and os.environ.get("CI") == "true":
        pytest.fail("no chromium is on the PATH; .ci/run installs it")
    if found is None:
        pytest.skip("no chromium is on the PATH")
    return found


@contextmanager
def chromium() -> Iterator[BrowserContext]:
    """Open a browser with nothing in it."""
    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=program(), args=["--no-sandbox", "--disable-dev-shm-usage"])
        try:
            yield browser.new_context(viewport={"width": 1280, "height": 800})
        finally:
            browser.close()

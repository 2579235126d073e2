"""What fetches models beside ComfyUI, with a real `comfypod models pull` and a real server."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from comfypod.boot import fetcher
from comfypod.boot.fetcher import Fetcher
from comfypod.boot.health import StageView
from comfypod.boot.models import check_models
from tests.kit.hosts import File, Host, host
from tests.kit.models import upscaler
from tests.unit.boot.contexts import prepared

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from comfypod.boot.context import Context


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Host]:
    monkeypatch.setattr(fetcher, "_FIRST_PAUSE", 0.2)
    monkeypatch.setattr(fetcher, "_LOOK_SECONDS", 0.1)
    upscaler(tmp_path / "up.safetensors", features=4)
    with host() as hub:
        hub.files["/up.safetensors"] = File((tmp_path / "up.safetensors").read_bytes())
        yield hub


@pytest.fixture
def context(tmp_path: Path, hub: Host) -> Iterator[Context]:
    context = prepared(tmp_path)
    context.settings = replace(context.settings, models=(f"loras={hub.url}/late.safetensors",))
    check_models(context, StageView("models"))
    yield context
    context.lease.release()


def _fetch(context: Context, *words: str, until: Callable[[Context], bool]) -> None:
    async def work() -> None:
        fetching = Fetcher(context)
        for word in words:
            fetching.ask(word)
        task = asyncio.create_task(fetching.run())
        async with asyncio.timeout(60):
            while not until(context):  # noqa: ASYNC110 - it is another process that is waited for
                await asyncio.sleep(0.05)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    asyncio.run(work())


def _states(context: Context) -> dict[str, str]:
    return {row["name"]: row["state"] for row in context.health.models}


def test_what_failed_is_tried_again_by_itself_and_what_was_said_of_it_taken_back(context: Context, hub: Host) -> None:
    hub.files["/late.safetensors"] = File(no_head=404, statuses=[404] * 99)
    seen: list[tuple[str, dict[str, str]]] = []

    def mended(context: Context) -> bool:
        for problem in context.health.problems if not seen else ():
            seen.append((problem.message, _states(context)))
            hub.files["/late.safetensors"] = hub.files["/up.safetensors"]
        return bool(seen) and not context.health.problems

    _fetch(context, until=mended)
    assert "404" in seen[0][0]
    assert seen[0][1] == {"late.safetensors": "failed"}
    assert _states(context) == {"late.safetensors": "present"}


def test_what_somebody_has_asked_for_is_shown_when_it_is_there_too(context: Context, hub: Host) -> None:
    hub.files["/late.safetensors"] = hub.files["/up.safetensors"]
    word = f"upscale_models={hub.url}/up.safetensors"
    _fetch(
        context, word, until=lambda context: set(_states(context).values()) == {"present"} and len(_states(context)) > 1
    )
    assert set(_states(context)) == {"late.safetensors", "up.safetensors"}

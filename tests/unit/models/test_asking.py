"""Plans of files whose hosts do not answer, with real servers."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from comfypod.download import connection
from comfypod.models import asking
from comfypod.models.file import ModelFile
from comfypod.models.places import Places
from comfypod.models.site import Site
from comfypod.models.wanted import plan_of
from comfypod.workspace.layout import Layout
from tests.kit.hosts import File, Host, host
from tests.kit.pods import free_port

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(Layout(tmp_path), Places(tmp_path / "models"))


@pytest.fixture
def dripping() -> Iterator[Host]:
    with host() as running:
        running.files = {f"/{number}": File(b"x", drip_head=0.1) for number in range(30)}
        yield running


def files_at(url: str, count: int) -> list[ModelFile]:
    return [ModelFile(str(number), f"{url}/{number}", "loras", f"{number}.safetensors") for number in range(count)]


@pytest.mark.parametrize("deadline", ["of a question", "of all questions about a file"])
def test_a_host_that_drips_its_headers_holds_up_a_plan_once_and_is_named(
    site: Site, dripping: Host, monkeypatch: pytest.MonkeyPatch, deadline: str
) -> None:
    monkeypatch.setattr(
        *((connection, "QUESTION_SECONDS") if deadline == "of a question" else (asking, "PATIENCE_SECONDS")), 0.5
    )
    with host() as sound:
        sound.files["/0"] = File(b"12345")
        began = time.monotonic()
        plan = plan_of([*files_at(dripping.url, 30), replace(files_at(sound.url, 1)[0], folder="vae")], site)
    assert time.monotonic() - began < 3
    assert [row.state for row in plan.rows] == ["fetch"] * 31
    assert plan.rows[-1].file.size == 5
    for row in plan.rows[:-1]:
        assert "did not answer in time: within 0.5 seconds" in row.file.trouble
    assert len(dripping.requests) == 8


def test_a_host_that_is_not_there_is_asked_for_the_first_files_alone(site: Site) -> None:
    url = f"http://127.0.0.1:{free_port()}"
    assert all("not reachable" in file.trouble for file in asking.learn(files_at(url, 30), site))


def test_a_host_that_answers_with_nonsense_harms_no_other_file(site: Site) -> None:
    with host() as running:
        running.files = {"/0": File(b"1", no_head=302, headers={"Location": "http://[bad/"}), "/1": File(b"12345")}
        first, second = asking.learn(files_at(running.url, 2), site)
    assert second.size == 5
    assert first.size in (0, 1)

from __future__ import annotations

import io
import json
from typing import TYPE_CHECKING, Any

import pytest

from comfypod import control
from comfypod.errors import ComfypodError, NotReadyError, NotRunningError, ServiceError, UsageError
from comfypod.host import container
from comfypod.host import up as module
from comfypod.host.up import Options, down, up
from comfypod.host.wait import News, boot_error, until_ready
from comfypod.log import Console
from comfypod.result import Result
from comfypod.settings import resolve
from comfypod.workspace.layout import Layout
from tests.kit.pods import free_port

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, Any]]:
    """Which engine `up` chose, with the settings and the lock that it was given."""
    seen: list[tuple[str, Any]] = []

    def in_container(options: Options, built: Mapping[str, str], lock: object, console: Console) -> Result:
        seen.append((options.engine, lock is not None))
        return Result("up")

    def on_host(options: Options, built: Mapping[str, str], lock: object, console: Console) -> Result:
        seen.append(("host", lock is not None))
        return Result("up")

    monkeypatch.setattr(container, "up", in_container)
    monkeypatch.setattr(module, "_on_host", on_host)
    return seen


@pytest.mark.parametrize(
    ("engine", "image", "expected"),
    [
        ("auto", None, ("host", True)),
        ("host", None, ("host", True)),
        ("docker", None, ("docker", True)),
        ("podman", "r/a:1", ("podman", False)),
        ("auto", "r/a:1", ("auto", False)),
    ],
)
def test_auto_means_no_container_unless_an_image_is_named(
    asked: list[tuple[str, Any]], engine: str, image: str | None, expected: tuple[str, bool], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    up(Options({}, engine=engine, image=image), Console(io.StringIO()))
    assert asked == [expected]


def test_an_image_without_a_container_engine_makes_no_sense(asked: list[tuple[str, Any]]) -> None:
    with pytest.raises(UsageError, match="--image needs a container engine"):
        up(Options({}, engine="host", image="r/a:1"), Console(io.StringIO()))
    assert asked == []


def test_down_asks_the_engines_only_when_no_pod_of_the_host_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    layout, console = Layout(tmp_path), Console(io.StringIO())
    monkeypatch.setenv("COMFYPOD_CONTROL_PORT", str(free_port()))
    stopped = Result("down", text="stopped")
    monkeypatch.setattr(container, "down", lambda *_: stopped)
    assert down(layout, console) is stopped
    monkeypatch.setattr(container, "down", lambda *_: None)
    with pytest.raises(NotRunningError):
        down(layout, console)


class _Pod:
    """A pod that is its own, and ends or is stopped as it is told."""

    def __init__(self, error: ComfypodError | None = None, *, ours: bool = True) -> None:
        self.error, self.ours, self.stopped = error, ours, 0

    def owns(self, status: Mapping[str, Any]) -> bool:
        return self.ours

    def ended(self) -> ComfypodError | None:
        return self.error

    def stop(self) -> None:
        self.stopped += 1


def follow(pod: _Pod, tmp_path: Path, seconds: float = 0.3) -> Result:
    settings = resolve({"workspace": str(tmp_path)}, {}, {})
    return until_ready(pod, Layout(tmp_path), settings, seconds, Console(io.StringIO()))


def answer(monkeypatch: pytest.MonkeyPatch, **changes: Any) -> None:
    shown = resolve({}, {}, {}).shown()
    body = {
        "ready": True, "reasons": ["comfyui is starting"], "urls": {"comfyui": "http://c", "jupyter": "http://j"},
        "boot": {"seconds_to_ready": 2.04}, "services": [{"name": "jupyter", "state": "starting"}], "settings": shown,
        "problems": [{"code": "x", "message": "a node is broken", "hint": ""}], **changes,
    }  # fmt: skip
    monkeypatch.setattr(control, "status", lambda _: body)


def test_a_ready_pod_is_shown_with_its_addresses_its_login_and_its_problems(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer(monkeypatch)
    layout = Layout(tmp_path)
    assert f"http://j (log in with the token in {layout.token}) (starting)" in follow(_Pod(), tmp_path).text
    layout.records.mkdir()
    layout.token.write_text("abc\n")
    result = follow(_Pod(), tmp_path)
    assert result.status == "partial"
    for part in ("ready after 2.0 s", "http://c", "http://j/lab?token=abc (starting)", "WARNING a node is broken"):
        assert part in result.text
    given = resolve({}, {"COMFYPOD_TOKEN": "t"}, {}).shown()
    answer(monkeypatch, settings=given, problems=[], services=[{"name": "jupyter", "state": "ready"}])
    result = follow(_Pod(), tmp_path)
    assert result.status == "success"
    assert "JupyterLab: http://j\n" in result.text


def test_e7_a_pod_whose_comfyui_answers_has_started_even_when_it_is_not_ready(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer(monkeypatch, ready=False, phase="degraded", reasons=["queue 12 of 10"], problems=[])
    result = follow(_Pod(), tmp_path)
    assert (result.status, result.exit_code) == ("partial", 0)
    assert "NOT READY queue 12 of 10" in result.text


def test_a_pod_that_is_late_goes_on_and_one_that_ended_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer(monkeypatch, ready=False)
    with pytest.raises(NotReadyError, match="not ready after 0 s: comfyui is starting") as caught:
        follow(_Pod(), tmp_path)
    assert "comfypod status" in caught.value.hint
    answer(monkeypatch)
    with pytest.raises(NotReadyError, match="it does not answer yet"):
        follow(_Pod(ours=False), tmp_path)
    with pytest.raises(ServiceError, match="gone"):
        follow(_Pod(ServiceError("gone")), tmp_path)


def test_an_interrupt_stops_what_was_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(_: str) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(control, "status", interrupt)
    pod = _Pod()
    with pytest.raises(KeyboardInterrupt):
        follow(pod, tmp_path)
    assert pod.stopped == 1


def test_news_are_every_step_at_once_and_progress_now_and_then() -> None:
    out = io.StringIO()
    news = News(Console(out))
    for text in ("stage a runs: 1", "stage a runs: 2", "", "stage b runs", "stage b runs"):
        news.tell(text)
    assert out.getvalue() == "  stage a runs: 1\n  stage b runs\n"


def test_what_boot_reported_last_is_the_error(tmp_path: Path) -> None:
    layout = Layout(tmp_path)
    layout.logs.mkdir()
    (layout.logs / "comfyui.log").write_text("one\nTraceback\n")
    said = ["x", json.dumps({"command": "boot", "errors": [{"code": "comfyui", "message": "given up", "hint": ""}]})]
    error = boot_error(10, said, "see", layout)
    assert isinstance(error, ServiceError)
    assert error.message == "ComfyUI did not start: given up; its last words: one / Traceback"
    said = [json.dumps({"command": "boot", "errors": [{"code": "busy", "message": "taken", "hint": "h"}]})]
    assert (boot_error(9, said, "see", layout).exit_code, boot_error(9, said, "see", layout).hint) == (9, "h")
    error = boot_error(1, ["a", "b", "c", "d"], "see", layout)
    assert (error.message, error.hint) == ("boot ended with 1: b / c / d", "see")

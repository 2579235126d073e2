from __future__ import annotations

import io
import json
import os
from typing import TYPE_CHECKING, Any

import pytest

from comfypod.boot.health import Health, StageView
from comfypod.errors import NotReadyError, NotRunningError
from comfypod.host import inspect
from comfypod.log import Console
from comfypod.settings import resolve
from comfypod.workspace import run
from comfypod.workspace.layout import Layout
from tests.kit import standin
from tests.kit.pods import free_port
from tests.kit.web import Answer, Site, serve

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from comfypod.result import Result


@pytest.fixture
def site() -> Iterator[Site]:
    with serve() as running:
        yield running


@pytest.fixture
def layout(tmp_path: Path, site: Site) -> Layout:
    """A workspace whose pod is this process, with `site` for its control plane."""
    layout = Layout(tmp_path / "workspace")
    layout.records.mkdir(parents=True)
    layout.logs.mkdir()
    register(layout, site.url)
    return layout


def register(layout: Layout, control: str) -> None:
    boot = run.this_process()
    run.write(layout.run_record, run.RunRecord(boot, control))


def snapshot(tmp_path: Path, **changes: Any) -> dict[str, Any]:
    from comfypod import podfile

    pod = podfile.load(standin.pod_file(tmp_path, tmp_path))
    shown = resolve({"workspace": str(tmp_path)}, {"COMFYPOD_TOKEN": "s3cret"}, {"port": "9000"}).shown()
    health = Health(pod, 0.0, stages=[StageView("workspace", "running", 1.5, "copied 2 MB")], settings=shown)
    return {**health.snapshot(), **changes}


def show(site: Site, layout: Layout, body: dict[str, Any]) -> Result:
    site.answers["/status"] = Answer(json.dumps(body).encode())
    return inspect.status(layout)


@pytest.mark.parametrize(
    ("memory", "line"),
    [
        (
            {"limit": 2 * 10**9, "peak": 10**9, "used": 5 * 10**8},
            "500 MB in use, 1.0 GB at most so far, 2.0 GB allowed",
        ),
        ({"limit": None, "peak": None, "used": 5 * 10**8}, "500 MB in use"),
    ],
)
def test_e2_memory_is_shown_as_far_as_it_is_known(
    site: Site, layout: Layout, tmp_path: Path, memory: dict[str, int | None], line: str
) -> None:
    assert f"memory      {line}\n" in show(site, layout, snapshot(tmp_path, memory=memory)).text


def test_a_pod_that_is_not_ready_is_a_partial_result_with_its_reasons(
    site: Site, layout: Layout, tmp_path: Path
) -> None:
    result = show(site, layout, snapshot(tmp_path))
    assert (result.status, result.exit_code) == ("partial", 0)
    assert "because stage workspace runs: copied 2 MB" in result.text
    assert f"identity    {os.geteuid()}:{os.getegid()}, the user that started it" in result.text
    assert json.loads(result.envelope())["data"]["phase"] == "preparing"


def test_settings_that_someone_chose_are_shown_with_their_origin_and_no_secret(
    site: Site, layout: Layout, tmp_path: Path
) -> None:
    text = show(site, layout, snapshot(tmp_path)).text
    assert any(line.split() == ["port", "9000", "(command", "line)"] for line in text.splitlines())
    assert any(line.split() == ["token", "given", "(environment)"] for line in text.splitlines())
    assert "s3cret" not in text
    assert "jupyter_port" not in text


def test_a_ready_pod_shows_its_queue_its_services_and_its_problems(site: Site, layout: Layout, tmp_path: Path) -> None:
    service = {"name": "comfyui", "state": "ready", "pid": 7, "restarts": 2, "last_exit": None, "safe_mode": True}
    body = snapshot(
        tmp_path, ready=True, phase="ready", services=[service], urls={"comfyui": "http://h:1"},
        comfyui={"version": "9", "queue_running": 1, "queue_pending": 4}, workspace={"free_bytes": 5_000_000},
        problems=[{"code": "x", "message": "a node is broken", "hint": "mend it"}],
    )  # fmt: skip
    body["boot"]["seconds_to_ready"] = 3.25
    result = show(site, layout, body)
    assert result.status == "success"
    words = " ".join(result.text.split())
    for part in (
        "ready after 3.2 s", "1 running, 4 pending", "5.0 MB free", "pid 7, 2 restarts, safe mode http://h:1",
        "PROBLEM a node is broken mend it",
    ):  # fmt: skip
        assert part in words


def test_models_that_are_not_there_yet_are_shown_with_how_far_they_are(
    site: Site, layout: Layout, tmp_path: Path
) -> None:
    def row(name: str, state: str, there: int, total: int, rate: int = 0, reason: str = "") -> dict[str, Any]:
        return {"name": name, "state": state, "bytes": there, "total": total, "rate": rate, "reason": reason}

    rows = [row("finished", "present", 9, 9), row("coming", "fetching", 2_000_000, 8_000_000, 1_000_000)]
    text = show(site, layout, snapshot(tmp_path, models=[*rows, row("bad", "wrong", 0, 0, 0, "a web page")])).text
    assert "finished" not in text
    lines = {line.split()[0]: " ".join(line.split()[1:]) for line in text.splitlines() if line.strip()}
    assert lines["coming"] == "fetching 2.0 MB of 8.0 MB, 1.0 MB/s"
    assert lines["bad"] == "wrong 0 B of an unknown size a web page"
    assert "models that" not in show(site, layout, snapshot(tmp_path, models=rows[:1])).text


def test_a_pod_that_does_not_answer_is_told_apart_from_none(layout: Layout) -> None:
    register(layout, f"http://127.0.0.1:{free_port()}")
    with pytest.raises(NotReadyError, match=f"pid {os.getpid()}") as caught:
        inspect.status(layout)
    assert "comfypod logs boot" in caught.value.hint
    with pytest.raises(NotRunningError, match="nothing answers"):
        inspect.health(layout, "/livez")
    layout.run_record.unlink()
    for ask in (inspect.status, lambda layout: inspect.health(layout, "/livez")):
        with pytest.raises(NotRunningError, match="no pod runs on the workspace"):
            ask(layout)


def test_a_probe_that_says_no_is_an_error_with_its_word(site: Site, layout: Layout) -> None:
    site.answers.update({"/livez": Answer(b"live\n"), "/readyz": Answer(b"starting\n", status=503)})
    result = inspect.health(layout, "/livez")
    assert (result.data, result.text) == ({"probe": "/livez", "word": "live"}, "live")
    with pytest.raises(NotReadyError, match="/readyz says 503 starting") as caught:
        inspect.health(layout, "/readyz")
    assert "comfypod status" in caught.value.hint


def test_the_end_of_a_log_is_shown(layout: Layout) -> None:
    (layout.logs / "comfyui.log").write_text("".join(f"{number}\n" for number in range(10)))
    result = inspect.logs(layout, "comfyui", 3, follow=False, console=Console(io.StringIO()))
    assert result.text == "7\n8\n9"
    assert result.data == {"path": str(layout.logs / "comfyui.log"), "lines": ["7", "8", "9"]}


@pytest.mark.parametrize("lines", [0, -2])
def test_no_lines_are_none(layout: Layout, lines: int) -> None:
    (layout.logs / "boot.log").write_text("one\ntwo\nthree\n")
    result = inspect.logs(layout, "boot", lines, follow=False, console=Console(io.StringIO()))
    assert result.data["lines"] == []


def test_a_log_that_is_not_there_is_named_with_its_path(layout: Layout) -> None:
    with pytest.raises(NotRunningError, match=r"there is no log .*jupyter\.log") as caught:
        inspect.logs(layout, "jupyter", 3, follow=False, console=Console(io.StringIO()))
    assert "--workspace" in caught.value.hint


class _Writer:
    """Stands in for `time.sleep` in `logs -f`: at each pause the next thing happens to the log, then Ctrl-C."""

    def __init__(self, path: Path, *texts: str) -> None:
        self._path, self._texts = path, list(texts)

    def __call__(self, _: float) -> None:
        if not self._texts:
            raise KeyboardInterrupt
        for text in self._texts.pop(0).split("+"):
            if text == "rotate":
                self._path.replace(self._path.with_suffix(".log.1"))
                self._path.write_text("")
            else:
                with self._path.open("a") as handle:
                    handle.write(text)


def followed(layout: Layout, monkeypatch: pytest.MonkeyPatch, *texts: str) -> list[str]:
    path, out = layout.logs / "comfyui.log", io.StringIO()
    path.write_text("old\n")
    monkeypatch.setattr("comfypod.host.inspect.time.sleep", _Writer(path, *texts))
    inspect.logs(layout, "comfyui", 5, follow=True, console=Console(out))
    return out.getvalue().splitlines()


def test_a_log_is_followed_until_ctrl_c_across_rotations(layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    found = followed(layout, monkeypatch, "one\n", "two\nthree\n", "rotate", "four\n")
    assert found == ["old", "one", "two", "three", "four"]


def test_lines_written_just_before_a_rotation_are_followed_too(layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    assert followed(layout, monkeypatch, "last\n+rotate", "new\n") == ["old", "last", "new"]


def test_a_line_that_is_written_in_pieces_stays_one_line(layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    assert followed(layout, monkeypatch, "half", " and half\n") == ["old", "half and half"]

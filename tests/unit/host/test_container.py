from __future__ import annotations

import io
import json
import os
from typing import TYPE_CHECKING, Any

import pytest

from comfypod import control, proc
from comfypod.errors import BusyError, ComfypodError, HostError, NotReadyError, StorageError
from comfypod.host import container
from comfypod.host.image import Choice
from comfypod.host.start import Start, name_of, run_options
from comfypod.host.up import Options
from comfypod.log import Console
from comfypod.settings import resolve
from comfypod.workspace import run
from comfypod.workspace.layout import Layout
from tests.kit.pods import free_port
from tests.unit.host import fakes
from tests.unit.host.fakes import FakeEngine, Memory, fake

if TYPE_CHECKING:
    from pathlib import Path

    from comfypod.image.facts import Container
    from comfypod.result import Result

_BOOT = run.Boot(7, 99, "pid:[1]")


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(container, "_LOOK_SECONDS", 0.0)
    monkeypatch.setattr(container, "_STARTING_SECONDS", 0.05)
    monkeypatch.setattr(container, "_REMOVAL_SECONDS", 0.05)


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    return Layout(tmp_path / "workspace")


@pytest.fixture
def out() -> io.StringIO:
    return io.StringIO()


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> FakeEngine:
    """Docker with an image `i`, and no other engine."""
    engine = fake(memory=Memory({"i": fakes.image(profile="cpu", variant="slim")}))
    monkeypatch.setattr(container, "find_image", lambda *_, **__: Choice(engine, "i", engine.memory.images["i"]))
    monkeypatch.setattr(container, "present", lambda: [engine])
    return engine


def labels(layout: Layout) -> dict[str, str]:
    options = run_options(layout, resolve({"workspace": str(layout.root)}, {}, {}))
    pairs = (options[at + 1].split("=", 1) for at, word in enumerate(options) if word == "--label")
    return dict(pairs)


def here(layout: Layout, state: str, **facts: Any) -> Container:
    return fakes.container(name_of(layout), state, labels(layout), **facts)


def up(layout: Layout, out: io.StringIO, *, detach: bool = True, wait: float = 5, **arguments: str) -> Result:
    given = {
        "workspace": str(layout.root), "port": str(free_port()), "control_port": str(free_port()), **arguments,
    }  # fmt: skip
    options = Options(given, detach=detach, wait=wait, engine="docker", image="i")
    return container.up(options, {"on_failure": "exit"}, None, Console(out))


def answering(monkeypatch: pytest.MonkeyPatch, layout: Layout, *, boot: run.Boot = _BOOT, **more: Any) -> None:
    """Let a pod answer; its record is there once a container was started."""
    shown = resolve({"workspace": "/workspace"}, {}, {}).shown()
    body = {
        "ready": True, "reasons": [], "urls": {"comfyui": "http://c"}, "services": [], "problems": [],
        "boot": {"pid": boot.pid, "namespace": boot.namespace, "seconds_to_ready": 1.0}, "settings": shown, **more,
    }  # fmt: skip

    def status(_: str) -> dict[str, Any]:
        layout.records.mkdir(exist_ok=True)
        run.write(layout.run_record, run.RunRecord(_BOOT, "http://127.0.0.1:1"))
        return body

    monkeypatch.setattr(control, "status", status)


def test_a_detached_pod_is_followed_until_it_is_ready(
    layout: Layout, engine: FakeEngine, out: io.StringIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    answering(monkeypatch, layout)
    engine.memory.containers["id"] = here(layout, "running")
    result = up(layout, out)
    assert (result.status, result.data["urls"]) == ("success", {"comfyui": "http://c"})
    (ran,) = engine.memory.done
    assert ran[:2] == ("run", "i")
    assert "--rm" not in ran[2]
    assert "--json" in ran[3]
    assert layout.root.is_dir()
    assert f"docker runs i as {name_of(layout)}" in out.getvalue()


def test_another_pod_at_the_same_address_is_not_taken_for_this_one(
    layout: Layout, engine: FakeEngine, out: io.StringIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    answering(monkeypatch, layout, boot=run.Boot(7, 99, "pid:[2]"))
    engine.memory.containers["id"] = here(layout, "running")
    with pytest.raises(NotReadyError, match="it does not answer yet"):
        up(layout, out, wait=0.3)
    assert [row[0] for row in engine.memory.done] == ["run"]


def test_a_record_that_is_closed_to_us_leaves_the_workspace_to_compare(
    layout: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    layout.records.mkdir(parents=True)
    layout.run_record.write_text("")
    start = Start(fake(), "i", layout, (), (), (), {})
    pod = container._Pod(start, "id", 1)
    monkeypatch.setattr("os.access", lambda _, mode: mode == os.F_OK)
    assert pod.owns({"settings": {"workspace": {"value": "/workspace"}}})
    assert not pod.owns({"settings": {"workspace": {"value": str(layout.root)}}})
    assert not pod.owns({})


def test_what_boot_said_before_it_died_is_the_error_with_paths_of_the_host(
    layout: Layout, engine: FakeEngine, out: io.StringIO
) -> None:
    problem = {"code": "storage", "message": "/workspace belongs to 1:1, /workspace/logs too", "hint": "/my/workspace"}
    engine.memory.said = "some line\n" + json.dumps({"command": "boot", "errors": [problem]})
    engine.memory.containers["id"] = here(layout, "exited", exit_code=8)
    with pytest.raises(StorageError) as caught:
        up(layout, out)
    assert caught.value.message == f"{layout.root} belongs to 1:1, {layout.root}/logs too"
    assert caught.value.hint == "/my/workspace"
    assert engine.memory.done[-1] == ("remove", "id")


@pytest.mark.parametrize(
    ("state", "words"),
    [
        ({"exit_code": 3}, "boot ended with 3: last words"),
        ({"exit_code": 137, "out_of_memory": True}, "ran out of memory"),
        (None, "was removed while it started"),
    ],
)
def test_a_container_that_died_without_an_envelope_is_explained(
    layout: Layout, engine: FakeEngine, out: io.StringIO, state: dict[str, Any] | None, words: str
) -> None:
    engine.memory.said = "first\nlast words\n"
    if state is not None:
        engine.memory.containers["id"] = here(layout, "exited", **state)
    with pytest.raises(ComfypodError, match=words.replace("last words", "first / last words")):
        up(layout, out)


def test_an_interrupt_stops_the_container_and_a_second_one_removes_it_at_once(
    layout: Layout, engine: FakeEngine, out: io.StringIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(control, "status", interrupt)
    engine.memory.containers["id"] = here(layout, "running")
    with pytest.raises(KeyboardInterrupt):
        up(layout, out, stop_seconds="3")
    assert engine.memory.done[-2:] == [("stop", "id", 21.0), ("remove", "id")]
    monkeypatch.setattr(FakeEngine, "stop", interrupt)
    with pytest.raises(KeyboardInterrupt):
        up(layout, out)
    assert engine.memory.done[-1] == ("remove", "id")


@pytest.mark.parametrize(("state", "lives"), [("running", True), ("paused", True), ("exited", False), ("dead", False)])
def test_a_container_that_lives_is_in_use_and_a_dead_one_is_removed(
    layout: Layout, engine: FakeEngine, out: io.StringIO, state: str, lives: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine.memory.containers[name_of(layout)] = here(layout, state)
    engine.memory.containers["id"] = here(layout, "running")
    answering(monkeypatch, layout)
    if lives:
        with pytest.raises(BusyError, match=f"is in use by the container {name_of(layout)}") as caught:
            up(layout, out)
        assert "comfypod down" in caught.value.hint
        assert engine.memory.done == []
    else:
        up(layout, out)
        assert [row[0] for row in engine.memory.done] == ["remove", "run"]


def test_a_container_that_is_about_to_start_is_waited_for(
    layout: Layout, engine: FakeEngine, out: io.StringIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine.memory.later = [here(layout, "created"), here(layout, "created"), here(layout, "running")]
    with pytest.raises(BusyError):
        up(layout, out)
    engine.memory.later = [here(layout, "removing"), here(layout, "removing"), None]
    engine.memory.containers["id"] = here(layout, "running")
    answering(monkeypatch, layout)
    up(layout, out)
    assert [row[0] for row in engine.memory.done] == ["run"]


def test_a_container_of_that_name_without_our_label_is_left_alone(
    layout: Layout, engine: FakeEngine, out: io.StringIO
) -> None:
    engine.memory.containers[name_of(layout)] = fakes.container(name_of(layout), "exited", {})
    with pytest.raises(HostError, match="comfypod did not make"):
        up(layout, out)
    assert container.down(layout, Console(out)) is None
    assert engine.memory.done == []


def test_the_second_of_two_ups_at_once_is_told_who_was_first(
    layout: Layout, engine: FakeEngine, out: io.StringIO
) -> None:
    engine.memory.later = [None, here(layout, "running")]
    engine.memory.refusal = "Conflict. The container name is already in use"
    with pytest.raises(BusyError, match="is in use by the container"):
        up(layout, out)


@pytest.mark.parametrize("detach", [True, False])
def test_a_gpu_that_is_refused_comes_with_what_to_install(
    layout: Layout, engine: FakeEngine, out: io.StringIO, detach: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(container, "gpu_options", lambda *_, **__: ("--gpus", "all"))
    engine.memory.refusal = "could not select device driver"
    with pytest.raises(HostError, match="could not select device driver") as caught:
        up(layout, out, detach=detach)
    assert "nvidia-container-toolkit" in caught.value.hint
    assert "--gpus" in engine.memory.done[0][2]


def test_any_other_refusal_is_the_engines(layout: Layout, engine: FakeEngine, out: io.StringIO) -> None:
    engine.memory.refusal = "no space left on device"
    with pytest.raises(HostError, match="no space left") as caught:
        up(layout, out)
    assert caught.value.hint == "info"


def test_in_the_foreground_up_becomes_the_client_and_secrets_are_in_no_argument(
    layout: Layout, engine: FakeEngine, out: io.StringIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    became: list[Any] = []

    class ReplacedError(Exception):
        pass

    def replace(argv: list[str], env: dict[str, str]) -> None:
        became.extend([argv, env])
        raise ReplacedError

    monkeypatch.setattr(proc, "replace", replace)
    monkeypatch.setenv("COMFYPOD_TOKEN", "canary")
    with pytest.raises(ReplacedError):
        up(layout, out, detach=False)
    argv, environ = became
    assert argv[:2] == ["/usr/bin/docker", "run"]
    assert "--rm" in argv
    assert "--json" not in argv
    assert argv[argv.index("COMFYPOD_TOKEN") - 1] == "--env"
    assert not any("canary" in word for word in argv)
    assert environ["COMFYPOD_TOKEN"] == "canary"


def test_down_stops_within_the_pods_own_time_and_says_when_it_was_killed(
    layout: Layout, engine: FakeEngine, out: io.StringIO
) -> None:
    engine.memory.later = [here(layout, "running"), here(layout, "exited", exit_code=0)]
    result = container.down(layout, Console(out))
    assert result is not None
    assert result.text.startswith("stopped in ")
    assert engine.memory.done == [("stop", "id", 23.0), ("remove", "id")]
    engine.memory.later = [here(layout, "running"), here(layout, "exited", exit_code=137)]
    result = container.down(layout, Console(out))
    assert result is not None
    assert result.data["forced"]
    assert "WARNING the pod did not stop by itself" in out.getvalue()
    engine.memory.later = [here(layout, "exited", exit_code=137), None]
    result = container.down(layout, Console(out))
    assert result is not None
    assert result.text == f"removed the container {name_of(layout)}, which had ended"


def test_a_container_that_its_engine_removes_at_the_same_time_is_no_error(
    layout: Layout, engine: FakeEngine, out: io.StringIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> bool:
        raise HostError("removal of container id is already in progress")

    monkeypatch.setattr(FakeEngine, "remove", refuse)
    engine.memory.later = [here(layout, "running"), here(layout, "removing"), here(layout, "removing"), None]
    assert container.down(layout, Console(out)) is not None
    engine.memory.containers = {name_of(layout): here(layout, "running"), "id": here(layout, "exited")}
    with pytest.raises(HostError, match="already in progress"):
        container.down(layout, Console(out))

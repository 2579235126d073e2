from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from comfypod.boot import httpd, prompts
from comfypod.boot.health import Health
from comfypod.boot.process import State
from comfypod.boot.prompts import Finished, Observer, finished
from tests.unit.boot.test_health import POD, supervised

_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(
        st.sampled_from(["status", "messages", "status_str", "timestamp", "execution_start"]), inner, max_size=3),
    max_leaves=12,
)  # fmt: skip


def _entry(end: str = "execution_success", start: int = 1000, stop: int = 3500, **status: Any) -> dict[str, Any]:
    messages = [["execution_start", {"prompt_id": "p", "timestamp": start}], ["execution_cached", {"nodes": []}],
                [end, {"prompt_id": "p", "timestamp": stop}]]  # fmt: skip
    said = "success" if end == "execution_success" else "error"
    return {"prompt": [], "outputs": {}, "status": {"status_str": said, "messages": messages, **status}}


@pytest.mark.parametrize(
    ("entry", "expected"),
    [
        (_entry(), Finished("done", 2.5)),
        (_entry("execution_error"), Finished("failed", 2.5)),
        (_entry("execution_interrupted"), Finished("interrupted", 2.5)),
        (_entry(messages=[]), Finished("done", None)),
        (_entry("execution_error", messages=None), Finished("failed", None)),
        (_entry(stop=900), Finished("done", None)),
        (_entry(stop=10**400), Finished("done", None)),
        ({"status": None}, None),
        ({"status": {"status_str": "other"}}, None),
    ],
)
def test_an_entry_of_the_history_says_how_a_prompt_ended(entry: object, expected: Finished | None) -> None:
    assert finished(entry) == expected


@given(_JSON)
def test_no_entry_crashes_the_reader(entry: object) -> None:
    finished(entry)
    finished({"status": entry})
    finished({"status": {"status_str": "success", "messages": [["execution_start", entry], entry]}})


class _ComfyUI:
    """A ComfyUI with a queue and a history."""

    def __init__(self) -> None:
        self.history: dict[str, Any] = {}
        self.remaining = 0
        self.asked: list[str] = []

    async def get(self, host: str, port: int, path: str, seconds: float) -> httpd.Answer:
        """Stand in for `httpd.get`; `max_items` means the latest ones, as in ComfyUI."""
        self.asked.append(path)
        body: Any = {"exec_info": {"queue_remaining": self.remaining}}
        if path != "/prompt":
            body = dict(list(self.history.items())[-int(path.partition("?max_items=")[2]) :])
        return httpd.Answer(200, json.dumps(body).encode())


@pytest.fixture
def comfyui(monkeypatch: pytest.MonkeyPatch) -> _ComfyUI:
    made = _ComfyUI()
    monkeypatch.setattr(httpd, "get", made.get)
    return made


def _ready() -> Health:
    return Health(POD, 0.0, services=[supervised(State.READY)])


def _look(observer: Observer, times: int = 1) -> None:
    for _ in range(times):
        asyncio.run(observer.look())


def test_every_prompt_is_counted_once_however_often_it_is_seen(comfyui: _ComfyUI) -> None:
    health, comfyui.remaining = _ready(), 1
    observer = Observer(health)
    comfyui.history = {"a": _entry(), "b": _entry("execution_error")}
    _look(observer, 3)
    comfyui.history["c"] = _entry()
    _look(observer, 2)
    assert health.prompts.finished == {"done": 2, "failed": 1, "interrupted": 0}
    assert health.prompts.seconds["done"].total == 5.0


def test_many_that_ended_between_two_looks_are_all_counted(comfyui: _ComfyUI) -> None:
    health, comfyui.remaining = _ready(), 1
    observer = Observer(health)
    for end in (1, 9, 72):
        comfyui.history |= {str(number): _entry() for number in range(len(comfyui.history), end)}
        _look(observer)
        assert health.prompts.finished["done"] == end


def test_a_prompt_too_short_to_be_seen_in_the_queue_is_counted(comfyui: _ComfyUI) -> None:
    health = _ready()
    observer = Observer(health)
    comfyui.history = {"a": _entry()}
    _look(observer, 5)
    assert health.prompts.finished["done"] == 1
    assert comfyui.asked.count("/prompt") == 5


def test_a_long_prompt_does_not_make_comfyui_send_its_whole_history_again_and_again(comfyui: _ComfyUI) -> None:
    comfyui.remaining = 1
    comfyui.history = {str(number): _entry() for number in range(64)}
    observer = Observer(_ready())
    _look(observer)
    comfyui.asked.clear()
    _look(observer, 3)
    assert comfyui.asked == ["/prompt", "/history?max_items=1"] * 3


def test_memory_of_ids_is_bounded(comfyui: _ComfyUI) -> None:
    comfyui.remaining = 1
    observer = Observer(_ready())
    for start in range(0, 3000, 60):
        comfyui.history = {f"{number}" * 100: _entry() for number in range(start, start + 60)}
        _look(observer)
    assert len(observer._known) <= 1024
    assert max(map(len, observer._known)) <= 64


def test_a_comfyui_that_is_not_ready_is_not_asked(comfyui: _ComfyUI) -> None:
    _look(Observer(Health(POD, 0.0, services=[supervised(State.STARTING)])))
    assert comfyui.asked == []


def test_answers_that_are_no_history_count_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    bodies = [b"", b"[]", b"{}", b'{"exec_info": 1}', b"[" * 100_000, b'{"exec_info": {"queue_remaining": 1}}']
    for body in bodies:
        health = _ready()

        async def get(*_: object, body: bytes = body) -> httpd.Answer:
            return httpd.Answer(200, body)

        monkeypatch.setattr(httpd, "get", get)
        _look(Observer(health))
        assert sum(health.prompts.finished.values()) == 0
        assert asyncio.run(prompts.queue(health)) == {}


def test_queue_lengths_are_those_of_comfyui_over_http() -> None:
    async def scenario() -> dict[str, int]:
        async def answer(path: str, query: str) -> httpd.Answer:
            assert path == "/queue"
            return httpd.Answer(200, b'{"queue_running": [1], "queue_pending": [1, 2]}')

        server = await httpd.serve("127.0.0.1", 0, answer)
        health = _ready()
        comfyui = health.services[0]
        comfyui.service = replace(comfyui.service, port=server.sockets[0].getsockname()[1])
        try:
            return await prompts.queue(health)
        finally:
            server.close()

    assert asyncio.run(scenario()) == {"queue_running": 1, "queue_pending": 2}

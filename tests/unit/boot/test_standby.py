"""When boot makes a standby, pauses it and ends it: the real launcher around the stand-in."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from comfypod import proc
from comfypod.boot import standby
from comfypod.boot.context import Surroundings
from comfypod.boot.guardline import LAUNCHER, GuardLine
from comfypod.boot.policy import Limits
from comfypod.boot.process import State, Supervised
from comfypod.boot.services import Service
from comfypod.boot.standby import Standby, fits, is_on
from tests.kit import standin
from tests.kit.pods import free_port
from tests.unit.boot.contexts import context_of
from tests.unit.boot.test_services import settings_of

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

_GIB = 1 << 30


@pytest.mark.parametrize(
    ("setting", "argument", "on"),
    [("auto", "--cpu", True), ("auto", "--lowvram", False), ("on", "--lowvram", True), ("off", "--cpu", False)],
)
def test_on_a_gpu_there_is_one_only_where_that_was_asked_for(setting: str, argument: str, on: bool) -> None:
    assert is_on(settings_of(standby=setting), ("python", argument)) is on


@given(st.integers(0, 8 * _GIB), st.integers(1, 4 * _GIB))
def test_one_that_is_made_is_not_ended_for_the_memory_that_it_takes(free: int, size: int) -> None:
    if fits(free, size, there=False):
        assert fits(free - size, size, there=True)
    assert fits(None, size, there=False)


@dataclass
class _Pod:
    """ComfyUI and its standby, in a control group that the test writes."""

    folder: Path
    said: list[bytes] = field(default_factory=list)

    def __post_init__(self) -> None:
        cgroup = self.folder / "cgroup"
        cgroup.mkdir()
        (cgroup / "memory.max").write_text(f"{8 * _GIB}\n")
        self.use(0)
        self.kills(0)
        context = context_of(self.folder, environ={"COMFYPOD_STANDBY": "on"})
        self.context = replace(context, surroundings=Surroundings(cgroup=cgroup))
        self.beside, self.line = Standby(self.context), GuardLine(lambda _: None)
        self.line.tell(0.0, {})
        service = self.beside.known_to(self._service())
        self.comfyui = Supervised(service, self.said.append, lambda _: None, cgroup, None, self.beside.start)
        self.context.health.services.append(self.comfyui)

    def use(self, size: int) -> None:
        (self.folder / "cgroup" / "memory.current").write_text(f"{size}\n")

    def kills(self, count: int) -> None:
        (self.folder / "cgroup" / "memory.events").write_text(f"oom_kill {count}\n")

    def _service(self) -> Service:
        tree, port = self.folder / "pristine", free_port()
        argv = (
            sys.executable, str(LAUNCHER), ",".join(map(str, self.line.descriptors)), str(tree / "main.py"),
            "--listen", "127.0.0.1", "--port", str(port),
        )  # fmt: skip
        orders = standin.orders(self.folder, standin.Orders())
        return Service(
            name="comfyui", argv=argv, safe_argv=(*argv, "--disable-all-custom-nodes"),
            env={**os.environ, "STANDIN_ORDERS": str(orders)}, cwd=tree, host="127.0.0.1", port=port,
            path="/system_stats", critical=True, limits=Limits(), stop_seconds=4, keep=self.line.descriptors,
        )  # fmt: skip

    @property
    def state(self) -> str:
        return self.context.health.standby.state

    @property
    def pid(self) -> int:
        made: Any = self.beside._made
        return int(made.pid) if made is not None else 0

    def serves(self) -> bool:
        return self.comfyui.state is State.READY

    def play(self, scenario: Callable[[_Pod], Coroutine[None, None, None]]) -> None:
        """Run ComfyUI and what looks after the standby, and the scenario beside them."""

        async def work() -> None:
            tasks = [asyncio.create_task(self.comfyui.run()), asyncio.create_task(self.beside.run())]
            try:
                await scenario(self)
            finally:
                tasks[1].cancel()
                await self.comfyui.stop()
                await asyncio.gather(*tasks, return_exceptions=True)

        asyncio.run(work())


async def _until(done: Callable[[], object]) -> None:
    async with asyncio.timeout(30):
        while not done():  # noqa: ASYNC110 - it is other processes that are waited for
            await asyncio.sleep(0.01)


@pytest.fixture
def pod(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> _Pod:
    monkeypatch.setattr(standby, "_LOOK_SECONDS", 0.02)
    monkeypatch.setattr(standby, "_CALM_SECONDS", 0.0)
    return _Pod(tmp_path)


def test_there_is_none_while_memory_is_short_and_one_that_is_there_is_ended(pod: _Pod) -> None:
    async def scenario(pod: _Pod) -> None:
        pod.use(7 * _GIB)
        await _until(lambda: pod.serves() and pod.state == "short of memory")
        pod.use(5 * _GIB)
        await _until(lambda: pod.state == "waiting")
        pid = pod.pid
        assert 0 < pod.context.health.standby.memory_bytes < _GIB
        pod.use(8 * _GIB - 4096)
        await _until(lambda: pod.state == "short of memory" and proc.start_ticks(pid) is None)
        assert pod.serves()
        pod.use(7 * _GIB)
        # What one takes is known by now.
        await _until(lambda: pod.state == "waiting" and pod.pid != pid)

    pod.play(scenario)


def _stat(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def test_one_that_is_being_prepared_rests_while_a_prompt_is_at_work(pod: _Pod) -> None:
    gate = pod.folder / "gate"
    gate.touch()
    (pod.folder / "pristine" / "cuda_malloc.py").write_text(
        f"import os, time\nwhile not os.path.exists({str(gate)!r}): time.sleep(0.01)\n"
    )

    async def scenario(pod: _Pod) -> None:
        await _until(pod.serves)
        gate.unlink()
        await _until(lambda: pod.state == "preparing")
        pod.comfyui.prompts = 1
        await _until(lambda: _stat(pod.pid) == "T")
        gate.touch()
        pod.comfyui.prompts = 0
        await _until(lambda: pod.state == "waiting")
        assert _stat(pod.pid) == "S"
        pod.comfyui.prompts = 1
        pid = pod.pid
        assert await pod.comfyui.restart(pod.comfyui.attempts)
        await _until(lambda: pod.serves() and pod.comfyui.pid == pid)
        await _until(lambda: pod.context.health.standby.starts == 1)

    pod.play(scenario)


def test_one_that_is_not_waiting_yet_is_ended_and_a_plain_start_made(pod: _Pod) -> None:
    gate = pod.folder / "gate"
    # The first start makes a file, and whoever finds it waits at the gate.
    (pod.folder / "pristine" / "cuda_malloc.py").write_text(
        "import os, time\n"
        f"if os.path.exists({str(gate)!r} + '-keeper') and not os.path.exists({str(gate)!r}): time.sleep(3600)\n"
        f"open({str(gate)!r} + '-keeper', 'w').close()\n"
    )

    async def scenario(pod: _Pod) -> None:
        await _until(pod.serves)
        await _until(lambda: pod.state == "preparing")
        pid, before = pod.pid, pod.comfyui.pid
        gate.touch()
        assert await pod.comfyui.restart(pod.comfyui.attempts)
        await _until(lambda: pod.serves() and pod.comfyui.pid not in (pid, before))
        assert proc.start_ticks(pid) is None
        assert pod.context.health.standby.starts == 0

    pod.play(scenario)


def test_one_that_dies_is_not_made_again_beside_the_same_comfyui_nor_its_end_taken_for_comfyuis(pod: _Pod) -> None:
    async def scenario(pod: _Pod) -> None:
        await _until(lambda: pod.state == "waiting")
        pod.kills(1)
        os.kill(pod.pid, signal.SIGKILL)
        await _until(lambda: pod.state == "none")
        for _ in range(20):
            await asyncio.sleep(0.02)
            assert (pod.state, pod.pid) == ("none", 0)
        assert pod.comfyui.pid is not None
        os.kill(pod.comfyui.pid, signal.SIGKILL)
        await _until(lambda: pod.comfyui.restarts_by_cause["signal"] == 1)
        assert pod.comfyui.cause is None
        await _until(lambda: pod.state == "waiting")

    pod.play(scenario)


def test_what_comes_from_it_before_it_is_comfyui_is_logged_when_it_is(pod: _Pod) -> None:
    (pod.folder / "pristine" / "cuda_malloc.py").write_text("import os\nprint('from', os.getpid(), flush=True)\n")

    async def scenario(pod: _Pod) -> None:
        await _until(lambda: pod.state == "waiting")
        pid, line = pod.pid, f"from {pod.pid}\n".encode()
        assert line not in b"".join(pod.said)
        assert await pod.comfyui.restart(pod.comfyui.attempts)
        await _until(lambda: pod.serves() and pod.comfyui.pid == pid)
        assert b"".join(pod.said).count(line) == 1

    pod.play(scenario)


def test_one_ends_when_nobody_looks_after_it_any_more(pod: _Pod) -> None:
    pids: list[int] = []

    async def scenario(pod: _Pod) -> None:
        await _until(lambda: pod.state == "waiting")
        pids.append(pod.pid)

    pod.play(scenario)
    assert proc.start_ticks(*pids) is None

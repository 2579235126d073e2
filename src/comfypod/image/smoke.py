"""The smoke test: what an image must do before it gets a tag, in a container without a network."""

from __future__ import annotations

import json
import os
import re
import time
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from functools import partial
from importlib import resources
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

from comfypod.errors import HostError, ImageError, ServiceError
from comfypod.image import recipe as made
from comfypod.image import structure, workflow

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from comfypod.image.engine import Engine
    from comfypod.image.plan import Plan
    from comfypod.log import Console

# What a container without a GPU, and without a disk of its own, is told rightly.
EXPECTED = frozenset({"no-gpu", "not-a-mount"})
LABEL = "io.comfypod.smoke"

_READY_SECONDS = 900.0
_JUPYTER_SECONDS = 120.0
_STOP_SECONDS = 30.0
_POLL_SECONDS = 1.0
_NEWS_SECONDS = 15.0
# Emulation runs Python about ten times slower.
_EMULATED = 10.0
_LOG = "/workspace/logs/comfyui.log"
# ComfyUI may colour its log, and puts its level before what it says.
_DRESS = re.compile(r"^(?:\x1b\[[0-9;]*m)*\[[A-Z]+\](?:\x1b\[[0-9;]*m)* |\x1b\[[0-9;]*m", re.MULTILINE)
_IMPORT = re.compile(r"^\s*[\d.]+ seconds(?P<failed> \(IMPORT FAILED\))?: (?P<path>\S.*)$", re.MULTILINE)
_CANNOT = re.compile(r"Cannot import (?P<path>.+?) module for custom nodes: (?P<reason>.*)")
_OURS = re.compile(r"^(?:WARNING|ERROR) (?P<text>.*)$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that was tried and went well: in how many seconds, and what was seen."""

    name: str
    seconds: float
    detail: str


@dataclass(frozen=True, slots=True)
class _Pod:
    """The container under test."""

    engine: Engine
    container: str
    patience: float

    def status(self) -> dict[str, Any] | None:
        """Return `/status`, None when nothing answers yet."""
        done = self.engine.exec(self.container, ["comfypod", "status", "--json"], seconds=60 * self.patience)
        try:
            body: dict[str, Any] = json.loads(done.stdout)
        except ValueError:
            return None
        return body["data"] or None

    def read(self, path: str) -> str:
        """Return a file's text, nothing where it is not there."""
        done = self.engine.exec(self.container, ["cat", path], seconds=60.0)
        return done.stdout if done.ok else ""


def smoke(engine: Engine, image: str, wanted: Plan, console: Console) -> list[Check]:
    """Try an image; return what was tried. The container and its volume are removed whatever happens.

    Raises:
        ServiceError: it does not become ready.
        ImageError: it starts, and something in it does not work; a node is named.
        HostError: the engine or container-structure-test does not work.
    """
    checks: list[Check] = []

    def tried(name: str, work: Callable[[], str]) -> None:
        begun = time.monotonic()
        detail = work()
        checks.append(Check(name, seconds=round(time.monotonic() - begun, 1), detail=detail))
        console.line(f"  {wanted.name} {name}: {detail} ({checks[-1].seconds:.1f} s)")

    tried("structure", lambda: f"{len(structure.check(engine, image, wanted))} rules are kept")
    with ExitStack() as undo:
        options = ["--network", "none", "--volume", "/workspace", "--label", f"{LABEL}=1"]
        if wanted.emulated:
            options += ["--platform", wanted.platform]
        container = engine.run(image, options, (), {"COMFYPOD_ALLOW_CPU": "1", "COMFYPOD_TOKEN": os.urandom(24).hex()})
        undo.callback(_remove, engine, container)
        pod = _Pod(engine, container, _EMULATED if wanted.emulated else 1.0)
        tried("boot", lambda: _boots(pod, wanted, console))
        tried("nodes", lambda: nodes_import(pod.read(_LOG), [node.name for node in wanted.recipe.nodes]))
        tried("record", lambda: _is_recorded(pod.status() or {}))
        tried("workflow", partial(_renders, pod))
        if wanted.variant == "full" and any(layer.venv == made.JUPYTER for layer in wanted.recipe.packages):
            tried("jupyter", partial(_jupyter_answers, pod))
        lacking = [model.name for model in wanted.recipe.lock.models if not model.bake]
        tried("logs", lambda: quiet(engine.logs(container), (pod.status() or {}).get("problems", ()), lacking))
        tried("stop", partial(_stops, pod))
    return checks


def _remove(engine: Engine, container: str) -> None:
    """Remove the container; an engine that has gone away meanwhile must not hide why."""
    with suppress(HostError):
        engine.remove(container)


def _boots(pod: _Pod, wanted: Plan, console: Console) -> str:
    seconds = _READY_SECONDS * pod.patience
    deadline, last, told = time.monotonic() + seconds, "it does not answer yet", 0.0
    while time.monotonic() < deadline:
        _ensure_runs(pod)
        status = pod.status()
        if status is not None and status["ready"]:
            return f"ready after {status['boot']['seconds_to_ready'] or 0:.1f} s"
        reasons = "; ".join(status["reasons"]) if status is not None else last
        if status is not None and status["phase"] == "failed":
            raise ServiceError(f"the image does not start: {reasons}; {_last_words(pod)}")
        if reasons != last or time.monotonic() - told > _NEWS_SECONDS:
            console.line(f"  {wanted.name} boot: {reasons}")
            last, told = reasons, time.monotonic()
        time.sleep(_POLL_SECONDS)
    raise ServiceError(f"the image is not ready after {seconds:.0f} s: {last}; {_last_words(pod)}")


def _ensure_runs(pod: _Pod) -> None:
    state = pod.engine.container(pod.container)
    if state is None or not state.running:
        code = "" if state is None else f" with {state.exit_code}"
        memory = " for want of memory" if state is not None and state.out_of_memory else ""
        raise ServiceError(f"the image's container ended{code}{memory}: {_tail(pod.engine.logs(pod.container, 20))}")


def _last_words(pod: _Pod) -> str:
    return f"its last lines: {_tail(pod.read(_LOG) or pod.engine.logs(pod.container, 20))}"


def _tail(text: str) -> str:
    return " / ".join([line.strip() for line in text.splitlines() if line.strip()][-3:]) or "none"


def nodes_import(log: str, wanted: Iterable[str]) -> str:
    """Read in ComfyUI's log that every baked node was imported.

    Raises:
        ImageError: some were not; each is named with the reason.
    """
    names, log = list(wanted), _DRESS.sub("", log)
    failed = {PurePosixPath(found["path"]).name: bool(found["failed"]) for found in _IMPORT.finditer(log)}
    reasons = {PurePosixPath(found["path"]).name: found["reason"] for found in _CANNOT.finditer(log)}
    broken = [
        f"{name}: {reasons.get(name, 'it raised an error')}" if failed.get(name) else f"{name}: ComfyUI did not see it"
        for name in names
        if failed.get(name, True)
    ]
    if broken:
        raise ImageError(
            f"{len(broken)} of {len(names)} baked nodes cannot be imported: {'; '.join(broken)}",
            "mend the node's requirements in comfypod.toml or leave it out, then run `comfypod lock`",
        )
    return f"{len(names)} of {len(names)} import" if names else "none is baked in"


def _is_recorded(status: Mapping[str, Any]) -> str:
    """Tell whether starts on a cold disk are helped; an image works without."""
    view = status.get("cold_start") or {}
    return "imports come from the record of a start" if view.get("state") == "used" else f"none: {view.get('reason')}"


def _renders(pod: _Pod) -> str:
    text = resources.files("comfypod.image").joinpath("workflow.py").read_text("utf-8")
    url = ((pod.status() or {}).get("urls") or {}).get("comfyui", "http://127.0.0.1:8188")
    argv = [f"{made.COMFYPOD}/bin/python", "-I", "-c", text, url]
    return picture(pod.engine.exec(pod.container, argv, seconds=400 * pod.patience))


def picture(done: Any) -> str:
    """Judge what the workflow printed.

    Raises:
        ImageError: there is no picture, or another one than was asked for.
    """
    if not done.ok:
        reason = "it took too long" if done.timed_out else _tail(done.stderr)
        raise ImageError(f"a workflow does not run in the image: {reason}")
    found = json.loads(done.stdout)
    wanted = {"width": workflow.SIZE[0], "height": workflow.SIZE[1], "colours": [list(workflow.COLOUR)]}
    if found != wanted:
        raise ImageError(f"a workflow made another picture than was asked for: {found}, and not {wanted}")
    return f"a picture of {found['width']} x {found['height']}"


def _jupyter_answers(pod: _Pod) -> str:
    deadline = time.monotonic() + _JUPYTER_SECONDS * pod.patience
    state = "not started"
    while time.monotonic() < deadline:
        services = (pod.status() or {}).get("services", ())
        state = next((service["state"] for service in services if service["name"] == "jupyter"), state)
        if state == "ready":
            return "it answers"
        time.sleep(_POLL_SECONDS)
    raise ImageError(f"JupyterLab does not answer in the image: it is {state}")


def quiet(log: str, problems: Iterable[Mapping[str, str]], lacking: Iterable[str] = ()) -> str:
    """Make sure that comfypod itself warned of nothing but what a container without a GPU is told.

    Nor has it the models `lacking` in the image, which it would fetch.

    Raises:
        ImageError: there are other problems or lines.
    """
    models = tuple(lacking)

    def is_expected(problem: Mapping[str, str]) -> bool:
        return problem["code"] in EXPECTED or any(model in problem["message"] for model in models)

    problems = list(problems)
    expected = tuple(problem["message"] for problem in problems if is_expected(problem))
    found = [f"{problem['code']}: {problem['message']}" for problem in problems if not is_expected(problem)]
    found += [line["text"] for line in _OURS.finditer(log) if not line["text"].startswith(expected)]
    if found:
        raise ImageError(f"the image starts with warnings: {'; '.join(dict.fromkeys(found))}")
    return "no warning" if not expected else f"no warning but {len(expected)} expected here"


def _stops(pod: _Pod) -> str:
    pod.engine.stop(pod.container, _STOP_SECONDS * pod.patience)
    state = pod.engine.container(pod.container)
    if state is None or state.exit_code != 0:
        code = "nothing" if state is None else state.exit_code
        raise ImageError(f"the image does not stop in order: it ended with {code}")
    return "in order"

from __future__ import annotations

import json
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from comfypod.boot.health import Check, Health, StageView, sentence
from comfypod.boot.policy import Attempts, Cause, Limits
from comfypod.boot.process import State, Supervised
from comfypod.boot.services import Service
from comfypod.errors import Problem
from comfypod.podfile import PodFile

POD = PodFile(
    profile="cpu", arch="x86_64", lock="0" * 64, comfyui_version="0.30.0", comfyui_digest="sha256:" + "a" * 64,
    comfyui_path="/opt/comfyui", environment_key="k", torch="2.0", python="/opt/venv/bin/python",
)  # fmt: skip
STATUS = {
    "phase": str, "ready": bool, "reasons": list, "stages": list, "services": list, "comfyui": dict,
    "identity": dict, "workspace": dict, "environment": dict, "nodes": list, "models": list, "problems": list,
    "memory": dict,
}  # fmt: skip


def supervised(state: State, *, critical: bool = True, last_exit: int | None = None) -> Supervised:
    name = "comfyui" if critical else "jupyter"
    service = Service(
        name=name, argv=("x",), safe_argv=("x",), env={}, cwd=Path("/"), host="127.0.0.1", port=1, path="/",
        critical=critical, limits=Limits(), stop_seconds=1,
    )  # fmt: skip
    made = Supervised(service, lambda _: None, lambda _: None)
    made.state, made.last_exit, made.failing = state, last_exit, last_exit is not None
    made.attempts = Attempts(delay=2.0)
    return made


_EXITS = st.none() | st.integers(-64, 255)
_STAGES = st.lists(
    st.builds(
        StageView, st.sampled_from(["workspace", "port"]),
        st.sampled_from(["waiting", "running", "done", "degraded", "failed"]), st.floats(0, 9), st.text(max_size=5),
    ),
    max_size=3,
)  # fmt: skip
_SERVICES = st.just(list[Supervised]()) | st.tuples(
    st.builds(supervised, st.sampled_from(State), critical=st.just(True), last_exit=_EXITS),
    st.builds(supervised, st.sampled_from(State), critical=st.just(False), last_exit=_EXITS),
).map(list)
_HEALTH = st.builds(
    Health, st.just(POD), st.just(0.0), stages=_STAGES, services=_SERVICES,
    problems=st.lists(st.builds(Problem, st.text(), st.text(), st.text()), max_size=2),
    stopping=st.booleans(), failed=st.sampled_from(["", "the disk is full"]),
    checks=st.dictionaries(
        st.sampled_from(["disk", "queue"]), st.builds(Check, st.booleans(), st.sampled_from(["queue 2", "disk 0 B"])),
    ),
)  # fmt: skip


@given(_HEALTH)
def test_ready_is_when_comfyui_answers_and_nothing_else_is_wrong(health: Health) -> None:
    comfyui = [service.state for service in health.services if service.service.critical]
    well = all(check.well for check in health.checks.values())
    assert health.answers is (comfyui == [State.READY] and not health.stopping and not health.failed)
    assert health.ready is (health.answers and well)
    assert health.ready is (health.phase == "ready")
    assert (health.phase == "degraded") is (health.answers and not well)


@given(_HEALTH)
def test_there_are_reasons_exactly_when_the_pod_is_not_ready(health: Health) -> None:
    assert bool(health.reasons) is not health.ready
    assert all(isinstance(reason, str) and reason for reason in health.reasons)
    assert [row.text for row in health.rows() if not row.well] == health.reasons


@given(_HEALTH)
def test_a_snapshot_is_json_with_every_field_of_the_status(health: Health) -> None:
    found = json.loads(json.dumps(health.snapshot()))
    for name, kind in STATUS.items():
        assert isinstance(found[name], kind), name
    assert all({"name", "state", "seconds", "detail"} <= set(row) for row in found["stages"])
    assert all({"name", "state", "pid", "restarts", "last_exit"} <= set(row) for row in found["services"])
    assert {"version", "queue_running", "queue_pending"} <= set(found["comfyui"])
    assert {"key", "changed"} <= set(found["environment"])
    assert all(set(row) == {"code", "message", "hint"} for row in found["problems"])
    assert (found["phase"], found["ready"], found["reasons"]) == (health.phase, health.ready, health.reasons)


@given(_HEALTH, st.sampled_from(State))
def test_jupyterlab_alone_changes_nothing_about_readiness(health: Health, state: State) -> None:
    before = (health.phase, health.reasons)
    for service in health.services:
        if not service.service.critical:
            service.state = state
    assert (health.phase, health.reasons) == before


def test_a_pod_on_its_way_out_says_that_and_nothing_else() -> None:
    failed = [supervised(State.FAILED)]
    health = Health(POD, 0.0, services=failed, stopping=True, failed="the disk is full")
    assert (health.phase, health.reasons) == ("stopping", ["the pod is stopping"])


def test_a_stage_that_failed_is_the_reason() -> None:
    health = Health(POD, 0.0, stages=[StageView("workspace", "failed")], failed="the disk is full")
    assert (health.phase, health.reasons) == ("failed", ["the disk is full"])


def test_a_stage_at_work_is_the_reason_with_how_far_it_is() -> None:
    stages = [StageView("workspace", "running", detail="copied 2 MB"), StageView("port")]
    health = Health(POD, 0.0, stages=stages)
    assert (health.phase, health.reasons) == ("preparing", ["stage workspace runs: copied 2 MB"])


def test_what_a_service_is_doing_is_said_with_how_it_ended() -> None:
    assert sentence(supervised(State.STARTING)) == "comfyui is starting"
    assert sentence(supervised(State.WAITING, last_exit=7)) == "comfyui starts again in 2 s after it ended with 7"
    assert sentence(supervised(State.FAILED, last_exit=-9)) == "comfyui was given up after it ended with signal 9"
    assert sentence(supervised(State.DEGRADED)) == "comfyui runs and does not answer"
    assert sentence(supervised(State.STOPPED)) == "comfyui is stopped"
    busy = supervised(State.DEGRADED)
    busy.busy = True
    assert sentence(busy) == "comfyui is busy with a prompt and does not answer"
    assert len({sentence(supervised(state)) for state in State}) == len(State)


def test_e2_what_is_known_about_a_death_is_said_instead_of_its_signal() -> None:
    killed = supervised(State.WAITING, last_exit=-9)
    killed.cause = Cause("out-of-memory", "ran out of memory and was killed (limit 2.0 GB)", "")
    assert sentence(killed) == "comfyui starts again in 2 s after it ran out of memory and was killed (limit 2.0 GB)"


def test_a_moment_is_noted_the_first_time_only() -> None:
    health = Health(POD, 0.0)
    assert health.note("ready")
    first = health.moments["ready"]
    assert not health.note("ready")
    assert health.moments == {"ready": first}
    assert health.snapshot()["boot"]["seconds_to_ready"] == first


def test_a_problem_is_listed_once_until_it_is_over() -> None:
    health, one, two = Health(POD, 0.0), Problem("comfyui", "died"), Problem("storage", "full")
    for problem in (one, two, one):
        health.report(problem)
    assert health.problems == [one, two]
    shown = health.problems
    health.settle("comfyui")
    assert shown == [two]

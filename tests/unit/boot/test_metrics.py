from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

from comfypod.boot.exposition import Metric, render
from comfypod.boot.health import Health, StageView
from comfypod.boot.measure import Measured, Volume
from comfypod.boot.memory import Memory
from comfypod.boot.metrics import TABLE
from comfypod.boot.process import State
from comfypod.counts import GatewayCounts, PromptCounts
from comfypod.errors import Problem
from comfypod.gpu import Load
from tests.unit.boot.test_health import POD, supervised

ROOT = Path(__file__).resolve().parents[3]
DASHBOARD = ROOT / "deploy" / "grafana" / "comfypod.json"
_GRAFANA_LABELS = {"instance", "job", "le"}


def _health() -> Health:
    """Everything that a pod can know."""
    comfyui, jupyter = supervised(State.READY), supervised(State.STARTING, critical=False)
    comfyui.restarts_by_cause["signal"] = 2
    health = Health(POD, 0.0, stages=[StageView("gpu", "done", 1.5)], services=[comfyui, jupyter])
    health.problems = [Problem("storage", "a"), Problem("storage", "b"), Problem("no-gpu", "c")]
    health.nodes = [{"name": name, "state": "present", "reason": ""} for name in "ab"]
    health.models = [{"name": "m", "state": "incomplete", "bytes": 7, "total": 9}]
    health.moments["ready"] = 4.25
    health.prompts = PromptCounts().add("done", 3.0).add("failed", None)
    health.gateway = GatewayCounts({("read", "2xx"): 5}, 3).answered("write", "5xx", 0.2)
    return health


def _measured() -> Measured:
    gpus = (Load(0, 'A "card"', 0.5, 10, 20, 60), Load(1, "old"))
    return Measured(Volume(100, 40, 9, 8), Memory(limit=6, used=5), gpus, 1, 2, frozenset({"gpu"}))


def _scraped(health: Health, measured: Measured) -> dict[tuple[str, tuple[str, ...]], float]:
    families = text_string_to_metric_families(render(TABLE, health, measured))
    return {(sample.name, tuple(sample.labels.values())): sample.value for each in families for sample in each.samples}


def test_everything_that_is_known_is_shown_and_every_metric_once() -> None:
    text = render(TABLE, _health(), _measured())
    for mark in ("HELP", "TYPE"):
        assert re.findall(rf"^# {mark} (\S+)", text, re.MULTILINE) == [metric.name for metric in TABLE]


def test_values_are_those_of_the_health_and_of_what_was_measured() -> None:
    found = _scraped(_health(), _measured())
    expected: dict[tuple[str, tuple[str, ...]], float] = {
        ("up", ()): 1, ("ready", ()): 1, ("phase", ("ready",)): 1, ("phase", ("failed",)): 0,
        ("boot_ready_seconds", ()): 4.25, ("boot_stage_seconds", ("gpu", "done")): 1.5,
        ("service_up", ("comfyui",)): 1, ("service_up", ("jupyter",)): 0,
        ("service_restarts_total", ("comfyui", "signal")): 2, ("service_restarts_total", ("comfyui", "wedged")): 0,
        ("queue_prompts", ("running",)): 1, ("queue_prompts", ("pending",)): 2,
        ("prompts_total", ("done",)): 1, ("prompts_total", ("failed",)): 1, ("prompts_total", ("interrupted",)): 0,
        ("prompt_duration_seconds_sum", ("done",)): 3, ("prompt_duration_seconds_count", ("failed",)): 0,
        ("nodes", ("present",)): 2, ("models", ("incomplete",)): 1, ("models", ("missing",)): 0,
        ("models_bytes", ("incomplete",)): 7, ("volume_size_bytes", ()): 100, ("volume_free_inodes", ()): 8,
        ("memory_used_bytes", ()): 5, ("memory_limit_bytes", ()): 6,
        ("gpu_utilization_ratio", ("0", 'A "card"')): 0.5, ("gpu_temperature_celsius", ("0", 'A "card"')): 60,
        ("problems", ("storage",)): 2, ("problems", ("no-gpu",)): 1,
        ("gateway_requests_total", ("read", "2xx")): 5, ("gateway_requests_total", ("write", "5xx")): 1,
        ("gateway_open_connections", ()): 3, ("gateway_request_duration_seconds_count", ()): 1,
        ("measurement_late", ("gpu",)): 1, ("measurement_late", ("volume",)): 0,
    }  # fmt: skip
    assert {name: found[f"comfypod_{name[0]}", name[1]] for name in expected} == expected
    assert ("comfypod_gpu_utilization_ratio", ("1", "old")) not in found


def test_what_is_not_known_is_left_out_instead_of_zero() -> None:
    found = {name for name, _ in _scraped(Health(POD, 0.0), Measured())}
    absent = {"queue_prompts", "memory_used_bytes", "volume_free_bytes", "boot_ready_seconds", "gateway_requests_total"}
    assert found.isdisjoint(f"comfypod_{name}" for name in absent)
    assert {"comfypod_up", "comfypod_ready", "comfypod_phase"} <= found


def test_names_follow_prometheus_conventions() -> None:
    for metric in TABLE:
        assert re.fullmatch(r"comfypod_[a-z][a-z_]*[a-z]", metric.name)
        assert metric.name.endswith("_total") is (metric.kind == "counter"), metric.name
        assert metric.kind != "histogram" or metric.name.endswith("_seconds")
        assert metric.help
        assert "le" not in metric.labels


def _exposed() -> dict[str, Metric]:
    """Return the metric behind each name that a query may use."""
    parts = {metric.name: ("_bucket", "_sum", "_count") if metric.kind == "histogram" else ("",) for metric in TABLE}
    return {metric.name + part: metric for metric in TABLE for part in parts[metric.name]}


def _dashboard() -> dict[str, Any]:
    body: dict[str, Any] = json.loads(DASHBOARD.read_text("utf-8"))
    return body


def _expressions() -> list[str]:
    targets = [target["expr"] for panel in _dashboard()["panels"] for target in panel.get("targets", ())]
    return targets + [row["definition"] for row in _dashboard()["templating"]["list"] if "definition" in row]


def test_the_dashboard_uses_names_and_labels_that_are_exposed() -> None:
    exposed = _exposed()
    for expression in _expressions():
        names = re.findall(r"\bcomfypod_\w+", expression)
        assert names, expression
        assert set(names) <= set(exposed), expression
        allowed = _GRAFANA_LABELS.union(*(exposed[name].labels for name in names))
        selected = re.findall(r"(\w+)\s*(?:=~|!~|!=|=)\s*\"", expression)
        grouped = re.findall(r"\b(?:by|without|on) \(([^)]*)\)", expression)
        assert {*selected, *(word.strip() for words in grouped for word in words.split(","))} <= allowed, expression


def test_legends_of_the_dashboard_use_labels_of_their_metric() -> None:
    exposed = _exposed()
    for panel in _dashboard()["panels"]:
        for target in panel.get("targets", ()):
            used = set(re.findall(r"{{\s*(\w+)\s*}}", target.get("legendFormat", "")))
            names = re.findall(r"\bcomfypod_\w+", target["expr"])
            assert used <= _GRAFANA_LABELS.union(*(exposed[name].labels for name in names)), panel["title"]


def test_the_dashboard_shows_every_metric() -> None:
    shown = {_exposed()[name].name for text in _expressions() for name in re.findall(r"\bcomfypod_\w+", text)}
    assert {metric.name for metric in TABLE} == shown


def test_panels_have_titles_units_an_own_number_and_do_not_overlap() -> None:
    panels = _dashboard()["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    cells: set[tuple[int, int]] = set()
    for panel in panels:
        place = panel["gridPos"]
        own = {(x, y) for x in range(place["x"], place["x"] + place["w"])
               for y in range(place["y"], place["y"] + place["h"])}  # fmt: skip
        assert cells.isdisjoint(own), panel["title"]
        assert max(x for x, _ in own) < 24
        assert panel["title"]
        assert panel["type"] == "row" or panel["fieldConfig"]["defaults"]["unit"]
        cells |= own


def test_every_metric_is_documented() -> None:
    page = (ROOT / "docs" / "metrics.md").read_text("utf-8")
    assert [metric.name for metric in TABLE if f"`{metric.name}`" not in page] == []

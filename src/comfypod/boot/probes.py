"""What the control plane answers: probes in one short word, `/status` as JSON, `/metrics` for Prometheus."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from comfypod.boot import httpd, prompts
from comfypod.boot.health import Check

if TYPE_CHECKING:
    from comfypod.boot.health import Health
    from comfypod.boot.measure import Meter


async def respond(path: str, query: str, health: Health, meter: Meter) -> httpd.Answer:
    """Answer one path from what is known now; nothing here waits for a stage."""
    verbose = "verbose" in query.split("&")
    match path:
        case "/livez":
            return _probe(200, "live", [Check(well=True, text="boot runs")] if verbose else [])
        case "/startupz":
            started = "ready" in health.moments
            return _probe(200 if started else 503, "started" if started else health.phase, _steps(health, verbose))
        case "/readyz":
            return _probe(200 if health.ready else 503, health.phase, health.rows() if verbose else [])
        case "/status":
            body = health.snapshot()
            body["comfyui"] |= await prompts.queue(health)
            return httpd.Answer(200, json.dumps(body).encode(), "application/json")
        case "/metrics":
            from comfypod.boot import exposition, metrics

            body_text = exposition.render(metrics.TABLE, health, await meter.measure(health))
            return httpd.Answer(200, body_text.encode(), exposition.CONTENT_TYPE)
        case _:
            return httpd.text(404, "not-found")


def _probe(status: int, word: str, rows: list[Check]) -> httpd.Answer:
    return httpd.text(status, "\n".join([word, *(f"[{'+' if row.well else '-'}]{row.text}" for row in rows)]))


def _steps(health: Health, verbose: bool) -> list[Check]:
    if not verbose:
        return []
    stages = [
        Check(stage.state in ("done", "degraded"), f"stage {stage.name} {stage.state}") for stage in health.stages
    ]
    return [*stages, Check("ready" in health.moments, "ComfyUI has answered once")]

"""What the control plane answers: probes in one short word, and `/status` as JSON."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from comfypod.boot import httpd

if TYPE_CHECKING:
    from comfypod.boot.health import Health

_QUEUE_SECONDS = 2.0


async def respond(path: str, health: Health) -> httpd.Answer:
    """Answer one path from what is known now; nothing here waits for a stage."""
    match path:
        case "/livez":
            return httpd.text(200, "live")
        case "/startupz":
            return httpd.text(200, "started") if "ready" in health.moments else httpd.text(503, health.phase)
        case "/readyz":
            return httpd.text(200 if health.ready else 503, health.phase)
        case "/status":
            body = health.snapshot()
            body["comfyui"] |= await _queue(health)
            return httpd.Answer(200, json.dumps(body).encode(), "application/json")
        case _:
            return httpd.text(404, "not-found")


async def _queue(health: Health) -> dict[str, int]:
    """Ask ComfyUI for the lengths of its queues; nothing when it is not ready or does not say."""
    if not health.ready:
        return {}
    comfyui = health.critical()[0].service
    answer = await httpd.get(comfyui.host, comfyui.port, "/queue", _QUEUE_SECONDS)
    try:
        queue = json.loads(answer.body) if answer is not None else {}
        return {"queue_running": len(queue["queue_running"]), "queue_pending": len(queue["queue_pending"])}
    except (ValueError, KeyError, TypeError):
        return {}

"""What ComfyUI says about its prompts: the queue when asked, and a count of those that have ended.

ComfyUI counts nothing itself; its history is the only place where a result and its times can be read.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, NamedTuple

from comfypod.boot import httpd

if TYPE_CHECKING:
    from collections.abc import Iterable

    from comfypod.boot.health import Health

_ANSWER_SECONDS = 2.0
# A prompt of a few milliseconds is never seen in the queue, so the history is asked now and then all the same.
_IDLE_LOOKS = 5
# Entries hold whole workflows. More are asked for only while all of them are new.
_ENTRIES = (1, 8, 64)
_KNOWN_IDS = 1024
_ID_LENGTH = 64
_LONGEST_MS = 10**10
_ENDS = {"execution_success": "done", "execution_error": "failed", "execution_interrupted": "interrupted"}


class Finished(NamedTuple):
    """How a prompt ended, and after how many seconds where both times are known."""

    result: str
    seconds: float | None


def finished(entry: object) -> Finished | None:
    """Read one entry of ComfyUI's history; None when it does not say how the prompt ended."""
    status = entry.get("status") if isinstance(entry, dict) else None
    if not isinstance(status, dict):
        return None
    moments = dict(_moments(status.get("messages")))
    end = next((name for name in _ENDS if name in moments), "")
    result = _ENDS.get(end) or {"success": "done", "error": "failed"}.get(str(status.get("status_str")))
    if result is None:
        return None
    start, stop = moments.get("execution_start"), moments.get(end)
    if start is None or stop is None or not 0 <= stop - start < _LONGEST_MS:
        return Finished(result, None)
    return Finished(result, (stop - start) / 1000)


def _moments(messages: object) -> Iterable[tuple[str, int]]:
    for message in messages if isinstance(messages, list) else ():
        match message:
            case [str(name), {"timestamp": int(moment)}]:
                yield name, moment
            case _:
                continue


async def queue(health: Health) -> dict[str, int]:
    """Ask ComfyUI for the lengths of its queues; nothing when it is not ready or does not say."""
    body = await _ask(health, "/queue")
    try:
        return {name: len(body[name]) for name in ("queue_running", "queue_pending")}
    except (KeyError, TypeError):
        return {}


class Observer:
    """Remembers which prompts it has counted: the last ones only, many times what one look can bring."""

    def __init__(self, health: Health) -> None:
        self._health = health
        self._known: dict[str, None] = {}
        self._busy = False
        self._idle_looks = 0

    async def look(self) -> int | None:
        """Count what has ended since the last look; return how many prompts ComfyUI has, None where it says nothing."""
        body = await _ask(self._health, "/prompt")
        match body:
            case {"exec_info": {"queue_remaining": int(remaining)}}:
                pass
            case _:
                return None
        was_busy, self._busy = self._busy, remaining > 0
        self._idle_looks = 0 if self._busy else self._idle_looks + 1
        if self._busy or was_busy or self._idle_looks % _IDLE_LOOKS == 0:
            await self._read_history()
        return remaining

    async def _read_history(self) -> None:
        found: dict[str, Any] = {}
        for most in _ENTRIES:
            history = await _ask(self._health, f"/history?max_items={most}")
            if not isinstance(history, dict):
                break
            found |= {name[:_ID_LENGTH]: entry for name, entry in history.items()}
            if len(history) < most or not self._known.keys().isdisjoint(found):
                break
        # At once, so that whoever asks meanwhile does not see a later prompt counted before an earlier one.
        self._count(found)

    def _count(self, ended: dict[str, Any]) -> None:
        for name, entry in ended.items():
            if name not in self._known and (end := finished(entry)) is not None:
                self._health.prompts = self._health.prompts.add(*end)
            self._known[name] = None
        while len(self._known) > _KNOWN_IDS:
            del self._known[next(iter(self._known))]


async def _ask(health: Health, path: str) -> Any:
    """Ask a ComfyUI that answers; None when it does not, or not in JSON."""
    if not health.answers:
        return None
    comfyui = health.critical()[0].service
    answer = await httpd.get(comfyui.host, comfyui.port, path, _ANSWER_SECONDS)
    try:
        return json.loads(answer.body) if answer is not None and answer.status == 200 else None
    except (ValueError, RecursionError):
        return None

"""`status`, `logs` and `health`: looking at a running pod, from the host or from inside it."""

from __future__ import annotations

import contextlib
import os
import time
from typing import TYPE_CHECKING, Any

from comfypod import control
from comfypod.errors import NotReadyError, NotRunningError
from comfypod.files import tail
from comfypod.host import running
from comfypod.log import human_bytes
from comfypod.result import Result

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from comfypod.log import Console
    from comfypod.workspace.layout import Layout

_FOLLOW_SECONDS = 0.25


def status(layout: Layout) -> Result:
    """Show the pod's `/status`.

    Raises:
        NotRunningError: no pod runs on the workspace.
        NotReadyError: it runs and its control plane does not answer.
    """
    record = running.find(layout, elsewhere=True)
    found = control.status(record.control)
    if found is None:
        raise NotReadyError(
            f"the pod (pid {record.boot.pid}) does not answer on {record.control}",
            "look at `comfypod logs boot`; if it hangs, `comfypod down` ends it",
        )
    return Result("status", found, _status_text(layout, found), "success" if found["ready"] else "partial")


def _status_text(layout: Layout, found: Mapping[str, Any]) -> str:
    free = found["workspace"].get("free_bytes")
    room = f", {human_bytes(free)} free" if free is not None else ""
    boot, queue, who = found["boot"], found["comfyui"], found.get("identity")
    took = f", ready after {boot['seconds_to_ready']:.1f} s" if boot["seconds_to_ready"] is not None else ""
    lines = [
        f"{found['phase']}: up {boot['seconds']:.0f} s{took}",
        *(f"  because {reason}" for reason in found["reasons"]),
        f"workspace   {layout.root}{room}",
        *([f"identity    {who['uid']}:{who['gid']}, {who['reason']}"] if who else []),
        f"comfyui     {queue['version']}, profile {boot['profile']}, torch {found['environment']['torch']}"
        + (
            f", {queue['queue_running']} running, {queue['queue_pending']} pending"
            if queue["queue_running"] is not None
            else ""
        ),
        *([f"memory      {_memory(found['memory'])}"] if (found.get("memory") or {}).get("used") else []),
        "stages",
        *(f"  {row['name']:<12}{row['state']:<10}{row['seconds']:>7.2f} s  {row['detail']}" for row in found["stages"]),
        "services",
        *(_service_line(row, found["urls"]) for row in found["services"]),
        *_model_lines(found["models"]),
        *([f"log in to JupyterLab with the token in {layout.token}"] if "jupyter" in found["urls"] else []),
    ]
    chosen = {name: row for name, row in found["settings"].items() if row["origin"] not in ("default", "pod.json")}
    lines += ["settings that were chosen"] if chosen else []
    lines += [f"  {name:<16}{row['value']}  ({row['origin']})" for name, row in chosen.items()]
    for problem in found["problems"]:
        lines += [f"PROBLEM {problem['message']}", f"        {problem['hint']}"]
    return "\n".join(lines)


def _memory(row: Mapping[str, int | None]) -> str:
    named = {"used": "in use", "peak": "at most so far", "limit": "allowed"}
    return ", ".join(f"{human_bytes(value)} {told}" for name, told in named.items() if (value := row[name]) is not None)


def _service_line(row: Mapping[str, Any], urls: Mapping[str, str]) -> str:
    again = f", {row['restarts']} restarts" if row["restarts"] else ""
    safe = ", safe mode" if row["safe_mode"] else ""
    return f"  {row['name']:<12}{row['state']:<10} pid {row['pid'] or '-'}{again}{safe}  {urls.get(row['name'], '')}"


def _model_lines(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Show what is not there yet of the models that are wanted."""
    lines = []
    for row in (row for row in rows if row["state"] != "present"):
        rate = f", {human_bytes(row['rate'])}/s" if row["rate"] else ""
        whole = human_bytes(row["total"]) if row["total"] else "an unknown size"
        reason = f"  {row['reason']}" if row["reason"] else ""
        lines.append(f"  {row['name']:<32}{row['state']:<12}{human_bytes(row['bytes'])} of {whole}{rate}{reason}")
    return ["models that are not there yet", *lines] if lines else []


def health(layout: Layout, probe: str) -> Result:
    """Ask one probe of the running pod.

    Raises:
        NotRunningError: no pod runs.
        NotReadyError: the probe says no.
    """
    record = running.find(layout, elsewhere=True)
    answer = control.ask(record.control, probe)
    if answer is None:
        raise NotRunningError(f"nothing answers on {record.control}", "look at `comfypod logs boot`")
    word = answer[1].decode("utf-8", "replace").strip()
    if answer[0] != 200:
        raise NotReadyError(f"{probe} says {answer[0]} {word}", "`comfypod status` has the reasons")
    return Result("health", {"probe": probe, "word": word}, word)


def logs(layout: Layout, service: str, lines: int, follow: bool, console: Console) -> Result:
    """Print the end of a log; with `follow` go on until interrupted, across rotations.

    Raises:
        NotRunningError: there is no such log yet.
    """
    path = layout.logs / f"{service}.log"
    if not path.is_file():
        raise NotRunningError(f"there is no log {path}", "start the pod with `comfypod up`, or name its --workspace")
    found = tail(path, lines, reach=1 << 24)
    if not follow:
        return Result("logs", {"path": str(path), "lines": found}, "\n".join(found))
    for line in found:
        console.line(line)
    with contextlib.suppress(KeyboardInterrupt):
        for line in _added(path):
            console.line(line)
            if console.gone:
                break
    return Result("logs", {"path": str(path)})


def _added(path: Path) -> Iterator[str]:
    """Yield whole lines as they are added; a rotated file is read to its end before the new one is begun."""
    handle = path.open(encoding="utf-8", errors="replace")
    handle.seek(0, os.SEEK_END)
    pending = ""
    try:
        while True:
            pending += handle.readline()
            if pending.endswith("\n"):
                yield pending.rstrip("\n")
                pending = ""
            elif _rotated(path, handle.fileno()):
                yield from (pending + handle.read()).splitlines()
                pending = ""
                handle.close()
                handle = path.open(encoding="utf-8", errors="replace")
            else:
                time.sleep(_FOLLOW_SECONDS)
    finally:
        handle.close()


def _rotated(path: Path, handle: int) -> bool:
    return path.is_file() and path.stat().st_ino != os.fstat(handle).st_ino

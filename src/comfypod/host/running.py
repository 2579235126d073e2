"""Finding the pod that runs on a workspace: by its record, or by asking where it would answer."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from comfypod import control, proc
from comfypod.errors import NotRunningError
from comfypod.ports import connect_host, http_url
from comfypod.settings import resolve
from comfypod.workspace import run

if TYPE_CHECKING:
    from comfypod.workspace.layout import Layout


def find(layout: Layout) -> run.RunRecord:
    """Return the record of the pod that runs on a workspace.

    A pod that could not write its record (a full disk, a workspace that it was refused) is found by its answer.

    Raises:
        NotRunningError: there is none.
    """
    record = run.running(layout.run_record) or _asked(layout)
    if record is None:
        raise NotRunningError(
            f"no pod runs on the workspace {layout.root}",
            "start one with `comfypod up`, or name its workspace with --workspace",
        )
    return record


def _asked(layout: Layout) -> run.RunRecord | None:
    settings = resolve({"workspace": str(layout.root)}, os.environ, {})
    address = http_url(connect_host(settings.control_listen), settings.control_port)
    found = control.status(address) or {}
    try:
        pid = int(found["boot"]["pid"])
        same = found["settings"]["workspace"]["value"] == str(layout.root)
    except (KeyError, TypeError, ValueError):
        return None
    started = proc.start_ticks(pid)
    return run.RunRecord(run.Boot(pid, started), address) if same and started else None

"""Finding the pod that runs on a workspace: by its record, or by asking where it would answer."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from comfypod import control, podfile, proc
from comfypod.errors import HostError, NotRunningError
from comfypod.ports import connect_host, http_url
from comfypod.settings import resolve
from comfypod.workspace import run

if TYPE_CHECKING:
    from comfypod.workspace.layout import Layout


def find(layout: Layout, *, elsewhere: bool = False) -> run.RunRecord:
    """Return the record of the pod that runs on a workspace.

    A pod that could not write its record (a full disk, a workspace that it was refused) is found by its answer. One of
    another container counts with `elsewhere`: it can be asked, but its pid means nothing here. Records and answers come
    from what runs in pods: a pid that is not of a boot is not believed.

    Raises:
        NotRunningError: there is none.
        HostError: it runs in another container, and that is not what was asked for.
    """
    record = run.running(layout.run_record) or _asked(layout)
    stranger = record and record.boot.here and "boot" not in proc.command_line(record.boot.pid)
    if record is None or (stranger and not elsewhere):
        raise NotRunningError(
            f"no pod runs on the workspace {layout.root}",
            "start one with `comfypod up`, or name its workspace with --workspace",
        )
    if not record.boot.here and not elsewhere:
        raise HostError(
            f"the pod of the workspace {layout.root} runs in a container, which only its engine can stop",
            "`comfypod down` stops it where `comfypod up` started it, `docker stop` otherwise",
        )
    return record


def _asked(layout: Layout) -> run.RunRecord | None:
    settings = resolve({**_built(), "workspace": str(layout.root)}, os.environ, {})
    address = http_url(connect_host(settings.control_listen), settings.control_port)
    found = control.status(address) or {}
    try:
        pid = int(found["boot"]["pid"])
        same = found["settings"]["workspace"]["value"] == str(layout.root)
        boot = run.Boot(pid, proc.start_ticks(pid) or 0, str(found["boot"].get("namespace", "")))
    except (KeyError, TypeError, ValueError, AttributeError):
        return None
    return run.RunRecord(boot, address) if same and (boot.started or not boot.here) else None


def _built() -> dict[str, str]:
    """Return the settings of the image that we are in, if we are in one."""
    image = podfile.find()
    return podfile.load(image).settings if image is not None else {}

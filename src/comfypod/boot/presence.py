"""What says on the workspace that this pod runs, for `status`, `down` and the next boot."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from comfypod.errors import Problem
from comfypod.ports import connect_host, http_url
from comfypod.workspace import run

if TYPE_CHECKING:
    from comfypod.boot.context import Context


class Presence:
    """The run record and the lease of one pod. `taken` is whether the workspace is ours."""

    def __init__(self, context: Context) -> None:
        self._context, self.taken = context, False

    def take(self) -> None:
        """Say that this pod runs; a disk that refuses is reported."""
        self.taken = True
        settings, layout, health = self._context.settings, self._context.layout, self._context.health
        control = http_url(connect_host(settings.control_listen), settings.control_port)
        try:
            run.write(layout.run_record, run.RunRecord(health.process, control))
        except OSError as error:
            health.report(Problem("storage", f"{layout.run_record}: {error.strerror}", "free some space"))

    def end_orphans(self) -> int:
        """End what services have left, unless it may be another pod's, which has the same mark; return how many."""
        with contextlib.suppress(OSError):
            if self.taken and not self._context.lease.others():
                return run.end_orphans(self._context.layout.root)
        return 0

    def leave(self) -> None:
        """Leave nothing that says that this pod runs."""
        path = self._context.layout.run_record
        if self.taken:
            with contextlib.suppress(OSError):
                if (record := run.read(path)) and record.boot == self._context.health.process:
                    path.unlink(missing_ok=True)
        self._context.lease.release()

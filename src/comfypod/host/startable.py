"""What would stop a pod, found out before anything is fetched or started: the workspace and its ports."""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING

from comfypod import files, ports
from comfypod.workspace import run, state
from comfypod.workspace.lease import Lease

if TYPE_CHECKING:
    from collections.abc import Iterator

    from comfypod.settings import Settings
    from comfypod.workspace.layout import Layout


@contextlib.contextmanager
def held(layout: Layout) -> Iterator[None]:
    """Have the workspace for ourselves for a moment, as boot does while it prepares it.

    Raises:
        BusyError: a pod uses it, or one of another machine may.
        StorageError: it cannot be used.
    """
    lease = Lease(layout.pods)
    try:
        _ensure_nobody(layout, lease)
        lease.take()
        _ensure_nobody(layout, lease)
        yield
    except OSError as error:
        raise files.storage_error(error, f"cannot use the workspace {layout.root}") from error
    finally:
        lease.release()


def _ensure_nobody(layout: Layout, lease: Lease) -> None:
    """Wait until it is known whether the pods of other machines live, which takes less than a minute."""
    lease.wait(lease.unknown, lambda _pod, _seconds: None)
    if lease.others():
        raise run.in_use(layout.root, layout.run_record)


def ensure_unused(layout: Layout, *, as_owner: bool = True) -> None:
    """Make sure that no pod runs on a workspace and that this comfypod knows its schema; end what a killed one left.

    With `as_owner` false nothing is made below it: its owner may be somebody else, whom boot finds out.

    Raises:
        BusyError: a pod runs on it.
        StorageError: a newer comfypod wrote it, or it cannot be used.
    """
    if run.running(layout.run_record) is not None:
        raise run.in_use(layout.root, layout.run_record)
    try:
        state.read(layout.state)
    except OSError as error:
        raise files.storage_error(error, f"cannot use the workspace {layout.root}") from error
    files.make_folder(layout.records if as_owner else layout.root)
    if as_owner or os.access(layout.pods, os.W_OK):
        with held(layout):
            run.end_orphans(layout.root)


def ensure_ports(settings: Settings, *, jupyter: bool) -> None:
    """Make sure that the pod's ports are free.

    Raises:
        BusyError: some are taken; all of them are named.
        UsageError: an address is not this machine's, or two options name one port.
    """
    wanted = {"--port": settings.port}
    control = {"--control-port": settings.control_port}
    lab = {"--jupyter-port": settings.jupyter_port} if jupyter else {}
    if settings.jupyter_listen == settings.listen:
        wanted |= lab
        lab = {}
    ports.ensure_free(settings.listen, wanted)
    ports.ensure_free(settings.jupyter_listen, lab)
    ports.ensure_free(settings.control_listen, control)

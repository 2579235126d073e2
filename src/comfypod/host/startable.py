"""What would stop a pod, found out before anything is fetched or started: the workspace and its ports."""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING

from comfypod import files, ports
from comfypod.errors import BusyError
from comfypod.workspace import run, state

if TYPE_CHECKING:
    from collections.abc import Iterator

    from comfypod.settings import Settings
    from comfypod.workspace.layout import Layout


@contextlib.contextmanager
def held(layout: Layout) -> Iterator[None]:
    """Hold the workspace for a moment, as boot does for as long as it runs.

    Raises:
        BusyError: a pod holds it.
        StorageError: it cannot be used.
    """
    lock = files.FolderLock(layout.lock)
    try:
        lock.acquire()
        yield
    except BusyError as error:
        raise run.in_use(layout.root, layout.run_record) from error
    except OSError as error:
        raise files.storage_error(error, f"cannot use the workspace {layout.root}") from error
    finally:
        lock.release()


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
    if as_owner or os.access(layout.lock, os.W_OK):
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

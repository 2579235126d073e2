"""An upgrade on trial: kept when its ComfyUI was ready once, taken back when it does not start or on request."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from comfypod.errors import BusyError, Problem, StorageError
from comfypod.files import storage_error

if TYPE_CHECKING:
    from comfypod.boot.context import Context
    from comfypod.workspace.core import Core
    from comfypod.workspace.layout import Layout


def on_trial(context: Context) -> bool:
    """Whether the core that runs has never been ready."""
    return context.core is not None and context.core.trial


def passed(context: Context) -> None:
    """Note in this pod that its core is on trial no more."""
    assert context.core is not None  # noqa: S101 - the workspace stage has run
    context.core = replace(context.core, trial=False)


def settled(layout: Layout) -> None:
    """Keep an upgrade; see `core.settle`. Its modules are large, and boot answers probes before it needs them."""
    from comfypod.workspace.core import settle

    settle(layout)


def forgiven(layout: Layout) -> None:
    """Do not count a boot that was stopped; see `core.forgive`."""
    from comfypod.workspace.core import forgive

    forgive(layout)


def take_back(context: Context, reason: str) -> tuple[Problem, ...]:
    """Put the core before in the place of one that does not start; return what is to be said about it.

    Raises:
        BusyError: another pod uses it as well.
        StorageError: the disk refused.
    """
    found = step_back(context, reason)
    told = f"ComfyUI {context.pod.comfyui_version} did not start: {reason}; {found.version} is back"
    hint = "see what it said with `comfypod logs comfyui`; `comfypod workspace upgrade` tries it again"
    return (Problem("rolled-back", told, hint), *found.problems)


def take_way_back(context: Context) -> str:
    """Return the release to go back to; whoever asks next finds none, so that nobody goes back twice.

    Raises:
        StorageError: there is none.
    """
    kept = str(context.health.workspace.get("kept", ""))
    if not kept:
        raise StorageError("there is no release to go back to", "`comfypod workspace status` shows what is kept")
    context.health.workspace["kept"] = ""
    return kept


def step_back(context: Context, reason: str) -> Core:
    """Put the core before in the place of the one that is there, while no ComfyUI runs; this pod's next start has it.

    Raises:
        BusyError: another pod uses it as well.
        StorageError: the disk refused.
    """
    found = _back(context, reason)
    context.core = found
    context.health.workspace |= {"release": found.release, "version": found.version, "persist": "move", "kept": ""}
    return found


def _back(context: Context, reason: str) -> Core:
    from comfypod.workspace.core import go_back

    lease, comfyui = context.lease, context.layout.comfyui
    try:
        lease.prepare()
        try:
            if others := lease.others():
                told = f"the pod on {others[0].host} uses {comfyui} as well, so it is not taken back"
                raise BusyError(told, "stop that pod, then start this one again")
            return go_back(context.layout, context.pod.release, context.pod.environment_key, reason)
        finally:
            lease.run()
    except OSError as error:
        raise storage_error(error, f"cannot go back in {comfyui}") from error

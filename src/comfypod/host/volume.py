"""What the verbs about a volume go by: the image that would boot on it, its settings, and whose it is."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from comfypod import podfile
from comfypod.errors import HostError, StorageError
from comfypod.files import storage_errors as told
from comfypod.settings import resolve
from comfypod.workspace import core
from comfypod.workspace import plan as plans
from comfypod.workspace.switch import Image

if TYPE_CHECKING:
    from pathlib import Path

    from comfypod.podfile import PodFile
    from comfypod.settings import Settings
    from comfypod.workspace.core import Wanted
    from comfypod.workspace.layout import Layout
    from comfypod.workspace.plan import Volume


def image_of(layout: Layout) -> Image:
    """Return what the image that we are in, or the host's last `up`, brings.

    Raises:
        HostError: it is not known which image would boot.
    """
    return core.image_of(pod_of(layout))


def pod_of(layout: Layout) -> PodFile:
    """Return the facts of the image that we are in, or of the host's last `up`.

    Raises:
        HostError: it is not known which image would boot.
    """
    path = _pod_file(layout)
    if path is None:
        raise HostError(
            f"nothing says which ComfyUI would boot on {layout.root}",
            "run it inside the pod (`docker exec NAME comfypod ...`), or `comfypod up` once",
        )
    return podfile.load(path)


def settings_of(layout: Layout) -> Settings:
    """Return the settings that a boot would have, as far as they are known here."""
    path = _pod_file(layout)
    built = podfile.load(path).settings if path is not None else {}
    return resolve({**built, "workspace": str(layout.root)}, os.environ, {"workspace": str(layout.root)})


def wanted(layout: Layout) -> Wanted:
    """Return what the next boot goes by, as far as the settings are known here."""
    found = settings_of(layout)
    network = plans.is_network(layout, plans.mount_table())
    return {"persist": found.persist, "upgrade": found.upgrade, "adopt": found.adopt, "network": network}


def looked_at(layout: Layout) -> Volume:
    """Look at the core of a workspace.

    Raises:
        StorageError: it cannot be read.
    """
    with told(f"cannot read {layout.root}"):
        return plans.look(layout)


def ensure_there(layout: Layout) -> None:
    """Refuse a folder that has never been a workspace.

    Raises:
        StorageError: it has not.
    """
    if not layout.records.is_dir():
        raise StorageError(
            f"{layout.root} is no workspace of comfypod's", "name another one with --workspace, or boot it once"
        )


def _pod_file(layout: Layout) -> Path | None:
    return podfile.find() or (layout.pod_file if layout.pod_file.is_file() else None)


def become_owner(layout: Layout) -> None:
    """Write as the owner of the workspace, so that `docker exec` as root leaves nothing of root's there.

    Raises:
        StorageError: that is refused.
    """
    facts = layout.records.stat() if layout.records.is_dir() else None
    if facts is not None and os.geteuid() == 0 and facts.st_uid != 0:
        with told(f"cannot become the owner of {layout.records}"):
            os.setgroups([facts.st_gid])
            os.setresgid(facts.st_gid, facts.st_gid, facts.st_gid)
            os.setresuid(facts.st_uid, facts.st_uid, facts.st_uid)

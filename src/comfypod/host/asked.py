"""What the verbs about models begin with: where the models of a workspace are, and all that it wants."""

from __future__ import annotations

import shlex
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from comfypod import control
from comfypod.environment.layer import layer_of
from comfypod.errors import HostError, InstallError, ModelError, NotRunningError, Problem, UsageError
from comfypod.files import storage_errors
from comfypod.host.running import find
from comfypod.host.volume import become_owner, ensure_there, pod_of, settings_of
from comfypod.models import wanted
from comfypod.models.places import places_of
from comfypod.models.site import Site, site_of
from comfypod.models.wish import Wish, locked, wishes
from comfypod.workspace.plan import mount_table

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from comfypod.models.plan import Plan
    from comfypod.podfile import PodFile
    from comfypod.workspace.layout import Layout

_SILENT = Problem(
    ModelError.code, "the pod that runs here does not say which models it wants", "wait until it answers, or stop it"
)


@dataclass(frozen=True, slots=True)
class Volume:
    """A workspace: where its models are, all that it wants, what is wrong with the rest, folders that are not there."""

    site: Site
    wishes: tuple[Wish, ...]
    problems: tuple[Problem, ...]
    missing: tuple[Problem, ...] = ()

    def plan(self, words: Sequence[str] = (), *, offline: bool = False) -> tuple[Plan, tuple[Problem, ...]]:
        """Return the plan for words, or for all that the volume wants, and what could not be read.

        Raises:
            UsageError: a word is none.
        """
        asked, wrong = wishes(None, words) if words else (self.wishes, self.problems)
        if words and wrong:
            raise UsageError("what is wanted cannot be understood", found=wrong)
        site = replace(self.site, offline=offline or self.site.offline)
        files, more = wanted.files_of(asked, site, self.wishes)
        return wanted.plan_of(files, site), (*self.missing, *wrong, *more)


def opened(layout: Layout) -> Volume:
    """Look at a workspace and at what it wants. No host is asked.

    Raises:
        StorageError: the workspace is none, or cannot be read.
    """
    ensure_there(layout)
    settings, pod = settings_of(layout), _pod(layout)
    become_owner(layout)
    in_image = pod is not None and pod.engine == "image"
    with storage_errors(f"cannot read the models of {layout.root}"):
        live = layout.comfyui / "models"
        baked, mounts = pod.models_path if pod else None, mount_table() if in_image else ""
        where = places_of(layout, live, baked, settings.model_folders, mounts)
        missing = [path for path in settings.model_folders if not path.is_dir()]
    site = site_of(settings, layout, where, _site_packages(layout, pod))
    words, problems = _words_of_pod(layout)
    asked, wrong = wishes(layout.manifest, (*settings.models, *words), locked(pod.models if pod else ()))
    return Volume(site, asked, (*wrong, *problems), tuple(map(_missing, missing)))


def _missing(path: Path) -> Problem:
    told = f"there is no folder {path}, which COMFYPOD_MODEL_FOLDERS names"
    return Problem(ModelError.code, told, "mount it, or leave it out")


def _words_of_pod(layout: Layout) -> tuple[tuple[str, ...], tuple[Problem, ...]]:
    """Return what the environment of a pod that runs here asks for; it need not be that of this shell."""
    try:
        said = control.status(find(layout, elsewhere=True).control)
        if said is not None:
            return tuple(shlex.split(said["settings"]["models"]["value"])), ()
    except NotRunningError:
        return (), ()
    except (KeyError, TypeError, ValueError, AttributeError):
        pass
    return (), (_SILENT,)


def _pod(layout: Layout) -> PodFile | None:
    try:
        return pod_of(layout)
    except HostError:
        return None


def _site_packages(layout: Layout, pod: PodFile | None) -> Path | None:
    try:
        return layer_of(pod, layout).image_site if pod else None
    except InstallError:
        return None

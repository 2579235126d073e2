"""The model stage: which models are wanted, which are there, and where others lie that can be used as well."""

from __future__ import annotations

import contextlib
import threading
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from comfypod.boot import extra_paths
from comfypod.errors import ModelError, Problem
from comfypod.models.places import Places, places_of
from comfypod.workspace.plan import mount_table

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from comfypod.boot.context import Context
    from comfypod.boot.health import StageView
    from comfypod.models.file import ModelFile
    from comfypod.models.plan import Row
    from comfypod.models.site import Site

_PATIENCE = 10.0
# How plans call it, and how `/status` does.
_STATES = {"have": "present", "elsewhere": "present", "fetch": "missing", "part": "incomplete", "unknown": "missing"}


def check_models(context: Context, view: StageView) -> str:
    """Find folders of models on other mounts, and see which models are wanted and which are there, by their sizes.

    Raises:
        ModelError: models are missing, and nothing may be fetched.
    """
    del view
    assert context.core is not None  # noqa: S101 - the workspace stage has run
    context.places = _looked(context, context.core.base / "models")
    if context.places.found:
        extra_paths.write(context)
    context.models, required, problems = _wanted(context)
    for problem in problems:
        context.warn(problem)
    context.health.models = rows = survey(context)
    context.required = tuple(dict.fromkeys((*context.required, *required)))
    lacking = missing(rows)
    if lacking and context.settings.offline:
        told = f"models not in {context.core.base / 'models'}: {', '.join(lacking)}"
        raise ModelError(told, "put them there, or start the pod without COMFYPOD_OFFLINE; the rest of it works")
    return f"{len(rows)} wanted" + (f", {len(lacking)} of them not there yet" if lacking else "")


def _looked(context: Context, live: Path) -> Places:
    """Look where models are; a mount that does not answer is not waited for."""
    found: list[Places] = []
    table = mount_table(context.surroundings.mounts) if context.in_image else ""
    where = context.layout, live, context.pod.models_path, context.settings.model_folders, table
    search = threading.Thread(target=lambda: found.append(places_of(*where)), daemon=True)
    search.start()
    search.join(_PATIENCE)
    if found:
        return found[0]
    told = "a mount does not answer, so that only the workspace's own models are known"
    context.warn(Problem(ModelError.code, told, "unmount what is dead, then start the pod again"))
    return Places(live)


def missing(rows: Iterable[Mapping[str, Any]]) -> list[str]:
    """Return the names of models that cannot be used yet."""
    return [str(row["name"]) for row in rows if row["state"] != "present"]


def _wanted(context: Context) -> tuple[tuple[ModelFile, ...], tuple[str, ...], tuple[Problem, ...]]:
    """Return what the volume wants, the names of what it cannot do without, and which wishes make no sense."""
    pod, layout = context.pod, context.layout
    words = (*context.settings.models, *context.asked_models)
    if not (pod.models or words or layout.manifest.exists()):
        return (), (), ()
    # Not on the way of a boot that wants no models.
    from comfypod.models.wanted import files_of
    from comfypod.models.wish import locked, wishes

    with _sense(context):
        found, problems = wishes(layout.manifest, words, locked(pod.models))
        files, more = files_of(found, _site(context), found)
    return files, tuple(wish.name for wish in found if wish.required), (*problems, *more)


def also(context: Context, words: tuple[str, ...]) -> None:
    """Count what somebody has asked for among what is wanted, for as long as this pod runs.

    Raises:
        ModelError: what the volume says of models makes no sense.
    """
    context.asked_models = tuple(dict.fromkeys((*context.asked_models, *words)))
    context.models, _, _ = _wanted(context)


def survey(context: Context) -> list[dict[str, Any]]:
    """Return what is wanted, and what is being fetched, as `/status` shows it. No host is asked.

    Raises:
        ModelError: what is recorded of them makes no sense.
        OSError: the disk failed.
    """
    if not (context.models or context.layout.downloads.exists() or context.layout.model_notes.exists()):
        return []
    from comfypod.download.partial import progress
    from comfypod.models import notes
    from comfypod.models.wanted import plan_of

    with _sense(context):
        parts, said, site = progress(context.layout.downloads), notes.read(context.layout), _site(context)
        rows = []
        for row in plan_of(context.models, site).rows:
            rows.append(_shown(row, site.path(row.file), parts))
            if (note := notes.of_row(said, row)) is not None:
                rows[-1] |= {"state": note.state, "reason": note.reason}
        # What is left only somebody's word has asked for, or another pod fetches it.
        for note in (note for note in said.values() if note.under_way):
            sizes = parts.pop(site.places.live / note.place, (0, 0))
            rows.append(_view(note.name, note.state, *sizes, reason=note.reason))
        return rows + [_view(path.name, "incomplete", *sizes) for path, sizes in parts.items()]


def _site(context: Context) -> Site:
    from comfypod.models.site import site_of

    packages = context.layer.image_site if context.layer is not None else None
    assert context.places is not None  # noqa: S101 - the model stage has looked
    return replace(site_of(context.settings, context.layout, context.places, packages), offline=True)


@contextlib.contextmanager
def _sense(context: Context) -> Iterator[None]:
    """Have records of anybody's that make no sense be an error of ours: nothing on a volume ends a pod."""
    try:
        yield
    except (ValueError, TypeError, RuntimeError) as error:
        told = f"what {context.layout.records} says of models makes no sense: {error}"
        raise ModelError(told, f"look at {context.layout.downloads} and at comfypod.toml, or move them away") from error


def _shown(row: Row, path: Path, parts: dict[Path, tuple[int, int]]) -> dict[str, Any]:
    """Return a wanted file, and take its part out of `parts`."""
    file, state = row.file, _STATES.get(row.state, row.state)
    there, total = parts.pop(path, (0, 0))
    reason = row.reason
    if state == "present":
        there = total = _size(Path(row.reason) if row.state == "elsewhere" else path)
        reason = ""
    return _view(file.name, state, there, file.size or total, file.pack, required=file.required, reason=reason)


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


def _view(
    name: str, state: str, there: int, total: int, pack: str = "", *, required: bool = False, reason: str = ""
) -> dict[str, Any]:
    return {
        "name": name, "state": state, "bytes": there, "total": max(total, 0), "rate": 0, "pack": pack,
        "required": required, "reason": reason,
    }  # fmt: skip

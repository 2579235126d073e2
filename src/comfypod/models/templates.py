"""ComfyUI's official templates, as the packages `comfyui-workflow-templates*` install them.

They lie in `comfyui_workflow_templates*/templates/NAME.json`, whichever of the packages has them; what belongs to no
template there (the index, by language) has no nodes.
"""

from __future__ import annotations

import difflib
from collections import Counter
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from comfypod.errors import UsageError
from comfypod.files import read_small
from comfypod.models import workflow
from comfypod.models.needs import Need, Needs, inside, merged

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

_PACKAGES = "comfyui_workflow_templates*/templates"
_LONGEST = 8 << 20


@dataclass(frozen=True, slots=True)
class Index:
    """What each template needs, and what all together say of files of one name, most said first."""

    templates: Mapping[str, Needs]
    files: Mapping[str, tuple[Need, ...]]

    def resolved(self, needs: Needs) -> Needs:
        """Return needs with what the templates know of files that they leave open."""
        return replace(needs, needs=merged(map(self._resolved, needs.needs)))

    def _resolved(self, need: Need) -> Need:
        if need.complete:
            return need
        known = [each for each in self.files.get(need.name, ()) if need.folder in ("", each.folder)]
        # Two folders are two different uses; which one is meant only the node knows.
        if not known or len({each.folder for each in known}) > 1:
            return need
        if need.url:
            return replace(need, folder=known[0].folder)
        return replace(need, folder=known[0].folder, url=known[0].url, sha256=known[0].sha256)


def find(name: str, site_packages: Path) -> bytes:
    """Return a template by its name.

    Raises:
        UsageError: there is none of that name.
    """
    path = _paths(site_packages).get(name) if inside(name) == name else None
    if path is None:
        near = difflib.get_close_matches(name, _paths(site_packages), n=3, cutoff=0.5)
        known = f"did you mean {', '.join(near)}?" if near else "ComfyUI's template browser shows their names"
        raise UsageError(f"no official template is called {name!r}", known)
    try:
        return read_small(path, _LONGEST)
    except OSError as error:
        raise UsageError(f"cannot read the template {path}: {error.strerror}", "check the environment") from error


def index(site_packages: Path) -> Index:
    """Return what all templates need; files that are no templates, or cannot be read, are left out."""
    templates = {}
    for name, path in _paths(site_packages).items():
        try:
            templates[name] = workflow.read(read_small(path, _LONGEST))
        except (OSError, UsageError):
            continue
    said = Counter(
        replace(need, by="", idle=False) for needs in templates.values() for need in needs.needs if need.complete
    )
    return Index(templates, _by_name(said))


def _by_name(said: Counter[Need]) -> dict[str, tuple[Need, ...]]:
    """Return files by name; each address once, with the digest that any template gives for it."""
    counts = Counter[tuple[str, str, str]]()
    digests: dict[str, str] = {}
    for need, count in said.items():
        counts[need.name, need.folder, need.url] += count
        digests[need.url] = need.sha256 or digests.get(need.url, "")
    found: dict[str, list[Need]] = {}
    for (name, folder, url), _ in sorted(counts.items(), key=lambda item: (-item[1], item[0])):
        found.setdefault(name, []).append(Need(name, folder, url, digests[url]))
    return {name: tuple(needs) for name, needs in found.items()}


def _paths(site_packages: Path) -> dict[str, Path]:
    """Return the files of all packages by name."""
    return {path.stem: path for path in sorted(site_packages.glob(f"{_PACKAGES}/*.json"))}

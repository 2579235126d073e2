"""From wishes to files, and from files to a plan: packs, templates and workflows are read, hosts are asked."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path, PurePath
from typing import TYPE_CHECKING

from comfypod.download.partial import progress
from comfypod.errors import ComfypodError, ModelError, Problem, UsageError
from comfypod.files import read_small
from comfypod.models import asking, carriers, packs, plan, record, templates, workflow
from comfypod.models.file import ModelFile
from comfypod.models.needs import Need, Needs
from comfypod.models.walk import files_below

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from comfypod.models.plan import Plan, There
    from comfypod.models.site import Site
    from comfypod.models.wish import Wish
    from comfypod.workspace.layout import Layout

_LONGEST = 64 << 20


def files_of(
    wishes: Iterable[Wish], site: Site, known: Iterable[Wish]
) -> tuple[tuple[ModelFile, ...], tuple[Problem, ...]]:
    """Return the files that wishes lead to, and which wishes lead nowhere. No host is asked.

    A name may be that of something that the volume is `known` to want, as well as of a pack that comfypod ships.
    """
    found, problems = list[ModelFile](), list[Problem]()
    names = _names(known)
    for wish in wishes:
        try:
            files, told = _expanded(wish, names, site)
        except ComfypodError as error:
            files, told = (), (Problem(ModelError.code, error.message, error.hint),)
        found += [replace(file, required=file.required or wish.required) for file in files]
        problems += told
    return _with_folders(found, site), tuple(problems)


def saved_names(layout: Layout) -> tuple[frozenset[str], tuple[Problem, ...]]:
    """Return the names of all files that the workflows of ComfyUI's editor name, and which of them cannot be read."""
    found, problems = set[str](), list[Problem]()
    saved = files_below(sorted((layout.comfyui / "user").glob("*/workflows")))
    for path in (path for path in saved if path.suffix == ".json"):
        try:
            found |= {need.name for need in workflow.read(read_small(path, carriers.LONGEST)).needs}
        except (OSError, UsageError) as error:
            told = f"the saved workflow {path} is not read: {getattr(error, 'strerror', None) or error}"
            problems.append(Problem(ModelError.code, told, "mend it, or move it away"))
    return frozenset(found), tuple(problems)


def plan_of(files: Iterable[ModelFile], site: Site) -> Plan:
    """Decide about files. Of those that are not here hosts are asked, unless the site is offline."""
    files, ours = tuple(files), record.ours(site.layout, site.places.live)

    def look() -> dict[str, There]:
        return plan.look(files, site.places, ours, progress(site.layout.downloads))

    there = look()
    if not site.offline:
        files = _learnt(files, there, site)
        there = look()
    return plan.make(files, there, site.tokens, {entry.sha256 for entry in ours.values()})


def _names(known: Iterable[Wish]) -> dict[str, tuple[ModelFile, ...]]:
    """Return files by the names that they have on a volume: of a table, of a pack."""
    found: dict[str, tuple[ModelFile, ...]] = {}
    for wish in known:
        for file in wish.files:
            for name in {wish.name, file.pack} - {""}:
                found[name] = (*found.get(name, ()), file)
    return found


def _expanded(
    wish: Wish, names: Mapping[str, tuple[ModelFile, ...]], site: Site
) -> tuple[tuple[ModelFile, ...], tuple[Problem, ...]]:
    if wish.kind == "template":
        return _of_workflow(f"template:{wish.name}", _template(wish.name, site), site)
    if wish.kind == "workflow":
        return _of_workflow(f"workflow:{PurePath(wish.name).name}", _read(wish.name, site.layout), site)
    if wish.files:
        return wish.files, ()
    known = {**packs.shipped(), **names}
    if wish.name not in known:
        raise UsageError(f"there is no pack called {wish.name!r}", f"there are: {', '.join(sorted(known))}")
    return known[wish.name], ()


def _template(name: str, site: Site) -> bytes:
    if site.site_packages is None:
        told = "it is not known which ComfyUI's templates are meant"
        raise UsageError(told, "run it inside the pod (`docker exec NAME comfypod ...`), or `comfypod up` once")
    return templates.find(name, site.site_packages)


def _read(name: str, layout: Layout) -> bytes:
    """Read a workflow by its path from here, from the workspace, or from where ComfyUI's editor saves them."""
    saved = layout.comfyui / "user" / "default" / "workflows"
    paths = (Path(name), layout.root / name, saved / name, saved / f"{name}.json")
    try:
        return read_small(next((path for path in paths if path.is_file()), paths[0]), _LONGEST)
    except OSError as error:
        raise UsageError(f"cannot read the workflow {name}: {error.strerror}", "check its path") from error


def _of_workflow(who: str, data: bytes, site: Site) -> tuple[tuple[ModelFile, ...], tuple[Problem, ...]]:
    needs = workflow.read(data)
    if not needs.complete and site.site_packages is not None:
        needs = templates.index(site.site_packages).resolved(needs)
    hint = "it is left out; look at the workflow before you run it"
    told = (f"{who} names {name}, which is no file below models/" for name in needs.refused)
    problems = tuple(Problem(ModelError.code, each, hint) for each in told)
    return tuple(_file(who, need) for need in needs.active), problems


def _file(who: str, need: Need) -> ModelFile:
    below, _, name = need.file.rpartition("/")
    folder = "/".join(part for part in (need.folder, below) if part) if need.folder else ""
    return ModelFile(f"{who}/{need.name}", need.url, folder, name, need.sha256, pack=who)


def _with_folders(files: list[ModelFile], site: Site) -> tuple[ModelFile, ...]:
    """Give files that were named by address alone the folder that the templates know for them."""
    bare = {file.file for file in files if file.url and file.file and not file.folder}
    if not bare or site.site_packages is None:
        return tuple(files)
    needs = templates.index(site.site_packages).resolved(Needs(tuple(Need(name, url="-") for name in sorted(bare))))
    folders = {need.name: need.folder for need in needs.needs}
    return tuple(
        replace(file, folder=folders.get(file.file, "")) if file.file in bare and not file.folder else file
        for file in files
    )


def _learnt(files: tuple[ModelFile, ...], there: dict[str, There], site: Site) -> tuple[ModelFile, ...]:
    def unknown(file: ModelFile) -> bool:
        found = there.get(file.place)
        here = found is not None and (found.size >= 0 or found.elsewhere)
        return bool(file.url) and not here and not (file.sha256 and file.size)

    learnt = iter(asking.learn([file for file in files if unknown(file)], site))
    return tuple(next(learnt) if unknown(file) else file for file in files)

"""`comfypod models`: the models of a workspace, in a pod or on the host, whether ComfyUI runs or not."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from comfypod.download import left
from comfypod.download.address import shown
from comfypod.errors import IntegrityError, ModelError, Problem, SourceError, UsageError
from comfypod.files import room, storage_errors
from comfypod.host.asked import opened
from comfypod.host.volume import pod_of
from comfypod.log import human_bytes
from comfypod.models import notes, prune, record, verify, wanted
from comfypod.models.plan import is_named
from comfypod.models.pull import Outcome, pull
from comfypod.result import Result
from comfypod.workspace.aside import put_aside

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from comfypod.download.left import Left
    from comfypod.host.asked import Volume
    from comfypod.log import Console
    from comfypod.models.file import ModelFile
    from comfypod.models.plan import Plan, Row
    from comfypod.models.site import Site
    from comfypod.workspace.layout import Layout

_WRONG_FOUND = "look at it, and move it away; nothing is fetched over it"
_WRONG = "`comfypod models pull --replace` sets it aside and fetches the right one"
_HINTS = {"wrong": _WRONG, "unknown": "put it there by hand, or write a [[model]] table with its address"}
_HELD = "its contents are here under another name"
_PART = "part of a file, and no pull goes on with it"
_HELD_NOW, _LEFT = "a pull fetches it", "left of a pull"
_DOCS = "see docs/models.md"


def show(layout: Layout) -> Result:
    """List what is wanted and what is there. No host is asked.

    Raises:
        StorageError: the workspace is none, or cannot be read.
    """
    volume = opened(layout)
    plan, problems = volume.plan(offline=True)
    live, known = volume.site.places.live, {row.file.place for row in plan.rows}
    ours, said = record.ours(layout, live), notes.read(layout)
    rows = []
    for row in plan.rows:
        note = notes.of_row(said, row)
        rows.append(_row(row) | ({"state": note.state, "reason": note.reason} if note is not None else {}))
    asked = (note for note in said.values() if note.under_way)
    rows += [{"place": note.place, "state": note.state, "total": 0, "reason": note.reason} for note in asked]
    for path in verify.files_in(volume.site.places):
        place = path.relative_to(live).as_posix() if path.is_relative_to(live) else str(path)
        if place not in known:
            size = path.stat().st_size if path.exists() else 0
            rows.append({"place": place, "state": "fetched" if place in ours else "found", "total": size})
    parts, named = _parts(volume), {row["place"] for row in rows}
    rows += [row for row in parts if row["place"] not in named]
    lines = [_line(row) for row in rows] or ["no models, and none are wanted"]
    taken = sum(row["taken"] for row in parts)
    lines += [f"partial files take {human_bytes(taken)} on the disk"] if taken else []
    return _result("list", {"models": rows, "parts": len(parts), "parts_bytes": taken}, lines, problems, 0)


def _parts(volume: Volume) -> list[dict[str, Any]]:
    """Return the partial files as rows of the list; of what is wanted there is one already."""
    with storage_errors(f"cannot look at {volume.site.layout.downloads}"):
        return [
            {
                "place": _part_place(part, volume), "state": "part", "bytes": part.so_far, "taken": part.taken,
                "total": max(part.total, 0), "reason": _HELD_NOW if part.held else _LEFT,
            }
            for part in left.look(volume.site.layout.downloads)
        ]  # fmt: skip


def plan(layout: Layout, words: Sequence[str]) -> Result:
    """Show what a pull would do, and as far as hosts say it, how much it would fetch.

    Raises:
        UsageError: a word is none.
        StorageError: the workspace is none, or cannot be read.
    """
    volume = opened(layout)
    found, problems = volume.plan(words)
    rows = [_row(row) for row in found.rows]
    free = room(volume.site.places.live).bytes
    data = {"models": rows, "bytes": found.bytes, "unsized": found.unsized, "free": free}
    return _result("plan", data, [*map(_line, rows), _total(found, free)], (*problems, *_clashes(found)))


def fetch(layout: Layout, words: Sequence[str], console: Console, *, replace_wrong: bool = False) -> Result:
    """Fetch what is wanted and nowhere; with `replace_wrong` also what something else stands in the place of.

    Raises:
        UsageError: a word is none.
        StorageError: the workspace is none, or the disk failed.
    """
    volume = opened(layout)
    found, problems = volume.plan(words)
    if replace_wrong and not volume.site.offline:
        for row in (row for row in found.rows if row.mends):
            place = put_aside(layout, volume.site.path(row.file), f"`comfypod models pull --replace`: {row.reason}")
            console.line(f"{row.file.place} is in {place} now")
        found, problems = volume.plan(words)
    files = [row.file for row in found.rows if row.fetched]
    outcomes = _offline(files) if volume.site.offline else _pulled(files, found, volume.site, console)
    left = [_problem(row) for row in found.rows if not row.fetched and row.state not in ("have", "elsewhere")]
    return _fetched(found, outcomes, (*problems, *left))


def _offline(files: Iterable[ModelFile]) -> list[Outcome]:
    error = SourceError("nothing is fetched: COMFYPOD_OFFLINE is set", "leave it out, or put the files there by hand")
    return [Outcome(file, error) for file in files]


def _pulled(files: Sequence[ModelFile], found: Plan, site: Site, console: Console) -> list[Outcome]:
    if not files:
        return []
    console.line(_total(found, room(site.places.live).bytes))
    label = files[0].name if len(files) == 1 else f"{len(files)} models"
    with console.progress(label, sum(file.size for file in files) or None) as advance:
        return pull(files, site, lambda so_far, _: advance(so_far), lambda *news: console.line(_news(*news)))


def _news(file: ModelFile, state: str, reason: str) -> str:
    return f"{_readable(file.place)} {reason if state == 'waiting' else f'could not be fetched: {reason}'}"


def _fetched(found: Plan, outcomes: Sequence[Outcome], problems: Sequence[Problem]) -> Result:
    done = [outcome for outcome in outcomes if outcome.error is None]
    errors = {outcome.error for outcome in outcomes if outcome.error is not None}
    data = {
        "models": [_row(row) for row in found.rows],
        "fetched": [each.file.place for each in done if not each.shared],
        "shared": [each.file.place for each in done if each.shared],
    }
    lines = [f"{each.file.place} is there{', as another name of what was' if each.shared else ''}" for each in done]
    codes = {error.exit_code for error in errors} | {ModelError.exit_code for _ in problems}
    code = codes.pop() if len(codes) == 1 else ModelError.exit_code
    told = [problem for outcome in outcomes if outcome.error for problem in outcome.error.problems]
    none = "nothing was fetched" if problems or told else "all of it is here"
    return _result("pull", data, lines or [none], (*problems, *dict.fromkeys(told)), code)


def check(layout: Layout, console: Console, *, digests: bool = False) -> Result:
    """Look at every file in the folders of models; exit code 6 where one is none, is cut short, or is another one.

    Raises:
        StorageError: the workspace is none, or cannot be read.
    """
    volume = opened(layout)
    known = _known(volume)
    with console.progress("reading", sum(size for size, sha256 in known.values() if sha256)) as advance:
        found = verify.verify(volume.site.places, known, digests=digests, watch=advance)
    wrong = {str(path): why for path, why in found.items() if why}
    data = {"files": len(found), "wrong": wrong}
    lines = [f"{_readable(path)}: {why}" for path, why in wrong.items()]
    told = [Problem(IntegrityError.code, line, _WRONG_FOUND) for line in lines]
    sound = f"{len(found) - len(wrong)} of {len(found)} files are sound"
    return _result("verify", data, [sound], told, IntegrityError.exit_code)


def remove(layout: Layout, *, sure: bool) -> Result:
    """Show what comfypod has fetched and nothing wants any more; with `sure` remove it.

    Raises:
        HostError: it is not known which image would boot, and which models that wants.
        UsageError: something that is wanted cannot be read.
        StorageError: the workspace is none, or the disk refused.
    """
    pod_of(layout)
    volume = opened(layout)
    files, problems = wanted.files_of(volume.wishes, volume.site, volume.wishes)
    named, unread = wanted.saved_names(layout)
    if problems := (*volume.problems, *problems, *unread):
        told = Problem(UsageError.code, "nothing is removed while it is not known what is wanted")
        raise UsageError(told.message, found=(told, *problems))
    wants = prune.Wants(files, named)
    found, parts = prune.unwanted(volume.site, wants), prune.unwanted_parts(volume.site, wants)
    rows = [{"place": place, "state": "fetched", "total": entry.size, "by": entry.by} for place, entry in found.items()]
    lines = [f"{human_bytes(entry.size):>9}  {place}  (came with {entry.by})" for place, entry in found.items()]
    rows += [{"place": _part_place(part, volume), "state": "part", "total": part.taken, "by": ""} for part in parts]
    lines += [f"{human_bytes(part.taken):>9}  {_readable(_part_place(part, volume))}  ({_PART})" for part in parts]
    freed = 0
    if sure:
        freed = prune.remove(volume.site, found) + prune.remove_parts(volume.site, parts)
        notes.sweep(layout, (file.place for file in files))
    end = f"removed, {human_bytes(freed)} were freed" if sure else "`comfypod models prune --yes` removes them"
    data = {"models": rows, "removed": sure, "freed": freed}
    return _result("prune", data, [*lines, end] if rows else ["nothing that comfypod has fetched is unwanted"], ())


def _part_place(part: Left, volume: Volume) -> str:
    """Return where a partial file would belong, its folder where that is not known."""
    live, target = volume.site.places.live, part.target
    return target.relative_to(live).as_posix() if target and target.is_relative_to(live) else str(target or part.folder)


def _known(volume: Volume) -> dict[Path, tuple[int, str]]:
    """Return sizes and digests of files that are known to be somewhere."""
    plan, _ = volume.plan(offline=True)
    live = volume.site.places.live
    ours = {live / place: (entry.size, entry.sha256) for place, entry in record.read(volume.site.layout).items()}
    own = {volume.site.path(row.file): row.file for row in plan.rows if row.state in ("have", "wrong")}
    others = {Path(row.reason): row.file for row in plan.rows if row.state == "elsewhere"}
    return ours | {path: (file.size, file.sha256) for path, file in (own | others).items() if file.size}


def _row(row: Row) -> dict[str, Any]:
    """Return a row as a machine reads it."""
    file, whole = row.file, row.state in ("have", "elsewhere")
    reason = row.reason or (_HELD if row.held else file.trouble)
    return {
        "name": file.name, "place": _place(file), "state": row.state, "bytes": file.size if whole else row.part,
        "total": file.size, "licence": file.licence, "token": row.token, "reason": reason,
        "url": shown(file.url), "pack": file.pack, "required": file.required,
    }  # fmt: skip


def _line(row: dict[str, Any]) -> str:
    size = human_bytes(row["total"]) if row["total"] else "?"
    done = f"  {human_bytes(row['bytes'])} are here" if row["state"] == "part" else ""
    more = "  ".join(str(row[key]) for key in ("licence", "token", "reason") if row.get(key))
    return f"{row['state']:<10}{size:>9}  {_readable(row['place'])}{done}" + (f"  ({more})" if more else "")


def _readable(name: str) -> str:
    """Return a name as a terminal can show it; anyone may have made the file."""
    return name if name.isprintable() else repr(name)


def _total(found: Plan, free: int) -> str:
    count = sum(row.fetched for row in found.rows)
    if not count:
        return "nothing is to be fetched"
    unsized = f" and {found.unsized} of unknown size" if found.unsized else ""
    return f"{count} to fetch, {human_bytes(found.bytes)}{unsized}; {human_bytes(free)} are free"


def _clashes(found: Plan) -> tuple[Problem, ...]:
    return tuple(_problem(row) for row in found.rows if row.clash)


def _problem(row: Row) -> Problem:
    hint = _HINTS.get(row.state, _DOCS)
    if row.clash:
        hint = "give one of them another `file`, or leave it out"
    elif row.token:
        hint = f"accept the licence in a browser with your account there, and set {row.token}"
    return Problem(ModelError.code, f"{_place(row.file)}: {row.reason}", hint)


def _place(file: ModelFile) -> str:
    """Return where a file belongs, its name while that is not known."""
    return file.place if is_named(file) else file.name


def _result(
    verb: str, data: dict[str, Any], lines: Iterable[str], problems: Iterable[Problem], code: int = ModelError.exit_code
) -> Result:
    """Return what a verb has come to; with problems it is partial, and ends with `code`."""
    errors, text = tuple(problems), "\n".join(lines)
    return Result(f"models {verb}", data, text, "partial" if errors else "success", code if errors else 0, errors)

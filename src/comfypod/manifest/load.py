"""Reading `comfypod.toml`: every problem is found, with its line, and all are reported together."""

from __future__ import annotations

import difflib
import re
import tomllib
from importlib import resources
from pathlib import PurePath
from typing import TYPE_CHECKING, Any, get_args

import msgspec

from comfypod.errors import ManifestError, Problem, UsageError
from comfypod.manifest import profiles
from comfypod.manifest.locate import line_of, locate
from comfypod.manifest.schema import Manifest, ModelAddress
from comfypod.manifest.values import PICKLE_HINT, SafeName
from comfypod.models import packs
from comfypod.models import source as sources
from comfypod.models.look import PICKLES
from comfypod.settings import as_text

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from pathlib import Path

    from comfypod.manifest.locate import KeyPath

    Finding = tuple[KeyPath, str, str]

FILE_NAME = "comfypod.toml"
# What names a node's source, and the key that stands with it.
_NODE_KINDS = {"path": "", "git": "ref", "registry": "version"}
_NODE_KEYS = frozenset({"path", "git", "ref", "registry", "version"})
_NODE_HINT = "a node has `git` and `ref` (a commit, tag or branch), `registry` and `version`, or `path` for a folder"
_EXAMPLE = "`comfypod lock --init` writes a commented example"


def default_text() -> str:
    """Return the package's own manifest: the commented example."""
    return resources.files("comfypod.resources").joinpath(FILE_NAME).read_text("utf-8")


def load_manifest(path: Path | None) -> Manifest:
    """Read a manifest; None reads the one that comes with comfypod.

    Raises:
        UsageError: the file cannot be read.
        ManifestError: it has problems.
    """
    if path is None:
        return parse(default_text(), f"comfypod's own {FILE_NAME}")
    try:
        text = path.read_bytes().decode("utf-8")
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}", _EXAMPLE) from error
    except UnicodeDecodeError as error:
        raise ManifestError(
            f"{path} is not UTF-8 text: {error.reason} at byte {error.start}", "save it as UTF-8"
        ) from error
    return parse(text, str(path))


def parse(text: str, where: str) -> Manifest:
    """Check a manifest's text; `where` names it in messages.

    Raises:
        ManifestError: with one entry in `problems` for each thing that is wrong, in the order of lines.
    """
    try:
        body = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise _syntax(str(error), text, where) from error
    findings = [*_check(Manifest, body, ()), *_check_meaning(body)]
    if not findings:
        return msgspec.convert(body, Manifest)
    lines = locate(text)
    located = sorted(
        ((line_of(lines, path), path, message, hint) for path, message, hint in findings), key=lambda row: row[0]
    )
    found = tuple(
        Problem(ManifestError.code, f"{where}:{line}: {_dotted(path)}: {message}", hint)
        for line, path, message, hint in located
    )
    raise ManifestError(f"{where} has {len(found)} problem{'s' if len(found) > 1 else ''}", found[0].hint, found)


def _syntax(reason: str, text: str, where: str) -> ManifestError:
    line = re.search(r"at line (\d+)", reason)
    number = int(line[1]) if line else text.count("\n") + 1
    hint = "the line is not TOML; strings stand in quotes, tables in [brackets]"
    problem = Problem(ManifestError.code, f"{where}:{number}: {reason}", hint)
    return ManifestError(problem.message, hint, (problem,))


def _dotted(path: KeyPath) -> str:
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else str(part)
    return text or "the file"


def _closest(name: str, known: Iterable[str]) -> str:
    names = list(known)
    close = difflib.get_close_matches(name.lower(), names, 1)
    return f"did you mean {close[0]!r}?" if close else f"known are: {', '.join(names)}"


def _check(kind: Any, value: Any, path: KeyPath) -> Iterator[Finding]:
    """Yield what is wrong with one value of a type; msgspec itself stops at a document's first problem."""
    kind = _present(kind)
    facts = msgspec.inspect.type_info(kind)
    match facts:
        case msgspec.inspect.StructType(cls=cls) if isinstance(value, dict):
            yield from _check_table(cls, value, path)
        case msgspec.inspect.UnionType() if isinstance(value, dict):
            yield from _check_tagged(get_args(kind), value, path)
        case msgspec.inspect.VarTupleType() if isinstance(value, list):
            for index, item in enumerate(value):
                yield from _check(get_args(kind)[0], item, (*path, index))
        case msgspec.inspect.DictType() if isinstance(value, dict):
            for key, item in value.items():
                yield from _check(get_args(kind)[1], item, (*path, key))
        case _:
            yield from _check_scalar(kind, facts, value, path)


def _present(kind: Any) -> Any:
    """Leave None out of a union: TOML cannot say it."""
    kinds = [each for each in get_args(kind) if each is not type(None)]
    return kinds[0] if type(None) in get_args(kind) and len(kinds) == 1 else kind


def _check_scalar(kind: Any, facts: msgspec.inspect.Type, value: Any, path: KeyPath) -> Iterator[Finding]:
    try:
        msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        schema = facts.extra_json_schema if isinstance(facts, msgspec.inspect.Metadata) else None
        expected = (schema or {}).get("description")
        yield path, f"{value!r} is not {expected}" if expected else str(error), ""


def _check_table(cls: Any, value: dict[str, Any], path: KeyPath) -> Iterator[Finding]:
    tag = cls.__struct_config__.tag_field
    fields = {field.name: field for field in msgspec.structs.fields(cls)}
    for key, item in value.items():
        if key in fields:
            yield from _check(fields[key].type, item, (*path, key))
        elif key != tag:
            yield (*path, key), "there is no such key", _closest(key, fields)
    for name, field in fields.items():
        if field.required and name not in value:
            yield path, f"the key {name!r} is missing", _EXAMPLE


def _check_tagged(classes: tuple[Any, ...], value: dict[str, Any], path: KeyPath) -> Iterator[Finding]:
    kinds = {cls.__struct_config__.tag: cls for cls in classes}
    kind = value.get("kind")
    if isinstance(kind, str) and kind in kinds:
        yield from _check_table(kinds[kind], value, path)
    else:
        yield (*path, "kind"), f"{kind!r} is not a kind of source", f"kinds are: {', '.join(kinds)}"


def _check_meaning(body: dict[str, Any]) -> Iterator[Finding]:
    """Yield what is well-formed and still wrong; parts of a wrong type are left to the other check."""
    yield from _check_profiles(body.get("profiles"))
    for table in ("node", "model", "pack"):
        yield from _duplicates(table, [(index, row.get("name")) for index, row in _rows(body, table)], f"{table} name")
    yield from _check_nodes(_rows(body, "node"))
    yield from _check_packs(_rows(body, "pack"))
    yield from _check_models(_model_rows(body))
    yield from _check_settings(body.get("settings"))


def _check_profiles(names: Any) -> Iterator[Finding]:
    if not isinstance(names, list):
        return
    known = profiles.load_profiles()
    if not names:
        yield ("profiles",), "at least one profile is needed", f"known are: {', '.join(known)}"
    for index, name in enumerate(names):
        if isinstance(name, str) and name not in known:
            yield ("profiles", index), f"there is no profile {name!r}", _closest(name, known)
    yield from _duplicates("profiles", list(enumerate(names)), "profile")


def _check_settings(table: Any) -> Iterator[Finding]:
    for name, value in table.items() if isinstance(table, dict) else ():
        if not isinstance(value, str | int | float | bool | list):
            continue
        try:
            as_text(name, value)
        except UsageError as error:
            yield ("settings", name), error.message, error.hint


def _check_nodes(rows: Sequence[tuple[int, dict[str, Any]]]) -> Iterator[Finding]:
    for index, row in rows:
        kinds = [kind for kind in _NODE_KINDS if kind in row]
        if not kinds:
            yield ("node", index), "it says neither `git` nor `path` nor `registry`", _NODE_HINT
            continue
        kind, beside = kinds[0], _NODE_KINDS[kinds[0]]
        for key in row:
            if key in _NODE_KEYS and key not in (kind, beside):
                yield ("node", index, key), f"it stands beside `{kind}`", _NODE_HINT
        if beside and beside not in row:
            yield ("node", index, kind), f"the key {beside!r} is missing", _NODE_HINT


def _check_packs(rows: Sequence[tuple[int, dict[str, Any]]]) -> Iterator[Finding]:
    for index, row in rows:
        name = row.get("name")
        if isinstance(name, str) and not row.get("file") and name not in packs.shipped():
            hint = f"{_closest(name, packs.shipped())}; another one has its files as [[pack.file]]"
            yield ("pack", index, "name"), f"comfypod has no pack {name!r}", hint


def _model_rows(body: dict[str, Any]) -> Iterator[tuple[KeyPath, dict[str, Any]]]:
    """Yield every table that is a model file, those of packs included."""
    yield from ((("model", index), row) for index, row in _rows(body, "model"))
    for index, pack in _rows(body, "pack"):
        yield from ((("pack", index, "file", number), row) for number, row in _rows(pack, "file"))


def _check_models(rows: Iterable[tuple[KeyPath, dict[str, Any]]]) -> Iterator[Finding]:
    places: dict[tuple[Any, Any], tuple[KeyPath, Any]] = {}
    for path, row in rows:
        url, folder = row.get("url"), row.get("folder")
        if not isinstance(url, str) or not isinstance(folder, str) or any(True for _ in _check(ModelAddress, url, ())):
            continue
        try:
            source = sources.of_text(url)
        except ValueError as error:
            yield (*path, "url"), str(error), sources.HOWTO
            continue
        name = row.get("file") or source.file
        if not name and source.kind == "civitai":
            continue
        if "file" not in row and any(True for _ in _check(SafeName, name, ())):
            yield (*path, "url"), "the address does not end in a file name", 'write `file = "..."` beside it'
        if PurePath(str(name)).suffix.lower() in PICKLES and row.get("pickle") is not True:
            yield path, f"{name} is of a format that can run code when it is loaded", PICKLE_HINT
        digest = row.get("sha256")
        first, other = places.setdefault((folder, name), (path, digest))
        if first != path and (first[:-1] == path[:-1] or (digest and other and digest != other)):
            yield path, f"{folder}/{name} is the place of {_dotted(first)} too", "give one of them another file"


def _rows(body: dict[str, Any], table: str) -> list[tuple[int, dict[str, Any]]]:
    rows = body.get(table)
    return [(i, row) for i, row in enumerate(rows) if isinstance(row, dict)] if isinstance(rows, list) else []


def _duplicates(table: str, names: Sequence[tuple[int, Any]], what: str) -> Iterator[Finding]:
    seen: set[str] = set()
    for index, name in names:
        if not isinstance(name, str):
            continue
        if name.casefold() in seen:
            yield (table, index), f"the {what} {name!r} is there twice", "names must differ, whatever their case"
        seen.add(name.casefold())

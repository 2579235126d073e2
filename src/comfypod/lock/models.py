"""Models and packs in a lock: what the manifest asks for as single files, with address, digest and size for good."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import PurePath
from typing import TYPE_CHECKING
from urllib.parse import quote

import msgspec

from comfypod import fetch, files
from comfypod.download.address import shown
from comfypod.errors import LockError, SourceError
from comfypod.lock.schema import LockedModel, clashes
from comfypod.log import human_bytes
from comfypod.manifest.values import PICKLE_HINT
from comfypod.models import facts, packs
from comfypod.models import source as sources
from comfypod.models.file import ModelFile
from comfypod.models.look import PICKLES, wrong_with
from comfypod.models.source import HuggingFace

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from comfypod.download.order import Terms
    from comfypod.log import Console
    from comfypod.manifest.schema import Manifest, PackFile
    from comfypod.models.source import Endpoints

_COMMIT = re.compile(r"[0-9a-f]{40}")
Key = tuple[str, str, str]


def wanted(manifest: Manifest) -> Iterator[tuple[ModelFile, bool]]:
    """Yield every file that a manifest asks for, and whether images have it."""
    for model in manifest.model:
        yield _as_file(model.name, model), model.bake
    for pack in manifest.pack:
        own = (_as_file(f"{pack.name}/{file.filename or file.url}", file, pack.name) for file in pack.file)
        for file in own if pack.file else packs.shipped()[pack.name]:
            yield file, pack.bake


def _as_file(name: str, row: PackFile, pack: str = "") -> ModelFile:
    return ModelFile(
        name, row.url, row.folder, row.filename, row.sha256 or "", row.size or 0, row.licence, row.gated, row.pickle,
        pack=pack,
    )  # fmt: skip


def key(model: ModelFile | LockedModel) -> Key:
    """Return what a file is known by in manifest and lock: its name, in a pack where it comes from and goes to."""
    if not model.pack:
        return (model.name, "", "")
    return (model.pack, model.folder, model.source if isinstance(model, LockedModel) else model.url)


def lock_models(
    asked: Iterable[tuple[ModelFile, bool]],
    held: Iterable[LockedModel],
    terms: Terms,
    endpoints: Endpoints,
    scratch: Path,
    console: Console,
) -> tuple[LockedModel, ...]:
    """Lock files; what `held` says of one stays. What is not known of the others, their hosts are asked.

    Raises:
        SourceError: a host does not answer, or refuses.
        IntegrityError: a host sends another file than the manifest says.
        LockError: two files have one place, or a file is no model, or cannot be pinned.
    """
    known = {key(model): model for model in held}

    def completed(file: ModelFile) -> ModelFile:
        file = _as_known(file, known.get(key(file)))
        file = replace(file, url=_pinned(file.url, terms, endpoints))
        if file.file and file.sha256 and file.size:
            return file
        return _measured(facts.learn(file, terms, endpoints), terms, endpoints, scratch, console)

    found = [_locked(file, completed(file), bake=bake) for file, bake in asked]
    for clash in clashes(found):
        raise LockError(clash, "give one of them another `file` or `folder`, or leave one out")
    return tuple(sorted(found, key=lambda model: (model.name, model.folder)))


def _as_known(file: ModelFile, known: LockedModel | None) -> ModelFile:
    if known is None or known.source != file.url or file.sha256 not in ("", known.sha256):
        return file
    return replace(
        file, url=known.url, file=file.file or known.file, sha256=known.sha256, size=file.size or known.size,
        licence=file.licence or known.licence, gated=file.gated or known.gated,
    )  # fmt: skip


def _measured(file: ModelFile, terms: Terms, endpoints: Endpoints, scratch: Path, console: Console) -> ModelFile:
    """Download a file whose host does not tell its digest, and look at it."""
    if file.sha256 and file.size:
        return file
    if file.trouble:
        raise SourceError(
            f"model {file.name}: {file.trouble}",
            "check address and token, or write `sha256` and `size` (bytes) beside its `url`",
        )
    console.line(
        f"model {file.name}: {shown(file.url)} does not tell its digest, so all of it is downloaded"
        + (f", {human_bytes(file.size)}" if file.size else "")
    )
    place = scratch / "model"
    address = sources.address(sources.of_text(file.url), endpoints)
    size = fetch.download(address, place, sha256=file.sha256 or None, tokens=terms.tokens)
    if wrong := wrong_with(place, file.file, pickle=file.pickle):
        raise LockError(f"model {file.name}: what {shown(file.url)} sends is no model: {wrong}", "check the address")
    found = files.sha256_file(place)
    place.unlink()
    return replace(file, sha256=file.sha256 or found, size=size)


def _pinned(url: str, terms: Terms, endpoints: Endpoints) -> str:
    """Name the commit that a branch of a Hugging Face repository means today."""
    named = sources.of_text(url)
    if not url.startswith("hf:") or not isinstance(named, HuggingFace) or _COMMIT.fullmatch(named.revision):
        return url
    asked = f"{endpoints.hugging_face}/api/models/{named.repo}/revision/{quote(named.revision, '')}"
    answer = fetch.get_json(asked, tokens=terms.tokens)
    commit = str(answer.get("sha")) if isinstance(answer, dict) else ""
    if not _COMMIT.fullmatch(commit):
        raise SourceError(f"{url}: the host does not say which commit that is", "write the commit after the `@`")
    return f"hf:{named.repo}@{commit}/{named.path}"


def _locked(asked: ModelFile, found: ModelFile, *, bake: bool) -> LockedModel:
    if not found.file:
        raise LockError(f"model {asked.name}: its host does not say what the file is called", 'write `file = "..."`')
    if PurePath(found.file).suffix.lower() in PICKLES and not asked.pickle:
        raise LockError(f"model {asked.name}: {found.file} is of a format that can run code", PICKLE_HINT)
    name = f"{found.pack}/{found.file}" if found.pack else found.name
    model = LockedModel(
        name, found.url, found.folder, found.file, found.sha256, found.size, bake,
        re.sub(r'["$\\`\x00-\x1f\x7f]', "", found.licence), found.gated, found.pickle, found.pack,
        asked.url if asked.url != found.url else "",
    )  # fmt: skip
    try:
        return msgspec.convert(msgspec.to_builtins(model), LockedModel)
    except msgspec.ValidationError as error:
        raise LockError(f"model {asked.name}: what its host says of it cannot be used: {error}") from error

"""What the host of a model file says of it before the first byte: size, SHA-256, licence, whether it is gated.

Hugging Face: `GET /api/models/ORG/REPO?blobs=true` lists files with their sizes and, for large ones, SHA-256
(https://huggingface.co/docs/huggingface_hub/package_reference/hf_api: `model_info` with `files_metadata`), without
a token also where a repository is gated (https://github.com/huggingface/huggingface.js/issues/945). Civitai:
`GET /api/v1/model-versions/ID` lists the files of a version, `GET /api/v1/models/ID` says what the author permits
(https://developer.civitai.com/site/reference/model-versions). Everything else, and a mirror without an API: a HEAD.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, quote, urlsplit

from comfypod.download import connection
from comfypod.download.probe import probe
from comfypod.download.refusal import BrokenError
from comfypod.errors import SourceError
from comfypod.fetch import get_json
from comfypod.models import source as sources
from comfypod.models.loose import rows, table, text
from comfypod.models.needs import inside, is_sha256
from comfypod.models.source import Civitai, Endpoints, HuggingFace, Source

if TYPE_CHECKING:
    from comfypod.download.order import Terms
    from comfypod.models.file import ModelFile

# Types of Civitai's models and of their files (https://developer.civitai.com/site/reference/enums) that ComfyUI loads.
_FOLDERS = {
    "Checkpoint": "checkpoints", "Controlnet": "controlnet", "DoRA": "loras", "Hypernetwork": "hypernetworks",
    "LORA": "loras", "LoCon": "loras", "TextualInversion": "embeddings", "Upscaler": "upscale_models", "VAE": "vae",
}  # fmt: skip
_MODELS = ("Model", "Pruned Model")
_BESIDE = {"VAE": "vae", "Text Encoder": "text_encoders"}
_DEMANDS = {
    "allowNoCredit": "credit the author", "allowDerivatives": "no derivatives",
    "allowDifferentLicense": "derivatives under the same licence",
}  # fmt: skip


def learn(file: ModelFile, terms: Terms, endpoints: Endpoints, silent: dict[str, str] | None = None) -> ModelFile:
    """Return a file with what its host says of it; what is known stays, and what cannot be learnt stays unknown.

    A host that is not reachable or refuses is no error here: `trouble` then says why. One of which all is known is not
    asked for. Whoever does not answer at all is added to the `silent`, by host and with the reason, and is not asked.
    """
    silent = {} if silent is None else silent
    try:
        source = sources.of_text(file.url)
    except ValueError as error:
        return replace(file, trouble=str(error))
    host = host_of(source, endpoints)
    if host in silent or (file.sha256 and file.size and file.licence):
        return replace(file, trouble=silent.get(host, file.trouble))
    try:
        file = _asked(file, source, terms, endpoints)
        if (file.sha256 and file.size) or file.trouble:
            return file
    except BrokenError as error:
        # Whoever does not answer now will not answer the next question either.
        return _troubled(file, error, host, silent)
    except SourceError as error:
        file = replace(file, trouble=_why(error))
    try:
        return _probed(file, source, terms, endpoints)
    except SourceError as error:
        return _troubled(file, error, host, silent)


def _troubled(file: ModelFile, error: SourceError, host: str, silent: dict[str, str]) -> ModelFile:
    if isinstance(error, BrokenError) and error.silent:
        silent[host] = _why(error)
    return replace(file, trouble=_why(error))


def host_of(source: Source, endpoints: Endpoints) -> str:
    """Return who is asked about a file."""
    return urlsplit(sources.address(source, endpoints)).netloc.rpartition("@")[2]


def _asked(file: ModelFile, source: Source, terms: Terms, endpoints: Endpoints) -> ModelFile:
    match source:
        case HuggingFace():
            return _of_hugging_face(file, source, terms, endpoints)
        case Civitai():
            return _of_civitai(file, source, terms, endpoints)
        case _:
            return file


def _json(url: str, terms: Terms) -> dict[str, Any]:
    return table(get_json(url, tokens=terms.tokens, seconds=connection.QUESTION_SECONDS))


def _probed(file: ModelFile, source: Source, terms: Terms, endpoints: Endpoints) -> ModelFile:
    """Take what the file's own address says; an API that is not there, as with a mirror, does not matter then."""
    facts = probe(sources.address(source, endpoints), terms)
    return _filled(_named(replace(file, trouble=""), facts.name), facts.size, facts.sha256)


def _of_hugging_face(file: ModelFile, source: HuggingFace, terms: Terms, endpoints: Endpoints) -> ModelFile:
    kind = "" if source.repo.count("/") > 1 else "models/"
    revision = "" if source.revision == "main" else f"/revision/{quote(source.revision, safe='')}"
    said = _json(f"{endpoints.hugging_face}/api/{kind}{source.repo}{revision}?blobs=true", terms)
    licence = text(said, "cardData", "license")
    licence = text(said, "cardData", "license_name") or licence if licence == "other" else licence
    gated = said.get("gated") in ("auto", "manual", True)
    blob: dict[str, Any] = next((row for row in rows(said, "siblings") if text(row, "rfilename") == source.path), {})
    file = replace(file, licence=file.licence or _line(licence), gated=file.gated or gated)
    return _filled(file, blob.get("size"), text(blob, "lfs", "sha256"))


def _of_civitai(file: ModelFile, source: Civitai, terms: Terms, endpoints: Endpoints) -> ModelFile:
    said = _json(f"{endpoints.civitai}/api/v1/model-versions/{source.version}", terms)
    blob = _chosen(rows(said, "files"), dict(parse_qsl(source.choice)))
    # A VAE or a text encoder may come with a checkpoint.
    kind = text(blob, "type")
    folder = _BESIDE.get(kind) or (_FOLDERS.get(text(said, "model", "type"), "") if kind in _MODELS else "")
    file = replace(
        _named(file, text(blob, "name")),
        folder=file.folder or folder,
        licence=file.licence or _permissions(said.get("modelId"), terms, endpoints),
        gated=file.gated or said.get("availability", "Public") != "Public",
    )
    # Bytes over 1024, not rounded: a whole number may be a rounded one, and then the file's address is asked.
    size = float(kilobytes) * 1024 if isinstance(kilobytes := blob.get("sizeKB"), float) else 0.0
    return _filled(file, int(size) if size.is_integer() else 0, text(blob, "hashes", "SHA256").lower())


def _chosen(files: list[Any], choice: dict[str, str]) -> dict[str, Any]:
    """Return the file that the query of an address means; without one, the main file."""
    for file in sorted(map(table, files), key=lambda file: file.get("primary") is not True):
        facts = table(file, "metadata") | {"type": file.get("type")}
        if all(facts.get(key) == value for key, value in choice.items()):
            return file
    return {}


def _permissions(model: Any, terms: Terms, endpoints: Endpoints) -> str:
    """Return what the author of a model on Civitai demands, nothing where that is not to be had."""
    if not isinstance(model, int):
        return ""
    try:
        said = _json(f"{endpoints.civitai}/api/v1/models/{model}", terms)
    except SourceError:
        return ""
    use = said.get("allowCommercialUse")
    uses = ", ".join(map(_line, use)) if isinstance(use, list) else _line(use)
    demands = [f"commercial use: {uses or 'None'}"] if "allowCommercialUse" in said else []
    return "; ".join(demands + [demand for key, demand in _DEMANDS.items() if said.get(key) is False])


def _filled(file: ModelFile, size: Any, sha256: Any) -> ModelFile:
    """Fill in size and digest; those of other contents than the wanted are not taken."""
    sha256 = sha256 if isinstance(sha256, str) and is_sha256(sha256) else ""
    size = size if isinstance(size, int) and size > 0 else 0
    if file.sha256 and sha256 and file.sha256 != sha256:
        return replace(file, trouble=f"its host now has other contents there: sha256 {sha256}")
    return replace(file, size=file.size or size, sha256=file.sha256 or sha256)


def _named(file: ModelFile, name: str) -> ModelFile:
    """Give the host's name to a file that has none, when it is a plain one."""
    if file.file or "/" in name or not inside(name):
        return file
    return replace(file, file=name, name=file.name.replace(file.url, name))


def _why(error: SourceError) -> str:
    return f"{error.message}: {error.hint}" if error.hint else error.message


def _line(value: Any) -> str:
    """Return a text that fits a line."""
    return value[:200] if isinstance(value, str) and value.isprintable() else ""

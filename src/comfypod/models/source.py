"""Where a model file comes from, as people write it: a web address, `hf:ORG/REPO@REVISION/FILE`, `civitai:VERSION`."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import ClassVar, Literal
from urllib.parse import parse_qsl, quote, unquote, urlencode, urlsplit

from comfypod.download.address import shown
from comfypod.models.needs import inside

HOWTO = "write https://..., hf:ORG/REPO@REVISION/FILE or civitai:VERSION"
_NAME = r"[A-Za-z0-9][\w.-]*"
_REPO = rf"{_NAME}/{_NAME}"
_SHORT_HF = re.compile(rf"hf:(?P<repo>{_REPO})(?:@(?P<revision>[^/@]+))?/(?P<path>.+)", re.ASCII)
_LONG_HF = re.compile(
    rf"/(?P<repo>(?:datasets/|spaces/)?{_REPO})/(?:resolve|blob|raw)/(?P<revision>[^/]+)/(?P<path>.+)", re.ASCII
)
# Also the short form of Civitai's own AIR: `civitai:MODEL@VERSION`.
_SHORT_CIVITAI = re.compile(r"civitai:(?:\d{1,12}@)?(?P<version>\d{1,12})", re.ASCII)
_LONG_CIVITAI = re.compile(r"/api/download/models/(?P<version>\d{1,12})", re.ASCII)
# Which file of a version is meant; all else in such an address, a token above all, is dropped.
_CHOICES = ("type", "format", "size", "fp")


@dataclass(frozen=True, slots=True)
class Endpoints:
    """Where the hosts' own addresses lead, without a slash at the end; a mirror stands here."""

    hugging_face: str = "https://huggingface.co"
    civitai: str = "https://civitai.com"


@dataclass(frozen=True, slots=True)
class Web:
    """A file at an address that says nothing more about it."""

    url: str
    kind: ClassVar[Literal["web"]] = "web"

    @property
    def file(self) -> str:
        """The file's name."""
        return unquote(urlsplit(self.url).path).rpartition("/")[2]


@dataclass(frozen=True, slots=True)
class HuggingFace:
    """A file of a repository; `repo` begins with `datasets/` or `spaces/` where it is no model's."""

    repo: str
    revision: str
    path: str
    kind: ClassVar[Literal["hugging-face"]] = "hugging-face"

    @property
    def file(self) -> str:
        """The file's name."""
        return self.path.rpartition("/")[2]


@dataclass(frozen=True, slots=True)
class Civitai:
    """A version of a model on Civitai; `choice` is the query that says which of its files, empty for the main one."""

    version: str
    choice: str = ""
    kind: ClassVar[Literal["civitai"]] = "civitai"
    file: ClassVar[str] = ""


Source = Web | HuggingFace | Civitai


def of_text(text: str) -> Source:
    """Read where a file comes from; the usual addresses of Hugging Face and Civitai mean the same as the short forms.

    Raises:
        ValueError: it is no such text, or names a file that leaves its repository.
    """
    if match := _SHORT_HF.fullmatch(text):
        return _hugging_face(match, match["path"])
    if match := _SHORT_CIVITAI.fullmatch(text):
        return Civitai(match["version"])
    try:
        parts = urlsplit(text)
        host = parts.hostname if parts.scheme in ("https", "http") else None
    except ValueError as error:
        raise ValueError(f"{_shown(text)} is no address: {error}") from error
    if not host or not text.isprintable() or " " in text:
        raise ValueError(f"{_shown(text)} is no address of a file; {HOWTO}")
    if host in ("huggingface.co", "www.huggingface.co", "hf.co") and (match := _LONG_HF.fullmatch(parts.path)):
        return _hugging_face(match, unquote(match["path"]))
    if host in ("civitai.com", "www.civitai.com"):
        return _civitai(text, parts.path, dict(parse_qsl(parts.query)))
    return Web(text)


def _hugging_face(match: re.Match[str], path: str) -> HuggingFace:
    revision = unquote(match["revision"] or "main")
    if not inside(path) or not inside(revision):
        raise ValueError(f"{path!r} at {revision!r} is no file of a repository")
    return HuggingFace(match["repo"], revision, path)


def _civitai(text: str, path: str, query: dict[str, str]) -> Source:
    if match := _LONG_CIVITAI.fullmatch(path):
        return Civitai(match["version"], urlencode({key: query[key] for key in _CHOICES if key in query}))
    if path.startswith("/models/"):
        if match := _SHORT_CIVITAI.fullmatch(f"civitai:{query.get('modelVersionId', '')}"):
            return Civitai(match["version"])
        told = "is a model's page, not a version of it; choose a version there, its address has modelVersionId="
        raise ValueError(f"{_shown(text)} {told}")
    return Web(text)


def address(source: Source, endpoints: Endpoints) -> str:
    """Return the address that a file is fetched from."""
    match source:
        case Web(url):
            return url
        case HuggingFace(repo, revision, path):
            return f"{endpoints.hugging_face}/{repo}/resolve/{quote(revision, safe='')}/{quote(path)}"
        case Civitai(version, choice):
            return f"{endpoints.civitai}/api/download/models/{version}" + (f"?{choice}" if choice else "")


def canonical(text: str) -> str:
    """Return the one address of all that mean the same file, nothing for what is none."""
    try:
        return address(of_text(text), Endpoints())
    except ValueError:
        return ""


def _shown(text: str) -> str:
    """Return an address for a message: no login, no query."""
    return repr(shown(text).partition("?")[0][:200])

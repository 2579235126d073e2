"""The registry of custom nodes: which archive an id and a version are. It gives no digest; who asks keeps one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlencode, urljoin

from comfypod import fetch
from comfypod.download.address import shown
from comfypod.errors import SourceError

if TYPE_CHECKING:
    from collections.abc import Mapping

VARIABLE = "COMFYPOD_NODE_REGISTRY"
DEFAULT = "https://api.comfy.org"
_WITHDRAWN = frozenset({"NodeVersionStatusBanned", "NodeVersionStatusDeleted", "NodeVersionStatusFlagged"})


def base(environ: Mapping[str, str]) -> str:
    """Return the registry to ask while a lock is made."""
    return (environ.get(VARIABLE, "").strip() or DEFAULT).rstrip("/")


def find(place: str, name: str, version: str) -> tuple[str, str]:
    """Return version and archive of an id; an empty `version` is the newest.

    Raises:
        SourceError: not reachable, there is no such version, or it was withdrawn.
    """
    query = f"?{urlencode({'version': version})}" if version else ""
    page = f"{place}/nodes/{quote(name, safe='')}/install{query}"
    found: Any = fetch.get_json(page)
    url, named = (found.get("downloadUrl"), found.get("version")) if isinstance(found, dict) else (None, None)
    if not isinstance(url, str) or not url or not isinstance(named, str) or version not in ("", named):
        raise SourceError(f"{shown(page)} names no archive of {name} {version}".rstrip())
    if found.get("status") in _WITHDRAWN:
        status = found["status"].removeprefix("NodeVersionStatus").lower()
        raise SourceError(f"the registry says that {name} {named} is {status}", "take another version")
    return named, urljoin(page, url)

"""The hosts of models as this machine reaches them: mirrors and tokens of the caller's environment."""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from comfypod.download.order import Terms
from comfypod.models.source import Endpoints
from comfypod.settings import secret

if TYPE_CHECKING:
    from collections.abc import Mapping

TOKENS = ("HF_TOKEN", "CIVITAI_TOKEN")


def hosts(environ: Mapping[str, str]) -> tuple[Terms, Endpoints]:
    """Return how hosts are asked, with a token for the one that each belongs to, and where they are.

    Raises:
        UsageError: a file of a token cannot be read.
    """
    usual = Endpoints()
    endpoints = Endpoints((environ.get("HF_ENDPOINT") or usual.hugging_face).rstrip("/"), usual.civitai)
    given = zip((endpoints.hugging_face, endpoints.civitai), (secret(environ, name) for name in TOKENS), strict=True)
    return Terms({urlsplit(address).hostname or "": token for address, token in given if token}), endpoints

"""All that the models of one workspace need to know: where they are, and how hosts are asked for more."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from comfypod.download.order import Terms
from comfypod.models.source import Endpoints

if TYPE_CHECKING:
    from pathlib import Path

    from comfypod.models.file import ModelFile
    from comfypod.models.places import Places
    from comfypod.settings import Settings
    from comfypod.workspace.layout import Layout


@dataclass(frozen=True, slots=True)
class Site:
    """`tokens` are the variables of those that were given; `site_packages` are where ComfyUI's templates are, if known.

    With `offline` no host is asked.
    """

    layout: Layout
    places: Places
    terms: Terms = field(default_factory=Terms)
    endpoints: Endpoints = field(default_factory=Endpoints)
    tokens: tuple[str, ...] = ()
    site_packages: Path | None = None
    offline: bool = False

    def path(self, file: ModelFile) -> Path:
        """Return where a file belongs."""
        return self.places.live / file.place


def site_of(settings: Settings, layout: Layout, places: Places, site_packages: Path | None) -> Site:
    """Return the site of a workspace with these settings. A mirror of Hugging Face is given its token."""
    endpoints = Endpoints(hugging_face=settings.hf_endpoint)
    hosts = {
        "huggingface.co": settings.hf_token, urlsplit(settings.hf_endpoint).hostname or "": settings.hf_token,
        "civitai.com": settings.civitai_token,
    }  # fmt: skip
    terms = Terms({host: token for host, token in hosts.items() if token}, settings.download_rate)
    given = {"HF_TOKEN": settings.hf_token, "CIVITAI_TOKEN": settings.civitai_token}
    tokens = tuple(name for name, token in given.items() if token)
    return Site(layout, places, terms, endpoints, tokens, site_packages, settings.offline)

"""Write the table of `docs/templates.md` from installed templates: `uv run python -m docs.templates SITE_PACKAGES`."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from comfypod.models import templates
from docs.reference import DOCS, code, table

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence, Set

    from comfypod.models.needs import Need, Needs

PAGE = DOCS / "templates.md"
_BLOCK = re.compile(r"(<!-- official templates -->\n).*?(<!-- end official templates -->)", re.DOTALL)


def tables(site_packages: Path) -> str:
    """Render how many templates can be made runnable, and what is open in the others."""
    index = templates.index(site_packages)
    found = {name: index.resolved(needs) for name, needs in index.templates.items()}
    parts = [_counts(found), _files(found)]
    if causes := [row for name, needs in found.items() for row in _causes(name, needs)]:
        parts.append(table(("template", "file", "folder", "why it is open"), causes))
    return "\n\n".join(parts)


def _counts(found: dict[str, Needs]) -> str:
    none = [needs for needs in found.values() if not needs.needs and not needs.refused]
    idle = [needs for needs in found.values() if needs.needs and not needs.active and not needs.refused]
    open_still = [needs for needs in found.values() if not needs.complete]
    had = len(found) - len(none) - len(idle) - len(open_still)
    rows = [
        ("need models, and all of them are known by folder and address", had),
        ("need a model that is not known", len(open_still)),
        ("name models in nodes that are bypassed or muted, and need none as they are", len(idle)),
        ("need no model", len(none)),
        ("together", len(found)),
    ]
    return table(("official templates that", "how many"), [(text, str(count)) for text, count in rows])


def _files(found: dict[str, Needs]) -> str:
    named = [need for needs in found.values() for need in needs.needs if need.complete]
    rows: list[tuple[str, Set[object]]] = [
        ("files, by folder and name", {(need.folder, need.file) for need in named}),
        ("addresses", {need.url for need in named}),
        ("hosts", {need.url.split("/")[2] for need in named}),
        ("files whose SHA-256 a template gives", {need.file for need in named if need.sha256}),
    ]
    return table(("what they name", "how many"), [(text, str(len(what))) for text, what in rows])


def _causes(name: str, needs: Needs) -> Iterator[tuple[str, ...]]:
    for text in needs.refused:
        yield code(name), code(text), "", "its name leaves its folder"
    for need in needs.active:
        if not need.complete:
            yield code(name), code(need.file), code(need.folder), _why(need)


def _why(need: Need) -> str:
    if not need.url:
        return "neither its node nor another template says where it can be had"
    return "neither its node nor another template says where it belongs"


def renewed(text: str, site_packages: Path) -> str:
    """Return the page with the tables as they are now."""
    return _BLOCK.sub(lambda found: f"{found[1]}{tables(site_packages)}\n{found[2]}", text)


def main(arguments: Sequence[str]) -> int:
    """Write the page."""
    PAGE.write_text(renewed(PAGE.read_text("utf-8"), Path(arguments[0])), "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

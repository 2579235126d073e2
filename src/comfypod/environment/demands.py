"""What somebody asks for in the words of a requirements.txt, and what of it the image's packages forbid."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from comfypod.environment import protect
from comfypod.environment.dists import canonical

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from packaging.requirements import Requirement

    from comfypod.environment.dists import Dist

_COMMENT = re.compile(r"(^|\s)#.*$")
# Options that say where packages are; all others of a requirements.txt are for pip itself and are left out.
_PLACES = re.compile(
    r"(?P<option>--extra-index-url|--index-url|-i|--find-links|-f|--editable|-e)(\s*=\s*|\s+)(?P<value>\S.*)"
)
_LONG = {"-i": "--extra-index-url", "--index-url": "--extra-index-url", "-f": "--find-links", "--editable": "-e"}


@dataclass(frozen=True, slots=True)
class Wanted:
    """The requirements of one party (`user`, or `node:NAME`), as they stand in a requirements.txt."""

    who: str
    lines: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Refusal:
    """A demand that was not granted, because the image's `kept` stays; the rest of the party's was."""

    who: str
    requirement: str
    kept: str


@dataclass(frozen=True, slots=True)
class Image:
    """What stays (with what counts as there because of it), for which Python."""

    dists: Mapping[str, Dist]
    python: str

    def kept(self, demand: Requirement) -> Dist | None:
        """Return what stands in the way of a demand, None when nothing does."""
        dist = self.dists.get(canonical(demand.name))
        if dist is None or protect.bound(dist) is None or not _applies(demand, self.python):
            return None
        there = _allowed(demand, dist) if demand.url is None else ()
        return None if any(demand.specifier.contains(each, prereleases=True) for each in there) else dist


def image_of(image: Mapping[str, Dist], python: str) -> Image:
    """Return what an image forbids; `python` is its minor version, such as `3.12`."""
    return Image({**image, **protect.aliases(image)}, python)


def parse(line: str) -> Requirement | None:
    """Return a requirement line as PEP 508 reads it, None when it is an option, a bare URL, a path or nonsense."""
    from packaging.requirements import InvalidRequirement, Requirement

    try:
        return Requirement(line.partition(" --")[0])
    except (InvalidRequirement, RecursionError):
        return None


def name_of(line: str) -> str:
    """Return what a line asks for by its canonical name, the line itself where it has none."""
    demand = parse(line)
    return canonical(demand.name) if demand is not None else line


def logical(lines: Iterable[str]) -> Iterator[str]:
    """Yield the lines of a requirements.txt without comments and continuations, and of its options those for places."""
    for line in "\n".join(lines).replace("\\\n", " ").splitlines():
        text = _COMMENT.sub("", line).strip()
        if not text.startswith("-"):
            if text:
                yield text
        elif option := _PLACES.fullmatch(text):
            yield f"{_LONG.get(option['option'], option['option'])} {option['value']}"


def granted(wanted: Wanted, image: Image) -> tuple[Wanted, tuple[Refusal, ...]]:
    """Return what may be asked of an installer, and what is refused at once."""
    kept: list[str] = []
    refused: list[Refusal] = []
    for line in logical(wanted.lines):
        demand = parse(line)
        dist = image.kept(demand) if demand is not None else None
        if dist is None:
            kept.append(line)
        else:
            refused.append(Refusal(wanted.who, line, str(dist)))
    return Wanted(wanted.who, tuple(kept)), tuple(refused)


def refused_within(
    parties: Sequence[Wanted], requires: Mapping[str, Sequence[str]], image: Image
) -> tuple[Refusal, ...]:
    """Return what packages that were added demand and did not get, for each party that they were added for.

    `requires` are the requirement lines in each package's metadata.
    """
    found: list[Refusal] = []
    for party in parties:
        waiting, seen = [name_of(line) for line in party.lines], set[str]()
        while waiting:
            name = waiting.pop()
            if name in seen or name not in requires:
                continue
            seen.add(name)
            for line in requires[name]:
                demand = parse(line)
                if demand is None or not _applies(demand, image.python):
                    continue
                waiting.append(canonical(demand.name))
                if (dist := image.kept(demand)) is not None:
                    found.append(Refusal(party.who, f"{line} (of {name})", str(dist)))
    return tuple(found)


def _applies(demand: Requirement, python: str) -> bool:
    """Whether a demand is one for this Python; what cannot be told is left to the installer."""
    from packaging.markers import UndefinedComparison

    there = {"python_version": python, "python_full_version": f"{python}.0", "extra": ""}
    try:
        return demand.marker is None or demand.marker.evaluate(there)
    except UndefinedComparison:
        return False


def _allowed(demand: Requirement, dist: Dist) -> tuple[str, ...]:
    """Return versions that may be there: the image's, and of what is bound to a major some others of that."""
    if protect.is_pinned(dist.name):
        return (dist.version,)
    major = dist.version.split(".")[0]
    named = (each.version.removesuffix(".*") for each in demand.specifier)
    return (dist.version, f"{major}.0", f"{major}.999", *(each for each in named if each.split(".")[0] == major))

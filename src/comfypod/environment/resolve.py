"""What has to be installed into a layer so that it has what is wanted, as uv works it out; nothing is changed."""

from __future__ import annotations

import re
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import unquote

from comfypod import proc, uv_program
from comfypod.environment import protect
from comfypod.environment.demands import name_of
from comfypod.errors import InstallError, SourceError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from comfypod.environment.demands import Wanted
    from comfypod.environment.layer import Layer

# `name==1.0`, `name==1.0 (from URL)` as uv wrote it earlier, `name @ URL`.
_ADDED = re.compile(
    r"^ [+~] (?P<name>[^\s=@]+)(?:==(?P<version>\S+)(?: \(from (?P<from>.+)\))?| @ (?P<url>.+))$", re.MULTILINE
)
_BUILT = re.compile(r"Failed to (?:download and )?build `([^`=@ ]+)")
_COMPILER = re.compile(
    r"(?:\bcc|gcc|g\+\+|c\+\+|clang)\S*(?: failed)?: (?:No such file or directory|(?:command )?not found)"
    r"|No such file or directory: '(?:\S*-)?(?:cc|gcc|g\+\+|c\+\+|clang|clang\+\+)'"
    r"|Unknown compiler|No CMAKE_C(?:XX)?_COMPILER could be found|command not found: \S*(?:cc|g\+\+|clang)"
)
# After so many failures to reach anything, nothing more is waited for.
_OUTAGES = 3


@dataclass(frozen=True, slots=True)
class Sources:
    """Where packages may come from: the network, uv's cache, a folder of wheels; `prefer` are constraints."""

    network: bool
    wheels: Path | None = None
    prefer: tuple[str, ...] = ()


class Installer:
    """uv, for one layer and for one time limit over all its runs; it knows when the network is gone."""

    def __init__(
        self,
        layer: Layer,
        cache: Path,
        sources: Sources,
        environ: Mapping[str, str],
        seconds: float,
        tick: Callable[[], None] | None = None,
        keep: Sequence[int] = (),
    ) -> None:
        self._layer = layer
        self._sources = sources
        self._env = uv_program.clean_environ({**environ, **layer.environ(cache)})
        self._deadline = time.monotonic() + seconds
        self._tick = tick
        self._keep = keep
        self._outages = 0

    @property
    def seconds(self) -> float:
        """What is left of the time."""
        return max(1.0, self._deadline - time.monotonic())

    def plan(self, parties: Sequence[Wanted], folder: Path) -> tuple[str, ...]:
        """Return what is to be installed, each as an exact requirement; `folder` is for uv's input.

        Raises:
            InstallError: the parties cannot have together what they want.
            SourceError: something cannot be fetched.
            StorageError: the disk failed.
        """
        asked = _write_parties(folder, parties)
        exact = folder / "overrides.txt"
        constraints = ["--constraints", str(self._layer.constraints)]
        if self._sources.prefer:
            (folder / "prefer.txt").write_text("\n".join(self._sources.prefer), "utf-8")
        prefer = ["--constraints", str(folder / "prefer.txt")] if self._sources.prefer else []
        # What was there before is tried first, then what packages demand of numpy, then its major alone.
        attempts = [*([(prefer, False)] if prefer else []), ([], False), ([], True)]
        for more, majors in attempts:
            exact.write_text("\n".join(_overrides(self._layer, majors=majors)), "utf-8")
            try:
                said = self._reached("--dry-run", *constraints, *more, "--overrides", str(exact), *asked)
            except (InstallError, SourceError):
                if majors:
                    raise
            else:
                lines = [line for party in parties for line in party.lines]
                return tuple(_spec(found, lines) for found in _ADDED.finditer(said))
        raise AssertionError("the last attempt raises or returns")

    def fill(self, prefix: Path, exact: Sequence[str], parties: Sequence[Wanted], folder: Path) -> None:
        """Install exactly this, and no more, into a new prefix as if it were the layer.

        It comes from where the parties say that packages are.

        Raises:
            InstallError: a package cannot be built.
            SourceError: something cannot be fetched.
            StorageError: the disk failed.
        """
        wanted = folder / "exact.txt"
        places = {line: None for party in parties for line in party.lines if line.startswith("--")}
        wanted.write_text("\n".join((*places, *exact)) + "\n", "utf-8")
        arguments = ("--prefix", str(prefix), "--no-deps", "--compile-bytecode", "--requirements", str(wanted))
        self._reached(*arguments)

    def _reached(self, *arguments: str) -> str:
        """Run uv; where nothing can be reached, once more with what is at hand."""
        if not self._sources.network or self._outages >= _OUTAGES:
            return self._run("--offline", *arguments)
        try:
            return self._run(*arguments)
        except SourceError as error:
            if "HTTP status" in error.message:
                raise
            self._outages += 1
            try:
                return self._run("--offline", *arguments)
            except (InstallError, SourceError):
                raise error from None

    def _run(self, *arguments: str) -> str:
        wheels: list[str] = []
        if self._sources.wheels is not None:
            # What is given here takes the place of what the environment names.
            places = [*filter(None, self._env.get("UV_FIND_LINKS", "").split(",")), str(self._sources.wheels)]
            wheels = [word for place in places for word in ("--find-links", place)]
        python = ("--python", str(self._layer.python), "--no-python-downloads")
        strategy = ("--index-strategy", "unsafe-best-match")
        argv = uv_program.command("pip", "install", *python, *strategy, *wheels, *arguments)
        done = proc.run(
            argv, seconds=self.seconds, env=self._env, cwd=self._layer.root, tick=self._tick,
            keep=self._keep, tied=True,
        )  # fmt: skip
        if not done.ok:
            raise lacks_compiler(done.stderr) or uv_program.explain(done, self._layer.root)
        return done.stderr


def lacks_compiler(said: str) -> InstallError | None:
    """Return the error to raise when uv could not build a package because there is no compiler."""
    built = _BUILT.search(said)
    if built is None or _COMPILER.search(said) is None:
        return None
    return InstallError(
        f"{built[1]} must be compiled and this variant of the image has no compiler; use the image's `full` variant"
    )


def _overrides(layer: Layer, *, majors: bool) -> list[str]:
    """Return what takes the place of every demand for these packages, whoever makes it."""
    bounds = [protect.bound(dist) for dist in layer.known.values() if protect.is_pinned(dist.name) or majors]
    return [bound for bound in bounds if bound is not None]


def _write_parties(folder: Path, parties: Sequence[Wanted]) -> list[str]:
    """Write a file per party, as uv reads them; return the arguments that name them."""
    asked: list[str] = []
    for number, party in enumerate(parties):
        path = folder / f"asked-{number}.txt"
        path.write_text("\n".join(party.lines) + "\n", "utf-8")
        asked += ["--requirements", str(path)]
    return asked


def _spec(found: re.Match[str], lines: Sequence[str]) -> str:
    """Return what uv would install as a requirement, with the hashes that were asked for."""
    name, url = found["name"], found["url"] or found["from"]
    if url:
        path = unquote(url.removeprefix("file://"))
        return f"-e {path}" if f"-e {path}" in lines else f"{name} @ {url}"
    hashes = {line.partition(" --hash")[2] for line in lines if " --hash" in line and name_of(line) == name}
    return " --hash".join([f"{name}=={found['version']}", *sorted(hashes)])

"""Installing the nodes that a volume wants, each as a transaction: fetch, install, import, commit or undo.

Nodes are staged beside what is there, and tried there. One that imports is put into its place by a rename; one that
does not is removed, with the reason kept. Killed at any moment, `place.settle` finishes or undoes it.
"""

from __future__ import annotations

import contextlib
import os
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from comfypod import files, proc
from comfypod.environment.demands import Wanted
from comfypod.errors import BusyError, ComfypodError, HostError, IntegrityError, NodeError, Problem
from comfypod.nodes import check, place, record
from comfypod.nodes.decide import Decision, Order, There, decide, refusal
from comfypod.nodes.obtain import Staged, obtain
from comfypod.nodes.record import Record, asked_by

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

    from comfypod.environment.install import Installed
    from comfypod.nodes.site import Site
    from comfypod.wish import Wish
    from comfypod.workspace.layout import Layout

if TYPE_CHECKING:
    # As `environment.install.install`: all of them are resolved together.
    Install = Callable[..., Installed]

_WHO = "node:"
_FETCHERS = 4
_SCRIPT_SECONDS = 900.0
_HINT = "`comfypod nodes list` shows it; `comfypod nodes sync` tries it again"


@dataclass(frozen=True, slots=True)
class Synced:
    """Which nodes are new or another in their place, why others are not, which of these are required, what to tell."""

    changed: tuple[str, ...] = ()
    failed: Mapping[str, str] = field(default_factory=dict)
    lacking: tuple[str, ...] = ()
    problems: tuple[Problem, ...] = ()


def sync(
    site: Site,
    wishes: Mapping[str, Wish],
    install: Install,
    order: Order | None = None,
    tick: Callable[[], None] | None = None,
) -> Synced:
    """Install what is wanted and not there. The failure of one node is its own.

    `tick` is called now and then; what it raises ends the work, and the next `place.settle` leaves nothing half done.

    Raises:
        BusyError: another process installs nodes now.
        StorageError: the disk failed.
    """
    with files.storage_errors(f"cannot install nodes in {site.folder}"), only_one(site.layout):
        return _Run(site, install, order or Order(), tick).work(wishes)


@contextlib.contextmanager
def only_one(layout: Layout) -> Iterator[None]:
    """Change nodes and their record, one process at a time.

    Raises:
        BusyError: another process does.
    """
    lock = files.FolderLock(layout.nodes_lock)
    try:
        lock.acquire()
    except BusyError as error:
        raise BusyError("another process installs or removes nodes now", "wait until it is done") from error
    try:
        yield
    finally:
        lock.release()


def look(folder: Path, name: str) -> There:
    """Say what stands in a node's place."""
    if os.path.lexists(folder / name):
        return "folder"
    return "disabled" if os.path.lexists(folder / f"{name}{place.OFF}") else "nothing"


def requester(name: str) -> str:
    """Name a node among those who ask for packages."""
    return f"{_WHO}{name}"


def _node(who: str) -> str:
    return who.removeprefix(_WHO)


class _Run:
    """One run: what is known, what is staged, and what has failed by now."""

    def __init__(self, site: Site, install: Install, order: Order, tick: Callable[[], None] | None) -> None:
        self._site, self._install, self._order, self._tick = site, install, order, tick
        self._known = Record()
        self._failed: dict[str, str] = {}
        self._staged: dict[str, Staged] = {}
        self._aside: tuple[Problem, ...] = ()

    def work(self, wishes: Mapping[str, Wish]) -> Synced:
        site = self._site
        site.folder.mkdir(parents=True, exist_ok=True)
        problems = place.settle(site.layout, site.folder)
        self._known = record.read(site.layout)
        self._forget(wishes)
        plan = {name: self._decided(wish) for name, wish in wishes.items()}
        self._failed |= {name: decision.reason for name, decision in plan.items() if decision.action == "fail"}
        due = {wishes[name]: decision for name, decision in plan.items() if decision.action == "fetch"}
        changed = self._carried_out(due) if due else ()
        told = [
            Problem(NodeError.code, f"node {name} is not installed: {why}", _HINT) for name, why in self._failed.items()
        ]
        lacking = tuple(name for name, wish in wishes.items() if wish.required and name in self._failed)
        return Synced(changed, dict(self._failed), lacking, (*problems, *self._aside, *told))

    def _forget(self, wishes: Mapping[str, Wish]) -> None:
        """Drop what is known of failures that nobody wishes for any longer."""
        for name, entry in list(self._known.nodes.items()):
            if entry.state == "failed" and name not in wishes:
                del self._known.nodes[name]
                self._write()

    def _decided(self, wish: Wish) -> Decision:
        entry, there = self._known.nodes.get(wish.name), look(self._site.folder, wish.name)
        return decide(wish, entry, there, self._order, self._site.layer.key)

    def _carried_out(self, due: Mapping[Wish, Decision]) -> tuple[str, ...]:
        for wish in due:
            if not self._is_installed(wish.name):
                self._known.nodes[wish.name] = asked_by(wish, "installing")
        self._write()
        try:
            for step in (self._fetch_all, self._provide, self._run_scripts, self._try):
                step(due)
            return tuple(name for name, staged in self._staged.items() if self._commit(name, staged))
        finally:
            for wish in due:
                files.remove_tree(self._site.layout.staging / f"node-{wish.name}")

    def _fetch_all(self, due: Mapping[Wish, Decision]) -> None:
        with ThreadPoolExecutor(_FETCHERS, "fetch-node") as fetchers:
            jobs = [(wish, fetchers.submit(self._fetch, wish, decision.locked)) for wish, decision in due.items()]
            for wish, job in jobs:
                try:
                    self._note(wish, job.result())
                except ComfypodError as error:
                    self._fail(wish, error.message, final=isinstance(error, IntegrityError))

    def _fetch(self, wish: Wish, locked: str) -> Staged:
        with files.storage_errors(f"cannot store the node {wish.name}"):
            return obtain(self._site, wish, locked, self._known.archives)

    def _note(self, wish: Wish, staged: Staged) -> None:
        """Take a node that was fetched, unless an upgrade has found what is there."""
        old, new = self._known.nodes[wish.name], staged.entry
        if new.archive:
            self._known.archives[f"{new.registry}@{new.version}"] = new.archive
        found = (old.state, old.commit, old.version) == ("installed", new.commit, new.version)
        if not (found and look(self._site.folder, wish.name) == "folder"):
            self._staged[wish.name] = staged

    def _provide(self, due: Mapping[Wish, Decision]) -> None:
        """Install what all of them require, resolved together."""
        del due
        wanted = [Wanted(requester(name), staged.lines) for name, staged in self._staged.items() if staged.lines]
        if not wanted:
            return
        site = self._site
        done = self._install(
            site.layer, site.layout, wanted, network=self._order.network, environ=site.environ, tick=self._tick
        )
        self._aside = done.aside
        for row in done.refused:
            if (staged := self._staged.get(_node(row.who))) is not None:
                told = f"{staged.entry.reason}; " if staged.entry.reason else ""
                entry = replace(staged.entry, reason=f"{told}{row.requirement} was asked for, {row.kept} stays")
                self._staged[_node(row.who)] = replace(staged, entry=entry)
        for failure in done.failed:
            if (staged := self._staged.get(_node(failure.who))) is not None:
                self._fail(staged.wish, failure.reason)

    def _run_scripts(self, due: Mapping[Wish, Decision]) -> None:
        """Run the `install.py` of nodes that have one, under the bounds of the layer."""
        del due
        for staged in list(self._staged.values()):
            if not (staged.path / "install.py").is_file():
                continue
            argv = [str(self._site.layer.python), "install.py"]
            try:
                done = proc.run(argv, seconds=_SCRIPT_SECONDS, env=self._site.environ, cwd=staged.path, tick=self._tick)
            except HostError as error:
                self._fail(staged.wish, error.message)
                continue
            if not done.ok:
                self._fail(staged.wish, f"its install.py failed: {check.last_line(done)}")

    def _try(self, due: Mapping[Wish, Decision]) -> None:
        del due
        paths = {name: staged.path for name, staged in self._staged.items()}
        for name, reason in check.imports(self._site, paths, tick=self._tick).items():
            if reason:
                self._fail(self._staged[name].wish, reason)

    def _commit(self, name: str, staged: Staged) -> bool:
        """Put a node into its place; it stays out where a user has put something there meanwhile."""
        if look(self._site.folder, name) != "nothing" and not self._is_installed(name):
            self._known.nodes.pop(name, None)
            return False
        entry = replace(staged.entry, when=time.strftime("%Y-%m-%dT%H:%M:%S%z"))
        place.put(self._site.layout, self._site.folder, name, staged.path, entry, self._known)
        return True

    def _fail(self, wish: Wish, reason: str, *, final: bool = True) -> None:
        """Keep why a node is not installed; one that is there stays. `final`: not to be tried again at each boot."""
        self._staged.pop(wish.name, None)
        self._failed[wish.name] = reason
        refused = refusal(wish, self._site.layer.key) if final else ""
        if self._is_installed(wish.name) and look(self._site.folder, wish.name) == "folder":
            entry = self._known.nodes[wish.name].to("installed", f"{wish} did not take its place: {reason}")
        else:
            entry = asked_by(wish, "failed").to("failed", reason)
        self._known.nodes[wish.name] = replace(entry, refused=refused)
        self._write()

    def _is_installed(self, name: str) -> bool:
        entry = self._known.nodes.get(name)
        return entry is not None and entry.state == "installed"

    def _write(self) -> None:
        record.write(self._site.layout, self._known)

"""Fetching several files at once: who is next, who else fetches the same, what is told meanwhile."""

from __future__ import annotations

import contextlib
import itertools
import os
import queue
import threading
import time
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from comfypod import files
from comfypod.download import address, partial, place, space
from comfypod.download.address import shown
from comfypod.download.order import Facts, News
from comfypod.download.partial import Partial
from comfypod.download.probe import agree, probe
from comfypod.download.rate import Gate
from comfypod.download.refusal import BrokenError, Patience
from comfypod.download.transfer import Shared, Transfer, stopped
from comfypod.errors import ComfypodError, IntegrityError, SourceError
from comfypod.workspace.lease import Lease

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from comfypod.download.order import Order, Terms
    from comfypod.download.refusal import Wait

_LOOK_SECONDS = 0.1
# How long a thread that is told to stop may take; one that looks up a name is left to itself.
_STOP_SECONDS = 0.8


def fetch(
    orders: Sequence[Order],
    site: Path,
    terms: Terms,
    *,
    watch: Callable[[Order, int, int], None] = lambda *_: None,
    tell: Callable[[Order, News], None] = lambda *_: None,
    cancelled: Callable[[], bool] = lambda: False,
) -> list[ComfypodError | None]:
    """Fetch files, and return what became of each: None, or why it is not there.

    `site` holds partial files, and their locks; another process with the same `site` waits for a file that is being
    fetched. `watch` is told an order, its bytes so far and in all (-1: not known), `tell` what has become of one when
    that happens, `cancelled` asked whether to stop; all in this thread, several times a second. What arrived is kept
    for the next call, whatever ends this one.
    """
    run = _Run(site, terms, cancelled)
    jobs = [_Job(order, run) for order in orders]

    def look() -> None:
        for job in jobs:
            job.tell(watch, tell)

    try:
        run.all(jobs, _Job.prepare, look)
        waiting = [job for job in jobs if not job.over]
        try:
            with files.storage_errors(f"cannot look at the disk of {site}"):
                space.check([(job.order, max(0, job.order.size or job.facts.size)) for job in waiting], site)
        except ComfypodError as error:
            for job in waiting:
                job.end(error)
        run.all(waiting, _Job.fetch, look)
    finally:
        run.stop.set()
    return [job.outcome if job.over else stopped(job.order) for job in jobs]


class _Run:
    """What all files of one call share."""

    def __init__(self, site: Path, terms: Terms, cancelled: Callable[[], bool]) -> None:
        self.site, self.terms, self._cancelled = site, terms, cancelled
        self._gate, self._patience = Gate(terms.rate), dict[str, Patience]()
        self.stop = threading.Event()

    def shared(self, url: str) -> Shared:
        """Return what a file from there shares with the others."""
        host = address.place(urlsplit(url))
        return Shared(self.terms, self._gate, self._patience.setdefault(host, Patience()))

    def all(self, jobs: Sequence[_Job], step: Callable[[_Job], None], look: Callable[[], None]) -> None:
        """Do a step of every job, some at a time, and `look` meanwhile; return when all did, or shall stop."""
        left: queue.SimpleQueue[_Job] = queue.SimpleQueue()
        for job in jobs:
            left.put(job)
        threads = [threading.Thread(target=self._work, args=(left, step), daemon=True) for _ in range(self.terms.files)]
        for thread in threads:
            thread.start()
        until = float("inf")
        alive = threads
        while alive and time.monotonic() < until:
            alive[0].join(_LOOK_SECONDS)
            alive = [thread for thread in threads if thread.is_alive()]
            look()
            if self._cancelled() and not self.stop.is_set():
                self.stop.set()
                until = time.monotonic() + _STOP_SECONDS

    def _work(self, left: queue.SimpleQueue[_Job], step: Callable[[_Job], None]) -> None:
        with contextlib.suppress(queue.Empty):
            while not self.stop.is_set():
                job = left.get_nowait()
                try:
                    if not job.over:
                        step(job)
                except ComfypodError as error:
                    job.end(error)
                except OSError as error:
                    job.end(files.storage_error(error, f"cannot fetch to {job.order.target}"))
                except (ValueError, TypeError, ArithmeticError, RuntimeError) as error:
                    # A host may answer anything, and the other files are not to suffer from it.
                    job.end(SourceError(f"{shown(job.order.url)} answers with nonsense: {type(error).__name__}"))


class _Job:
    """One order, and how far it is."""

    def __init__(self, order: Order, run: _Run) -> None:
        self.order, self._run = order, run
        self._folder = partial.folder_of(run.site, order.target)
        self.facts = Facts(order.url)
        self.outcome: ComfypodError | None = None
        self.over = False
        self._so_far: Callable[[], tuple[int, int]] | None = None
        self._told, self._end_told = (-1, -1), False
        self._transfer: Transfer | None = None
        self._pause: Wait | None = None
        self._pause_told: Wait | None = None

    def end(self, outcome: ComfypodError | None = None) -> None:
        """Say what became of it."""
        self.outcome, self.over = outcome, True

    def tell(self, watch: Callable[[Order, int, int], None], tell: Callable[[Order, News], None]) -> None:
        """Tell what has changed since the last look: bytes, pauses, once what became of it, unless it was stopped."""
        now, told = self._so_far() if self._so_far else self._told, self._pause_told
        pause = self._pause if self._transfer is None else self._transfer.waiting
        if pause is not None and (told is None or pause.until > told.until):
            self._pause_told = pause
            tell(self.order, News("waiting", pause.error, pause.seconds, pause.longest))
        if now != self._told:
            self._told = now
            watch(self.order, *now)
            if told is not None and pause is None:
                self._pause_told = None
                tell(self.order, News("going"))
        if self.over and not self._end_told and not self._run.stop.is_set():
            self._end_told = True
            tell(self.order, News("failed", self.outcome) if self.outcome else News("done"))

    def prepare(self) -> None:
        """See whether it may be fetched and is not there yet, and ask how large it is."""
        place.check(self.order)
        if place.already(self.order):
            # One that was killed in the last moment may have left its partial file as well.
            self.over = not self._folder.exists()
        elif not self.order.size:
            self.facts = self._probe()
            agree(self.order, self.facts)

    def _probe(self) -> Facts:
        patience = self._run.shared(self.order.url).patience
        for turn in itertools.count():
            try:
                facts = probe(self.order.url, self._run.terms)
            except BrokenError as error:
                self._pause = patience.wait(error, turn, silent=error.silent)
                if self._run.stop.wait(self._pause.seconds):
                    raise stopped(self.order) from error
            else:
                patience.met()
                break
            finally:
                self._pause = None
        return facts

    def fetch(self) -> None:
        """Fetch it, unless another process does so: then wait, and see what came of it."""
        folder = self._folder
        lease = Lease(folder)
        partial.take(lease)
        try:
            lease.wait(lease.ahead, lambda *_: self._wait(folder))
            if place.already(self.order):
                partial.forget(folder)
            else:
                self._fetch(folder, lease)
            self.end()
        finally:
            lease.release()
            partial.tidy(folder)

    def _wait(self, folder: Path) -> None:
        """Show how far another process is."""
        if self._run.stop.is_set():
            raise stopped(self.order)
        if (known := partial.read(folder)) is not None:
            so_far = sum(stop - start for start, stop in known[1]), known[0].size
            self._so_far = lambda: so_far

    def _fetch(self, folder: Path, lease: Lease) -> None:
        with contextlib.closing(Partial(folder)) as file:
            self._transfer = transfer = Transfer(self.order, self.facts, file, self._run.shared(self.order.url))
            self._so_far = lambda: transfer.so_far
            transfer.run(self._run.stop)
            os.fsync(file.handle)
            try:
                if self.order.check is not None:
                    self.order.check(file.data)
            except IntegrityError:
                partial.forget(folder)
                raise
            lease.ensure()
            place.publish(file.data, self.order)
            partial.forget(folder)

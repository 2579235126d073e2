"""One file, from its first byte to its digest: connections, restarts, marks, and what is kept for the next run."""

from __future__ import annotations

import itertools
import os
import threading
import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from comfypod.download import address, partial
from comfypod.download.digest import Follower
from comfypod.download.lane import AnewError, Lane
from comfypod.download.partial import Kept
from comfypod.download.pieces import Pieces
from comfypod.download.refusal import BrokenError, Wait
from comfypod.errors import ComfypodError, IntegrityError, SourceError

if TYPE_CHECKING:
    from pathlib import Path

    from comfypod.download.order import Facts, Order, Terms
    from comfypod.download.partial import Partial
    from comfypod.download.pieces import Piece, Span
    from comfypod.download.rate import Gate
    from comfypod.download.refusal import Patience

_RESTARTS = 3
_LOOK_SECONDS = 0.2
# A connection that alone brings so much a second for so long is not helped by others, which cost time as well.
_FIRST_SECONDS = 0.1
_FAST = 400_000_000
_SETTLE_SECONDS = 0.3
# How much a loss of power may cost; written all along, so that there is little left to write at the end.
_MARK_SECONDS = 10.0
_MARK_BYTES = 256 << 20
# Below this a second, a connection of its own is not worth it.
_SHARE = 1 << 16
_UNKNOWN = 1 << 62


def stopped(order: Order) -> SourceError:
    """Return what is said of a file that was not fetched because someone wanted to stop."""
    return SourceError(f"{address.shown(order.url)} was not fetched to its end: stopped", "what arrived is kept")


@dataclass(frozen=True, slots=True)
class Shared:
    """What the files of a run share, and of `patience` those of one host."""

    terms: Terms
    gate: Gate
    patience: Patience


class Attempt:
    """One try at a file under the same facts, by several connections."""

    def __init__(self, order: Order, shared: Shared, file: Partial, facts: Facts, there: list[Span]) -> None:
        self.order, self.partial, self.facts = order, file, facts
        self.terms, self.gate, self.patience = shared.terms, shared.gate, shared.patience
        terms, self._lanes = shared.terms, list[Lane]()
        most = min(terms.connections, max(1, terms.rate // _SHARE)) if terms.rate else terms.connections
        self.connections = most if facts.ranges and facts.size >= 0 else 0
        self.pieces = Pieces(facts.size if facts.size >= 0 else _UNKNOWN, there, self.connections)
        # Where the bytes were found the last time.
        self.place = ""
        self.ended, self.look, self._begun = threading.Event(), threading.Event(), threading.Event()
        self._mutex = threading.Lock()
        self._marked = (time.monotonic(), self.pieces.done)
        self._follower: Follower | None = None

    def agreed(self, found: Facts) -> None:
        """Take over what the first answer says of the file, and let the other connections begin."""
        with self._mutex:
            if not self._begun.is_set():
                etag, sha256 = self.facts.etag or found.etag, self.facts.sha256 or found.sha256
                self.facts = replace(self.facts, etag=etag, sha256=sha256)
                self.partial.begin(kept(self.order, self.partial.site, self.facts), self.pieces.there)
                self._marked = (time.monotonic(), self.pieces.done)
            self.place = found.url
        self._begun.set()
        self.look.set()

    def over(self, piece: Piece) -> None:
        """Note that the body ended, which says how large the file is where that was not known.

        Raises:
            BrokenError: it is known to be larger.
        """
        if self.facts.size >= 0:
            at = f"{piece.at} of {self.facts.size} bytes arrived"
            raise BrokenError(f"{address.shown(self.order.url)}: {at}", "try again")
        self.pieces.close(piece)

    @property
    def waiting(self) -> Wait | None:
        """The pause that comes to its end first, where all connections pause."""
        waits = [lane.waiting for lane in tuple(self._lanes) if lane.is_alive()]
        known = [wait for wait in waits if wait is not None]
        return min(known, key=lambda wait: wait.until) if known and len(known) == len(waits) else None

    def run(self, stop: threading.Event) -> str:
        """Fetch all that is missing; return its digest, nothing where there is none to compare it with.

        Raises:
            AnewError: it must begin again from nothing.
            ComfypodError: it cannot be had, or was stopped.
        """
        if not self.pieces.size:
            self.partial.begin(kept(self.order, self.partial.site, self.facts), [])
        lanes = self._lanes
        lanes.append(Lane(self))
        lanes[0].start()
        try:
            while any(lane.is_alive() for lane in lanes):
                self.look.wait(_LOOK_SECONDS if len(lanes) > 1 else _FIRST_SECONDS / 2)
                self.look.clear()
                self._tend(lanes, stop)
            self._end(lanes)
            self._follow()
            if self.pieces.done < self.pieces.size:
                if self._begun.is_set():
                    self.partial.mark(self.pieces.there)
                raise self._why(lanes)
            return self._follower.result(stop) if self._follower else ""
        finally:
            self._end(lanes)
            if self._follower is not None:
                self._follower.give_up()

    def _why(self, lanes: list[Lane]) -> ComfypodError | AnewError:
        """Return why it is not whole: what nobody can mend before what the last one gave up for."""
        errors = [lane.error for lane in sorted(lanes, key=lambda lane: not lane.fatal) if lane.error]
        return errors[0] if errors else stopped(self.order)

    def _follow(self) -> None:
        """Let a digest follow the bytes, once it is known that there is one to compare it with."""
        if self._follower is None and self.facts.sha256:
            self._follower = Follower(self.partial.handle, lambda: self.pieces.front)
            self._follower.start()

    def _tend(self, lanes: list[Lane], stop: threading.Event) -> None:
        """Add connections, break those that stand still, stop all where one knows that it is of no use."""
        if stop.is_set() or any(lane.fatal for lane in lanes):
            self._end(lanes)
        elif self._begun.is_set() and len(lanes) < self.connections and self._wants_company():
            lanes += [Lane(self) for _ in range(self.connections - len(lanes))]
            for lane in lanes[1:]:
                lane.start()
        if self._begun.is_set():
            self._follow()
        for lane in lanes:
            if lane.too_slow:
                lane.cut()
        done, now = self.pieces.done, time.monotonic()
        when, before = self._marked
        if self._begun.is_set() and (done - before >= _MARK_BYTES or (done > before and now - when >= _MARK_SECONDS)):
            self.partial.mark(self.pieces.there)
            self._marked = (time.monotonic(), done)

    def _wants_company(self) -> bool:
        """Whether a connection, alone so far, is known not to be as fast as this machine.

        Its first bytes are looked at before others ask for more: they may be those of a page that asks for a login.
        """
        when, before = self._marked
        seconds = time.monotonic() - when
        return seconds >= _FIRST_SECONDS and 0 < self.pieces.done - before < _FAST * seconds

    def _end(self, lanes: list[Lane]) -> None:
        """Stop the connections. One that still looks up a name is left to itself: it has nothing to write by then."""
        self.ended.set()
        for lane in lanes:
            lane.cut()
        until = time.monotonic() + _SETTLE_SECONDS
        for lane in lanes:
            lane.settle(until)


class Transfer:
    """Fetches one file into its partial file, which nobody else has, beginning again where there is no going on."""

    def __init__(self, order: Order, facts: Facts, file: Partial, shared: Shared) -> None:
        self._order, self._file, self._shared = order, file, shared
        self._pause: Wait | None = None
        wanted = kept(order, file.site, facts)
        known = partial.read(file.folder)
        there: list[Span] = []
        if known is not None and known[0].goes_on(wanted):
            facts = replace(facts, size=known[0].size, etag=known[0].etag, sha256=wanted.sha256 or known[0].sha256)
            # Data that is gone, or was cut, is not what the record says.
            there = known[1] if os.fstat(file.handle).st_size == known[0].size else []
        size = facts.size if facts.size >= 0 else wanted.size
        self._facts = replace(facts, size=size, sha256=wanted.sha256 or facts.sha256, ranges=size >= 0)
        self._attempt = self._begin(there)

    def _begin(self, there: list[Span]) -> Attempt:
        return Attempt(self._order, self._shared, self._file, self._facts, there)

    @property
    def so_far(self) -> tuple[int, int]:
        """How many bytes are there, and of how many; -1 where that is not known."""
        attempt = self._attempt
        return attempt.pieces.done, attempt.facts.size

    @property
    def waiting(self) -> Wait | None:
        """The pause that it is in."""
        return self._pause or self._attempt.waiting

    def run(self, stop: threading.Event) -> None:
        """Fetch it.

        Raises:
            ComfypodError: it cannot be had, is not what was ordered, or was stopped.
        """
        for turn in itertools.count():
            resumed = self.so_far[0] > 0
            try:
                digest = self._attempt.run(stop)
            except AnewError as error:
                if turn == _RESTARTS:
                    raise error.cause from None
                self._facts = replace(error.facts, sha256=self._order.sha256 or error.facts.sha256)
                self._rest(error, turn, stop)
            else:
                if digest in ("", self._attempt.facts.sha256):
                    return
                if not resumed:
                    partial.forget(self._file.folder)
                    raise self._another(digest)
            self._attempt = self._begin([])

    def _rest(self, error: AnewError, turn: int, stop: threading.Event) -> None:
        """Pause before it begins again: not at all, where nothing was wrong with the host."""
        if isinstance(error.cause, BrokenError):
            seconds = error.cause.wait(turn)
            self._pause = Wait(error.cause, seconds, time.monotonic() + seconds, seconds)
            stop.wait(seconds)
            self._pause = None

    def _another(self, digest: str) -> IntegrityError:
        return IntegrityError(
            f"{address.shown(self._order.url)} has sha256 {digest}, and {self._attempt.facts.sha256} was expected",
            "do not use it; if the change is known to be right, correct the digest where the file is named",
        )


def kept(order: Order, site: Path, facts: Facts) -> Kept:
    """Return what a partial file's record says of its file."""
    size = order.size or facts.size
    plain, _, _ = address.shown(order.url).partition("?")
    return Kept(os.path.relpath(order.target, site), plain, size, order.sha256 or facts.sha256, facts.etag)

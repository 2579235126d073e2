"""One connection of a transfer: fetches piece after piece, and tries again what may pass."""

from __future__ import annotations

import threading
import time
from dataclasses import replace
from typing import TYPE_CHECKING

from comfypod.download import address
from comfypod.download.connection import Client
from comfypod.download.probe import agree, facts_of, part_of, version_of
from comfypod.download.refusal import BrokenError, RefusedError, disguised
from comfypod.errors import ComfypodError, SourceError
from comfypod.files import storage_error

if TYPE_CHECKING:
    from comfypod.download.connection import Answer
    from comfypod.download.order import Facts
    from comfypod.download.pieces import Piece
    from comfypod.download.refusal import Wait
    from comfypod.download.transfer import Attempt

_BUFFER = 1 << 19
# A connection that brings less than this a second, after its time of grace, is made anew.
SLOWEST = 2000
GRACE_SECONDS = 15.0
# So much, and a connection counts as sound again.
_SOUND = 1 << 16


class AnewError(Exception):
    """What is there is worth nothing: the file is another by now (`facts`), or its host has no ranges."""

    def __init__(self, facts: Facts, cause: SourceError) -> None:
        super().__init__(cause.message)
        self.facts = facts
        self.cause = cause


class Lane(threading.Thread):
    """A thread with a connection of its own. `error` is why it ended before its time."""

    def __init__(self, attempt: Attempt) -> None:
        super().__init__(name="download", daemon=True)
        self._attempt = attempt
        self._client = Client(attempt.terms.tokens)
        self._buffer = memoryview(bytearray(min(_BUFFER, attempt.gate.most)))
        self._since, self._count = 0.0, 0
        self._failures, self._cut = 0, False
        # Names are looked up and connections made in calls that cannot be interrupted; whoever waits for us to end
        # leaves us behind there (`_left`), and then we touch nothing more.
        self._asking, self._left = False, False
        self._mutex = threading.Lock()
        self.error: ComfypodError | AnewError | None = None
        self.waiting: Wait | None = None

    @property
    def too_slow(self) -> bool:
        """Whether the request that is under way brings too little, or nothing at all."""
        since = self._since
        return since > 0 and self._count < SLOWEST * (time.monotonic() - since - GRACE_SECONDS)

    def cut(self) -> None:
        """Break the connection, from another thread."""
        self._since, self._cut = 0.0, True
        self._client.abort()

    def settle(self, until: float) -> None:
        """Return when this thread will write nothing more; it is left to itself after `until` where it is asking."""
        self.join(max(0.0, until - time.monotonic()))
        with self._mutex:
            self._left = self._asking
        if not self._left:
            self.join()

    @property
    def fatal(self) -> bool:
        """Whether it ended by something that the others cannot mend."""
        return self.error is not None and not isinstance(self.error, BrokenError)

    def run(self) -> None:
        """Fetch pieces until there is none left, or nothing more to be had."""
        pieces, ended = self._attempt.pieces, self._attempt.ended
        try:
            while not ended.is_set() and (piece := pieces.take()) is not None:
                try:
                    self.waiting = self._try(piece)
                finally:
                    pieces.leave(piece)
                if self.waiting is not None:
                    ended.wait(self.waiting.seconds)
                    self.waiting = None
        except (ComfypodError, AnewError) as error:
            self.error = error
        except OSError as error:
            self.error = storage_error(error, f"cannot write {self._attempt.order.target}")
        except (ValueError, TypeError, ArithmeticError, RuntimeError) as error:
            self.error = SourceError(f"{self._shown} answers with nonsense: {type(error).__name__}")
        finally:
            self._client.close()
            self._attempt.look.set()

    def _try(self, piece: Piece) -> Wait | None:
        """Fetch a piece; return whether to wait before the next one."""
        try:
            self._since, self._count, self._cut = time.monotonic(), 0, False
            self._fetch(piece)
        except BrokenError as error:
            return self._setback(error)
        finally:
            self._since = 0.0
        self._failures = 0
        return None

    def _setback(self, error: BrokenError) -> Wait | None:
        if self._attempt.ended.is_set():
            return None
        self._failures = 1 if self._count >= _SOUND else self._failures + 1
        silent = error.silent or (self._cut and not self._count)
        wait = self._attempt.patience.wait(error, self._failures - 1, silent=silent)
        self._client.close()
        self._attempt.place = ""
        if not self._attempt.facts.ranges and self._count:
            # Without ranges there is no going on.
            raise AnewError(self._attempt.facts, error)
        return wait

    def _fetch(self, piece: Piece) -> None:
        answer = self._answer(piece)
        self._check(answer, piece)
        attempt, buffer = self._attempt, self._buffer
        while piece.rest > 0 and not attempt.ended.is_set():
            count = answer.readinto(buffer[: piece.rest])
            if not count:
                attempt.over(piece)
                return
            if not piece.at:
                self._refuse(disguised(bytes(buffer[: min(count, 64)])))
            attempt.partial.write(buffer[:count], piece.at)
            attempt.pieces.advance(piece, count)
            attempt.partial.note(piece)
            self._count += count
            attempt.gate.spend(count, attempt.ended)

    def _answer(self, piece: Piece) -> Answer:
        self._asking = True
        try:
            answer = self._ask(piece)
            self._attempt.patience.met()
        finally:
            with self._mutex:
                self._asking = False
                left = self._left
        if left:
            raise BrokenError("nobody waits for it any more")
        return answer

    def _ask(self, piece: Piece) -> Answer:
        """Ask for a piece, where its bytes were the last time, else by way of the address that was given."""
        url, facts = self._attempt.order.url, self._attempt.facts
        headers = {}
        if facts.ranges:
            headers["Range"] = f"bytes={piece.at}-{piece.end - 1}"
            if facts.etag and facts.etag.isascii() and facts.etag.isprintable():
                headers["If-Range"] = facts.etag
        try:
            return self._client.ask(self._attempt.place or url, headers=headers, home=url)
        except RefusedError as error:
            if error.status == 416 and facts.ranges:
                raise AnewError(replace(facts, ranges=False), error) from error
            if not self._attempt.place:
                raise
            # Addresses that a redirect leads to are good for some time only.
            self._attempt.place = ""
            return self._client.ask(url, headers=headers, home=url)

    def _check(self, answer: Answer, piece: Piece) -> None:
        """Make sure that this is the file, and the piece of it that was asked for."""
        attempt, found = self._attempt, facts_of(answer)
        if answer.headers.get("content-type", "").startswith("text/html"):
            self._refuse("page")
        if answer.headers.get("content-encoding", "identity") != "identity":
            raise RefusedError(f"{self._shown} sends the file compressed", "ask its host for another address", 200)
        agree(attempt.order, found)
        another = "" not in (attempt.facts.etag, version_of(answer)) and version_of(answer) != attempt.facts.etag
        start = part_of(answer)[0] if answer.status == 206 else 0
        whole = start == 0 and piece.at == 0 and piece.end == attempt.pieces.size
        if another or (attempt.facts.size not in (-1, found.size) and found.size >= 0):
            raise AnewError(found, SourceError(f"{self._shown} changes while it is fetched", "try again later"))
        if start != piece.at or (answer.status == 200 and not whole):
            cause = SourceError(f"{self._shown} does not answer with the part that was asked for", "try again later")
            raise AnewError(replace(found, ranges=False), cause)
        attempt.agreed(found)

    def _refuse(self, disguise: str) -> None:
        """Refuse what pretends to be the file.

        Raises:
            RefusedError: something does.
        """
        said = f"{self._shown} answered with "
        if disguise == "page":
            hint = "it may want a login or a licence accepted: open it in a browser, and set the host's token"
            raise RefusedError(f"{said}a web page instead of a file", hint, 200)
        if disguise:
            hint = "use /resolve/ in its address, not /raw/"
            raise RefusedError(f"{said}a Git LFS pointer instead of a file", hint, 200)

    @property
    def _shown(self) -> str:
        return address.shown(self._attempt.order.url)

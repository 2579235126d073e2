"""Which bytes of a file are there, which are being fetched and by whom, and which are next. No input or output."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

Span = tuple[int, int]
# A request costs a round trip, so pieces are not small; the last ones are, so that all connections end together.
LEAST = 16 << 20
MOST = 256 << 20
# The rest of a piece is not cut for less than this.
_WORTH = 2 << 20


@dataclass(slots=True, eq=False)
class Piece:
    """The bytes from `start` to `end`, of which those before `at` are there; `number` is its own for good."""

    number: int
    start: int
    at: int
    end: int

    @property
    def rest(self) -> int:
        """How much of it is to come."""
        return self.end - self.at


def union(spans: Iterable[Span]) -> list[Span]:
    """Return the same bytes as spans that do not touch, in order."""
    found: list[Span] = []
    for start, stop in sorted(span for span in spans if span[0] < span[1]):
        if found and start <= found[-1][1]:
            found[-1] = (found[-1][0], max(stop, found[-1][1]))
        else:
            found.append((start, stop))
    return found


def gaps(there: Iterable[Span], size: int) -> list[Span]:
    """Return what is missing."""
    edges = [(0, 0), *union(there), (size, size)]
    return [(before[1], after[0]) for before, after in pairwise(edges) if before[1] < after[0]]


class Pieces:
    """Gives the missing bytes of a file to connections, from its front on, so that its digest can follow.

    When all is given away, the largest rest is cut in half for a connection that is free. With no `connections`, all
    is one piece.
    """

    def __init__(self, size: int, there: Iterable[Span] = (), connections: int = 0) -> None:
        self.size = size
        self._there = union(there)
        self._missing = gaps(self._there, size)
        self._active: list[Piece] = []
        self._connections = connections
        self._number = len(self._there)
        self._mutex = threading.Lock()

    @property
    def there(self) -> list[Span]:
        """The bytes that have been written."""
        with self._mutex:
            return self._union()

    def _union(self) -> list[Span]:
        return union([*self._there, *((piece.start, piece.at) for piece in self._active)])

    @property
    def done(self) -> int:
        """How many bytes have been written."""
        return sum(stop - start for start, stop in self.there)

    @property
    def front(self) -> int:
        """How many bytes from the beginning on have been written."""
        there = self.there
        return there[0][1] if there and there[0][0] == 0 else 0

    def take(self) -> Piece | None:
        """Return what to fetch next; None when there is nothing left to give."""
        with self._mutex:
            if self._missing:
                start, stop = self._missing.pop(0)
                rest = stop - start + sum(end - begin for begin, end in self._missing)
                end = min(stop, start + self._share(rest))
                if end < stop:
                    self._missing.insert(0, (end, stop))
                return self._begin(start, end)
            largest = max(self._active, key=lambda piece: piece.rest, default=None)
            if largest is None or largest.rest < 2 * _WORTH:
                return None
            middle, end = largest.at + largest.rest // 2, largest.end
            largest.end = middle
            return self._begin(middle, end)

    def _share(self, rest: int) -> int:
        return max(LEAST, min(MOST, rest // (2 * self._connections))) if self._connections else rest

    def _begin(self, start: int, end: int) -> Piece:
        self._number += 1
        piece = Piece(self._number - 1, start, start, end)
        self._active.append(piece)
        return piece

    def advance(self, piece: Piece, count: int) -> None:
        """Say that `count` more bytes of a piece have been written."""
        with self._mutex:
            piece.at = min(piece.at + count, piece.end)

    def close(self, piece: Piece) -> None:
        """Say that a piece is the last, and that there is no more of it."""
        with self._mutex:
            self.size = piece.end = piece.at

    def leave(self, piece: Piece) -> None:
        """Take a piece back; what is missing of it is given to the next who asks."""
        with self._mutex:
            self._active.remove(piece)
            self._there = union([*self._there, (piece.start, piece.at)])
            if piece.rest:
                self._missing = union([*self._missing, (piece.at, piece.end)])

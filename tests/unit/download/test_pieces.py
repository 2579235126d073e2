from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from comfypod.download.pieces import LEAST, MOST, Pieces, gaps, union

MIB = 1 << 20
spans = st.lists(st.tuples(st.integers(0, 50), st.integers(0, 50)))


@given(spans, st.integers(50, 60))
def test_what_is_there_and_what_is_missing_are_the_whole(there: list[tuple[int, int]], size: int) -> None:
    covered = {byte for start, stop in there for byte in range(start, stop)}
    assert {byte for start, stop in union(there) for byte in range(start, stop)} == covered
    assert {byte for start, stop in gaps(there, size) for byte in range(start, stop)} == set(range(size)) - covered


@given(st.integers(0, 3 << 30), spans, st.integers(0, 16), st.randoms())
def test_every_missing_byte_is_given_and_none_that_is_there(
    size: int, there: list[tuple[int, int]], connections: int, random: object
) -> None:
    known = [(start * MIB, stop * MIB) for start, stop in there if stop * MIB <= size]
    pieces, got = Pieces(size, known, connections), list[tuple[int, int]]()
    while (piece := pieces.take()) is not None:
        got.append((piece.start, piece.end))
        pieces.advance(piece, piece.rest)
        pieces.leave(piece)
    assert union([*got, *known]) == ([(0, size)] if size else [])
    assert sum(stop - start for start, stop in got) == size - sum(stop - start for start, stop in union(known))
    assert (pieces.done, pieces.front) == (size, size)


def test_pieces_come_from_the_front_and_get_smaller_so_that_all_end_together() -> None:
    pieces = Pieces(20 << 30, connections=16)
    sizes, end = list[int](), 0
    while (piece := pieces.take()) is not None and piece.start == end:
        sizes.append(piece.rest)
        end = piece.end
    assert sizes == sorted(sizes, reverse=True)
    assert (sizes[0], sizes[-2]) == (MOST, LEAST)


def test_a_connection_that_is_free_gets_half_of_the_largest_rest() -> None:
    pieces = Pieces(16 * MIB, connections=2)
    slow = pieces.take()
    assert slow is not None
    pieces.advance(slow, 4 * MIB)
    thief = pieces.take()
    assert thief is not None
    assert (slow.at, slow.end, thief.start, thief.end) == (4 * MIB, 10 * MIB, 10 * MIB, 16 * MIB)
    pieces.advance(thief, 6 * MIB)
    pieces.leave(thief)
    assert (pieces.front, pieces.done) == (4 * MIB, 10 * MIB)


def test_what_a_failed_connection_leaves_is_given_to_the_next() -> None:
    pieces = Pieces(MIB, connections=2)
    failed = pieces.take()
    assert failed is not None
    assert pieces.take() is None
    pieces.advance(failed, 1000)
    pieces.leave(failed)
    after = pieces.take()
    assert after is not None
    assert (after.start, after.end, after.number != failed.number) == (1000, MIB, True)

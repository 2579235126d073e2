from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from comfypod.boot.suspects import Search, after, begun

_NAMES = tuple(f"n{number}" for number in range(40))


def _searched(names: tuple[str, ...], groups: list[frozenset[str]], *, broken: bool = False) -> tuple[Search, int]:
    """Search where ComfyUI dies whenever one of `groups` is loaded as a whole; return the end and the starts."""
    search, starts = begun(names), 0
    while search.state == "open":
        loaded = set(names) - search.left_out
        search = after(search, died=broken or any(group <= loaded for group in groups))
        starts += 1
        assert starts < 1000
    return search, starts


@given(st.integers(1, 40), st.data())
def test_every_node_that_kills_by_itself_is_found_and_no_other(count: int, data: st.DataObject) -> None:
    names = _NAMES[:count]
    culprits = data.draw(st.sets(st.sampled_from(names), min_size=1))
    search, starts = _searched(names, [frozenset({name}) for name in culprits])
    assert (search.state, set(search.guilty)) == ("found", culprits)
    assert starts <= 1 + len(culprits) * (math.ceil(math.log2(count)) + 1)


@given(st.integers(1, 40), st.data())
def test_nodes_that_kill_together_are_parted(count: int, data: st.DataObject) -> None:
    names = _NAMES[:count]
    groups = data.draw(st.lists(st.frozensets(st.sampled_from(names), min_size=1, max_size=3), min_size=1, max_size=4))
    search, _ = _searched(names, groups)
    assert search.state == "found"
    assert all(group & set(search.guilty) for group in groups)
    assert set(search.guilty) <= frozenset().union(*groups)
    assert search.left_out == set(search.guilty)


@given(st.integers(1, 40))
def test_one_start_tells_that_it_is_not_the_nodes(count: int) -> None:
    search, starts = _searched(_NAMES[:count], [], broken=True)
    assert (search.state, search.guilty, starts) == ("hopeless", (), 1)


@given(st.integers(1, 40), st.lists(st.booleans(), min_size=400, max_size=400))
def test_a_search_ends_whatever_the_outcomes_are(count: int, outcomes: list[bool]) -> None:
    search = begun(_NAMES[:count])
    for died in outcomes:
        if search.state != "open":
            break
        search = after(search, died=died)
    assert search.state != "open"

"""Which of several nodes end ComfyUI, found by starts that leave some of them out. Pure.

The nodes stand in a row, and what is tried is a beginning of it. The shortest beginning with which ComfyUI dies ends
with a culprit; once that is out, the same is done with the rest. One culprit costs as many starts as the number of
nodes can be halved, whether it kills alone or together with others before it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal


@dataclass(frozen=True, slots=True)
class Search:
    """A search that is under way: with `rest[:low]` ComfyUI lives, with `rest[:high]` it dies, `rest[:tried]` runs."""

    rest: tuple[str, ...]
    low: int
    high: int
    tried: int
    guilty: tuple[str, ...] = ()
    state: Literal["open", "found", "hopeless"] = "open"

    @property
    def left_out(self) -> frozenset[str]:
        """The nodes that ComfyUI shall not load at its next start."""
        return frozenset(self.guilty + self.rest[self.tried :])


def begun(names: tuple[str, ...]) -> Search:
    """Begin with nodes that ComfyUI dies with; first is tried whether it lives without all of them."""
    return Search(names, low=-1, high=len(names), tried=0)


def after(search: Search, *, died: bool) -> Search:
    """Return the search after one start. `hopeless`: it is not these nodes. `found`: it lives without the guilty."""
    if died and search.tried == 0 and search.low < 0:
        return replace(search, state="hopeless")
    low, high = (search.low, search.tried) if died else (search.tried, search.high)
    if high - low > 1:
        return replace(search, low=low, high=high, tried=(low + high) // 2)
    if low == len(search.rest):
        return replace(search, low=low, state="found")
    guilty, rest = (*search.guilty, search.rest[low]), search.rest[:low] + search.rest[low + 1 :]
    # All that is left is tried next, and nothing is known of it but where it has been tried already.
    state: Literal["open", "found"] = "found" if low == len(rest) else "open"
    return Search(rest, low, len(rest) + 1, len(rest), guilty, state)

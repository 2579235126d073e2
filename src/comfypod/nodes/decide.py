"""What is done about a node that is wanted: pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Collection

    from comfypod.nodes.record import Entry
    from comfypod.wish import Wish

There = Literal["nothing", "folder", "disabled"]
Action = Literal["keep", "fetch", "fail"]
_FOREIGN = "custom_nodes has one of this name that comfypod did not put there; it is left as it is"


@dataclass(frozen=True, slots=True)
class Order:
    """How to go about it.

    Without `network` nothing is fetched. `again` tries what has failed before, `upgrade` names nodes whose branch or
    newest version is looked up anew.
    """

    network: bool = True
    again: bool = False
    upgrade: Collection[str] = ()


@dataclass(frozen=True, slots=True)
class Decision:
    """What to do, why, and the commit or version that it has to be (empty: whatever the wish names now)."""

    action: Action
    reason: str = ""
    locked: str = ""


def decide(wish: Wish, entry: Entry | None, there: There, order: Order, layer: str) -> Decision:
    """Decide about one node from what is wanted, what is recorded and what is there."""
    ours = entry is not None and entry.state == "installed"
    if there == "disabled":
        return Decision("keep", "it is switched off")
    if there == "folder" and not ours:
        return Decision("keep", _FOREIGN)
    assert entry is not None or not ours  # noqa: S101 - for the type checker
    same = entry is not None and ours and entry.is_of(wish)
    if same and there == "folder" and wish.name not in order.upgrade:
        return Decision("keep")
    if not order.network:
        kept = there == "folder"
        return Decision("keep" if kept else "fail", "it is not here, and nothing is fetched (COMFYPOD_OFFLINE)")
    if entry is not None and entry.refused == refusal(wish, layer) and not order.again:
        return Decision("keep" if there == "folder" else "fail", entry.reason)
    locked = (entry.commit or entry.version) if entry is not None and same and wish.name not in order.upgrade else ""
    return Decision("fetch", locked=locked)


def refusal(wish: Wish, layer: str) -> str:
    """Name a wish that has failed over a layer of packages: another layer may be kinder to it."""
    return f"{wish} over {layer}"

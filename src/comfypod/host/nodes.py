"""`comfypod nodes`: the custom nodes of a workspace, in a pod or on the host, whether ComfyUI runs or not."""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING, Any

from comfypod.environment import requests
from comfypod.environment.layer import layer_of
from comfypod.errors import HostError, NodeError, Problem, UsageError
from comfypod.files import storage_errors
from comfypod.host.startable import held
from comfypod.host.volume import become_owner, ensure_there, image_of, pod_of, settings_of
from comfypod.nodes import check as checks
from comfypod.nodes import declared, listing, place, record
from comfypod.nodes.decide import Order
from comfypod.nodes.site import Site, site_of
from comfypod.nodes.sync import only_one, requester
from comfypod.nodes.sync import sync as install_nodes
from comfypod.result import Result
from comfypod.wish import Wish, is_name, of_row, of_word
from comfypod.workspace import plan as plans
from comfypod.workspace import run
from comfypod.workspace.aside import listed, put_aside, put_back

if TYPE_CHECKING:
    from collections.abc import Collection
    from contextlib import AbstractContextManager
    from pathlib import Path

    from comfypod.log import Console
    from comfypod.nodes.sync import Install
    from comfypod.podfile import BakedNode
    from comfypod.workspace.layout import Layout

_RESTART = "ComfyUI takes it up when it starts again"


def show(layout: Layout) -> Result:
    """List the nodes: those of the image, of the volume, and those that are wanted and not there.

    Raises:
        StorageError: the workspace is none, or cannot be read.
    """
    ensure_there(layout)
    wanted, problems = _wishes(layout)
    known = record.read(layout).nodes
    with storage_errors(f"cannot read {_folder(layout)}"):
        rows: list[dict[str, Any]] = [dict(row) for row in listing.rows(layout, _folder(layout), _baked(layout))]
    here = {row["name"].removesuffix(place.OFF) for row in rows}
    rows += [{"name": name, "state": "wanted", "reason": "not installed yet"} for name in wanted if name not in here]
    for row in rows:
        entry, wish = known.get(row["name"]), wanted.get(row["name"])
        row["source"] = str(wish) if wish else (entry.git or entry.registry) if entry else ""
        row["version"] = (entry.version or entry.commit) if entry else ""
    lines = [f"{row['name']:<32}{row['state']:<12}{row['version'][:12]:<14}{row['source']}" for row in rows]
    told = {row["name"]: row["reason"] for row in rows if row["reason"]}
    lines += [f"  {name}: {reason}" for name, reason in told.items()]
    lines += [f"  {problem.message}; {problem.hint}" for problem in problems]
    return Result("nodes list", {"nodes": rows}, "\n".join(lines) or "no custom nodes", errors=problems)


def add(layout: Layout, source: str, ref: str, name: str, install: Install, console: Console) -> Result:
    """Write a node into the workspace's `comfypod.toml` and install it.

    Raises:
        UsageError: it is no node, or the file cannot be added to.
        BusyError: another process installs nodes now.
        StorageError: the disk failed.
    """
    ensure_there(layout)
    become_owner(layout)
    wish = _asked(source, ref, name)
    declared.add(layout.manifest, wish)
    with contextlib.suppress(HostError):
        pod_of(layout)
        return _install(layout, "nodes add", {wish.name: wish}, install, Order(again=True), console)
    return Result("nodes add", {"changed": [], "wanted": wish.name}, f"{wish} is wanted; the next boot installs it")


def _asked(source: str, ref: str, name: str) -> Wish:
    try:
        wish = of_word(source)
        row = {"git": wish.git, "ref": ref or wish.ref} if wish.git else {"registry": wish.registry}
        if wish.registry and (version := ref or wish.version):
            row["version"] = version
        return of_row({"name": name or wish.name, **row})
    except ValueError as error:
        raise UsageError(f"{source}: {error}", "give a Git address or registry:ID@VERSION, and --name NAME") from error


def remove(layout: Layout, name: str) -> Result:
    """Take a node out of the workspace: its wish is dropped, its folder set aside.

    Raises:
        UsageError: there is none, or it is not the workspace's to remove.
        StorageError: the disk failed.
    """
    ensure_there(layout)
    become_owner(layout)
    if name in {wish.name for wish in settings_of(layout).nodes}:
        raise UsageError(f"{name} is asked for by COMFYPOD_NODES", "take it out there, or use `comfypod nodes disable`")
    if not is_name(name.removesuffix(".py")):
        raise UsageError(f"{name!r} is no name of a node", "`comfypod nodes list` names them")
    with storage_errors(f"cannot remove the node {name}"), only_one(layout):
        dropped = declared.remove(layout.manifest, name)
        known = record.read(layout)
        forgotten = known.nodes.pop(name, None) is not None
        here = [path for path in (_folder(layout) / name, _folder(layout) / f"{name}{place.OFF}") if path.exists()]
        places = [str(put_aside(layout, path, "`comfypod nodes remove`")) for path in here]
        requests.forget(layout, requester(name))
        record.write(layout, known)
    if not (dropped or forgotten or places):
        raise UsageError(f"there is no node {name!r}", "`comfypod nodes list` names them; the image's can be disabled")
    kept = f"; its folder is kept in {', '.join(places)}" if places else ""
    return Result("nodes remove", {"name": name, "set_aside": places}, f"{name} is removed{kept}{_restart(layout)}")


def sync(
    layout: Layout, names: Collection[str], install: Install, console: Console, *, upgrade: bool = False
) -> Result:
    """Install what is wanted and not there; with `upgrade` look up branches and newest versions anew.

    Raises:
        UsageError: a name is of no node that is wanted.
        BusyError: another process installs nodes now.
        StorageError: the disk failed.
    """
    ensure_there(layout)
    become_owner(layout)
    wanted, problems = _wishes(layout)
    if unknown := sorted(set(names) - set(wanted)):
        raise UsageError(f"{unknown[0]} is not wanted", f"wanted are: {', '.join(wanted) or 'none'}")
    chosen = {name: wish for name, wish in wanted.items() if not names or name in names}
    order = Order(again=True, upgrade=tuple(chosen) if upgrade else ())
    done = _install(layout, "nodes sync", chosen, install, order, console)
    return done if not problems else _with(done, problems)


def check(layout: Layout, names: Collection[str]) -> Result:
    """Import each node alone, as ComfyUI does; exit code 15 where one cannot be imported.

    Raises:
        UsageError: there is no such node.
        HostError: it is not known which image would boot.
    """
    ensure_there(layout)
    become_owner(layout)
    folder = _folder(layout)
    rows = listing.rows(layout, folder, _baked(layout))
    here = {row["name"]: folder / row["name"] for row in rows if row["state"] == "present"}
    if unknown := sorted(set(names) - set(here)):
        raise UsageError(f"there is no node {unknown[0]!r} in {folder}", f"there are: {', '.join(here) or 'none'}")
    reasons = checks.imports(_site(layout), {name: path for name, path in here.items() if not names or name in names})
    bad = {name: reason for name, reason in reasons.items() if reason}
    text = "\n".join([*(f"{name}: {reason}" for name, reason in bad.items()), f"{len(reasons) - len(bad)} import"])
    problems = tuple(Problem(NodeError.code, f"{name}: {reason}") for name, reason in bad.items())
    code = NodeError.exit_code if bad else 0
    return Result("nodes check", {"nodes": reasons}, text, "partial" if bad else "success", code, problems)


def switch(layout: Layout, name: str, *, on: bool) -> Result:
    """Switch a node on or off for ComfyUI's next start.

    Raises:
        UsageError: there is no such node, or it cannot be switched.
        StorageError: the disk failed.
    """
    ensure_there(layout)
    become_owner(layout)
    with storage_errors(f"cannot switch the node {name}"), only_one(layout):
        if on and (place := _aside(layout, name)):
            path = put_back(layout, place)
            return Result("nodes enable", {"name": name, "on": True}, f"{path} is back{_restart(layout)}")
        bare = listing.switch(_folder(layout), name, [node.name for node in _baked(layout)], on=on)
    verb, word = ("enable", "on") if on else ("disable", "off")
    return Result(f"nodes {verb}", {"name": bare, "on": on}, f"{bare} is {word}{_restart(layout)}")


def _aside(layout: Layout, name: str) -> str:
    """Return under which name a node was set aside last, empty where it was not or another stands in its place."""
    path = _folder(layout) / name
    found = [each.name for each in listed(layout) if layout.root / each.path == path]
    return "" if path.exists() or not found else found[-1]


def _install(
    layout: Layout, verb: str, wanted: dict[str, Wish], install: Install, order: Order, console: Console
) -> Result:
    settings = settings_of(layout)
    order = Order(network=not settings.offline, again=order.again, upgrade=order.upgrade)
    console.line(f"installing {', '.join(wanted) or 'nothing'}; each is tried before it takes its place")
    with _ours(layout):
        done = install_nodes(_site(layout), wanted, install, order)
    lines = [f"{name} is installed" for name in done.changed]
    lines += [f"{name} is not: {reason}" for name, reason in done.failed.items()]
    text = "\n".join(lines or ["everything that is wanted is there"])
    data = {"changed": list(done.changed), "failed": dict(done.failed)}
    if done.changed:
        text += _restart(layout)
    if not done.failed:
        return Result(verb, data, text, errors=done.problems)
    return Result(verb, data, text, "partial", NodeError.exit_code, done.problems)


def _with(done: Result, problems: tuple[Problem, ...]) -> Result:
    rows = [done.text, *(f"{problem.message}; {problem.hint}" for problem in problems)]
    return Result(done.command, done.data, "\n".join(rows), "partial", done.exit_code, (*done.errors, *problems))


def _ours(layout: Layout) -> AbstractContextManager[None]:
    """Keep boots away while no pod runs; where one runs, its nodes are changed under it."""
    return contextlib.nullcontext() if _runs(layout) else held(layout)


def _runs(layout: Layout) -> bool:
    return run.running(layout.run_record) is not None


def _restart(layout: Layout) -> str:
    return f"; {_RESTART}" if _runs(layout) else ""


def _wishes(layout: Layout) -> tuple[dict[str, Wish], tuple[Problem, ...]]:
    return declared.wishes(layout.manifest, settings_of(layout).nodes)


def _folder(layout: Layout) -> Path:
    return layout.comfyui / "custom_nodes"


def _baked(layout: Layout) -> tuple[BakedNode, ...]:
    try:
        return pod_of(layout).nodes
    except HostError:
        return ()


def _site(layout: Layout) -> Site:
    """Return where nodes go and what tries them.

    Raises:
        HostError: it is not known which image would boot.
    """
    pod, image = pod_of(layout), image_of(layout)
    here = plans.look(layout).here
    core = layout.comfyui if here is not None and here.mode == "move" else image.tree
    return site_of(layout, layer_of(pod, layout), core, layout.comfyui, os.environ, settings_of(layout).node_registry)

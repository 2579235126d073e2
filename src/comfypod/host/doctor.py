"""What this machine has, and what each finding means for `up`."""

from __future__ import annotations

import os
import platform
import sys
import threading
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Literal

from comfypod import fetch, files, gpu, proc
from comfypod.download.address import shown
from comfypod.errors import ComfypodError, HostError, Problem, SourceError, UsageError
from comfypod.host.prepare import missing, needs
from comfypod.image.detect import find
from comfypod.lock.sources import index_url
from comfypod.log import human_bytes
from comfypod.manifest.profiles import load_profiles
from comfypod.manifest.profiles import profile as profile_named
from comfypod.ports import busy
from comfypod.result import Result
from comfypod.uv_program import find_uv
from comfypod.workspace import run
from comfypod.workspace.layout import Layout

if TYPE_CHECKING:
    from pathlib import Path

    from comfypod.host.prepare import Need
    from comfypod.lock.schema import Lock
    from comfypod.manifest.profiles import Profile

Addresses = Sequence[tuple[str, Mapping[str, int]]]
State = Literal["ok", "note", "problem"]
_NETWORK_SECONDS = 3.0
_PROGRAM_SECONDS = 5.0
_COMFORTABLE_MEMORY = 8_000_000_000
_WORKSPACE_SPARE = 200_000_000
_CGROUP_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing looked at; a `problem` would stop `up`, a `note` would not. `meaning` is what it means for `up`."""

    name: str
    state: State
    detail: str
    meaning: str = ""


def examine(
    *,
    data: Path,
    workspace: Path,
    addresses: Addresses,
    lock: Lock | None = None,
    profile: str = "auto",
    jupyter: bool = True,
) -> tuple[Finding, ...]:
    """Look at everything that `up` depends on; bounded, and changes nothing.

    `addresses` holds, for each address, its ports by the option that sets them. Without a lock (in a pod) the store is
    left out.

    Raises:
        UsageError: there is no such profile.
    """
    found = gpu.probe()
    chosen = gpu.choose(found, load_profiles())
    name = chosen.profile.name if profile == "auto" else profile_named(profile).name
    profile_finding = _profile(found, name, chosen if profile == "auto" else None)
    todo, store = _store(lock, name, data, jupyter=jupyter)
    return (
        Finding("gpu", "ok" if found.gpus else "note", found.summary),
        profile_finding,
        *store,
        *_disks(data, workspace, todo, lock),
        *(finding for listen, ports in addresses for finding in _ports(listen, ports, workspace)),
        _network(fetching=bool(todo)),
        _engine("docker"),
        _engine("podman"),
        _uv(),
        _git(fetching=any(need.kind == "comfyui" for need in todo)),
        Finding("python", "ok", f"{platform.python_version()} at {sys.executable}"),
        _memory(),
    )


def doctor(findings: tuple[Finding, ...]) -> Result:
    """Report what `examine` found; status "error" and exit code 13 when something would stop `up`."""
    problems = tuple(
        Problem(HostError.code, f"{finding.name}: {finding.detail}", finding.meaning)
        for finding in findings
        if finding.state == "problem"
    )
    return Result(
        command="doctor",
        data={"up": not problems, "findings": [asdict(finding) for finding in findings]},
        text=_table(findings),
        status="error" if problems else "success",
        exit_code=HostError.exit_code if problems else 0,
        errors=problems,
    )


def _table(findings: tuple[Finding, ...]) -> str:
    width = max(len(finding.name) for finding in findings)
    lines = []
    for finding in findings:
        lines.append(f"{finding.state:<7}  {finding.name:<{width}}  {finding.detail}")
        if finding.meaning and finding.state == "note":
            lines.append(f"{'':7}  {'':{width}}  {finding.meaning}")
    return "\n".join(lines)


def _profile(found: gpu.Survey, name: str, chosen: gpu.Choice[Profile] | None) -> Finding:
    if chosen is None:
        against = gpu.verdict(found, profile_named(name))
        return Finding("profile", "problem" if against else "ok", against or name, "choose another with --profile")
    state: State = "ok" if chosen.profile.needs_gpu else "note"
    return Finding("profile", state, f"{name}: {chosen.reason}")


def _store(lock: Lock | None, profile: str, data: Path, *, jupyter: bool) -> tuple[tuple[Need, ...], list[Finding]]:
    if lock is None:
        return (), []
    try:
        todo = missing(needs(lock, profile, platform.machine(), jupyter=jupyter), data)
    except ComfypodError as error:
        return (), [Finding("store", "problem", error.message, error.hint)]
    if not todo:
        return todo, [Finding("store", "ok", f"{data}: everything is there; `up` fetches nothing")]
    titles = ", ".join(need.title for need in todo)
    size = human_bytes(sum(need.download for need in todo))
    return todo, [Finding("store", "note", f"{data} lacks {titles}", f"the next `up` fetches up to {size}")]


def _disks(data: Path, workspace: Path, todo: tuple[Need, ...], lock: Lock | None) -> list[Finding]:
    space, inodes = _WORKSPACE_SPARE, 0
    if lock is None:
        return [_disk("workspace disk", workspace, space, inodes)]
    if not (workspace / "ComfyUI").exists():
        space, inodes = space + lock.comfyui.bytes * 2, lock.comfyui.files * 3
    store, store_inodes = sum(need.bytes for need in todo), sum(need.inodes for need in todo)
    if _same_disk(data, workspace) and os.access(files.nearest_folder(data), os.W_OK):
        return [_disk("disk", workspace, store + space, store_inodes + inodes)]
    return [_disk("data disk", data, store, store_inodes), _disk("workspace disk", workspace, space, inodes)]


def _same_disk(one: Path, other: Path) -> bool:
    return files.nearest_folder(one).stat().st_dev == files.nearest_folder(other).stat().st_dev


def _disk(name: str, path: Path, needed: int, inodes: int) -> Finding:
    left = files.room(path)
    counted = "" if left.inodes is None else f" and {left.inodes:,} inodes"
    detail = f"{path} has {human_bytes(left.bytes)}{counted} left; `up` needs {human_bytes(needed)}"
    if not os.access(files.nearest_folder(path), os.W_OK):
        return Finding(name, "problem", f"{path} cannot be written", "choose another folder, or mend its owner or mode")
    if left.bytes < needed:
        return Finding(name, "problem", detail, "free some space or choose another folder")
    if left.inodes is not None and left.inodes < inodes:
        return Finding(name, "problem", f"{detail} and {inodes:,} inodes", "choose a file system with more inodes")
    return Finding(name, "ok", detail)


def _ports(listen: str, ports: Mapping[str, int], workspace: Path) -> list[Finding]:
    try:
        taken = busy(listen, ports)
    except UsageError as error:
        return [Finding("ports", "problem", error.message, error.hint)]
    if not taken:
        return [Finding("ports", "ok", f"{', '.join(map(str, ports.values()))} are free on {listen}")]
    if (record := run.running(Layout(workspace).run_record)) is not None:
        meaning = f"the pod of this workspace runs (pid {record.boot.pid}) and holds its own ports"
        return [Finding("ports", "note", str(entry), meaning) for entry in taken]
    return [
        Finding("ports", "problem", str(entry), f"stop what holds it, or choose another with {entry.option}")
        for entry in taken
    ]


def _network(*, fetching: bool) -> Finding:
    index = index_url(os.environ)
    trouble = _reach(index)
    if not trouble:
        return Finding("network", "ok", f"the package index {shown(index)} answers")
    if fetching:
        return Finding("network", "problem", trouble, "connect this machine, or name a mirror with UV_DEFAULT_INDEX")
    return Finding("network", "note", trouble, "`up` needs no network: everything is there")


def _reach(index: str) -> str:
    # Looking up a name has no time-out of its own, hence the thread.
    said = [f"{shown(index)} did not answer within {_NETWORK_SECONDS:.0f} s"]

    def ask() -> None:
        try:
            fetch.head(f"{index}/pip/")
            said[0] = ""
        except SourceError as error:
            said[0] = error.message

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(_NETWORK_SECONDS)
    return said[0]


def _engine(name: Literal["docker", "podman"]) -> Finding:
    try:
        engine = find(name)
    except HostError as error:
        return Finding(name, "note", error.message, f"only `build` and `up --engine {name}` need it: {error.hint}")
    return Finding(name, "ok", f"{engine.version}; builds with `{' '.join(engine.builder)}`")


def _uv() -> Finding:
    try:
        done = proc.run((find_uv(), "--version"), seconds=_PROGRAM_SECONDS)
    except HostError as error:
        return Finding("uv", "problem", error.message, error.hint)
    if not done.ok:
        return Finding("uv", "problem", "does not run", "install comfypod again, or `pip install uv`")
    return Finding("uv", "ok", done.stdout.strip())


def _git(*, fetching: bool) -> Finding:
    try:
        done = proc.run((proc.find_program("git"), "--version"), seconds=_PROGRAM_SECONDS)
    except HostError as error:
        tail = "; ComfyUI then comes from an archive or a source distribution" if fetching else ""
        return Finding("git", "note", error.message, f"custom nodes cannot be cloned{tail}")
    return Finding("git", "ok", done.stdout.strip())


def _memory() -> Finding:
    with open("/proc/meminfo", encoding="ascii") as handle:
        facts = {name: int(rest.split()[0]) * 1024 for name, _, rest in (line.partition(":") for line in handle)}
    total, detail = facts["MemTotal"], ""
    for path in _CGROUP_LIMITS:
        try:
            with open(path, encoding="ascii") as handle:
                limit = handle.read().strip()
        except OSError:
            continue
        if limit.isdigit() and int(limit) < total:
            total, detail = int(limit), ", the limit of this container"
    text = f"{human_bytes(total)}{detail}"
    if total >= _COMFORTABLE_MEMORY:
        return Finding("memory", "ok", text)
    return Finding("memory", "note", text, "ComfyUI starts, and large models may not fit")

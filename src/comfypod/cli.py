"""The command line: arguments in, one result out. Each verb imports what it needs when it runs."""

from __future__ import annotations

import argparse
import os
import shlex
from pathlib import Path
from typing import TYPE_CHECKING

from comfypod import interrupts, podfile
from comfypod.arguments import parser
from comfypod.errors import EXIT_INTERRUPTED, EXIT_TERMINATED, ComfypodError, UsageError
from comfypod.log import Console
from comfypod.result import Result, failure, interrupted

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from comfypod.workspace.layout import Layout

_FLAGS = {
    "workspace": "workspace",
    "listen": "listen",
    "port": "port",
    "jupyter_port": "jupyter_port",
    "control_port": "control_port",
}


def run(argv: Sequence[str], begun: float) -> int:
    """Run one command line; return its exit code. `begun` is the monotonic time of the first instruction."""
    own, extra = _split(list(argv))
    try:
        options = parser().read(own)
    except UsageError as error:
        Console(quiet="--json" in own).render(failure(own[0] if own else "comfypod", error))
        return error.exit_code
    console = Console(quiet=options.json)
    if options.verb == "boot":
        return _boot(options, extra, console, begun)
    try:
        with interrupts.raised():
            if extra and options.verb != "up":
                raise UsageError(f"`comfypod {options.verb}` takes no arguments after --")
            result = _VERBS[options.verb](options, extra, console)
    except ComfypodError as error:
        result = failure(options.verb, error)
    except KeyboardInterrupt:
        result = interrupted(options.verb, "interrupted", EXIT_INTERRUPTED)
    except interrupts.TerminatedError:
        result = interrupted(options.verb, "terminated", EXIT_TERMINATED)
    console.render(result)
    return result.exit_code


def _split(argv: list[str]) -> tuple[list[str], list[str]]:
    if "--" not in argv:
        return argv, []
    at = argv.index("--")
    return argv[:at], argv[at + 1 :]


def _arguments(options: argparse.Namespace, extra: Sequence[str]) -> dict[str, str]:
    """Collect the settings that the command line gives."""
    given: dict[str, str] = {}
    for text in getattr(options, "set", ()):
        name, equals, value = text.partition("=")
        if not equals:
            raise UsageError(f"--set {text}: NAME=VALUE is expected")
        given[name] = value
    for flag, name in _FLAGS.items():
        value = getattr(options, flag, None)
        if value is not None:
            given[name] = str(_expanded(value)) if flag == "workspace" else value
    if getattr(options, "no_jupyter", False):
        given["jupyter"] = "off"
    if getattr(options, "offline", False):
        given["offline"] = "on"
    if extra:
        given["comfyui_args"] = shlex.join(extra)
    return given


def _boot(options: argparse.Namespace, extra: Sequence[str], console: Console, begun: float) -> int:
    from comfypod.boot.main import boot

    try:
        result = boot(options.pod, _arguments(options, extra), console, begun)
    except ComfypodError as error:
        result = failure("boot", error)
        if not options.json:
            console.render(result)
    if options.json:
        console.render(result)
    return result.exit_code


def _layout(options: argparse.Namespace) -> Layout:
    """Find the workspace: the flag, the environment, the pod's or the host's default."""
    from comfypod.workspace.layout import Layout

    given = options.workspace or os.environ.get("COMFYPOD_WORKSPACE", "").strip()
    default = "/workspace" if podfile.find() else "~/comfypod-workspace"
    return Layout(_expanded(given or default))


def _expanded(path: str) -> Path:
    try:
        return Path(path).expanduser().absolute()
    except RuntimeError as error:
        raise UsageError(f"{path}: there is no such home", "give the folder from / on") from error


def _lock_file(options: argparse.Namespace) -> Path | None:
    beside = Path("comfypod.lock")
    return options.lock or (beside.absolute() if beside.is_file() else None)


def _up(options: argparse.Namespace, extra: Sequence[str], console: Console) -> Result:
    from comfypod.host.up import Options, up

    if (image := podfile.find()) is not None:
        raise UsageError(f"this is a pod already ({image})", "`comfypod boot` starts it, `comfypod status` shows it")
    if options.json and not options.detach:
        raise UsageError("--json needs --detach: in the foreground the pod's own lines are the output")
    arguments = _arguments(options, extra)
    chosen = Options(
        arguments, options.profile, _lock_file(options), options.offline, options.detach, options.wait,
        engine=options.engine, image=options.image,
    )  # fmt: skip
    return up(chosen, console)


def _down(options: argparse.Namespace, _: Sequence[str], console: Console) -> Result:
    from comfypod.host.up import down

    return down(_layout(options), console)


def _status(options: argparse.Namespace, _: Sequence[str], __: Console) -> Result:
    from comfypod.host.inspect import status

    return status(_layout(options))


def _logs(options: argparse.Namespace, _: Sequence[str], console: Console) -> Result:
    from comfypod.host.inspect import logs

    if options.follow and options.json:
        raise UsageError("--follow has no end, and --json prints one envelope at the end", "leave one of them out")
    return logs(_layout(options), options.service, options.lines, options.follow, console)


def _health(options: argparse.Namespace, _: Sequence[str], __: Console) -> Result:
    from comfypod.host.inspect import health

    return health(_layout(options), options.probe or "/readyz")


def _doctor(options: argparse.Namespace, extra: Sequence[str], _: Console) -> Result:
    from comfypod.host.doctor import doctor, examine
    from comfypod.host.store import data_folder
    from comfypod.host.up import default_settings
    from comfypod.lock.load import read_lock
    from comfypod.settings import resolve

    in_pod = podfile.find()
    lock = None if in_pod else read_lock(_lock_file(options))
    built = podfile.load(in_pod).settings if in_pod else {**default_settings(), **(lock.settings if lock else {})}
    settings = resolve(built, os.environ, _arguments(options, extra))
    jupyter = {"--jupyter-port": settings.jupyter_port} if settings.jupyter else {}
    findings = examine(
        data=data_folder(os.environ),
        workspace=settings.workspace,
        addresses=(
            (settings.listen, {"--port": settings.port}),
            (settings.jupyter_listen, jupyter),
            (settings.control_listen, {"--control-port": settings.control_port}),
        ),
        lock=lock,
        profile=options.profile,
        jupyter=settings.jupyter,
    )
    return doctor(findings)


def _lock(options: argparse.Namespace, _: Sequence[str], console: Console) -> Result:
    from comfypod.lock.command import init_command, lock_command

    if options.init:
        return init_command(Path.cwd())
    return lock_command(options.manifest, check=options.check, upgrade=options.upgrade, console=console)


def _build(options: argparse.Namespace, _: Sequence[str], console: Console) -> Result:
    from comfypod.image.build import Options, build

    chosen = Options(
        profiles=tuple(options.profiles), variants=tuple(options.variant), platform=options.platform, base=options.base,
        tag=options.tag, repository=options.repository, suffix=options.suffix, push=options.push,
        dry_run=options.dry_run, lock=_lock_file(options), engine=options.engine, index=options.index,
        apt_mirror=options.apt_mirror, git_mirrors=tuple(options.git_mirror), ca=options.ca, network=options.network,
    )  # fmt: skip
    return build(chosen, console)


def _render(options: argparse.Namespace, _: Sequence[str], __: Console) -> Result:
    from comfypod.image.render import render

    return render(options.what, options.profiles, _lock_file(options), options.output)


def _volume(options: argparse.Namespace, _: Sequence[str], console: Console) -> Result:
    from comfypod.host import adopt, workspace

    layout = _layout(options)
    if (options.what != "adopt" and (options.yes or options.undo)) or (options.yes and options.undo):
        raise UsageError("--yes and --undo belong to `workspace adopt`, one at a time", "see its --help")
    if options.what == "adopt":
        if options.undo:
            return adopt.undo(layout)
        return adopt.carry_out(layout, console) if options.yes else adopt.show(layout)
    if options.what == "upgrade":
        return workspace.upgrade(layout, console)
    return {
        "status": workspace.status, "plan": workspace.plan, "rollback": workspace.rollback, "verify": workspace.verify,
    }[options.what](layout)  # fmt: skip


def _nodes(options: argparse.Namespace, _: Sequence[str], console: Console) -> Result:
    from comfypod.environment.install import install
    from comfypod.host import nodes

    layout, what, names = _layout(options), options.what, options.names
    if (options.upgrade and what != "sync") or ((options.ref or options.name) and what != "add"):
        raise UsageError("--ref and --name belong to `nodes add`, --upgrade to `nodes sync`", "see its --help")
    if what == "list" and names:
        raise UsageError("`nodes list` takes no names", "see its --help")
    if what in ("add", "remove", "enable", "disable") and len(names) != 1:
        raise UsageError(f"`nodes {what}` takes one node", "see its --help")
    if what == "add":
        return nodes.add(layout, names[0], options.ref, options.name, install, console)
    if what == "sync":
        return nodes.sync(layout, names, install, console, upgrade=options.upgrade)
    if what in ("enable", "disable"):
        return nodes.switch(layout, names[0], on=what == "enable")
    if what == "remove":
        return nodes.remove(layout, names[0])
    return nodes.check(layout, names) if what == "check" else nodes.show(layout)


def _models(options: argparse.Namespace, _: Sequence[str], console: Console) -> Result:
    from comfypod.host import models

    layout, what = _layout(options), options.what
    flags = {"pull": options.replace, "verify": options.digests, "prune": options.yes}
    if any(given for verb, given in flags.items() if verb != what):
        raise UsageError("--replace belongs to pull, --digests to verify, --yes to prune", "see `models --help`")
    if options.wanted and what not in ("plan", "pull"):
        raise UsageError(f"`models {what}` takes no names", "see its --help")
    if what == "pull":
        return models.fetch(layout, options.wanted, console, replace_wrong=options.replace)
    if what == "verify":
        return models.check(layout, console, digests=options.digests)
    if what == "prune":
        return models.remove(layout, sure=options.yes)
    return models.plan(layout, options.wanted) if what == "plan" else models.show(layout)


def _env(options: argparse.Namespace, _: Sequence[str], console: Console) -> Result:
    from comfypod.host import env

    layout = _layout(options)
    if options.what == "rebuild":
        return env.rebuild(layout, console)
    return env.verify(layout) if options.what == "verify" else env.status(layout)


_VERBS: dict[str, Callable[[argparse.Namespace, Sequence[str], Console], Result]] = {
    "up": _up,
    "down": _down,
    "status": _status,
    "logs": _logs,
    "doctor": _doctor,
    "lock": _lock,
    "build": _build,
    "render": _render,
    "workspace": _volume,
    "nodes": _nodes,
    "models": _models,
    "env": _env,
    "health": _health,
}

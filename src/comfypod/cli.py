"""The command line: arguments in, one result out. Each verb imports what it needs when it runs."""

from __future__ import annotations

import argparse
import contextlib
import os
import shlex
import signal
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from comfypod import __version__, podfile
from comfypod.errors import EXIT_INTERRUPTED, EXIT_TERMINATED, ComfypodError, UsageError, exit_code_table
from comfypod.log import Console
from comfypod.result import Result, failure, interrupted

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from types import FrameType

    from comfypod.workspace.layout import Layout

    _Verbs = argparse._SubParsersAction["_Parser"]

_FLAGS = {
    "workspace": "workspace",
    "listen": "listen",
    "port": "port",
    "jupyter_port": "jupyter_port",
    "control_port": "control_port",
}

_UP_EXAMPLES = """\
examples:
  comfypod up                                  the best profile for this machine, in the foreground
  comfypod up --detach --wait 900              in the background; returns when ComfyUI answers
  comfypod up --workspace ~/art --port 9000    another workspace on another port
  comfypod up -- --preview-method auto         everything after -- goes to ComfyUI
"""


def run(argv: Sequence[str], begun: float) -> int:
    """Run one command line; return its exit code. `begun` is the monotonic time of the first instruction."""
    own, extra = _split(list(argv))
    try:
        options = _parser().parse_args(own)
    except UsageError as error:
        Console(quiet="--json" in own).render(failure(own[0] if own else "comfypod", error))
        return error.exit_code
    console = Console(quiet=options.json)
    if options.verb == "boot":
        return _boot(options, extra, console, begun)
    try:
        with _terminable():
            if extra and options.verb != "up":
                raise UsageError(f"`comfypod {options.verb}` takes no arguments after --")
            result = _VERBS[options.verb](options, extra, console)
    except ComfypodError as error:
        result = failure(options.verb, error)
    except KeyboardInterrupt:
        result = interrupted(options.verb, "interrupted", EXIT_INTERRUPTED)
    except _TerminatedError:
        result = interrupted(options.verb, "terminated", EXIT_TERMINATED)
    console.render(result)
    return result.exit_code


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UsageError(message, f"`{self.prog} --help` shows what can be given")


class _TerminatedError(SystemExit):
    pass


@contextlib.contextmanager
def _terminable() -> Iterator[None]:
    """Let SIGTERM unwind the stack as Ctrl-C does, so that what is half done is put away."""

    def raise_terminated(_signum: int, _frame: FrameType | None) -> None:
        raise _TerminatedError(EXIT_TERMINATED)

    before = signal.signal(signal.SIGTERM, raise_terminated)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _split(argv: list[str]) -> tuple[list[str], list[str]]:
    if "--" not in argv:
        return argv, []
    at = argv.index("--")
    return argv[:at], argv[at + 1 :]


def _parser() -> argparse.ArgumentParser:
    codes = "\n".join(f"  {code:>3}  {meaning}" for code, _, meaning in exit_code_table())
    parser = _Parser(
        prog="comfypod",
        description="Build ComfyUI images that can be trusted and boot them into pods that lose nothing.",
        epilog=f"exit codes:\n{codes}\n\n`comfypod VERB --help` explains a verb.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"comfypod {__version__}")
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    _add_up(verbs)
    for name, text in (
        ("down", "stop the pod that runs on a workspace"),
        ("status", "show what the pod is doing, and why it is not ready"),
    ):
        _workspace(_verb(verbs, name, text))
    logs = _workspace(_verb(verbs, "logs", "print a service's log"))
    logs.add_argument("service", nargs="?", default="comfyui", choices=("boot", "comfyui", "jupyter"))
    logs.add_argument("-f", "--follow", action="store_true", help="go on printing what is added")
    logs.add_argument("-n", "--lines", type=int, default=100, help="how many lines from the end (default 100)")
    _add_doctor(verbs)
    _add_lock(verbs)
    _add_pod_verbs(verbs)
    return parser


def _verb(verbs: _Verbs, name: str, text: str, epilog: str = "") -> argparse.ArgumentParser:
    parser = verbs.add_parser(
        name, help=text, description=text[0].upper() + text[1:] + ".", epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("--json", action="store_true", help="print one JSON envelope on standard output")
    return parser


def _workspace(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    parser.add_argument(
        "--workspace", metavar="DIR", help="the pod's workspace (default: /workspace in a pod, ~/comfypod-workspace)"
    )
    return parser


def _addresses(parser: argparse.ArgumentParser) -> None:
    _workspace(parser)
    parser.add_argument("--listen", metavar="ADDR", help="address to answer on (default 127.0.0.1)")
    parser.add_argument("--port", help="ComfyUI's port (default 8188)")
    parser.add_argument("--jupyter-port", help="JupyterLab's port (default 8888)")
    parser.add_argument("--control-port", help="the control plane's port, loopback (default 8189)")


def _choice(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--profile", default="auto", help="auto, or one of the profiles in docs/profiles.md")
    parser.add_argument(
        "--lock", type=Path, metavar="FILE", help="a comfypod.lock (default: ./comfypod.lock, then ours)"
    )


def _add_up(verbs: _Verbs) -> None:
    up = _verb(verbs, "up", "prepare everything and run the pod", _UP_EXAMPLES)
    up.add_argument("--engine", choices=("auto", "host"), default="auto", help="host: no container (auto means host)")
    _choice(up)
    _addresses(up)
    up.add_argument("--no-jupyter", action="store_true", help="leave JupyterLab out")
    up.add_argument("--offline", action="store_true", help="use only what is already on this machine")
    up.add_argument("--detach", action="store_true", help="run in the background; return when the pod is ready")
    up.add_argument(
        "--wait", type=float, default=600.0, metavar="SECONDS", help="how long --detach waits (default 600)"
    )


def _add_doctor(verbs: _Verbs) -> None:
    doctor = _verb(verbs, "doctor", "examine this machine, and say what each finding means for `up`")
    _addresses(doctor)
    _choice(doctor)


def _add_lock(verbs: _Verbs) -> None:
    lock = _verb(verbs, "lock", "resolve comfypod.toml into comfypod.lock")
    lock.add_argument("--manifest", type=Path, metavar="FILE", help="a comfypod.toml (default: ./comfypod.toml)")
    lock.add_argument("--init", action="store_true", help="only write a comfypod.toml and its lock to begin with")
    lock.add_argument("--check", action="store_true", help="change nothing; fail when the lock is out of step")
    lock.add_argument(
        "--upgrade", nargs="*", metavar="NAME", help="take newer versions of these, or of all when none is named"
    )


def _add_pod_verbs(verbs: _Verbs) -> None:
    boot = _verb(verbs, "boot", "run the pod from its pod.json; what a container runs")
    boot.add_argument("--pod", type=Path, default=podfile.IN_IMAGE, metavar="FILE", help=f"default {podfile.IN_IMAGE}")
    boot.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="a setting (docs/settings.md)")
    _addresses(boot)
    health = _workspace(_verb(verbs, "health", "ask a running pod's probes; for HEALTHCHECK"))
    which = health.add_mutually_exclusive_group()
    which.add_argument("--live", dest="probe", action="store_const", const="/livez", help="is boot itself alive")
    which.add_argument(
        "--ready", dest="probe", action="store_const", const="/readyz", help="does ComfyUI answer (default)"
    )


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

    if options.json and not options.detach:
        raise UsageError("--json needs --detach: in the foreground the pod's own lines are the output")
    arguments = _arguments(options, extra)
    chosen = Options(arguments, options.profile, _lock_file(options), options.offline, options.detach, options.wait)
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
    ports = {"--port": settings.port, **({"--jupyter-port": settings.jupyter_port} if settings.jupyter else {})}
    findings = examine(
        data=data_folder(os.environ),
        workspace=settings.workspace,
        addresses=((settings.listen, ports), (settings.control_listen, {"--control-port": settings.control_port})),
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


_VERBS: dict[str, Callable[[argparse.Namespace, Sequence[str], Console], Result]] = {
    "up": _up,
    "down": _down,
    "status": _status,
    "logs": _logs,
    "doctor": _doctor,
    "lock": _lock,
    "health": _health,
}

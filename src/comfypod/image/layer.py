"""Runs inside an image build, by itself and on the standard library: makes one layer's files, the same every time.

Files get one time stamp and bytecode that does not depend on time stamps, so that equal contents are equal layers.
Failures are reported in one line, `COMFYPOD FAILED <item>: <reason>`, which `comfypod build` reads.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import stat
import subprocess
import sys
import tempfile
from contextlib import contextmanager
from pathlib import Path
from py_compile import PycInvalidationMode
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

# 1980-01-01, the oldest time that a zip archive can hold.
EPOCH = 315532800
UV = "/opt/comfypod/bin/uv"
_TESTS = frozenset({"test", "tests"})
_WORKERS = "0"


class LayerError(Exception):
    """A locked item that could not be made part of the image."""

    def __init__(self, item: str, reason: str) -> None:
        super().__init__(f"{item}: {reason}")
        self.item, self.reason = item, reason


def main(argv: list[str]) -> int:
    """Run one command; return the exit code."""
    options = _parser().parse_args(argv)
    try:
        options.work(options)
    except LayerError as error:
        print(f"COMFYPOD FAILED {error.item}: {error.reason}", file=sys.stderr, flush=True)  # noqa: T201
        return 1
    except OSError as error:
        print(f"COMFYPOD FAILED {' '.join(argv)}: {error}", file=sys.stderr, flush=True)  # noqa: T201
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="layer.py", description="Make one layer of an image.")
    commands = parser.add_subparsers(required=True)
    packages = commands.add_parser("packages", help="install a list of locked packages")
    packages.add_argument("--uv", default=UV)
    packages.add_argument("--locked", required=True, help="the list, without its ending .txt")
    packages.add_argument("--venv", type=Path, required=True)
    packages.add_argument("--root", type=Path, default=Path("/"), help="where the layer is collected")
    packages.add_argument("--tests", type=Path, help="where packages' own tests go; they stay when this is not given")
    packages.add_argument("--without-tests", action="store_true", help="delete packages' own tests")
    packages.set_defaults(work=_packages)
    venvs = commands.add_parser("venvs", help="make empty environments")
    venvs.add_argument("folders", type=Path, nargs="+")
    venvs.set_defaults(work=_venvs)
    keep = commands.add_parser("keep", help="collect finished environments in a layer")
    keep.add_argument("folders", type=Path, nargs="+")
    keep.add_argument("--root", type=Path, required=True)
    keep.set_defaults(work=_keep)
    code = commands.add_parser("code", help="put comfypod itself into its environment")
    code.add_argument("--source", type=Path, required=True)
    code.add_argument("--venv", type=Path, required=True)
    code.add_argument("--root", type=Path, default=Path("/"))
    code.set_defaults(work=_code)
    return parser


def _venvs(options: argparse.Namespace) -> None:
    for folder in options.folders:
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", "--symlinks", str(folder)], check=True)
        for path in (*sorted(folder.rglob("*"), reverse=True), folder):
            os.utime(path, (EPOCH, EPOCH), follow_symlinks=False)


def _keep(options: argparse.Namespace) -> None:
    for folder in options.folders:
        target = options.root / folder.relative_to("/")
        shutil.copytree(folder, target, symlinks=True, copy_function=os.link)
        for parent in target.relative_to(options.root).parents:
            os.utime(options.root / parent, (EPOCH, EPOCH))


def _packages(options: argparse.Namespace) -> None:
    options.root.mkdir(parents=True, exist_ok=True)
    if not Path(f"{options.locked}.txt").read_text("utf-8"):
        return
    with staging(options.root, unchecked=True) as staged:
        prefix = staged / options.venv.relative_to("/")
        prefix.mkdir(parents=True)
        _install(options, prefix, staged.with_name("cache"))
        _set_tests_aside(options, staged)


@contextmanager
def staging(root: Path, *, unchecked: bool) -> Iterator[Path]:
    """Yield a new folder that stands for `/`; what is put there is finished and becomes part of `root`.

    Nothing else in `root` is touched: in an image that is built in place, it would become part of the layer.
    """
    root.mkdir(parents=True, exist_ok=True)
    # On the file system of the layer, so that finished files are moved and not copied.
    place = root if root != Path("/") else Path("/var/tmp")  # noqa: S108
    with tempfile.TemporaryDirectory(dir=place) as scratch:
        staged = Path(scratch, "root")
        staged.mkdir()
        yield staged
        finish(staged, unchecked=unchecked)
        merge(staged, root)
    os.utime(place, (EPOCH, EPOCH))


def _install(options: argparse.Namespace, prefix: Path, cache: Path) -> None:
    listing, build = Path(f"{options.locked}.txt"), Path(f"{options.locked}.build.txt")
    sdists = re.findall(r"^# from source: (\S+)$", listing.read_text("utf-8"), re.MULTILINE)
    argv = [
        options.uv, "--color", "never", "--no-progress", "pip", "install", "--python", f"{options.venv}/bin/python",
        "--prefix", str(prefix), "--no-deps", "--require-hashes", "--only-binary", ":all:", "--link-mode", "hardlink",
        "--requirements", str(listing),
    ]  # fmt: skip
    for name in sdists:
        argv += ["--no-binary", name]
    if build.is_file():
        argv += ["--build-constraints", str(build)]
    done = subprocess.run(argv, check=False, stderr=subprocess.PIPE, text=True, env=_uv_environ(cache))
    sys.stderr.write(done.stderr)
    if done.returncode != 0:
        raise LayerError(_guilty(done.stderr, listing), _said(done.stderr))
    (prefix / ".lock").unlink(missing_ok=True)


def _uv_environ(cache: Path) -> dict[str, str]:
    """Keep uv's cache in the layer until its end, and give what it builds one time stamp."""
    return {
        **os.environ,
        "UV_CACHE_DIR": str(cache),
        "UV_NO_CONFIG": "1",
        "UV_HTTP_TIMEOUT": "180",
        "SOURCE_DATE_EPOCH": str(EPOCH),
    }


def _guilty(said: str, listing: Path) -> str:
    """Name the locked package that uv's message is about, or else those of the list."""
    locked = re.findall(r"^([A-Za-z0-9][A-Za-z0-9._-]*)==", listing.read_text("utf-8"), re.MULTILINE)
    reason = said[max(0, said.find("error:")) :]
    words = re.findall(r"`([A-Za-z0-9][A-Za-z0-9._-]*)", reason) + re.findall(r"[A-Za-z0-9][A-Za-z0-9._-]*", reason)
    return next((word for word in words if word in locked), f"one of {', '.join(locked)}")


def _said(text: str) -> str:
    """Return uv's error in one line, without what it printed before."""
    reason = text[max(0, text.find("error:")) :]
    lines = [line.strip().removeprefix("error: ") for line in reason.splitlines() if line.strip()]
    return "; ".join(lines[:6])


def _set_tests_aside(options: argparse.Namespace, staged: Path) -> None:
    """Move or delete folders named `tests` inside packages; what they hold is never imported by the package itself."""
    if options.tests is None and not options.without_tests:
        return
    aside = staged.with_name("tests")
    aside.mkdir()
    for folder, names, _ in os.walk(staged):
        inside_package = Path(folder).parent.name != "lib" and Path(folder).name != "site-packages"
        for name in sorted(_TESTS.intersection(names)) if inside_package else ():
            names.remove(name)
            path = Path(folder, name)
            merge(path, aside / path.relative_to(staged))
    if options.tests is not None:
        # Without bytecode, which would be twice as large as they are: no start imports them.
        settle(aside)
        merge(aside, options.tests)


def _code(options: argparse.Namespace) -> None:
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    start = "import sys\nfrom comfypod.__main__ import main\n\nsys.exit(main())\n"
    with staging(options.root, unchecked=True) as staged:
        place = staged / options.venv.relative_to("/")
        package = place / "lib" / version / "site-packages" / "comfypod"
        shutil.copytree(options.source, package, ignore=shutil.ignore_patterns("__pycache__"))
        script = place / "bin" / "comfypod"
        script.parent.mkdir(parents=True)
        script.write_text(f"#!{options.venv}/bin/python -I\n{start}", "utf-8")
        script.chmod(0o755)


def finish(root: Path, *, unchecked: bool) -> None:
    """Compile a tree as if it stood at `/`, and settle it.

    `unchecked`: for files that nobody edits, bytecode is believed without a look at its source. Otherwise it is
    compared with the contents of the source, so that an edit counts, and a copy with other times does not.
    """
    mode = PycInvalidationMode.UNCHECKED_HASH if unchecked else PycInvalidationMode.CHECKED_HASH
    argv = [
        sys.executable, "-I", "-m", "compileall", "-q", "-f", "-j", _WORKERS, "--invalidation-mode",
        mode.name.lower().replace("_", "-"), "-s", str(root), "-p", "/", str(root),
    ]  # fmt: skip
    subprocess.run(argv, check=False, stdout=subprocess.DEVNULL, env={**os.environ, "PYTHONHASHSEED": "0"})
    settle(root)


def settle(root: Path) -> None:
    """Give everything in a tree the same time and plain modes."""
    for folder, names, found in os.walk(root, topdown=False):
        for name in (*found, *names):
            _settle(os.path.join(folder, name))
    _settle(str(root))


def _settle(path: str) -> None:
    """Give a file or folder the usual mode and time; a local folder or a user's umask may have had others."""
    mode = os.lstat(path).st_mode
    if not stat.S_ISLNK(mode):
        os.chmod(path, 0o755 if stat.S_ISDIR(mode) or mode & stat.S_IXUSR else 0o644)
    os.utime(path, (EPOCH, EPOCH), follow_symlinks=False)


def merge(source: Path, target: Path) -> None:
    """Move a tree into another one on the same file system; folders that are there already get files added."""
    if not os.path.lexists(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        os.rename(source, target)
        return
    for entry in sorted(os.scandir(source), key=lambda entry: entry.name):
        place = target / entry.name
        if entry.is_dir(follow_symlinks=False) and place.is_dir():
            merge(Path(entry.path), place)
        else:
            os.rename(entry.path, place)
    os.utime(target, (EPOCH, EPOCH))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

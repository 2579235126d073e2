"""ComfyUI's own tests, bare, under the launcher and by a standby: `uv run python -m benchmarks.comfyui_tests`.

Runs `tests-unit` and `tests/execution` of the ComfyUI in the store (prepared by `comfypod up`) in a copy of its tree.
The tests themselves start `main.py`; this file is loaded into each run as a plugin of pytest and starts it as boot
would. Prints how many passed and failed in each way, and which test came out differently.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

    from comfypod.podfile import PodFile

LAUNCHER = Path(__file__).parents[1] / "src" / "comfypod" / "launch" / "comfyui.py"
WAYS = ("bare", "launcher", "standby")
SUITES = ("tests-unit", "tests/execution")
OUTCOME = re.compile(r"^(PASSED|FAILED|ERROR|SKIPPED|XFAIL|XPASS) (\S+)", re.MULTILINE)
LONGEST = 180.0
RECORDING = ["--cpu", "--quick-test-for-ci", "--base-directory"]


class Ways:
    """Stands in for `subprocess.Popen` in a run of pytest: a ComfyUI starts in the way that is measured."""

    def __init__(self, way: str) -> None:
        self._way, self._plain = way, subprocess.Popen
        self._orders, self._record = os.memfd_create("orders"), os.memfd_create("record")
        self._events = os.open(os.devnull, os.O_WRONLY)
        os.pwrite(self._record, json.dumps({"image": os.environ["WAYS_IMAGE"], "again": 75}).encode(), 0)

    def install(self) -> None:
        """Start ComfyUI so from now on."""
        self._seen = dict(os.environ)
        if self._way == "standby":
            with tempfile.TemporaryDirectory() as base:
                for name in ("custom_nodes", "user"):
                    (Path(base) / name).mkdir()
                words = [
                    str(Path(os.environ["WAYS_IMAGE"]) / "bin" / "python"),
                    "main.py",
                    *RECORDING,
                    base,
                    "--database-url",
                    "sqlite:///:memory:",
                ]
                env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
                quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "env": env}
                self._launch(words, [], quiet).wait()
        subprocess.Popen = self.popen  # type: ignore[assignment,misc]

    def popen(self, args: Any, *rest: Any, **options: Any) -> Any:
        """Start a program."""
        words = [args] if isinstance(args, str) else [str(word) for word in args]
        if Path(*words[1:2]).name != "main.py":
            return self._plain(args, *rest, **options)
        # What the tests need is not in the way of ComfyUI's own environment.
        words[0] = str(Path(os.environ["WAYS_IMAGE"]) / "bin" / "python")
        environ = options.get("env") or os.environ
        options["env"] = {name: value for name, value in environ.items() if name != "PYTHONPATH"}
        process = self._started(words, options)
        port = int(words[words.index("--port") + 1])
        # The tests wait for twenty seconds, which is not enough on a busy machine.
        deadline = time.monotonic() + LONGEST
        while process.poll() is None and time.monotonic() < deadline:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                break
            time.sleep(0.1)
        return process

    def _started(self, words: list[str], options: dict[str, Any]) -> subprocess.Popen[bytes]:
        if self._way == "bare":
            return self._plain(words, **options)
        if self._way == "launcher":
            return self._launch(words, [], options)
        self._note(options["env"])
        ours, theirs = socket.socketpair()
        with ours, theirs:
            process = self._launch(words, [theirs.fileno()], options)
            theirs.close()
            with Path(os.environ["WAYS_NOTES"]).open("a") as notes:
                notes.write(f"{ours.recv(64).decode() or 'none'}\n")
            ours.send(b"g")
            with Path(os.environ["WAYS_NOTES"]).open("a") as notes:
                notes.write(f"{ours.recv(64).decode() or 'afresh'}\n")
            return process

    def _note(self, environ: Mapping[str, str]) -> None:
        """Have the record be of a start in the environment of now: pytest names the test that runs in it."""
        body = json.loads(os.pread(self._record, 1 << 22, 0))
        body["environ"] |= {name: value for name, value in environ.items() if self._seen.get(name) != value}
        os.ftruncate(self._record, 0)
        os.pwrite(self._record, json.dumps(body).encode(), 0)

    def _launch(self, words: list[str], line: list[int], options: dict[str, Any]) -> subprocess.Popen[bytes]:
        descriptors = [self._orders, self._events, self._record, *line]
        argv = [words[0], str(LAUNCHER), ",".join(map(str, descriptors)), *words[1:]]
        return self._plain(argv, **options, pass_fds=descriptors)


def pytest_configure() -> None:
    """Be pytest's plugin."""
    Ways(os.environ["WAYS"]).install()


def prepare(folder: Path) -> PodFile:
    """Have the store ready; return what is in it."""
    from comfypod import podfile
    from comfypod.workspace.layout import Layout

    workspace = folder / "workspace"
    words = [sys.executable, "-m", "comfypod"]
    flags = ["--profile", "cpu", "--detach", "--no-jupyter", "--port", "18188", "--control-port", "18189"]
    subprocess.run([*words, "up", *flags, "--workspace", str(workspace)], check=True, stdout=sys.stderr)
    subprocess.run([*words, "down", "--workspace", str(workspace)], check=True, stdout=sys.stderr)
    return podfile.load(Layout(workspace).pod_file)


def lay_out(folder: Path, pod: PodFile) -> tuple[Path, Path, Path]:
    """Return a copy of ComfyUI's tree, a Python with what its tests need, and the environment below that."""
    image = Path(pod.python).parent.parent
    tree = folder / "ComfyUI"
    shutil.copytree(pod.comfyui_path, tree)
    subprocess.run(["uv", "venv", "--quiet", "--python", pod.python, str(folder / "venv")], check=True)
    (site,) = (folder / "venv").glob("lib/*/site-packages")
    (below,) = image.glob("lib/*/site-packages")
    (site / "image.pth").write_text(f"import site; site.addsitedir({str(below)!r})\n")
    python = folder / "venv" / "bin" / "python"
    needs = ["-r", str(tree / "tests-unit" / "requirements.txt")]
    subprocess.run(["uv", "pip", "install", "--quiet", "--python", str(python), *needs], check=True)
    return tree, python, image


def run(way: str, suite: str, place: tuple[Path, Path, Path], more: list[str]) -> dict[str, str]:
    """Run one suite in one way; return what came of each test."""
    tree, python, image = place
    notes = tree.parent / f"{way}-{suite.replace('/', '-')}"
    env = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    env |= {"WAYS": way, "WAYS_IMAGE": str(image), "WAYS_NOTES": str(notes), "PYTHONPATH": str(Path(__file__).parent)}
    env["PATH"] = f"{python.parent}{os.pathsep}{env['PATH']}"
    argv = [str(python), "-m", "pytest", "-p", "comfyui_tests", "-q", "-rA", "--capture=fd", "-o", "addopts=", suite]
    if suite == "tests/execution":
        with socket.create_server(("127.0.0.1", 0)) as free:
            more = ["--port", str(free.getsockname()[1]), *more]
    done = subprocess.run([*argv, *more], env=env, cwd=tree, capture_output=True, text=True, check=False)
    notes.with_suffix(".log").write_text(done.stdout + done.stderr)
    if notes.exists():
        print(f"{way} {suite}: standbys said {sorted(set(notes.read_text().split()))}", file=sys.stderr)
    return {name: outcome for outcome, name in OUTCOME.findall(done.stdout)}


def main() -> None:
    """Run the comparison."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--suite", choices=SUITES, action="append", help="one of them alone")
    parser.add_argument("--way", choices=WAYS, action="append", help="one of them alone")
    parser.add_argument("--keep", type=Path, help="work in this folder and leave it, with pytest's output")
    options, more = parser.parse_known_args()
    folder = options.keep or Path(tempfile.mkdtemp(prefix="comfypod-tests-"))
    folder.mkdir(exist_ok=True)
    try:
        place = lay_out(folder, prepare(folder))
        ways = options.way or WAYS
        for suite in options.suite or SUITES:
            found = {way: run(way, suite, place, more) for way in ways}
            for way, outcomes in found.items():
                counts = {each: list(outcomes.values()).count(each) for each in sorted(set(outcomes.values()))}
                print(f"{suite} {way}: {counts}", flush=True)
            for name in sorted(set().union(*found.values())):
                if len({outcomes.get(name) for outcomes in found.values()}) > 1:
                    print(f"  differs: {name} { ({way: found[way].get(name) for way in ways}) }", flush=True)
    finally:
        if options.keep is None:
            shutil.rmtree(folder)


if __name__ == "__main__":
    main()

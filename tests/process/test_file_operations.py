"""What boot asks of a volume, counted with strace: on a network disk each call costs a round trip."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.kit.pods import ROOT
from tests.kit.volumes import image

_BOOT = """
import sys
from pathlib import Path
from comfypod.workspace.switch import Image
from tests.kit.volumes import Volume
Volume(Path(sys.argv[1]), persist=sys.argv[4]).boot(Image(sys.argv[2], Path(sys.argv[3]), "env"))
"""


@pytest.fixture(autouse=True)
def _strace() -> None:
    if shutil.which("strace") is None:
        assert not os.environ.get("CI"), "strace is not installed"
        pytest.skip("strace is not installed")


def _calls(workspace: Path, release: str, tree: Path, persist: str) -> list[str]:
    """Boot in a process of its own; return its system calls that name the volume, by path or by descriptor."""
    log = workspace.with_name("strace.log")
    argv = ["strace", "-f", "-y", "-qq", "-s", "400", "-e", "trace=%file,%desc", "-o", str(log)]
    subprocess.run(
        [*argv, sys.executable, "-B", "-c", _BOOT, str(workspace), release, str(tree), persist], check=True, cwd=ROOT
    )
    lines = log.read_text(errors="replace").splitlines()
    return [line for line in lines if f"{workspace}/" in line or f"{workspace}>" in line or f'{workspace}"' in line]


def _grown(folder: Path) -> Path:
    """Return a tree with 2,000 files more than its like has."""
    tree = image(folder, "1").tree
    for number in range(2000):
        (tree / "comfy" / f"more_{number}.py").write_text("")
    return tree


@pytest.mark.parametrize("number", [1, 2000])
def test_a6_with_links_a_first_boot_takes_few_calls_whatever_the_size_of_the_core(tmp_path: Path, number: int) -> None:
    tree = _grown(tmp_path) if number > 1 else image(tmp_path, "1").tree
    # As many names at the top as ComfyUI has.
    for each in range(45 - len(os.listdir(tree))):
        (tree / f"name_{each}.py").write_text("")
    calls = _calls(tmp_path / "workspace", "1-0", tree, "link")
    assert len(calls) < 200
    assert (tmp_path / "workspace" / "ComfyUI" / "main.py").is_symlink()


def test_a6_a_later_boot_takes_few_calls_whatever_the_size_of_the_core(tmp_path: Path) -> None:
    tree, workspace = _grown(tmp_path), tmp_path / "workspace"
    _calls(workspace, "1-0", tree, "move")
    calls = _calls(workspace, "1-0", tree, "move")
    assert len(calls) < 60


def test_a6_an_upgrade_syncs_the_disk_a_few_times_and_not_per_file(tmp_path: Path) -> None:
    """One call makes all copies durable; then come the journal, the folders of the renames and the state."""
    workspace = tmp_path / "workspace"
    _calls(workspace, "1-0", image(tmp_path, "1").tree, "move")
    calls = _calls(workspace, "2-0", image(tmp_path, "2").tree, "move")
    assert len([call for call in calls if re.search(r" (syncfs|fsync|fdatasync)\(", call)]) <= 12

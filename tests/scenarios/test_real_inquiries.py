"""What the real ComfyUI-Manager asks pip while it starts is what was asked ahead: no pip of its own runs."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from comfypod import control
from tests.kit.lab import until

if TYPE_CHECKING:
    from pathlib import Path

    from tests.scenarios.conftest import RealSite

pytestmark = [pytest.mark.real, pytest.mark.slow]


def _started(log: Path) -> list[str]:
    """Return the arguments of all programs; each process has a file of its own, so that no line is in two parts."""
    texts = [path.read_text() for path in log.parent.glob(f"{log.name}.*")]
    return [words for text in texts for words in re.findall(r"execve\(\S+ \[(.*)\], .* = 0", text)]


def test_comfyui_manager_starts_no_pip_and_says_what_it_has_seen(site: RealSite, tmp_path: Path) -> None:
    if shutil.which("strace") is None:
        assert not os.environ.get("CI"), "strace is not installed"
        pytest.skip("strace is not installed")
    log = tmp_path / "strace.log"
    strace = ["strace", "-ff", "-qq", "--seccomp-bpf", "-s", "400", "-e", "trace=execve", "-o", str(log)]
    argv = [*strace, sys.executable, "-m", "comfypod", *site.up_arguments("--no-jupyter")]
    # It follows the pod until that ends.
    with subprocess.Popen(
        argv, env={**os.environ, **site.environ, "COMFYPOD_STANDBY": "off"}, stdout=subprocess.DEVNULL
    ) as process:
        try:
            address = f"http://127.0.0.1:{site.ports[2]}"
            until(lambda: (control.status(address) or {}).get("phase") == "ready", "ready", 120)
        finally:
            site.down()
        assert process.wait(60) == 0
    started = _started(log)
    assert [words for words in started if '"-m", "pip"' in words] == []
    assert len([words for words in started if "inquiries.py" in words]) == 1
    said = (site.layout.logs / "comfyui.log").read_text()
    assert "[DONE] Security scan" in said
    assert "Traceback" not in said.partition("Starting server")[0].partition("[START] ComfyUI-Manager")[0]

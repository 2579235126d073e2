"""A restart of the real ComfyUI through the standby: the same pictures, and nothing that tells it from a start."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from benchmarks import comfyui_tests
from comfypod import podfile
from tests.kit import comfyui, models
from tests.kit.lab import until

if TYPE_CHECKING:
    from pathlib import Path

    from tests.scenarios.conftest import FirstUp, RealSite

pytestmark = [pytest.mark.real, pytest.mark.slow]

# What a start could share with another one, or have from its threads and open files.
_FACTS = """
import hashlib, json, os, random, sys, threading
import numpy, torch

def digest(data):
    return hashlib.sha256(data).hexdigest()

facts = {
    "own": [digest(repr(random.getstate()).encode()), digest(numpy.random.get_state()[1].tobytes()),
            torch.initial_seed(), digest(torch.get_rng_state().numpy().tobytes()), hash("text")],
    "same": {
        "torch": [torch.get_num_threads(), torch.get_num_interop_threads(), torch.is_grad_enabled(),
                  str(torch.get_default_dtype()), torch.__config__.parallel_info()],
        "environ": dict(os.environ), "argv": sys.argv, "cwd": os.getcwd(),
        # Torch adds a folder of a random name.
        "path": [path for path in sys.path if not os.path.basename(path).startswith("tmp")],
        "finders": sorted(getattr(each, "__name__", type(each).__name__) for each in sys.meta_path),
        "files": sorted(os.readlink(f"/proc/self/fd/{fd}").partition(":")[0] for fd in os.listdir("/proc/self/fd")
                        if os.path.exists(f"/proc/self/fd/{fd}")),
        "score": open("/proc/self/oom_score_adj").read(),
        "threads": sorted(thread.name for thread in threading.enumerate()),
    },
}
with open(os.path.join(os.path.dirname(__file__), "facts"), "a") as handle:
    handle.write(json.dumps(facts) + "\\n")
NODE_CLASS_MAPPINGS = {}
"""


def _facts(site: RealSite) -> list[dict[str, Any]]:
    lines = (site.layout.comfyui / "custom_nodes" / "facts" / "facts").read_text().splitlines()
    return [json.loads(line) for line in lines]


def _restart(site: RealSite) -> dict[str, Any]:
    """Restart ComfyUI when a standby waits; return the status when that serves and is counted."""
    until(lambda: site.status()["standby"]["state"] == "waiting", "a standby", 120)
    before, count = site.status()["services"][0], site.status()["standby"]["starts"]
    site.client.post("/_pod/do/restart", b"{}")
    until(lambda: site.status()["services"][0]["pid"] != before["pid"] and site.status()["ready"], "ComfyUI", 60)
    until(lambda: site.status()["standby"]["starts"] > count, "its count")
    return site.status()


def test_restarts_through_the_standby_are_quick_starts_and_nothing_else(site: RealSite) -> None:
    site.up("--no-jupyter")
    node = site.layout.comfyui / "custom_nodes" / "facts"
    node.mkdir()
    (node / "__init__.py").write_text(_FACTS)
    checkpoint = site.layout.comfyui / "models" / "checkpoints" / "random.safetensors"
    models.checkpoint(checkpoint, podfile.load(site.layout.pod_file).python, site.layout.comfyui)
    site.down()
    status = site.up("--no-jupyter")["data"]["status"]
    assert status["standby"]["starts"] == 0
    pictures = site.client.render(comfyui.sample("random.safetensors", seed=1))
    for count in (1, 2):
        status = _restart(site)
        assert status["standby"]["starts"] == status["services"][0]["restarts"] == count
        assert status["problems"] == []
        # The second goes on with what the first has made of the threads.
        assert [site.client.render(comfyui.sample("random.safetensors", seed=1)) for _ in range(2)] == [pictures] * 2
    plain, *through = _facts(site)
    assert [facts["same"] for facts in through] == [plain["same"]] * 2
    for own in zip(*(facts["own"] for facts in (plain, *through)), strict=True):
        assert len(set(own)) == 3
    log = (site.layout.logs / "comfyui.log").read_text()
    assert "Torch already imported" not in log
    assert log.count("To see the GUI go to") == 4


def test_comfyuis_own_tests_of_its_assets_give_the_same_bare_and_through_the_standby(
    first_up: FirstUp, tmp_path: Path
) -> None:
    """They start ComfyUI, and work with its database and its routes; the benchmark runs all of its tests."""
    place = comfyui_tests.lay_out(tmp_path, podfile.load(first_up.site.layout.pod_file))
    bare, standby = (comfyui_tests.run(way, "tests-unit/assets_test", place, []) for way in ("bare", "standby"))
    assert bare == standby
    assert set(bare.values()) <= {"PASSED", "SKIPPED"}
    assert list(bare.values()).count("PASSED") > 100
    assert (tmp_path / "standby-tests-unit-assets_test").read_text() == "waiting\nused\n"

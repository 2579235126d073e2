"""The real ComfyUI with imports from a record: the modules of a plain start, and the sources of the volume."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any

import pytest

from tests.kit.lab import until

if TYPE_CHECKING:
    from tests.scenarios.conftest import RealSite

pytestmark = [pytest.mark.real, pytest.mark.slow]

# Each start writes all modules with what they say about themselves, and a traceback through a package of the image.
_FACTS = """
import json, os, sys, traceback

def shown(module):
    spec = module.__dict__.get("__spec__")
    loader = module.__dict__.get("__loader__")
    path = module.__dict__.get("__path__")
    found = [module.__dict__.get(name) for name in ("__file__", "__cached__", "__name__", "__package__")]
    found += [None if path is None else list(map(str, path)), type(loader).__name__]
    found += [sorted(getattr(loader, "__dict__", {}))]
    if spec is not None:
        places = spec.submodule_search_locations
        found += [spec.name, spec.origin, spec.cached, spec.has_location]
        found += [None if places is None else list(map(str, places))]
    return found

modules = {name: shown(module) for name, module in list(sys.modules.items()) if hasattr(module, "__dict__")}
import torch
try:
    torch.nn.Linear("wide", 2)
except TypeError:
    said = traceback.format_exc()
import node_helpers
facts = {"modules": modules, "said": said, "mark": getattr(node_helpers, "mark_of_a_test", None)}
with open(os.path.join(os.path.dirname(__file__), "facts"), "a") as handle:
    handle.write(json.dumps(facts, default=str) + "\\n")
NODE_CLASS_MAPPINGS = {}
"""
# What differs from start to start: a module that torch writes to a temporary folder.
_ITS_OWN = "_remote_module_non_scriptable"


def _start(site: RealSite) -> tuple[dict[str, Any], dict[str, Any]]:
    """Start the pod; return its status and what the node has seen."""
    status = site.up("--no-jupyter")["data"]["status"]
    assert status["problems"] == []
    lines = (site.layout.comfyui / "custom_nodes" / "facts" / "facts").read_text().splitlines()
    facts = json.loads(lines[-1])
    modules = {name: shown for name, shown in facts["modules"].items() if not name.startswith("_comfypod_")}
    facts["modules"] = {name: shown for name, shown in modules.items() if name != _ITS_OWN}
    return status, facts


def test_a_start_with_a_record_has_the_modules_of_a_plain_one(site: RealSite, monkeypatch: pytest.MonkeyPatch) -> None:
    site.up("--no-jupyter")
    node = site.layout.comfyui / "custom_nodes" / "facts"
    node.mkdir()
    (node / "__init__.py").write_text(_FACTS)
    until(lambda: site.status()["cold_start"]["state"] in ("made", "used"), "a record", 240)
    until(site.layout.pages.exists, "noted which parts of libraries are used", 60)
    parts = json.loads(site.layout.pages.read_text())["parts"]
    assert any(path.endswith("/libtorch_cpu.so") for path in parts)
    site.down()
    monkeypatch.setenv("COMFYPOD_COLD_START", "off")
    status, plain = _start(site)
    assert status["cold_start"]["state"] == "off"
    site.down()
    monkeypatch.delenv("COMFYPOD_COLD_START")
    status, ours = _start(site)
    assert status["cold_start"]["state"] == "used"
    assert sorted(ours["modules"]) == sorted(plain["modules"])
    assert ours == plain
    assert "torch.empty(" in ours["said"]
    assert len(plain["modules"]) > 4000
    site.down()
    source = site.layout.comfyui / "node_helpers.py"
    source.write_text(source.read_text() + "\nmark_of_a_test = 'changed'\n")
    status, changed = _start(site)
    assert status["cold_start"]["state"] == "used"
    assert changed["mark"] == "changed"
    assert sorted(changed["modules"]) == sorted(plain["modules"])


def test_a_record_that_is_damaged_is_ignored_and_made_again(site: RealSite) -> None:
    site.up("--no-jupyter")
    until(lambda: site.status()["cold_start"]["state"] in ("made", "used"), "a record", 240)
    site.down()
    folder = site.machine.folder / "data" / "store" / "cold"
    (record,) = (path for path in folder.iterdir() if path.suffix not in {".ahead", ".lock"})
    os.truncate(record, record.stat().st_size // 2)
    view = site.up("--no-jupyter")["data"]["status"]["cold_start"]
    assert (view["state"], view["reason"]) == ("unused", "it is cut")
    until(lambda: site.status()["cold_start"]["state"] == "made", "a record", 240)

"""The standby as a process: what is imported before it is told to go on, and when that is not used."""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from comfypod.ports import choose_free
from tests.kit.launching import AGAIN, Record, begin, standing_by

if TYPE_CHECKING:
    from collections.abc import Mapping

_TORCH = "import os, colorsys\nimport torch.nn\nos.environ['TORCH_SET'] = 'yes'\nmark = object()\n"
_HEAVY = "import os\nopen(os.environ['NOTES'], 'a').write('heavy\\n')\n"
_MAIN = """
import os, sys
import cuda_malloc
SCRIPT
seen = [name in sys.modules for name in ("torch", "torch.nn")]
import torch.nn
from torch import nn
import asyncio, heavy, json, nodes
asyncio.run(nodes.load_custom_node("extra.py"))
spec = torch.__spec__
facts = [sys.modules["torch"] is torch, torch.nn is nn, spec.name, spec.origin, type(spec.loader).__name__]
facts += [type(torch.__loader__).__name__, os.environ["TORCH_SET"], "heavy" in sys.modules, sys.argv[1:]]
print(json.dumps([seen, facts, sorted(os.environ)]))
"""


class _Place:
    """A program in ComfyUI's manner, an image's packages and a volume's."""

    def __init__(self, folder: Path, script: str = "") -> None:
        self.image, self.layer, self.notes = folder / "image", folder / "layer", folder / "notes"
        (self.image / "torch").mkdir(parents=True)
        for place in (folder / "core", self.layer):
            place.mkdir()
        (self.image / "torch" / "__init__.py").write_text(_TORCH)
        (self.image / "torch" / "nn.py").write_text("")
        (self.image / "heavy.py").write_text(_HEAVY)
        self.main = folder / "core" / "main.py"
        self.main.write_text(_MAIN.replace("SCRIPT", script))
        for name in ("cuda_malloc", "folder_paths"):
            (folder / "core" / f"{name}.py").write_text("")
        (folder / "core" / "nodes.py").write_text("async def load_custom_node(path): return True\n")
        path = f"{self.layer}{os.pathsep}{self.image}"
        self.env = {**os.environ, "PYTHONPATH": path, "NOTES": str(self.notes), "PYTHONDONTWRITEBYTECODE": "1"}

    def noted(self) -> str:
        return self.notes.read_text() if self.notes.exists() else ""

    def recorded(self) -> tuple[Record, Any]:
        """Start it plainly; return what was recorded and what it printed."""
        record = Record(self.image)
        with begin(self.main, "--cpu", numbers=(record.descriptor,), env=self.env) as process:
            said, wrong = process.communicate(timeout=60)
        assert process.returncode == 0, wrong
        self.notes.unlink(missing_ok=True)
        return record, json.loads(said)

    def stood_by(self, record: Record, before: str, env: Mapping[str, str] | None = None) -> list[Any]:
        """Start it through a standby that has noted `before` when it waits; return what it printed."""
        with standing_by(self.main, "--cpu", record=record, env=env or self.env) as (process, line):
            assert self.noted() == before
            line.send(b"g")
            said, wrong = process.communicate(timeout=60)
        assert process.returncode == 0, wrong
        return [json.loads(row) for row in said.splitlines()]


def test_what_the_image_has_is_recorded_and_imported_before_and_nothing_differs(tmp_path: Path) -> None:
    place = _Place(tmp_path)
    record, plain = place.recorded()
    modules = record.body["modules"]
    assert [name for name in modules if name in ("torch", "torch.nn", "heavy", "colorsys")] == [
        "colorsys", "torch.nn", "torch", "heavy",
    ]  # fmt: skip
    assert not {"cuda_malloc", "nodes", "folder_paths", "__main__"} & set(modules)
    assert plain[0] == [False, False]
    assert place.stood_by(record, "heavy\n") == [plain]
    assert place.noted() == "heavy\n"


@pytest.mark.parametrize("script", ["sys.path.insert(0, '/nowhere')", "sys.meta_path.append(sys.meta_path[-1])"])
def test_nothing_is_recorded_where_an_import_might_come_out_otherwise(tmp_path: Path, script: str) -> None:
    record, _ = _Place(tmp_path, script).recorded()
    assert set(record.body) == {"image", "again"}


_EARLY = """
import folder_paths, importlib.util as util
spec = util.spec_from_file_location("pre", os.path.join(folder_paths.pack, "prestartup_script.py"))
spec.loader.exec_module(util.module_from_spec(spec))
"""


def test_nothing_is_recorded_where_a_node_imports_torch_first_and_a_standby_starts_afresh(tmp_path: Path) -> None:
    place = _Place(tmp_path, _EARLY)
    pack = tmp_path / "core" / "custom_nodes" / "pack"
    pack.mkdir(parents=True)
    paths = f"pack = {str(pack)!r}\ndef get_folder_paths(kind): return [{str(pack.parent)!r}]\n"
    (tmp_path / "core" / "folder_paths.py").write_text(paths)
    (pack / "prestartup_script.py").write_text("")
    record, _ = place.recorded()
    assert "torch" in record.body["modules"]
    (pack / "prestartup_script.py").write_text("import torch\n")
    other, plain = place.recorded()
    assert plain[0] == [True, True]
    assert set(other.body) == {"image", "again"}
    assert place.stood_by(record, "heavy\n") == [plain]
    assert place.noted() == "heavy\n" * 2


@pytest.mark.parametrize(
    "script",
    [
        "os.environ['OMP_NUM_THREADS'] = '3'",
        "os.environ.pop('KIT_OTHER', None)",
        "sys.path.insert(0, '/nowhere')",
        "sys.meta_path.append(sys.meta_path[-1])",
    ],
)
def test_whatever_a_start_script_changes_before_torch_has_it_start_afresh(tmp_path: Path, script: str) -> None:
    place = _Place(tmp_path, f"if os.path.exists({str(tmp_path / 'now')!r}): {script}")
    place.env["KIT_OTHER"] = "1"
    record, _ = place.recorded()
    (tmp_path / "now").touch()
    _, plain = place.recorded()
    assert place.stood_by(record, "heavy\n") == [plain]
    assert place.noted() == "heavy\n" * 2


def test_what_a_start_script_sets_each_time_is_what_the_imports_see(tmp_path: Path) -> None:
    place = _Place(tmp_path, "os.environ['KIT_THREADS'] = '3'")
    (place.image / "heavy.py").write_text(f"{_HEAVY}print(os.environ.get('KIT_THREADS'), flush=True)\n")
    record = Record(place.image)
    with begin(place.main, "--cpu", numbers=(record.descriptor,), env=place.env) as process:
        assert process.communicate(timeout=60)[0].splitlines()[0] == "3"
    place.notes.unlink()
    with standing_by(place.main, "--cpu", record=record, env=place.env) as (process, line):
        line.send(b"g")
        assert process.communicate(timeout=60)[0].splitlines()[0] == "3"
    assert place.noted() == "heavy\n"


def test_what_is_imported_ahead_of_torch_is_left_in_its_place(tmp_path: Path) -> None:
    """As ComfyUI-Manager, which is the image's and changes the PATH when it is imported."""
    place = _Place(tmp_path, "import manager")
    (place.image / "manager.py").write_text("import os\nos.environ['PATH'] = 'more:' + os.environ['PATH']\n")
    record, plain = place.recorded()
    assert "manager" not in record.body["modules"]
    assert place.stood_by(record, "heavy\n") == [plain]
    assert place.noted() == "heavy\n"


@pytest.mark.parametrize("what", ["the volume's", "ComfyUI's own", "one that fails"])
def test_it_ends_where_it_would_import_what_it_may_not_or_cannot(tmp_path: Path, what: str) -> None:
    place = _Place(tmp_path)
    record, _ = place.recorded()
    if what == "the volume's":
        (place.layer / "heavy.py").write_text(_HEAVY)
    elif what == "ComfyUI's own":
        (place.image / "heavy.py").write_text(f"try: import nodes\nexcept Exception: pass\n{_HEAVY}")
    else:
        (place.image / "heavy.py").write_text("raise RuntimeError('too early')")
    ours, theirs = socket.socketpair()
    with ours, theirs, begin(place.main, numbers=(record.descriptor, theirs.fileno()), env=place.env) as process:
        theirs.close()
        assert ours.recv(64) == b""
        assert process.wait(60) == 1
    assert place.noted() == ""


def test_to_look_for_a_package_of_the_volume_is_no_import_of_it(tmp_path: Path) -> None:
    place = _Place(tmp_path)
    (place.layer / "optional.py").write_text("raise SystemExit\n")
    look = "import importlib.util\nassert importlib.util.find_spec('optional').origin.endswith('optional.py')\n"
    (place.image / "heavy.py").write_text(look + _HEAVY)
    record, plain = place.recorded()
    assert place.stood_by(record, "heavy\n") == [plain]


def test_it_starts_afresh_when_comfyuis_own_files_have_changed(tmp_path: Path) -> None:
    place = _Place(tmp_path)
    record, plain = place.recorded()
    with standing_by(place.main, "--cpu", record=record, env=place.env) as (process, line):
        place.main.write_text(f"print('edited')\n{place.main.read_text()}")
        line.send(b"g")
        said, _ = process.communicate(timeout=60)
    assert said.splitlines()[0] == "edited"
    assert json.loads(said.splitlines()[1]) == plain


def test_it_ends_with_whoever_has_made_it(tmp_path: Path) -> None:
    place = _Place(tmp_path)
    record, _ = place.recorded()
    with standing_by(place.main, "--cpu", record=record, env=place.env) as (process, line):
        line.close()
        said, _ = process.communicate(timeout=60)
    assert (process.returncode, said) == (0, "")


def test_it_is_the_first_that_the_kernel_ends_until_it_is_comfyui(tmp_path: Path) -> None:
    place = _Place(tmp_path, "print(open('/proc/self/oom_score_adj').read().strip())")
    record = Record(place.image, (), place.env)
    with standing_by(place.main, record=record, env=place.env) as (process, line):
        score = Path(f"/proc/{process.pid}/oom_score_adj")
        assert score.read_text().strip() == "1000"
        line.send(b"g")
        said, _ = process.communicate(timeout=60)
    assert said.splitlines()[0] == Path("/proc/self/oom_score_adj").read_text().strip()


_SERVES = """
import cuda_malloc, os, socket, sys
door = socket.create_server(("127.0.0.1", int(sys.argv[2])))
BEFORE
os.execv(sys.executable, [sys.executable, *sys.argv, MORE])
""".replace("MORE", "*sys.argv[3:]")


@pytest.mark.parametrize(
    ("change", "ends"),
    [("", True), ("os.environ['X'] = '1'", False), ("sys.argv.append('more')", False)],
)
def test_a_comfyui_that_serves_and_replaces_itself_with_the_same_has_boot_start_it(
    tmp_path: Path, change: str, ends: bool
) -> None:
    main = tmp_path / "main.py"
    (tmp_path / "cuda_malloc.py").touch()
    served = "if os.environ.get('X') or sys.argv[3:]: raise SystemExit(7)\n"
    main.write_text(_SERVES.replace("BEFORE", f"{served}{change}"))
    record = Record(tmp_path)
    with begin(main, "--port", str(choose_free(20000)), numbers=(record.descriptor,)) as process:
        assert process.wait(60) == (AGAIN if ends else 7)

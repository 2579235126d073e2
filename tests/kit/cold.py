"""A small image and a small ComfyUI, for records of a start: a virtual environment with a package, a core, a volume."""

from __future__ import annotations

import json
import os
import py_compile
import subprocess
import sys
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from comfypod.boot.guardline import LAUNCHER, GuardLine
from comfypod.environment.recording import RECORDER
from comfypod.ports import choose_free

if TYPE_CHECKING:
    from pathlib import Path

    from comfypod.boot.guardline import Event

KEY = "sha256:packages"
CHECKED = py_compile.PycInvalidationMode.CHECKED_HASH
TIMES = py_compile.PycInvalidationMode.TIMESTAMP
FILES = {
    "pkg/__init__.py": "from pkg import inner\n",
    "pkg/inner.py": "import colorsys\n\n\ndef fail():\n    raise ValueError(1)  # here\n",
    "pkg/data.txt": "data\n",
    "space/part.py": "",
    "single.py": "word = 'image'\n",
    "late.py": "",
}
_DISTRIBUTION = {
    "pkg-1.0.dist-info/METADATA": "Metadata-Version: 2.1\nName: pkg\nVersion: 1.0\n",
    "pkg-1.0.dist-info/top_level.txt": "broken\nlate\npkg\nquits\ntransformers\n_hidden\nno-name\n",
    "broken.py": "1 / 0\n",
    "quits.py": "raise SystemExit('not here')\n",
    "_hidden.py": "",
}
_TRANSFORMERS = {
    "transformers/__init__.py": """
from pathlib import Path

from transformers.utils.import_utils import create_import_structure_from_path

found = create_import_structure_from_path(Path(__file__).parent / "models")
""",
    "transformers/utils/__init__.py": "",
    "transformers/utils/import_utils.py": '''
import os


def create_import_structure_from_path(module_path):
    """Say what is where."""
    if os.path.isfile(module_path):
        module_path = os.path.dirname(module_path)
    found = {}
    for entry in os.scandir(module_path):
        if entry.name != "__pycache__" and entry.is_dir():
            found[entry.name] = create_import_structure_from_path(entry.path)
        elif entry.name.endswith(".py"):
            with open(entry.path) as handle:
                key = frozenset({"torch", "tokenizers"} if entry.name.startswith("modeling") else ())
                found.setdefault(key, {})[entry.name[:-3]] = set(handle.read().split())
    return found
''',
    **{
        f"transformers/models/{name}/modeling_{name}.py": f"{name}a, {name}b = 1, 2\n"
        for name in ("one", "two", "three")
    },
    **{f"transformers/models/{name}/__init__.py": "" for name in ("one", "two", "three")},
}
# What modules show of themselves, and what a test asks for beyond that.
_MAIN = """
import json, os, socket, sys
import pkg, single, own.helper, space.part, _json
sys.path.insert(0, os.path.join(os.path.dirname(os.path.realpath(__file__)), "own"))
def shown(module):
    spec = module.__spec__
    return [module.__file__, module.__cached__, spec.name, spec.origin, spec.cached, spec.submodule_search_locations,
            type(spec.loader).__name__, sorted(vars(spec.loader)), module.__package__,
            getattr(module, "__path__", None)]
names = ["pkg", "pkg.inner", "single", "own.helper", "space.part", "colorsys", "own"]
found = {name: shown(sys.modules[name]) for name in names}
found["own.word"], found["single.word"] = own.helper.word, single.word
found["finders"] = [str(each) for each in sys.meta_path if type(each) is type] + list(map(str, sys.path))
exec(os.environ.get("CODE", ""))
print(json.dumps(found), flush=True)
with socket.socket() as door:
    door.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    door.bind(("127.0.0.1", int(sys.argv[sys.argv.index("--port") + 1])))
    door.listen()
"""


@dataclass
class Place:
    """All of it in one folder; `heard` is what the launcher has told of its record."""

    folder: Path
    mode: py_compile.PycInvalidationMode = TIMES
    heard: list[Event] = field(default_factory=list)

    def __post_init__(self) -> None:
        venv = self.folder / "venv"
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(venv)], check=True)
        (self.site,) = venv.glob("lib/python3*/site-packages")
        self.python, self.core = venv / "bin" / "python", self.folder / "core"
        self.layer, self.record = self.folder / "layer", self.folder / "record"
        self.layer.mkdir()
        for name, text in FILES.items():
            self.write(self.site / name, text)
        for name, text in {"main.py": _MAIN, "own/__init__.py": "", "own/helper.py": "word = 'built'\n"}.items():
            self.write(self.core / name, text)

    def write(self, path: Path, text: str) -> None:
        """Write a file, and the bytecode of a source."""
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        if path.suffix == ".py":
            py_compile.compile(str(path), doraise=True, invalidation_mode=self.mode)

    @property
    def environ(self) -> dict[str, str]:
        without = {"PYTHONDONTWRITEBYTECODE", "PYTHONPATH", "VIRTUAL_ENV"}
        return {name: value for name, value in os.environ.items() if name not in without}

    def add_transformers(self) -> None:
        """Add a package that reads all sources of its models at its import, and that import."""
        for name, text in _TRANSFORMERS.items():
            self.write(self.site / name, text)
        self.write(self.core / "own" / "helper.py", "import transformers\n\nword = 'built'\n")

    def make_base(self) -> Path:
        """Make the record of the packages; return its path."""
        for name, text in _DISTRIBUTION.items():
            self.write(self.site / name, text)
        path = self.folder / "packages"
        argv = [str(self.python), str(RECORDER), str(path)]
        done = subprocess.run(argv, env=self.environ, cwd=self.layer, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return path

    def make(self, base: Path | str = "", **environ: str) -> None:
        """Make the record."""
        argv = [str(self.python), str(RECORDER), str(self.record), KEY, str(base), str(self.core / "main.py")]
        port = str(choose_free(20000))
        done = subprocess.run(
            [*argv, "--port", port], env={**self.environ, **environ}, cwd=self.layer, capture_output=True, text=True,
            check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert self.record.is_file()

    def plain(self, code: str = "") -> dict[str, Any]:
        """Start it without a launcher; return what it shows."""
        return self._shown([], (), code)

    def start(self, code: str = "", key: str = KEY) -> dict[str, Any]:
        """Start it with the record; return what it shows."""
        self.heard.clear()
        line = GuardLine(self.heard.append)
        line.tell(5.0, {}, (str(self.record), key))
        found = self._shown([str(LAUNCHER), ",".join(map(str, line.descriptors))], line.descriptors, code)
        line.hear()
        return found

    @property
    def refused(self) -> list[str]:
        """Why the record was not used."""
        return [event.reason for event in self.heard if event.state == "without-record"]

    def _shown(self, launcher: list[str], keep: tuple[int, ...], code: str) -> dict[str, Any]:
        port = str(choose_free(20000))
        argv = [str(self.python), *launcher, str(self.core / "main.py"), "--port", port]
        env = {**self.environ, "PYTHONPATH": str(self.layer), "CODE": code}
        done = subprocess.run(argv, env=env, pass_fds=keep, capture_output=True, text=True, check=False, timeout=60)
        assert done.returncode == 0, done.stderr
        found: dict[str, Any] = json.loads(done.stdout)
        return found

"""Releases and volumes for tests of the workspace: small trees, what a user does to them, what must be there after."""

from __future__ import annotations

import contextlib
import shutil
import sqlite3
from dataclasses import dataclass
from pathlib import Path

from comfypod.workspace import core, state
from comfypod.workspace.layout import Layout
from comfypod.workspace.switch import Image
from tests.kit import standin

VOLATILE = frozenset({"state.json", "choice.json"})


def image(folder: Path, release: str) -> Image:
    """Make the tree of a release: some files in all of them, some other in each, some only in this one."""
    tree = folder / f"image{release}"
    if not tree.exists():
        standin.tree(tree, release=release)
        (tree / "comfy" / f"only_{release}.py").write_text(f"only = {release}\n")
        (tree / f"extra_{release}").mkdir()
        (tree / f"extra_{release}" / "code.py").write_text(f"release = {release}\n")
        (tree / f"top_{release}.py").write_text("top\n")
        (tree / "models" / f"kind_{release}").mkdir()
        (tree / "models" / f"kind_{release}" / "put_here").write_text("")
        versions = tree / "alembic_db" / "versions"
        versions.mkdir(parents=True)
        for number in range(1, int(release) + 1):
            (versions / f"000{number}_x.py").write_text(f'revision = "000{number}_x"\n')
        (tree / "comfy" / "__pycache__").mkdir()
        (tree / "comfy" / "__pycache__" / "a.pyc").write_bytes(b"code")
    return Image(f"{release}-{'0' * 12}", tree, f"env{release}")


def database(path: Path, revision: str) -> None:
    """Make a database as ComfyUI has it, or bring the one that is there to a migration."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE IF NOT EXISTS alembic_version (version_num TEXT)")
        connection.execute("DELETE FROM alembic_version")
        connection.execute("INSERT INTO alembic_version VALUES (?)", (revision,))
    connection.close()


def revision(path: Path) -> str:
    """Return the migration that a database is at."""
    with contextlib.closing(sqlite3.connect(path)) as connection:
        return str(connection.execute("SELECT version_num FROM alembic_version").fetchone()[0])


@dataclass
class Volume:
    """A workspace that boots."""

    root: Path
    persist: str = "auto"
    upgrade: str = "auto"
    adopt: str = "report"
    network: bool = False

    @property
    def layout(self) -> Layout:
        return Layout(self.root)

    def boot(self, image: Image) -> core.Core:
        """Do what boot does with the core."""
        self.layout.records.mkdir(parents=True, exist_ok=True)
        found = core.bring(
            self.layout, image, persist=self.persist, upgrade=self.upgrade, adopt=self.adopt, network=self.network,
            advance=lambda _: None,
        )  # fmt: skip
        return core.count(self.layout, found)

    def write(self, name: str, text: str = "mine") -> Path:
        """Write a file below `ComfyUI`, as a user or a node does."""
        path = self.layout.comfyui / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return path

    def copy(self, folder: Path) -> Volume:
        """Return a volume with the same contents."""
        shutil.copytree(self.root, folder, symlinks=True)
        return Volume(folder, self.persist, self.upgrade, self.adopt, self.network)

    def contents(self) -> dict[str, str]:
        """Return everything with what is in it; what only counts boots is left out."""
        kept = state.read(self.layout.state)
        found = {"state": "" if kept is None else f"{kept.release} {kept.previous} {kept.environment}"}
        for path in sorted(self.root.rglob("*")):
            name = str(path.relative_to(self.root))
            if path.name in VOLATILE or path.is_relative_to(self.layout.pods):
                continue
            if path.is_symlink():
                found[name] = f"-> {path.readlink()}"
            else:
                found[name] = "folder" if path.is_dir() else path.read_text("latin-1")
        return found

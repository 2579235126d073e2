"""Imports whatever the packages of an environment offer, and writes a record of that.

`python packages.py RECORD`. It is the part of an image's record that changes with these packages alone: another
ComfyUI, which imports nearly the same of them, leaves it as it is. What cannot be imported is left out.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import sys
from importlib.metadata import packages_distributions
from importlib.util import spec_from_file_location
from typing import Any

# What every ComfyUI imports of packages that do not do so themselves.
_MORE = ("aiohttp.web", "scipy.signal", "sqlalchemy.dialects.sqlite.aiosqlite", "sqlalchemy.orm")


def _neighbour(name: str) -> Any:
    path = os.path.join(os.path.dirname(os.path.abspath(__file__)), f"{name}.py")
    spec = spec_from_file_location(f"_comfypod_{name}", path)
    assert spec is not None and spec.loader is not None  # noqa: S101, PT018
    module = sys.modules[spec.name] = type(sys)(spec.name)
    spec.loader.exec_module(module)
    return module


def main() -> None:
    """Import and write."""
    path = sys.argv[1]
    # Names of this folder are none that are asked for.
    del sys.path[0]
    writer, structure = _neighbour("writer"), _neighbour("structure")
    made = writer.Writer(_neighbour("bundle").FORMAT)
    _neighbour("imports").At(structure.MODULE, after=lambda module: structure.learn(module, made.structures))
    names = [name for name in packages_distributions() if name.isidentifier() and not name.startswith("_")]
    for name in [*sorted(names), *_MORE]:
        # The last one is named where it takes all with it.
        sys.stderr.write(f"{name}\n")
        with contextlib.suppress(Exception, SystemExit):
            importlib.import_module(name)
    for source in writer.sources(list(sys.modules.values())):
        made.add(source)
    made.write(path)
    sys.stdout.flush()
    # Some of them leave threads behind.
    os._exit(0)


if __name__ == "__main__":
    main()

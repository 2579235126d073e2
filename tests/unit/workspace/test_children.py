from __future__ import annotations

import os
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from comfypod.settings import secret_variables
from comfypod.workspace import run
from comfypod.workspace.children import child_environ

PYTHON = Path("/opt/venv/bin/python")
WORKSPACE = Path("/workspace")
_NAMES = st.sampled_from(sorted(secret_variables())) | st.sampled_from(
    ["PATH", "HOME", "PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "HF_TOKEN", "LD_LIBRARY_PATH", "PYTHONSTARTUP"]
)


@given(st.dictionaries(_NAMES | st.text("ABC_", min_size=1), st.text(min_size=1, max_size=9)))
def test_no_secret_and_no_python_setting_of_the_callers_reaches_a_child(environ: dict[str, str]) -> None:
    child = child_environ(environ, PYTHON, WORKSPACE)
    assert not secret_variables() & set(child)
    assert not {"PYTHONPATH", "PYTHONHOME", "PYTHONSTARTUP"} & set(child)
    ours = {"PATH", "VIRTUAL_ENV", "PYTHONUNBUFFERED", run.MARK, "PYTHONPATH", "PYTHONHOME", "PYTHONSTARTUP"}
    others = set(environ) - secret_variables() - ours
    assert {name: child[name] for name in others} == {name: environ[name] for name in others}


def test_programs_of_the_environment_come_first() -> None:
    child = child_environ({"PATH": "/usr/bin:/bin"}, PYTHON, WORKSPACE)
    assert child["PATH"] == "/opt/venv/bin:/usr/bin:/bin"
    assert child["VIRTUAL_ENV"] == "/opt/venv"
    assert child_environ({}, PYTHON, WORKSPACE)["PATH"] == f"/opt/venv/bin:{os.defpath}"

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from comfypod.boot.environment import prepare_environment
from comfypod.boot.health import StageView
from comfypod.errors import InstallError
from tests.unit.boot.contexts import context_of, prepared


@pytest.mark.parametrize("kind", ["missing", "not a program", "a dangling link"])
def test_an_environment_without_its_python_is_not_believed_in(tmp_path: Path, kind: str) -> None:
    python = tmp_path / "python"
    if kind == "not a program":
        python.write_text("")
    elif kind == "a dangling link":
        python.symlink_to("/no/such/python")
    with pytest.raises(InstallError, match=f"{python} is missing"):
        prepare_environment(context_of(tmp_path, python=str(python)), StageView("environment"))


def test_everything_that_is_started_later_runs_in_the_volumes_layer(tmp_path: Path) -> None:
    context = prepared(tmp_path, python=sys.executable)
    assert prepare_environment(context, StageView("environment")) == "torch 0"
    assert context.layer is not None
    assert context.layer.root.parent == context.layout.envs
    assert context.pod.python == str(context.layer.python)
    assert context.environ["PIP_CONSTRAINT"] == context.environ["UV_CONSTRAINT"] == str(context.layer.constraints)
    assert context.health.environment == {"key": context.layer.key, "torch": "0", "changed": []}


def test_a_layer_that_cannot_be_made_is_named_and_the_images_environment_is_used(tmp_path: Path) -> None:
    context = prepared(tmp_path, python=sys.executable)
    context.layout.envs.write_text("")
    assert prepare_environment(context, StageView("environment")).endswith("without the packages of the volume")
    assert (context.layer, context.pod.python) == (None, sys.executable)
    assert [problem.code for problem in context.health.problems] == ["storage"]

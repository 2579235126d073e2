"""What the policies make of the real ComfyUI-Manager, asked by its own code."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from comfypod.nodes import manager
from comfypod.nodes.policy import rules_of
from comfypod.workspace.layout import Layout
from tests.kit.manager import Manager, NotToBeHadError, install, locked

if TYPE_CHECKING:
    from pathlib import Path

_MAY = {
    "locked": {"registry": False, "git": False, "pip": False, "remove": False, "fix": False},
    "registry": {"registry": True, "git": False, "pip": False, "remove": True, "fix": False},
    "open": {"registry": True, "git": True, "pip": True, "remove": True, "fix": True},
}
# Offline so that it does not begin to fetch its lists; the user's own key, which every policy keeps.
_FOUND = {
    "nothing": "network_mode = offline\n",
    "weak": "network_mode = offline\nsecurity_level = weak\nallow_git_url_install = true\nallow_pip_install = TRUE\n",
    "percent": "network_mode = offline\ngit_exe = 100%\n",
}


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Manager:
    try:
        return install(tmp_path_factory.mktemp("manager"))
    except NotToBeHadError as error:
        if os.environ.get("CI") == "true":
            raise
        pytest.skip(f"the locked ComfyUI-Manager cannot be had: {error}")


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    layout = Layout(tmp_path)
    layout.records.mkdir()
    (layout.comfyui / "custom_nodes").mkdir(parents=True)
    return layout


@pytest.mark.parametrize("found", _FOUND)
@pytest.mark.parametrize("policy", _MAY)
def test_g7_manager_allows_what_the_policy_says(real: Manager, layout: Layout, policy: str, found: str) -> None:
    user = manager.user_folder(layout, ())
    config = manager.folder_of(user) / "config.ini"
    config.parent.mkdir(parents=True)
    config.write_text(f"[default]\n{_FOUND[found]}")
    manager.apply(layout, user, layout.comfyui / "custom_nodes", real.version, policy)
    assert real.decisions(user) == _MAY[policy]
    before = config.stat().st_ino
    manager.apply(layout, user, layout.comfyui / "custom_nodes", real.version, policy)
    assert config.stat().st_ino == before


def test_g7_without_a_policy_the_keys_of_a_user_decide(real: Manager, layout: Layout) -> None:
    """What is asked is not deaf: the same question has another answer where nobody has written a policy."""
    user = manager.user_folder(layout, ())
    config = manager.folder_of(user) / "config.ini"
    config.parent.mkdir(parents=True)
    config.write_text(f"[default]\n{_FOUND['weak']}")
    assert real.decisions(user) == _MAY["open"]


def test_g7_the_version_of_the_lock_is_one_whose_policies_are_known() -> None:
    assert rules_of(locked().version, "open")[1]

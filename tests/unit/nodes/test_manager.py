from __future__ import annotations

import configparser
import os
from typing import TYPE_CHECKING

import pytest

from comfypod.nodes import manager
from comfypod.nodes.policy import rules_of
from comfypod.workspace.aside import listed
from comfypod.workspace.layout import Layout

if TYPE_CHECKING:
    from pathlib import Path

    from comfypod.errors import Problem

_POLICIES = ("locked", "registry", "open")


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    layout = Layout(tmp_path)
    layout.records.mkdir()
    (layout.comfyui / "user").mkdir(parents=True)
    (layout.comfyui / "custom_nodes").mkdir()
    return layout


def _apply(layout: Layout, policy: str = "registry", version: str = "4.2.2") -> tuple[Problem, ...]:
    return manager.apply(layout, layout.comfyui / "user", layout.comfyui / "custom_nodes", version, policy)


def _config(layout: Layout) -> Path:
    return layout.comfyui / "user" / "__manager" / "config.ini"


def _read(path: Path) -> dict[str, str]:
    reader = configparser.ConfigParser(strict=False)
    reader.read(path)
    return dict(reader["default"])


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


@pytest.mark.parametrize("policy", _POLICIES)
def test_a_new_volume_gets_the_policy_and_is_not_written_again(layout: Layout, policy: str) -> None:
    assert _apply(layout, policy) == ()
    rules, _ = rules_of("4.2.2", policy)
    assert _read(_config(layout)) == {key: rule.fill for key, rule in rules.items()}
    before = _config(layout).stat().st_ino
    assert _apply(layout, policy) == ()
    assert _config(layout).stat().st_ino == before


@pytest.mark.parametrize(("wanted", "meanwhile"), [("", "offline"), ("public", "offline"), ("private", "private")])
@pytest.mark.parametrize("policy", _POLICIES)
def test_in_a_pod_without_a_network_manager_has_none_and_its_own_again_later(
    layout: Layout, policy: str, wanted: str, meanwhile: str
) -> None:
    if wanted:
        _write(_config(layout), f"[default]\nnetwork_mode = {wanted}\n")
    nodes, user = layout.comfyui / "custom_nodes", layout.comfyui / "user"
    assert manager.apply(layout, user, nodes, "4.2.2", policy, offline=True) == ()
    assert _read(_config(layout))["network_mode"] == meanwhile
    assert _apply(layout, policy) == ()
    assert _read(_config(layout))["network_mode"] == (wanted or "public")


def test_b6_what_is_weaker_is_tightened_and_named_and_the_rest_is_kept(layout: Layout) -> None:
    _write(_config(layout), "[default]\nsecurity_level = Weak\nchannel_url = mine\nnetwork_mode = offline\n")
    (problem,) = _apply(layout)
    assert "security_level was 'Weak'" in problem.message
    found = _read(_config(layout))
    assert (found["security_level"], found["channel_url"], found["network_mode"]) == ("normal", "mine", "offline")
    assert found["allow_pip_install"] == "false"


@pytest.mark.parametrize("place", ["user/default/ComfyUI-Manager", "custom_nodes/ComfyUI-Manager"])
def test_b6_the_file_of_an_older_place_is_taken_over_and_kept(layout: Layout, place: str) -> None:
    _write(layout.comfyui / place / "config.ini", "[default]\nsecurity_level = strong\nshare_option = none\n")
    assert _apply(layout) == ()
    assert _read(_config(layout))["security_level"] == "strong"
    assert _read(_config(layout))["share_option"] == "none"
    assert (layout.comfyui / place / "config.ini").exists()


@pytest.mark.parametrize("kind", ["folder", "pipe", "dangling", "link", "large", "garbage", "percent"])
def test_b6_what_is_planted_there_neither_crashes_nor_hangs_and_the_policy_holds(layout: Layout, kind: str) -> None:
    path = _config(layout)
    path.parent.mkdir(parents=True)
    match kind:
        case "folder":
            path.mkdir()
        case "pipe":
            os.mkfifo(path)
        case "dangling":
            path.symlink_to("/nowhere/at/all")
        case "link":
            (layout.root / "elsewhere").write_text("[default]\nallow_pip_install = true\n")
            path.symlink_to(layout.root / "elsewhere")
        case "large":
            path.write_bytes(b"x" * (1 << 20))
        case "garbage":
            path.write_bytes(b"\xff\x00[[[")
        case "percent":
            path.write_text("[default]\nsecurity_level = strong\nchannel_url = 100%\n")
    assert _apply(layout, "locked")
    assert _read(path)["security_level"] == "strong"
    assert not path.is_symlink()
    assert [each.path for each in listed(layout)] == ["ComfyUI/user/__manager/config.ini"]
    assert _apply(layout, "locked") == ()


def test_a_version_that_nobody_has_read_gets_the_strictest_rules_and_that_is_said(layout: Layout) -> None:
    (problem,) = _apply(layout, "open", "5.0.0")
    assert "5.0.0" in problem.message
    assert _read(_config(layout))["security_level"] == "strong"


def test_b7_a_legacy_clone_is_set_aside_by_name_or_by_contents_and_the_others_stay(layout: Layout) -> None:
    nodes = layout.comfyui / "custom_nodes"
    (nodes / "ComfyUI-Manager").mkdir()
    (nodes / "renamed" / "glob").mkdir(parents=True)
    (nodes / "renamed" / "glob" / "manager_core.py").touch()
    (nodes / "comfyui-manager.disabled").mkdir()
    (nodes / "other").mkdir()
    problems = manager.set_clones_aside(layout, nodes)
    assert [each.code for each in problems] == ["legacy-manager"] * 2
    assert sorted(path.name for path in nodes.iterdir()) == ["comfyui-manager.disabled", "other"]
    assert [each.name for each in listed(layout)] == ["ComfyUI-Manager-1", "renamed-1"]


def test_scripts_that_lie_there_at_boot_are_set_aside_and_named(layout: Layout) -> None:
    folder = layout.comfyui / "user" / "__manager" / "startup-scripts"
    folder.mkdir(parents=True)
    for name in ("restore-snapshot.json", "install-scripts.txt"):
        (folder / name).write_text("{}")
    assert [each.code for each in manager.set_scripts_aside(layout, layout.comfyui / "user")] == ["startup-script"] * 2
    assert list(folder.iterdir()) == []
    assert manager.set_scripts_aside(layout, layout.comfyui / "user") == ()


def test_b6_a_file_in_the_place_of_managers_folder_is_set_aside(layout: Layout) -> None:
    (layout.comfyui / "user" / "__manager").write_text("no folder")
    (problem,) = _apply(layout)
    assert "needs a folder" in problem.message
    assert _read(_config(layout))["security_level"] == "normal"


def test_b6_a_record_that_is_damaged_counts_as_none(layout: Layout) -> None:
    for body in ("[" * 5000, '["a"]', "\0"):
        layout.manager.write_text(body)
        assert _apply(layout, "locked") == ()
        assert _read(_config(layout))["security_level"] == "strong"


def test_a_policy_can_be_changed_to_and_fro_between_boots(layout: Layout) -> None:
    for policy in (*_POLICIES, *reversed(_POLICIES)):
        assert _apply(layout, policy) == ()
        assert _read(_config(layout))["security_level"] == rules_of("4.2.2", policy)[0]["security_level"].fill


@pytest.mark.parametrize("kind", ["folder", "pipe", "dangling", "garbage", "list"])
def test_lists_that_would_end_comfyui_at_its_start_are_set_aside(layout: Layout, kind: str) -> None:
    path = layout.comfyui / "user" / "__manager" / "pip_overrides.json"
    path.parent.mkdir(parents=True)
    match kind:
        case "folder":
            path.mkdir()
        case "pipe":
            os.mkfifo(path)
        case "dangling":
            path.symlink_to("nowhere")
        case "garbage":
            path.write_text("{")
        case "list":
            path.write_text("[]")
    (path.parent / "pip_blacklist.list").write_text("mine\n")
    (problem,) = manager.set_scripts_aside(layout, layout.comfyui / "user")
    assert "pip_overrides.json was set aside" in problem.message
    assert [each.name for each in path.parent.iterdir()] == ["pip_blacklist.list"]


def test_what_is_outside_the_workspace_is_named_and_left_where_it_is(layout: Layout, tmp_path: Path) -> None:
    outside = Layout(tmp_path / "inner")
    script = layout.comfyui / "user" / "__manager" / "startup-scripts" / "restore-snapshot.json"
    script.parent.mkdir(parents=True)
    script.touch()
    (problem,) = manager.set_scripts_aside(outside, layout.comfyui / "user")
    assert "move it away" in problem.hint
    assert script.exists()


def test_the_user_folder_is_the_one_that_comfyui_is_told(layout: Layout) -> None:
    assert manager.user_folder(layout, ["--cpu"]) == layout.comfyui / "user"
    assert str(manager.user_folder(layout, ["--user-directory", "/data/user"])) == "/data/user"
    assert str(manager.user_folder(layout, ["--user-directory=/data/user"])) == "/data/user"
    assert manager.in_use(["--cpu", "--enable-manager"])
    assert not manager.in_use(["--cpu"])

from __future__ import annotations

import os
import shutil
import time
from typing import TYPE_CHECKING

from comfypod.environment.layer import create, read_marker, remember
from comfypod.environment.succession import behind, put_by
from comfypod.workspace.layout import Layout

if TYPE_CHECKING:
    from tests.kit.layers import Lab


def test_a_layer_is_behind_once_another_one_of_the_volume_was_changed_later(lab: Lab) -> None:
    layout, first = Layout(lab.workspace), lab.layer("k1")
    assert not behind(first, layout)
    second = lab.layer("k2")
    os.utime(first.marker, ns=(1, 1))
    assert behind(first, layout) == second.marker.stat().st_mtime_ns
    assert not behind(second, layout)
    (layout.envs / "no-layer").mkdir()
    assert not behind(second, layout)


def test_a_time_that_lies_ahead_is_caught_up_with_once_and_what_comes_after_counts(lab: Lab) -> None:
    layout, first, second = Layout(lab.workspace), lab.layer("k1"), lab.layer("k2")
    ahead = time.time_ns() + 10**15
    os.utime(second.marker, ns=(ahead, ahead))
    assert behind(first, layout) == ahead
    remember(first, met=ahead)
    assert not behind(first, layout)
    os.utime(first.marker, ns=(1, 1))
    remember(second)
    assert behind(first, layout) == second.marker.stat().st_mtime_ns < ahead


def test_a_complete_layer_is_put_by_and_a_half_one_is_not(lab: Lab) -> None:
    layer = lab.layer()
    (layer.site / "mine.py").write_text("")
    place = put_by(layer)
    assert place is not None
    assert (place / layer.site.relative_to(layer.root) / "mine.py").exists()
    assert put_by(layer) is None
    layer.root.mkdir()
    assert put_by(layer) is None
    assert read_marker(layer) is None


def test_what_was_put_by_stays_when_the_layer_is_made_anew_again_and_can_be_gone_back_to(lab: Lab) -> None:
    layer, kept = lab.layer(), []
    for number in range(3):
        (layer.site / "number").write_text(str(number))
        remember(layer, rebuild=True)
        kept.append(put_by(layer))
        create(layer)
    found = [(place / layer.site.relative_to(layer.root) / "number").read_text() for place in kept if place is not None]
    assert found == ["0", "1", "2"]
    shutil.rmtree(layer.root)
    assert kept[0] is not None
    kept[0].rename(layer.root)
    assert (read_marker(layer) or {})["rebuild"] is False
    assert lab.said(layer, "import torch; print(torch.__version__)") == "2.9.1+cu128"

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from comfypod.environment.layer import create, read_marker
from comfypod.environment.succession import is_behind, put_by
from comfypod.workspace.layout import Layout

if TYPE_CHECKING:
    from tests.kit.overlay import Lab


def test_a_layer_is_behind_once_another_one_of_the_volume_was_changed_later(lab: Lab) -> None:
    layout, first = Layout(lab.workspace), lab.layer("k1")
    assert not is_behind(first, layout)
    second = lab.layer("k2")
    os.utime(first.marker, ns=(1, 1))
    assert is_behind(first, layout)
    assert not is_behind(second, layout)
    (layout.envs / "no-layer").mkdir()
    assert not is_behind(second, layout)


def test_a_complete_layer_is_put_by_once_and_a_half_one_is_not(lab: Lab) -> None:
    layer = lab.layer()
    (layer.site / "mine.py").write_text("")
    place = put_by(layer)
    assert place is not None
    assert (place / layer.site.relative_to(layer.root) / "mine.py").exists()
    assert put_by(layer) is None
    create(layer)
    assert put_by(layer) == place
    assert not (place / layer.site.relative_to(layer.root) / "mine.py").exists()
    layer.root.mkdir()
    assert put_by(layer) is None
    assert read_marker(layer) is None

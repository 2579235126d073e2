from __future__ import annotations

import json
import os

import pytest

from comfypod.boot.guardline import Event, GuardLine


def test_orders_are_what_was_told_last() -> None:
    line = GuardLine(lambda _: None)
    line.tell(60.0, {"a": "because " * 50})
    line.tell(5.0, {"b": "so"}, ("record", "key"))
    orders, _ = line.descriptors
    assert json.loads(os.pread(orders, 1 << 20, 0)) == {
        "seconds": 5.0,
        "aside": {"b": "so"},
        "record": ["record", "key"],
    }


def test_a_line_that_comes_in_parts_is_heard_once_it_is_whole() -> None:
    heard: list[Event] = []
    line = GuardLine(heard.append)
    data = json.dumps({"pid": 1, "node": "a", "state": "loaded", "reason": "", "seconds": 0.5}).encode() + b"\n"
    os.write(line.descriptors[1], data[:9])
    line.hear()
    assert heard == []
    os.write(line.descriptors[1], data[9:] + data)
    line.hear()
    assert heard == [Event(1, "a", "loaded", "", 0.5)] * 2


@pytest.mark.parametrize("node", ["../a", "a\0", 3, None])
def test_what_makes_no_sense_is_not_heard(node: object) -> None:
    heard: list[Event] = []
    line = GuardLine(heard.append)
    body = {"pid": 1, "node": node, "state": "loading", "reason": "", "seconds": 0}
    os.write(line.descriptors[1], b"\xff\n[]\n{}\n" + json.dumps(body).encode() + b"\n" + b"[" * 20000 + b"\n")
    line.hear()
    assert heard == []

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from comfypod.boot.exposition import Metric, number, render
from comfypod.boot.health import Health
from comfypod.boot.measure import Measured
from comfypod.counts import Histogram
from tests.unit.boot.test_health import POD

if TYPE_CHECKING:
    from comfypod.boot.exposition import Kind

_TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)


def _rendered(kind: Kind, labels: dict[str, str], value: float | Histogram, told: str = "what it is") -> str:
    metric = Metric("thing", kind, told, tuple(labels), lambda *_: [(tuple(labels.values()), value)])
    return render([metric], Health(POD, 0.0), Measured())


@given(_TEXT, st.floats(allow_nan=False))
def test_any_label_and_number_survives_another_programs_parser(label: str, value: float) -> None:
    (family,) = text_string_to_metric_families(_rendered("gauge", {"label": label}, value))
    (sample,) = family.samples
    assert (sample.name, sample.labels, sample.value) == ("comfypod_thing", {"label": label}, value)


def test_what_is_no_unicode_is_replaced() -> None:
    assert 'label="?"' in _rendered("gauge", {"label": "\udcff"}, 1)


def test_a_help_with_a_line_break_stays_on_its_line() -> None:
    text = _rendered("gauge", {}, 1, "one\ntwo\\three")
    assert text.splitlines()[0] == "# HELP comfypod_thing one\\ntwo\\\\three"


@pytest.mark.parametrize(
    ("value", "text"),
    [(3.0, "3"), (0.25, "0.25"), (math.inf, "+Inf"), (-math.inf, "-Inf"), (math.nan, "NaN"), (10**30, f"{10**30}")],
)
def test_numbers_are_written_as_the_format_wants_them(value: float, text: str) -> None:
    assert number(value) == text


@given(st.lists(st.sampled_from([0.5, 1.0, 1.5, 2.0, 100.0]), max_size=20))
def test_a_histogram_counts_what_is_at_or_below_each_bound(values: list[float]) -> None:
    histogram = Histogram((1.0, 2.0))
    for value in values:
        histogram = histogram.add(value)
    (family,) = text_string_to_metric_families(_rendered("histogram", {"a": "b"}, histogram))
    found = {(sample.name.removeprefix("comfypod_thing_"), sample.labels.get("le")): sample.value
             for sample in family.samples}  # fmt: skip
    assert family.type == "histogram"
    assert found == {
        ("bucket", "1"): sum(value <= 1 for value in values),
        ("bucket", "2"): sum(value <= 2 for value in values),
        ("bucket", "+Inf"): len(values),
        ("count", None): len(values),
        ("sum", None): sum(values),
    }


def test_a_metric_without_values_is_left_out_with_its_help() -> None:
    empty = Metric("thing", "gauge", "what it is", (), lambda *_: [])
    assert render([empty], Health(POD, 0.0), Measured()) == ""

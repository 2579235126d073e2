"""Prometheus' text format, version 0.0.4, from a table of metrics. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING, Literal

from comfypod.counts import Histogram

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from comfypod.boot.health import Health
    from comfypod.boot.measure import Measured

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
PREFIX = "comfypod_"

Kind = Literal["gauge", "counter", "histogram"]


@dataclass(frozen=True, slots=True)
class Metric:
    """One metric. `read` gives its values, each with those of its labels; none where nothing is known."""

    short: str
    kind: Kind
    help: str
    labels: tuple[str, ...]
    read: Callable[[Health, Measured], Iterable[tuple[tuple[str, ...], float | Histogram]]]

    @property
    def name(self) -> str:
        """Its full name."""
        return PREFIX + self.short


def render(table: Iterable[Metric], health: Health, measured: Measured) -> str:
    """Return everything that is known, metric after metric; one without values is left out."""
    return "".join(line + "\n" for metric in table for line in _lines(metric, health, measured))


def _lines(metric: Metric, health: Health, measured: Measured) -> Iterator[str]:
    samples = list(metric.read(health, measured))
    if not samples:
        return
    yield f"# HELP {metric.name} {_escaped_help(metric.help)}"
    yield f"# TYPE {metric.name} {metric.kind}"
    for values, value in samples:
        labels = tuple(zip(metric.labels, values, strict=True))
        if isinstance(value, Histogram):
            yield from _histogram(metric.name, labels, value)
        else:
            yield f"{metric.name}{_labels(labels)} {number(value)}"


def _histogram(name: str, labels: tuple[tuple[str, str], ...], value: Histogram) -> Iterator[str]:
    bounds = (*value.bounds, float("inf"))
    for bound, count in zip(bounds, accumulate(value.counts), strict=True):
        yield f"{name}_bucket{_labels((*labels, ('le', number(bound))))} {count}"
    yield f"{name}_sum{_labels(labels)} {number(value.total)}"
    yield f"{name}_count{_labels(labels)} {value.count}"


def _labels(labels: tuple[tuple[str, str], ...]) -> str:
    inner = ",".join(f'{name}="{_escaped(value)}"' for name, value in labels)
    return f"{{{inner}}}" if inner else ""


def _escaped(value: str) -> str:
    escaped = value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return escaped.encode("utf-8", "replace").decode("utf-8")


def _escaped_help(value: str) -> str:
    return value.replace("\\", "\\\\").replace("\n", "\\n")


def number(value: float) -> str:
    """Write a number: whole ones without a point, what is not finite as the format wants it."""
    if value != value or value in (float("inf"), float("-inf")):  # noqa: PLR0124 - NaN
        return {"inf": "+Inf", "-inf": "-Inf"}.get(repr(value), "NaN")
    return str(int(value)) if value == int(value) else repr(value)

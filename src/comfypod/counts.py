"""What is counted while a pod runs, as frozen values: whoever counts puts a new one in the place of the old."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

PROMPT_SECONDS = (0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0)
REQUEST_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
RESULTS = ("done", "failed", "interrupted")


@dataclass(frozen=True, slots=True)
class Histogram:
    """How many values fell into each bucket. `counts` has one more than `bounds`, for what is above the last."""

    bounds: tuple[float, ...]
    counts: tuple[int, ...] = ()
    total: float = 0.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "counts", self.counts or (0,) * (len(self.bounds) + 1))

    def add(self, value: float) -> Histogram:
        """Return it with one more value; a bound belongs to the bucket below it."""
        place = sum(value > bound for bound in self.bounds)
        counts = tuple(count + (index == place) for index, count in enumerate(self.counts))
        return replace(self, counts=counts, total=self.total + value)

    @property
    def count(self) -> int:
        """How many values there are."""
        return sum(self.counts)


def _durations() -> dict[str, Histogram]:
    return {result: Histogram(PROMPT_SECONDS) for result in RESULTS}


@dataclass(frozen=True, slots=True)
class PromptCounts:
    """The prompts that ComfyUI has finished: how many ended how, and how long those took that say so."""

    finished: dict[str, int] = field(default_factory=lambda: dict.fromkeys(RESULTS, 0))
    seconds: dict[str, Histogram] = field(default_factory=_durations)

    def add(self, result: str, seconds: float | None) -> PromptCounts:
        """Return it with one more prompt; `seconds` is None where ComfyUI did not say."""
        finished = {**self.finished, result: self.finished[result] + 1}
        if seconds is None:
            return replace(self, finished=finished)
        return PromptCounts(finished, {**self.seconds, result: self.seconds[result].add(seconds)})


@dataclass(frozen=True, slots=True)
class DownloadCounts:
    """What this pod has fetched of models: bytes since it began, bytes a second now, files by how it ended."""

    fetched: int = 0
    rate: float = 0.0
    finished: dict[str, int] = field(default_factory=lambda: dict.fromkeys(("done", "failed"), 0))

    def ended(self, *, done: int, failed: int) -> DownloadCounts:
        """Return it with the files of one more run that is over."""
        finished = {"done": self.finished["done"] + done, "failed": self.finished["failed"] + failed}
        return replace(self, rate=0.0, finished=finished)


@dataclass(frozen=True, slots=True)
class GatewayCounts:
    """What the gateway has answered: requests by class of method (`read`, `write`) and of status (`2xx`), and so on."""

    requests: dict[tuple[str, str], int] = field(default_factory=dict)
    connections: int = 0
    seconds: Histogram = Histogram(REQUEST_SECONDS)

    def answered(self, method: str, status: str, seconds: float) -> GatewayCounts:
        """Return it with one more request."""
        requests = {**self.requests, (method, status): self.requests.get((method, status), 0) + 1}
        return replace(self, requests=requests, seconds=self.seconds.add(seconds))

    def encode(self) -> dict[str, Any]:
        """Return it as what JSON can say."""
        requests = [[*key, count] for key, count in self.requests.items()]
        return {
            "requests": requests, "connections": self.connections,
            "seconds": [list(self.seconds.counts), self.seconds.total],
        }  # fmt: skip


def decode(body: dict[str, Any]) -> GatewayCounts:
    """Return the counts that `encode` has written."""
    counts, total = body["seconds"]
    requests = {(method, status): count for method, status, count in body["requests"]}
    return GatewayCounts(requests, body["connections"], Histogram(REQUEST_SECONDS, tuple(counts), total))

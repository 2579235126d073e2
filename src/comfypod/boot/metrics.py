"""The table of metrics: the only place that knows their names. Each row reads its values from what is known. Pure."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, get_args

from comfypod import __version__
from comfypod.boot.exposition import Metric
from comfypod.boot.health import Health, Phase
from comfypod.boot.measure import SOURCES, Measured, Volume
from comfypod.boot.process import State

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from comfypod.boot.exposition import Kind
    from comfypod.counts import GatewayCounts, Histogram
    from comfypod.gpu import Load

    Samples = Iterable[tuple[tuple[str, ...], float | Histogram]]

_MODEL_STATES = ("present", "fetching", "waiting", "incomplete", "failed", "missing")


def _one(value: float | Histogram | None) -> Samples:
    return [] if value is None else [((), value)]


def _info(health: Health, measured: Measured) -> Samples:
    del measured
    version = str(health.workspace.get("version", health.pod.comfyui_version))
    return [((__version__, version, health.pod.profile, health.pod.engine), 1)]


def _phases(health: Health, measured: Measured) -> Samples:
    del measured
    return [((phase,), float(phase == health.phase)) for phase in get_args(Phase)]


def _stage_seconds(health: Health, measured: Measured) -> Samples:
    del measured
    return {(stage.name, stage.state): stage.seconds for stage in health.stages}.items()


def _services_up(health: Health, measured: Measured) -> Samples:
    del measured
    return {(each.service.name,): float(each.state is State.READY) for each in health.services}.items()


def _restarts(health: Health, measured: Measured) -> Samples:
    del measured
    return {
        (each.service.name, cause): count for each in health.services for cause, count in each.restarts_by_cause.items()
    }.items()


def _queue(health: Health, measured: Measured) -> Samples:
    del health
    found = {"running": measured.queue_running, "pending": measured.queue_pending}
    return [((state,), count) for state, count in found.items() if count is not None]


def _nodes(health: Health, measured: Measured) -> Samples:
    del measured
    return Counter((str(row["state"]),) for row in health.nodes).items()


def _models(health: Health, measured: Measured) -> Samples:
    del measured
    found = Counter(str(row["state"]) for row in health.models)
    return [((state,), found[state]) for state in dict.fromkeys((*_MODEL_STATES, *found))]


def _model_bytes(health: Health, measured: Measured) -> Samples:
    del measured
    sums = dict.fromkeys(_MODEL_STATES, 0)
    for row in health.models:
        sums[row["state"]] = sums.get(row["state"], 0) + row["bytes"]
    return [((state,), size) for state, size in sums.items()]


def _problems(health: Health, measured: Measured) -> Samples:
    del measured
    return Counter((problem.code,) for problem in health.problems).items()


def _volume(read: Callable[[Volume], int]) -> Callable[[Health, Measured], Samples]:
    return lambda _, measured: _one(None if measured.volume is None else read(measured.volume))


def _gpu(read: Callable[[Load], float | None]) -> Callable[[Health, Measured], Samples]:
    def samples(health: Health, measured: Measured) -> Iterator[tuple[tuple[str, ...], float]]:
        del health
        for load in measured.gpus:
            if (value := read(load)) is not None:
                yield (str(load.index), load.name), value

    return samples


def _gateway(read: Callable[[GatewayCounts], Samples]) -> Callable[[Health, Measured], Samples]:
    return lambda health, _: [] if health.gateway is None else read(health.gateway)


def _row(
    short: str, kind: Kind, labels: tuple[str, ...], read: Callable[[Health, Measured], Samples], told: str
) -> Metric:
    return Metric(short, kind, told, labels, read)


TABLE: tuple[Metric, ...] = (
    _row("up", "gauge", (), lambda *_: _one(1), "1 while boot answers"),
    _row("ready", "gauge", (), lambda health, _: _one(float(health.ready)), "1 while the pod is ready"),
    _row("phase", "gauge", ("phase",), _phases, "1 for the phase that the pod is in, 0 for the others"),
    _row("info", "gauge", ("version", "comfyui", "profile", "engine"), _info, "1; its labels say what runs"),
    _row(
        "boot_ready_seconds", "gauge", (), lambda health, _: _one(health.moments.get("ready")),
        "Seconds from boot's first instruction until the pod was ready for the first time",
    ),
    _row(
        "boot_stage_seconds", "gauge", ("stage", "state"), _stage_seconds,
        "Seconds that a stage of the boot took, with its state; 0 before it has ended",
    ),
    _row("service_up", "gauge", ("service",), _services_up, "1 while a service answers"),
    _row(
        "service_restarts_total", "counter", ("service", "cause"), _restarts,
        "Restarts of a service by what ended it: exit, signal, out-of-memory, wedged, asked",
    ),
    _row(
        "standby_starts_total", "counter", (), lambda health, _: _one(health.standby.starts),
        "Starts of ComfyUI that a standby has been",
    ),
    _row(
        "standby_memory_bytes", "gauge", (), lambda health, _: _one(health.standby.memory_bytes),
        "Memory of the ComfyUI that stands by, with what it shares; 0 where there is none",
    ),
    _row("queue_prompts", "gauge", ("state",), _queue, "Prompts in ComfyUI's queue: running, pending"),
    _row(
        "prompts_total", "counter", ("result",),
        lambda health, _: [((result,), count) for result, count in health.prompts.finished.items()],
        "Prompts that ComfyUI has finished: done, failed, interrupted (by the user)",
    ),
    _row(
        "prompt_duration_seconds", "histogram", ("result",),
        lambda health, _: [((result,), seconds) for result, seconds in health.prompts.seconds.items()],
        "Seconds from the start of a prompt's execution to its end, without its time in the queue",
    ),
    _row("nodes", "gauge", ("state",), _nodes, "Custom nodes by state, as /status has them"),
    _row("models", "gauge", ("state",), _models, "Model files that are wanted, by state"),
    _row("models_bytes", "gauge", ("state",), _model_bytes, "Bytes that are there of wanted model files, by state"),
    _row(
        "download_bytes_total", "counter", (), lambda health, _: _one(health.downloads.fetched),
        "Bytes of models that have come while this pod fetched them",
    ),
    _row(
        "download_rate_bytes", "gauge", (), lambda health, _: _one(health.downloads.rate),
        "Bytes of models that arrive in a second, 0 while none is fetched",
    ),
    _row(
        "downloads_total", "counter", ("result",),
        lambda health, _: [((result,), count) for result, count in health.downloads.finished.items()],
        "Model files that this pod has tried to fetch: done, failed",
    ),
    _row("volume_size_bytes", "gauge", (), _volume(lambda found: found.size), "Size of the workspace's disk"),
    _row("volume_free_bytes", "gauge", (), _volume(lambda found: found.free), "Free bytes on the workspace's disk"),
    _row("volume_inodes", "gauge", (), _volume(lambda found: found.inodes), "Inodes of the workspace's disk"),
    _row("volume_free_inodes", "gauge", (), _volume(lambda found: found.free_inodes), "Free inodes of that disk"),
    _row(
        "memory_used_bytes", "gauge", (), lambda _, found: _one(found.memory.used if found.memory else None),
        "Memory in use by boot's control group, with files that the kernel would give back",
    ),
    _row(
        "memory_limit_bytes", "gauge", (), lambda _, found: _one(found.memory.limit if found.memory else None),
        "Memory that the control group may use; absent where there is no limit",
    ),
    _row(
        "gpu_utilization_ratio", "gauge", ("index", "name"), _gpu(lambda load: load.utilisation),
        "Share of time in which the GPU was at work, 0 to 1",
    ),
    _row("gpu_memory_used_bytes", "gauge", ("index", "name"), _gpu(lambda load: load.memory_used), "GPU memory in use"),
    _row("gpu_memory_size_bytes", "gauge", ("index", "name"), _gpu(lambda load: load.memory_total), "GPU memory"),
    _row("gpu_temperature_celsius", "gauge", ("index", "name"), _gpu(lambda load: load.temperature), "GPU temperature"),
    _row("problems", "gauge", ("code",), _problems, "Problems that /status lists now, by code"),
    _row(
        "gateway_requests_total", "counter", ("method", "status"), _gateway(lambda counts: counts.requests.items()),
        "Requests that the gateway has answered, by class of method (read, write) and of status (2xx)",
    ),
    _row(
        "gateway_open_connections", "gauge", (), _gateway(lambda counts: _one(counts.connections)),
        "Connections to the gateway that are open",
    ),
    _row(
        "gateway_request_duration_seconds", "histogram", (), _gateway(lambda counts: _one(counts.seconds)),
        "Seconds that the gateway took to answer a request",
    ),
    _row(
        "measurement_late", "gauge", ("source",),
        lambda _, found: [((source,), float(source in found.late)) for source in SOURCES],
        "1 where a measurement took over two seconds, so that its values are left out",
    ),
)  # fmt: skip

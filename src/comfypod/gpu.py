"""GPUs and the driver through NVML by ctypes, and what they mean for the choice of a profile.

No torch, no nvidia-smi (its text changed between driver branches), and every failure is a value.
"""

from __future__ import annotations

import contextlib
import ctypes
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, Protocol, TypeVar

from comfypod.log import human_bytes

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

_LIBRARIES = ("libnvidia-ml.so.1", "/usr/lib/wsl/lib/libnvidia-ml.so.1")
_TEXT_BYTES = 96
_CODES = {
    4: "this user may not ask the NVIDIA driver",
    9: "the NVIDIA driver is not loaded",
    15: "the GPU has fallen off the bus; restart the machine",
    18: "the loaded NVIDIA driver and its library are of different versions; restart the machine",
}


@dataclass(frozen=True, slots=True)
class Gpu:
    """One device: its name, memory in bytes and CUDA compute capability such as "8.9"."""

    name: str
    memory: int
    capability: str


@dataclass(frozen=True, slots=True)
class Survey:
    """What NVML said: the driver's version, the devices, and why there are none (empty when all is well)."""

    driver: str = ""
    gpus: tuple[Gpu, ...] = ()
    trouble: str = ""

    @property
    def summary(self) -> str:
        """Say it in one line."""
        if not self.gpus:
            return self.trouble
        named = ", ".join(f"{gpu.name} ({human_bytes(gpu.memory)}, sm_{_digits(gpu)})" for gpu in self.gpus)
        return f"{named}; driver {self.driver}"


@dataclass(frozen=True, slots=True)
class Load:
    """How busy one device is: share of time in use, bytes, degrees Celsius; None where its library does not say."""

    index: int
    name: str
    utilisation: float | None = None
    memory_used: int | None = None
    memory_total: int | None = None
    temperature: int | None = None


class Need(Protocol):
    """What a profile asks of GPU and driver: a row of the host's table, or what `pod.json` keeps of it."""

    @property
    def name(self) -> str:
        """The profile's name."""

    @property
    def summary(self) -> str:
        """Which cards it is for."""

    @property
    def capabilities(self) -> tuple[str, ...]:
        """CUDA compute capabilities such as "8.9"; none where no GPU is needed."""

    @property
    def driver(self) -> int:
        """The oldest driver branch that runs it."""

    @property
    def needs_gpu(self) -> bool:
        """Whether it is of use only with an NVIDIA GPU."""


_Row = TypeVar("_Row", bound=Need)


@dataclass(frozen=True, slots=True)
class Choice(Generic[_Row]):
    """The profile to use and, in a sentence, why."""

    profile: _Row
    reason: str


class _NvmlError(Exception):
    pass


class _Memory(ctypes.Structure):
    _fields_ = (("total", ctypes.c_ulonglong), ("free", ctypes.c_ulonglong), ("used", ctypes.c_ulonglong))


class _Rates(ctypes.Structure):
    _fields_ = (("gpu", ctypes.c_uint), ("memory", ctypes.c_uint))


_TEMPERATURE_OF_GPU = 0


def probe(libraries: Iterable[str] = _LIBRARIES) -> Survey:
    """Ask the first NVML library that loads; takes a millisecond where there is none."""
    library = _open(libraries)
    if library is None:
        return Survey(trouble="no NVIDIA driver is installed (libnvidia-ml.so.1 was not found)")
    return _ask(library)


def loads(libraries: Iterable[str] = _LIBRARIES) -> tuple[Load, ...]:
    """Ask how busy every device is; none where there is no driver, and without those that do not answer."""
    library, count = _open(libraries), ctypes.c_uint()
    if library is None:
        return ()
    try:
        _call(library, "nvmlInit_v2")
        _call(library, "nvmlDeviceGetCount_v2", ctypes.byref(count))
    except _NvmlError:
        return ()
    found = (_load_of(library, index) for index in range(count.value))
    return tuple(load for load in found if load is not None)


def _open(libraries: Iterable[str]) -> ctypes.CDLL | None:
    for name in libraries:
        try:
            return ctypes.CDLL(name)
        except OSError:
            continue
    return None


def _load_of(nvml: ctypes.CDLL, index: int) -> Load | None:
    device, name = ctypes.c_void_p(), ctypes.create_string_buffer(_TEXT_BYTES)
    rates, memory, degrees = _Rates(), _Memory(), ctypes.c_uint()
    if not _says(nvml, "nvmlDeviceGetHandleByIndex_v2", ctypes.c_uint(index), ctypes.byref(device)):
        return None
    _says(nvml, "nvmlDeviceGetName", device, name, _TEXT_BYTES)
    is_used = _says(nvml, "nvmlDeviceGetUtilizationRates", device, ctypes.byref(rates))
    is_filled = _says(nvml, "nvmlDeviceGetMemoryInfo", device, ctypes.byref(memory))
    is_warm = _says(nvml, "nvmlDeviceGetTemperature", device, _TEMPERATURE_OF_GPU, ctypes.byref(degrees))
    return Load(
        index,
        name.value.decode("utf-8", "replace"),
        rates.gpu / 100 if is_used else None,
        memory.used if is_filled else None,
        memory.total if is_filled else None,
        degrees.value if is_warm else None,
    )


def _says(nvml: ctypes.CDLL, name: str, *arguments: object) -> bool:
    try:
        _call(nvml, name, *arguments)
    except _NvmlError:
        return False
    return True


def _ask(nvml: ctypes.CDLL) -> Survey:
    try:
        _call(nvml, "nvmlInit_v2")
    except _NvmlError as error:
        return Survey(trouble=str(error))
    try:
        return _asked(nvml)
    finally:
        # What was opened once would go on answering for devices that are gone.
        with contextlib.suppress(_NvmlError):
            _call(nvml, "nvmlShutdown")


def _asked(nvml: ctypes.CDLL) -> Survey:
    driver = ""
    try:
        text = ctypes.create_string_buffer(_TEXT_BYTES)
        _call(nvml, "nvmlSystemGetDriverVersion", text, _TEXT_BYTES)
        driver = text.value.decode("ascii", "replace")
        count = ctypes.c_uint()
        _call(nvml, "nvmlDeviceGetCount_v2", ctypes.byref(count))
        gpus = tuple(_gpu(nvml, index) for index in range(count.value))
    except _NvmlError as error:
        return Survey(driver, trouble=str(error))
    return Survey(driver, gpus, "" if gpus else f"the NVIDIA driver {driver} sees no GPU")


def _gpu(nvml: ctypes.CDLL, index: int) -> Gpu:
    device, name, memory = ctypes.c_void_p(), ctypes.create_string_buffer(_TEXT_BYTES), _Memory()
    major, minor = ctypes.c_int(), ctypes.c_int()
    _call(nvml, "nvmlDeviceGetHandleByIndex_v2", ctypes.c_uint(index), ctypes.byref(device))
    _call(nvml, "nvmlDeviceGetName", device, name, _TEXT_BYTES)
    _call(nvml, "nvmlDeviceGetMemoryInfo", device, ctypes.byref(memory))
    _call(nvml, "nvmlDeviceGetCudaComputeCapability", device, ctypes.byref(major), ctypes.byref(minor))
    return Gpu(name.value.decode("utf-8", "replace"), memory.total, f"{major.value}.{minor.value}")


def _call(nvml: ctypes.CDLL, name: str, *arguments: object) -> None:
    try:
        function = getattr(nvml, name)
    except AttributeError as error:
        raise _NvmlError(f"the NVIDIA library is too old: it has no {name}") from error
    if (code := function(*arguments)) != 0:
        raise _NvmlError(_CODES.get(code, f"the NVIDIA library answered error {code} to {name}"))


def verdict(found: Survey, profile: Need) -> str:
    """Say why a profile cannot run on what was found, and which to use instead; empty when it can."""
    reason, remedy = _against(found, profile)
    return f"{reason}; {remedy}" if reason else ""


def lack(found: Survey, profile: Need) -> str:
    """Say why a profile cannot run on what was found; empty when it can."""
    return _against(found, profile)[0]


def _against(found: Survey, profile: Need) -> tuple[str, str]:
    if not profile.needs_gpu:
        return "", ""
    if not found.gpus:
        return f"profile {profile.name} needs an NVIDIA GPU: {found.trouble}", "use --profile cpu"
    gpu = found.gpus[0]
    if gpu.capability not in profile.capabilities:
        return (
            f"{gpu.name} has compute capability {gpu.capability}, profile {profile.name} is for "
            f"{', '.join(profile.capabilities)} ({profile.summary})"
        ), "use --profile auto"
    branch = re.match(r"\d+", found.driver)
    if branch is None:
        return f"NVIDIA driver version {found.driver!r} is not understood", "use --profile cpu"
    if int(branch[0]) < profile.driver:
        return (
            f"NVIDIA driver {found.driver} is older than {profile.driver}, which profile {profile.name} needs",
            "update the driver or use --profile cpu",
        )
    return "", ""


def choose(found: Survey, profiles: Mapping[str, _Row]) -> Choice[_Row]:
    """Pick the profile that fits the first GPU and the driver, or else the one that needs no GPU.

    `profiles` is the table by name, in order of preference; at least one needs no GPU.
    """
    table = tuple(profiles.values())
    fallback = next(profile for profile in table if not profile.needs_gpu)
    if not found.gpus:
        return Choice(fallback, f"{found.trouble}; ComfyUI runs on the CPU")
    gpu = found.gpus[0]
    fitting = [profile for profile in table if gpu.capability in profile.capabilities]
    for profile in fitting:
        if not verdict(found, profile):
            return Choice(profile, f"{gpu.name} has compute capability {gpu.capability}, driver {found.driver}")
    if fitting:
        return Choice(fallback, f"{verdict(found, fitting[0])}; until then ComfyUI runs on the CPU")
    return Choice(
        fallback, f"no profile is for compute capability {gpu.capability} ({gpu.name}); ComfyUI runs on the CPU"
    )


def _digits(gpu: Gpu) -> str:
    return gpu.capability.replace(".", "")

"""A stand-in for NVIDIA's NVML library: compiled C that answers what a test's environment says, or files do.

A fact is a file of its name in the folder `STANDIN_FACTS`, which may change at any time, or else a variable.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from comfypod import proc

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

_SOURCE = r"""
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static const char *fact(const char *name, const char *otherwise) {
    static char path[4096], text[96];
    const char *folder = getenv("STANDIN_FACTS"), *value = getenv(name);
    if (folder) {
        snprintf(path, sizeof path, "%s/%s", folder, name);
        FILE *file = fopen(path, "r");
        if (file) {
            value = fgets(text, sizeof text, file);
            fclose(file);
        }
    }
    return value ? value : otherwise;
}
int nvmlInit_v2(void) {
    sleep((unsigned int)atoi(fact("STANDIN_HANG", "0")));
    return atoi(fact("STANDIN_INIT", "0"));
}
int nvmlShutdown(void) { return 0; }
int nvmlSystemGetDriverVersion(char *text, unsigned int size) {
    strncpy(text, fact("STANDIN_DRIVER", "570.86.15"), size);
    return 0;
}
int nvmlDeviceGetCount_v2(unsigned int *count) {
    *count = (unsigned int)atoi(fact("STANDIN_COUNT", "1"));
    return 0;
}
int nvmlDeviceGetHandleByIndex_v2(unsigned int index, void **device) {
    *device = (void *)(unsigned long)(index + 1);
    return atoi(fact("STANDIN_HANDLE", "0"));
}
int nvmlDeviceGetName(void *device, char *text, unsigned int size) {
    strncpy(text, fact("STANDIN_NAME", "Stand-in GPU"), size);
    return device ? 0 : 2;
}
int nvmlDeviceGetMemoryInfo(void *device, unsigned long long *memory) {
    memory[0] = strtoull(fact("STANDIN_MEMORY", "24000000000"), 0, 10);
    memory[2] = strtoull(fact("STANDIN_USED", "0"), 0, 10);
    memory[1] = memory[0] - memory[2];
    return device ? 0 : 2;
}
#ifndef STANDIN_OLD
int nvmlDeviceGetCudaComputeCapability(void *device, int *major, int *minor) {
    const char *text = fact("STANDIN_CAPABILITY", "8.9");
    *major = atoi(text);
    *minor = atoi(strchr(text, '.') + 1);
    return device ? 0 : 2;
}
int nvmlDeviceGetUtilizationRates(void *device, unsigned int *rates) {
    rates[0] = (unsigned int)atoi(fact("STANDIN_BUSY", "0"));
    rates[1] = 99;
    return device ? 0 : 2;
}
int nvmlDeviceGetTemperature(void *device, int sensor, unsigned int *degrees) {
    *degrees = (unsigned int)atoi(fact("STANDIN_DEGREES", "30"));
    return sensor != 0 ? 2 : atoi(fact("STANDIN_THERMOMETER", "0"));
}
#endif
"""


def build(folder: Path, *, old: bool = False) -> Path:
    """Compile the stand-in as `libnvidia-ml.so.1` into a folder; `old` leaves out the newest functions."""
    source, library = folder / "standin.c", folder / "libnvidia-ml.so.1"
    source.write_text(_SOURCE)
    options = ["-DSTANDIN_OLD"] if old else []
    done = proc.run(["gcc", "-shared", "-fPIC", *options, "-o", str(library), str(source)], seconds=60)
    if not done.ok:
        raise RuntimeError(done.stderr)
    return library


def environ(library: Path, facts: Mapping[str, str]) -> dict[str, str]:
    """Return what a process needs in its environment to find the stand-in, which answers with `facts`."""
    return {"LD_LIBRARY_PATH": str(library.parent), **{f"STANDIN_{name}": value for name, value in facts.items()}}

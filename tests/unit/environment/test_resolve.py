from __future__ import annotations

import pytest

from comfypod.environment.resolve import lacks_compiler

_BUILD = "error: Failed to download and build `insightface==0.7.3`\n  Call to `build_meta.build_wheel` failed\n"


@pytest.mark.parametrize(
    "said",
    [
        "error: command 'gcc' failed: No such file or directory",
        "error: command 'x86_64-linux-gnu-gcc' failed: No such file or directory",
        "unable to execute 'g++': No such file or directory",
        "FileNotFoundError: [Errno 2] No such file or directory: 'cc'",
        "/bin/sh: 1: clang++: not found",
        "bash: line 1: gcc: command not found",
        "../meson.build:1:0: ERROR: Unknown compiler(s): [['cc'], ['gcc'], ['clang']]",
        "CMake Error: No CMAKE_CXX_COMPILER could be found.",
    ],
)
def test_c8_a_missing_compiler_is_known_by_what_build_tools_say(said: str) -> None:
    error = lacks_compiler(_BUILD + said)
    assert error is not None
    assert error.message.startswith("insightface must be compiled and this variant of the image has no compiler")


@pytest.mark.parametrize(
    "said",
    [
        _BUILD + "error: command 'gcc' failed with exit code 1",
        _BUILD + "fatal error: Python.h: No such file or directory",
        _BUILD + "ModuleNotFoundError: No module named 'torch'",
        "error: command 'gcc' failed: No such file or directory",
    ],
)
def test_other_failures_of_a_build_do_not_blame_the_variant(said: str) -> None:
    assert lacks_compiler(said) is None

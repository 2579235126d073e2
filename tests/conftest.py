"""What every test gets: an environment without the caller's settings, and a reason where a test cannot run."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
from hypothesis import settings

# A slow disk or a busy machine is no failure; speed is measured in benchmarks/.
settings.register_profile("comfypod", deadline=None)
settings.load_profile("comfypod")

_OURS = ("COMFYPOD_", "JUPYTER_", "STANDIN_")


def pytest_configure() -> None:
    """Take Ctrl-C as at a terminal: a shell that starts this in the background has it ignored, also in children."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True, scope="session")
def _no_settings_of_the_caller() -> None:
    for name in [name for name in os.environ if name.startswith(_OURS)]:
        del os.environ[name]


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Skip what needs root for anyone else, with the reason shown; under CI that is a failure of the run.

    What emulates another machine runs only when `-m` names it. With `--dist loadgroup` each of the folders is done by
    one worker, as its tests share images and stores.
    """
    for item in items:
        folder = item.path.relative_to(Path(__file__).parent).parts[0]
        item.add_marker(pytest.mark.xdist_group(folder))
    if "arm64" not in config.getoption("markexpr"):
        emulating = [item for item in items if item.get_closest_marker("arm64")]
        items[:] = [item for item in items if item not in emulating]
        config.hook.pytest_deselected(items=emulating)
    if os.geteuid() == 0:
        return
    lacking = [item for item in items if item.get_closest_marker("root")]
    if lacking and os.environ.get("CI") == "true":
        raise pytest.UsageError(f"{len(lacking)} tests need root, and under CI none may be left out")
    for item in lacking:
        item.add_marker(pytest.mark.skip(reason="needs root: it mounts file systems or makes network namespaces"))

"""The entry of `comfypod` and `python -m comfypod`."""

from __future__ import annotations

import sys
import time


def main() -> int:
    """Run one command; return its exit code."""
    begun = time.monotonic()
    try:
        from comfypod.cli import run

        return run(sys.argv[1:], begun)
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())

"""`state.json`: which schema, release and environment the volume holds, and who wrote that."""

from __future__ import annotations

import errno
import json
import os
import re
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from comfypod import __version__
from comfypod.errors import StorageError
from comfypod.files import read_small, write_atomic, write_changed

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

SCHEMA = 2


@dataclass(frozen=True, slots=True)
class State:
    """One record.

    `release` names the core on the volume, empty where the volume's ComfyUI is not ours; `previous` the one that is
    kept to go back to. `attempts` is 0 once ComfyUI was ready; until then it is one more than the boots that an upgrade
    has had.
    """

    release: str
    environment: str
    mount: str
    previous: str = ""
    attempts: int = 0
    writer: str = __version__
    schema: int = SCHEMA


def read(path: Path) -> State | None:
    """Read the record; None when there is none or it is damaged (it can be derived again).

    Raises:
        StorageError: a newer comfypod wrote it, so nothing here may be changed.
        OSError: it is there and cannot be read, so nothing is known about it.
    """
    try:
        data = read_small(path)
    except FileNotFoundError:
        return None
    try:
        body = json.loads(data)
        ensure_known(path.parent.parent, body)
        previous, attempts = str(body.get("previous", "")), int(body.get("attempts", 0))
        return State(body["release"], body["environment"], body["mount"], previous, attempts, body["writer"])
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
        return None


def ensure_known(root: Path, body: Mapping[str, Any]) -> None:
    """Refuse a record of a newer schema.

    Raises:
        StorageError: it is newer, so nothing in the workspace may be changed.
        KeyError, TypeError, ValueError: it is no such record.
    """
    schema = int(body["schema"])
    if schema > SCHEMA:
        raise StorageError(
            f"{root} was written by comfypod {body.get('writer')} with schema {schema}; "
            f"this one, {__version__}, knows up to {SCHEMA} and changes nothing",
            "use an image or a comfypod at least as new, or another workspace",
        )


def write(path: Path, state: State) -> None:
    """Replace the record durably, unless it says the same already."""
    data = (json.dumps(asdict(state), indent=1, sort_keys=True) + "\n").encode()
    write_changed(path, data)


def keep_token(path: Path) -> tuple[str, bool]:
    """Return the workspace's login token and whether it was made now: 192 random bits, mode 0600."""
    try:
        token = read_small(path).decode("ascii").strip()
    except (FileNotFoundError, UnicodeDecodeError):
        token = ""
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        token = ""
    if re.fullmatch(r"[!-~]+", token):
        path.chmod(0o600)
        return token, False
    return make_token(path), True


def make_token(path: Path) -> str:
    """Make a token and keep it with mode 0600; one that was there is replaced."""
    token = os.urandom(24).hex()
    write_atomic(path, token.encode() + b"\n", 0o600)
    return token

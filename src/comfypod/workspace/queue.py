"""`queue.json`: prompts that ComfyUI had not finished when the pod was stopped."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from comfypod.files import read_small, write_atomic

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

# A prompt that was submitted again so often and did not end is not tried once more.
MOST_ATTEMPTS = 2
_LARGEST = 64 << 20
# Current versions of ComfyUI do not show these; older ones do.
_SECRETS = frozenset({"auth_token_comfy_org", "api_key_comfy_org"})


@dataclass(frozen=True, slots=True)
class Saved:
    """One prompt as it was submitted; `attempts` is how often it was submitted again and did not end."""

    prompt_id: str
    number: float
    prompt: dict[str, Any]
    extra_data: dict[str, Any]
    client_id: str | None = None
    outputs: tuple[str, ...] | None = None
    attempts: int = 0

    @property
    def parked(self) -> bool:
        """Whether it was tried often enough."""
        return self.attempts >= MOST_ATTEMPTS

    def body(self) -> dict[str, Any]:
        """Return what ComfyUI's `POST /prompt` takes. Its number is left out: a new ComfyUI counts anew."""
        body: dict[str, Any] = {"prompt_id": self.prompt_id, "prompt": self.prompt, "extra_data": self.extra_data}
        if self.client_id is not None:
            body["client_id"] = self.client_id
        if self.outputs is not None:
            body["partial_execution_targets"] = list(self.outputs)
        return body


def from_item(item: Any) -> Saved | None:
    """Turn an item of ComfyUI's `/queue` into a record; None when it is none."""
    try:
        number, prompt_id, prompt, extra = item[:4]
        outputs = item[4] if len(item) > 4 else None
        row = {"number": number, "prompt_id": prompt_id, "prompt": prompt, "extra_data": extra, "outputs": outputs}
        return _checked(row | {"client_id": extra.get("client_id")})
    except (TypeError, ValueError, KeyError, AttributeError):
        return None


def _checked(row: dict[str, Any]) -> Saved:
    prompt, extra, client, outputs = row["prompt"], row["extra_data"], row.get("client_id"), row.get("outputs")
    named = isinstance(row["prompt_id"], str) and isinstance(client, (str, type(None)))
    if not (named and isinstance(prompt, dict) and isinstance(extra, dict) and isinstance(outputs, (list, type(None)))):
        raise TypeError("it is no prompt")
    extra = {name: value for name, value in extra.items() if name not in _SECRETS}
    names = None if outputs is None else tuple(map(str, outputs))
    return Saved(row["prompt_id"], float(row["number"]), prompt, extra, client, names, int(row.get("attempts", 0)))


def read(path: Path) -> tuple[Saved, ...]:
    """Return what is kept, oldest first; nothing where there is no record.

    Raises:
        ValueError: it is damaged.
        OSError: it cannot be read.
    """
    try:
        rows = json.loads(read_small(path, _LARGEST))["prompts"]
        return tuple(_checked(row) for row in rows)
    except FileNotFoundError:
        return ()
    except (KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise ValueError(f"it is damaged: {error}") from error


def write(path: Path, prompts: Iterable[Saved]) -> None:
    """Replace the record durably; nothing to keep is no file."""
    rows = [asdict(prompt) for prompt in prompts]
    if rows:
        write_atomic(path, json.dumps({"prompts": rows}).encode() + b"\n", 0o600)
    else:
        path.unlink(missing_ok=True)


def merged(kept: Iterable[Saved], running: Iterable[Saved], pending: Iterable[Saved]) -> tuple[Saved, ...]:
    """Add what ComfyUI has now to what is kept already, in the order in which it would have run.

    A prompt that was submitted again and still waits was not tried, so that attempt does not count.
    """
    rows = {prompt.prompt_id: prompt for prompt in kept}
    waiting = sorted(pending, key=lambda prompt: (prompt.number, prompt.prompt_id))
    for prompt in waiting:
        if (before := rows.get(prompt.prompt_id)) is not None:
            rows[prompt.prompt_id] = replace(before, attempts=max(0, before.attempts - 1))
    for prompt in (*running, *waiting):
        rows.setdefault(prompt.prompt_id, prompt)
    return tuple(rows.values())

"""The settings of a pod, merged from all their places; the only one that reads the environment for them.

Order, later wins: default, `pod.json`, `comfypod.toml` of the workspace, environment, command line.
"""

from __future__ import annotations

import shlex
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from comfypod.errors import Problem, UsageError
from comfypod.files import read_small
from comfypod.ports import is_loopback
from comfypod.settings_table import TABLE, Declared, Setting

if TYPE_CHECKING:
    from collections.abc import Mapping

    from comfypod.wish import Wish

Origin = Literal["default", "pod.json", "comfypod.toml", "environment", "command line"]
_Layer = tuple[Origin, "Mapping[str, str]"]
_BLANK = frozenset({"", "null", "none", "undefined"})
# Who the services are, who reaches them, what is installed and who is given a token is not for the volume to say: what
# runs in the pod writes there.
_NOT_FROM_VOLUME = frozenset(
    {
        "auth", "control_listen", "hf_endpoint", "jupyter_listen", "listen", "node_policy", "pgid", "puid", "services",
        "tls_cert", "tls_key", "trusted_proxies",
    }
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Settings:
    """The resolved settings, and for each by name the place that it came from."""

    workspace: Path
    listen: str
    persist: str
    upgrade: str
    adopt: str
    port: int
    jupyter: bool
    jupyter_listen: str
    jupyter_port: int
    trusted_proxies: tuple[str, ...]
    services: tuple[Declared, ...]
    tls_cert: str
    tls_key: str
    control_listen: str
    control_port: int
    comfyui_args: tuple[str, ...]
    node_policy: str
    safe_mode: bool
    auth: str
    token: str
    jupyter_password: str
    on_failure: str
    stop_seconds: float
    drain_seconds: float
    resume: bool
    wait_seconds: float
    allow_cpu: bool
    wedged_seconds: float
    node_seconds: float
    standby: str
    cold_start: str
    gpu_seconds: float
    queue_limit: int
    disk_floor: int
    require: tuple[str, ...]
    nodes: tuple[Wish, ...]
    node_registry: str
    models: tuple[str, ...]
    model_folders: tuple[Path, ...]
    hf_token: str
    civitai_token: str
    hf_endpoint: str
    download_rate: int
    offline: bool
    puid: str
    pgid: str
    origins: Mapping[str, Origin]
    problems: tuple[Problem, ...] = ()

    def shown(self) -> dict[str, dict[str, str]]:
        """Return value and origin of every setting as text; secrets only as given or not."""
        rows: dict[str, dict[str, str]] = {}
        for row in TABLE:
            value = getattr(self, row.name)
            text = ("given" if value else "not given") if row.secret else _text(value)
            rows[row.name] = {"value": text, "origin": self.origins[row.name]}
        return rows


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    return shlex.join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)


def secret_variables() -> frozenset[str]:
    """Names of environment variables that no child may see."""
    names = {name for row in TABLE if row.secret for name in row.variables}
    return frozenset(names | {f"{name}_FILE" for name in names})


def resolve(built: Mapping[str, str], environ: Mapping[str, str], arguments: Mapping[str, str]) -> Settings:
    """Merge all layers.

    `built` is what `pod.json` sets and `arguments` what the command line gave, both by setting name. What is wrong in
    the workspace's own file never stops a boot: the file is left out, and the result's `problems` say why.

    Raises:
        UsageError: a value from elsewhere cannot be used; the message names it and where it came from.
    """
    for row in TABLE:
        if row.secret and row.name in arguments:
            raise UsageError(f"{row.name} would stand in the process list", f"give it as {row.variables[0]}")
    first: list[_Layer] = [("default", {row.name: row.default for row in TABLE}), ("pod.json", built)]
    last: list[_Layer] = [("environment", _from_environ(environ)), ("command line", arguments)]
    settings = _resolved([*first, *last])
    path = settings.workspace / "comfypod.toml"
    try:
        if own := _from_workspace(path):
            settings = _resolved([*first, ("comfypod.toml", own), *last])
    except UsageError as error:
        problem = Problem("settings", f"{path} is not used: {error.message}", error.hint)
        settings = replace(settings, problems=(problem,))
    if is_loopback(settings.listen) or settings.auth != "none":
        return settings
    return replace(settings, problems=(*settings.problems, _open_door(settings)))


def _open_door(settings: Settings) -> Problem:
    return Problem(
        "no-login",
        f"whoever reaches {settings.listen}:{settings.port} has ComfyUI without a login, as COMFYPOD_AUTH=none asked",
        "listen on 127.0.0.1 and use a tunnel unless that is meant",
    )


def _resolved(layers: list[_Layer]) -> Settings:
    merged = _merge(layers)
    values = {row.name: _parsed(row, *merged[row.name]) for row in TABLE}
    try:
        values["workspace"] = Path(values["workspace"]).expanduser().absolute()
    except RuntimeError as error:
        raise UsageError(f"workspace {values['workspace']}: there is no such home", "give it from / on") from error
    values["jupyter_listen"] = values["jupyter_listen"] or values["listen"]
    return Settings(**values, origins={name: origin for name, (origin, _) in merged.items()})


def as_text(name: str, value: Any) -> str:
    """Return a setting from a file as text, checked.

    Raises:
        UsageError: there is no such setting, its value cannot be used, or it is a secret, which no file may hold.
    """
    row = next((row for row in TABLE if row.name == name), None)
    if row is None:
        raise UsageError(f"there is no setting {name!r}", f"settings are: {', '.join(row.name for row in TABLE)}")
    if name == "workspace":
        raise UsageError("the workspace is not chosen in a file", "use --workspace or COMFYPOD_WORKSPACE")
    if row.secret:
        raise UsageError(f"{name} is a secret", f"give it as {row.variables[0]} or {row.variables[0]}_FILE")
    _parsed(row, "comfypod.toml", _text(value))
    return _text(value)


def _merge(layers: list[_Layer]) -> dict[str, tuple[Origin, str]]:
    known = {row.name for row in TABLE}
    merged: dict[str, tuple[Origin, str]] = {}
    for origin, layer in layers:
        for name, value in layer.items():
            if name not in known:
                raise UsageError(f"{origin}: there is no setting {name!r}", f"settings are: {', '.join(sorted(known))}")
            merged[name] = (origin, value)
    return merged


def _from_environ(environ: Mapping[str, str]) -> dict[str, str]:
    found: dict[str, str] = {}
    for row in TABLE:
        for variable in row.variables:
            value = secret(environ, variable) if row.secret else environ.get(variable, "").strip()
            if value:
                found[row.name] = value
                break
    return found


def secret(environ: Mapping[str, str], variable: str) -> str:
    """Return a secret from `NAME` or the file that `NAME_FILE` names; blank ones count as not given."""
    value = environ.get(variable, "").strip()
    if value.lower() not in _BLANK:
        return _in_one_line(value, variable)
    path = environ.get(f"{variable}_FILE", "").strip()
    if not path:
        return ""
    try:
        value = Path(path).read_text("utf-8").strip()
    except (OSError, ValueError) as error:
        raise UsageError(f"cannot read {variable}_FILE: {error}", "give the path of a readable text file") from error
    return "" if value.lower() in _BLANK else _in_one_line(value, f"{variable}_FILE")


def _in_one_line(value: str, variable: str) -> str:
    """Return a secret that can stand in a header; it is not shown where it cannot."""
    if not value.isprintable():
        raise UsageError(f"{variable} holds more than one line, or what cannot be printed", "give the secret alone")
    return value


def _from_workspace(path: Path) -> dict[str, str]:
    try:
        data = read_small(path)
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise UsageError(f"cannot read it: {error.strerror}", "mend its mode, or move it away") from error
    import tomllib

    try:
        table = tomllib.loads(data.decode("utf-8")).get("settings", {})
    except (ValueError, RecursionError) as error:
        raise UsageError(str(error), "mend the file, or move it away") from error
    if not isinstance(table, dict):
        raise UsageError("`settings` is not a table", "write it as [settings]")
    if refused := sorted(_NOT_FROM_VOLUME.intersection(table)):
        raise UsageError(f"a volume may not set {refused[0]}", "set it by environment, or in the image's manifest")
    return {name: as_text(name, value) for name, value in table.items()}


def _parsed(row: Setting, origin: Origin, text: str) -> Any:
    try:
        return row.parse(text)
    except ValueError as error:
        shown = "its value" if row.secret else repr(text)
        where = row.variables[0] if origin == "environment" else row.name
        raise UsageError(f"{where} ({origin}) is {shown}: {error}", f"it means: {row.help}") from error

"""Every setting of a pod in one table, and the only place that reads the environment for them.

Order, later wins: default, `pod.json`, `comfypod.toml` of the workspace, environment, command line.
"""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from comfypod.errors import Problem, UsageError
from comfypod.files import read_small
from comfypod.ports import is_loopback

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

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
_SERVICE = re.compile(r"(?P<name>[a-z0-9-]+)=(?P<port>\d{1,5}):(?P<path>/(?:[A-Za-z0-9._~-]+/)+)")
_TAKEN_PATHS = frozenset({"_pod", "api", "jupyter", "livez", "readyz", "startupz", ".", ".."})
_SYSTEM = {("/",), *(("/", name) for name in ("bin", "boot", "dev", "etc", "lib", "proc", "sbin", "sys", "usr"))}
_OURS = {
    "--listen": "use the setting `listen`",
    "--port": "use the setting `port`",
    "--base-directory": "use the setting `workspace`",
}


def _port(text: str) -> int:
    if text.isdecimal() and 0 < int(text) < 65536:
        return int(text)
    raise ValueError("a port number from 1 to 65535 is expected")


def _workspace(text: str) -> Path:
    path = Path(text)
    if path.parts[:2] in _SYSTEM or path.resolve().parts[:2] in _SYSTEM:
        raise ValueError("a folder of your own is expected, not one of the system's")
    return path


def _switch(text: str) -> bool:
    lowered = text.lower()
    if lowered in {"on", "1", "true", "yes"}:
        return True
    if lowered in {"off", "0", "false", "no"}:
        return False
    raise ValueError("`on` or `off` is expected")


def _one_of(*words: str) -> Callable[[str], str]:
    def parse(text: str) -> str:
        if text in words:
            return text
        raise ValueError(f"one of {', '.join(words)} is expected")

    return parse


def _arguments(text: str) -> tuple[str, ...]:
    words = tuple(shlex.split(text))
    if "\0" in text:
        raise ValueError("a NUL cannot stand in an argument")
    for word in words:
        option = word.partition("=")[0]
        if option in _OURS:
            raise ValueError(f"{option} is set by comfypod; {_OURS[option]}")
    return words


def _networks(text: str) -> tuple[str, ...]:
    import ipaddress

    return tuple(str(ipaddress.ip_network(word, strict=False)) for word in text.replace(",", " ").split())


@dataclass(frozen=True, slots=True)
class Declared:
    """A service of the user's own, by the port that it has on loopback and the path that the gateway shows it below."""

    name: str
    port: int
    path: str

    def __str__(self) -> str:
        """Write it as it is declared."""
        return f"{self.name}={self.port}:{self.path}"


def _services(text: str) -> tuple[Declared, ...]:
    found = []
    for word in text.replace(",", " ").split():
        match = _SERVICE.fullmatch(word)
        if match is None:
            raise ValueError(f"NAME=PORT:/PATH/ is expected, not {word!r}")
        if match["path"].split("/")[1] in _TAKEN_PATHS:
            raise ValueError(f"{match['path']} is taken; choose another path")
        found.append(Declared(match["name"], _port(match["port"]), match["path"]))
    return tuple(found)


def _nodes(text: str) -> tuple[Wish, ...]:
    if not text:
        return ()
    from comfypod import wish

    return wish.of_words(text)


def _address(text: str) -> str:
    from urllib.parse import urlsplit

    parts = urlsplit(text)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError("an http:// or https:// address is expected")
    return text.rstrip("/")


def _number(text: str) -> str:
    """Accept a user or group id; -1, as 2^32-1, means "leave it" to the kernel."""
    if not text or (text.isascii() and text.isdecimal() and int(text) < 2**32 - 1):
        return text
    raise ValueError("a number from 0 to 4294967294 is expected")


def _names(text: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(text.replace(",", " ").split()))


def _folders(text: str) -> tuple[Path, ...]:
    found = tuple(Path(word) for word in shlex.split(text.replace(",", " ")))
    for path in found:
        if not path.is_absolute():
            raise ValueError(f"a folder from / on is expected, not {path}")
    return tuple(dict.fromkeys(found))


def _seconds(text: str) -> float:
    seconds = float(text)
    if 0 <= seconds <= 3600:
        return seconds
    raise ValueError("a number of seconds up to 3600 is expected")


def _count(text: str) -> int:
    if text.isascii() and text.isdecimal():
        return int(text)
    raise ValueError("a whole number from 0 on is expected")


def _bytes(text: str) -> int:
    """Accept a number of bytes, or of KiB, MiB or GiB with the suffix K, M or G."""
    power = " KMG".find(text[-1:].upper())
    return _count(text[:-1]) << 10 * power if power > 0 else _count(text)


@dataclass(frozen=True, slots=True)
class Setting:
    """One row: name in files, environment variables (first wins), default as text, parser, meaning."""

    name: str
    variables: tuple[str, ...]
    default: str
    parse: Callable[[str], Any]
    help: str
    secret: bool = False


TABLE: tuple[Setting, ...] = (
    Setting(
        "workspace", ("COMFYPOD_WORKSPACE",), "/workspace", _workspace, "folder that keeps everything of the user's"
    ),
    Setting(
        "listen",
        ("COMFYPOD_LISTEN",),
        "127.0.0.1",
        str,
        "address that the gateway answers on; beyond loopback it asks for the token",
    ),
    Setting(
        "persist",
        ("COMFYPOD_PERSIST",),
        "auto",
        _one_of("auto", "move", "link"),
        "ComfyUI's core on the volume as files (`move`) or as links (`link`); `auto` links on network disks",
    ),
    Setting(
        "upgrade",
        ("COMFYPOD_UPGRADE",),
        "auto",
        _one_of("auto", "keep"),
        "`keep` holds a volume at its ComfyUI when the image brings another one",
    ),
    Setting(
        "adopt",
        ("COMFYPOD_ADOPT",),
        "report",
        _one_of("report", "auto", "off"),
        "what other images have left on a volume: say so, take it over at boot, or say nothing",
    ),
    Setting("port", ("COMFYPOD_PORT",), "8188", _port, "port of the gateway: ComfyUI, and the pod below `/_pod/`"),
    Setting("jupyter", ("COMFYPOD_JUPYTER",), "on", _switch, "whether JupyterLab runs, where it is installed"),
    Setting(
        "jupyter_listen",
        ("COMFYPOD_JUPYTER_LISTEN",),
        "",
        str,
        "address that JupyterLab's own port is opened on; empty: as `listen`",
    ),
    Setting(
        "jupyter_port",
        ("COMFYPOD_JUPYTER_PORT",),
        "8888",
        _port,
        "port of JupyterLab, which is also at `/jupyter/`; always behind the login",
    ),
    Setting(
        "trusted_proxies",
        ("COMFYPOD_TRUSTED_PROXIES",),
        "",
        _networks,
        "addresses or networks of proxies whose X-Forwarded headers are believed",
    ),
    Setting(
        "services",
        ("COMFYPOD_SERVICES",),
        "",
        _services,
        "services of your own on loopback that the gateway shows behind the login, as NAME=PORT:/PATH/",
    ),
    Setting("tls_cert", ("COMFYPOD_TLS_CERT",), "", str, "certificate in PEM with which the gateway speaks TLS"),
    Setting("tls_key", ("COMFYPOD_TLS_KEY",), "", str, "the certificate's key, where it is a file of its own"),
    Setting("control_listen", ("COMFYPOD_CONTROL_LISTEN",), "127.0.0.1", str, "address of the control plane"),
    Setting("control_port", ("COMFYPOD_CONTROL_PORT",), "8189", _port, "port of the control plane"),
    Setting("comfyui_args", ("COMFYPOD_COMFYUI_ARGS",), "", _arguments, "more arguments for ComfyUI's main.py"),
    Setting(
        "node_policy",
        ("COMFYPOD_NODE_POLICY",),
        "registry",
        _one_of("locked", "registry", "open"),
        "what ComfyUI-Manager may install: nothing, what the registry has, or anything (Git addresses and pip too)",
    ),
    Setting("safe_mode", ("COMFYPOD_SAFE_MODE",), "off", _switch, "start ComfyUI without custom nodes"),
    Setting(
        "auth",
        ("COMFYPOD_AUTH",),
        "token",
        _one_of("token", "none"),
        "`none` lets anyone who reaches it have ComfyUI without a login",
    ),
    Setting(
        "token",
        ("COMFYPOD_TOKEN", "JUPYTER_TOKEN"),
        "",
        str,
        "token that logs in everywhere; made and kept in the workspace when not given",
        secret=True,
    ),
    Setting(
        "jupyter_password",
        ("JUPYTER_PASSWORD",),
        "",
        str,
        "another secret that logs in, for those who have one already",
        secret=True,
    ),
    Setting(
        "on_failure",
        ("COMFYPOD_ON_FAILURE",),
        "stay",
        _one_of("stay", "exit"),
        "when ComfyUI fails for good: `stay` up for repair, or `exit` with its code",
    ),
    Setting("stop_seconds", ("COMFYPOD_STOP_SECONDS",), "4", _seconds, "how long a service may take to stop"),
    Setting(
        "drain_seconds",
        ("COMFYPOD_DRAIN_SECONDS",),
        "5",
        _seconds,
        "how long a stop waits for the prompt that runs",
    ),
    Setting(
        "resume",
        ("COMFYPOD_RESUME",),
        "off",
        _switch,
        "submit prompts again that were not finished when the pod was stopped",
    ),
    Setting(
        "wait_seconds",
        ("COMFYPOD_WAIT_SECONDS",),
        "900",
        _seconds,
        "how long a boot waits for another pod that prepares the same workspace",
    ),
    Setting("allow_cpu", ("COMFYPOD_ALLOW_CPU",), "off", _switch, "run on the CPU where the image's GPU is missing"),
    Setting(
        "wedged_seconds",
        ("COMFYPOD_WEDGED_SECONDS",),
        "60",
        _seconds,
        "how long ComfyUI may accept connections and not answer before it is killed and started again, ten times as "
        "long while a prompt is at work; 0: for ever",
    ),
    Setting(
        "node_seconds",
        ("COMFYPOD_NODE_SECONDS",),
        "60",
        _seconds,
        "how long a custom node may take to load; after that it is interrupted, and left out of the next starts; "
        "0: any time",
    ),
    Setting(
        "standby",
        ("COMFYPOD_STANDBY",),
        "auto",
        _one_of("auto", "on", "off"),
        "keep a second ComfyUI ready, which makes a restart quick and takes about a gigabyte of memory; `auto`: where "
        "ComfyUI runs on the CPU",
    ),
    Setting(
        "gpu_seconds",
        ("COMFYPOD_GPU_SECONDS",),
        "15",
        _seconds,
        "how often to look whether the GPU is still there; three misses in a row end the pod; 0: never",
    ),
    Setting(
        "queue_limit",
        ("COMFYPOD_QUEUE_LIMIT",),
        "0",
        _count,
        "the pod is not ready while ComfyUI has more prompts than this; 0: no limit",
    ),
    Setting(
        "disk_floor",
        ("COMFYPOD_DISK_FLOOR",),
        "64M",
        _bytes,
        "the pod is not ready while the workspace's disk has fewer bytes free than this (suffix K, M or G)",
    ),
    Setting(
        "require",
        ("COMFYPOD_REQUIRE",),
        "",
        _names,
        "custom nodes and models, by name, without which the pod is not ready",
    ),
    Setting(
        "nodes",
        ("COMFYPOD_NODES",),
        "",
        _nodes,
        "custom nodes to install, beside those in the workspace's comfypod.toml: Git addresses, each with an optional "
        "@REF, or registry:ID@VERSION",
    ),
    Setting(
        "node_registry",
        ("COMFYPOD_NODE_REGISTRY",),
        "https://api.comfy.org",
        _address,
        "registry that `registry:ID` is looked up in",
    ),
    Setting(
        "models",
        ("COMFYPOD_MODELS",),
        "",
        _names,
        "models to fetch, beside those in the workspace's comfypod.toml: names of packs, template:NAME, workflow:PATH, "
        "or FOLDER=ADDRESS",
    ),
    Setting(
        "model_folders",
        ("COMFYPOD_MODEL_FOLDERS",),
        "",
        _folders,
        "further folders of models to use where they are, as ComfyUI or as A1111 has them",
    ),
    Setting("hf_token", ("HF_TOKEN",), "", str, "token for gated files of Hugging Face", secret=True),
    Setting("civitai_token", ("CIVITAI_TOKEN",), "", str, "token for Civitai", secret=True),
    Setting(
        "hf_endpoint",
        ("HF_ENDPOINT",),
        "https://huggingface.co",
        _address,
        "where Hugging Face's files are fetched, for a mirror; it is given the token",
    ),
    Setting(
        "download_rate",
        ("COMFYPOD_DOWNLOAD_RATE",),
        "0",
        _bytes,
        "how many bytes a second are fetched at most (suffix K, M or G); 0: no limit",
    ),
    Setting(
        "offline",
        ("COMFYPOD_OFFLINE",),
        "off",
        _switch,
        "use only what is there: nothing is fetched for nodes and models",
    ),
    Setting("puid", ("PUID",), "", _number, "user id that services run as, in an image that is started as root"),
    Setting("pgid", ("PGID",), "", _number, "group id that services run as; without one, that of `puid`"),
)


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

"""Every setting of a pod in one table: its names, its default, what may be given, and what it is for."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

    from comfypod.wish import Wish

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
        "cold_start",
        ("COMFYPOD_COLD_START",),
        "auto",
        _one_of("auto", "off"),
        "read ahead what ComfyUI's start is known to read, and take its imports from one file, where there is a record "
        "of such a start; `off`: as Python does it",
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

"""How a build reaches the network: mirrors and certificates, as build secrets that leave no trace in an image."""

from __future__ import annotations

import os
import re
import shlex
import ssl
import tempfile
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from comfypod import git
from comfypod.download.address import shown
from comfypod.errors import UsageError
from comfypod.lock import hosts
from comfypod.settings import secret

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

_INDEXES = ("UV_DEFAULT_INDEX", "UV_INDEX_URL", "PIP_INDEX_URL")
_CERTIFICATES = ("PIP_CERT", "SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "GIT_SSL_CAINFO")
_PROXIES = ("http_proxy", "https_proxy", "no_proxy", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY")
# The build secrets with the tokens of models' hosts, and the variables that they come from.
TOKENS = {name.lower(): name for name in hosts.TOKENS}
_PASSED = ("HF_ENDPOINT",)
_SUITE = "bookworm"
IN_BUILD = "/run/secrets"


@dataclass(frozen=True, slots=True)
class Network:
    """What a build is given of the network.

    `mode` is the engine's network for build steps. `certificates` is a bundle in PEM that takes the place of the
    image's own; `variables` are those of proxies and mirrors, `tokens` those of models' hosts by name of their secret.
    Addresses may hold passwords: none of this goes into an argument or a label.
    """

    index: str = ""
    apt_mirror: str = ""
    git_mirrors: tuple[str, ...] = ()
    certificates: bytes = b""
    variables: tuple[tuple[str, str], ...] = ()
    tokens: tuple[tuple[str, str], ...] = ()
    mode: str = "default"
    notes: tuple[str, ...] = ()


def network(
    environ: Mapping[str, str],
    *,
    index: str | None = None,
    apt_mirror: str | None = None,
    git_mirrors: Sequence[str] = (),
    ca: Path | None = None,
    mode: str = "default",
) -> Network:
    """Collect what the command line and the caller's environment say; `notes` says what came from the environment.

    Raises:
        UsageError: an address or a certificate cannot be used.
    """
    notes: list[str] = []
    if not index and (name := next((name for name in _INDEXES if environ.get(name)), None)):
        index = environ[name]
        notes.append(f"packages come from {_without_name(shown(index))} ({name})")
    mirrors = tuple(git_mirrors) or tuple(environ.get("COMFYPOD_GIT_MIRRORS", "").split())
    certificates, note = _certificates(environ, ca)
    return Network(
        index=_address("--index", _without_name(index or "")),
        apt_mirror=_address("--apt-mirror", apt_mirror or "").rstrip("/"),
        git_mirrors=_checked_mirrors(mirrors),
        certificates=certificates,
        variables=tuple((name, environ[name]) for name in (*_PROXIES, *_PASSED) if environ.get(name)),
        tokens=tuple((name, token) for name, variable in TOKENS.items() if (token := secret(environ, variable))),
        mode=mode,
        notes=(*notes, *note),
    )


def _without_name(index: str) -> str:
    """Leave out the name that uv allows in front of an index."""
    return re.sub(r"\A[\w.-]+=(?=https?://)", "", index)


def _address(option: str, url: str) -> str:
    if url and not re.fullmatch(r"https?://[^\s]+", url):
        raise UsageError(f"{option} {shown(url)}: an http or https address is expected")
    return url


def _checked_mirrors(pairs: tuple[str, ...]) -> tuple[str, ...]:
    environ = {"COMFYPOD_GIT_MIRRORS": " ".join(pairs)}
    for pair in pairs:
        place = git.mirrored(pair.partition("=")[0], environ)
        if place.startswith(("/", "file://")):
            raise UsageError(
                f"--git-mirror {shown(pair)}: a build step cannot see folders of this machine",
                "serve it, for instance with `git daemon` or over http, and give --network host",
            )
    return pairs


def _certificates(environ: Mapping[str, str], ca: Path | None) -> tuple[bytes, tuple[str, ...]]:
    """Return the bundle for builds: this machine's own and what `--ca` adds, else what SSL_CERT_FILE names."""
    if ca is not None:
        return _pem(ca) + b"\n" + _system_bundle(), ()
    named = environ.get("SSL_CERT_FILE", "")
    if named and Path(named).is_file():
        return _pem(Path(named)), (f"certificates come from {named} (SSL_CERT_FILE)",)
    return b"", ()


def _pem(path: Path) -> bytes:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UsageError(f"--ca {path}: {error.strerror}", "give a certificate in PEM") from error
    if b"-----BEGIN CERTIFICATE-----" not in data:
        raise UsageError(f"--ca {path} holds no certificate in PEM", "convert it: `openssl x509 -inform der -in FILE`")
    return data


def _system_bundle() -> bytes:
    usual = Path(ssl.get_default_verify_paths().openssl_cafile)
    debian = Path("/etc/ssl/certs/ca-certificates.crt")
    return next((path.read_bytes() for path in (debian, usual) if path.is_file()), b"")


def secrets(wanted: Network) -> dict[str, bytes]:
    """Return the contents of the build secrets by id: `build`, `ca`, `apt`, `sources`, tokens; only what there is."""
    found = {
        "build": _script(wanted),
        "ca": wanted.certificates,
        "apt": _apt(wanted),
        "sources": _sources(wanted.apt_mirror),
    }
    found |= {name: token.encode() for name, token in wanted.tokens}
    return {name: data for name, data in found.items() if data}


def _script(wanted: Network) -> bytes:
    """Write what bash reads before each step."""
    variables: dict[str, str] = dict(wanted.variables)
    if wanted.index:
        variables |= {"PIP_INDEX_URL": wanted.index, "UV_DEFAULT_INDEX": wanted.index}
    if wanted.git_mirrors:
        variables["COMFYPOD_GIT_MIRRORS"] = " ".join(wanted.git_mirrors)
    if wanted.certificates:
        variables |= dict.fromkeys(_CERTIFICATES, f"{IN_BUILD}/ca")
    if _apt(wanted):
        variables["APT_CONFIG"] = f"{IN_BUILD}/apt"
    return "".join(f"export {name}={shlex.quote(value)}\n" for name, value in sorted(variables.items())).encode()


def _apt(wanted: Network) -> bytes:
    lines = []
    if wanted.certificates:
        # apt's own user cannot read secrets, which belong to root.
        lines += [f'Acquire::https::CaInfo "{IN_BUILD}/ca";', 'APT::Sandbox::User "root";']
    if wanted.apt_mirror:
        lines += [f'Dir::Etc::SourceList "{IN_BUILD}/sources";', 'Dir::Etc::SourceParts "-";']
    return "".join(f"{line}\n" for line in lines).encode()


def _sources(mirror: str) -> bytes:
    """Write Debian's three suites; security updates stand beside the mirror's `debian` as `debian-security`."""
    if not mirror:
        return b""
    rows = (f"{mirror} {_SUITE}", f"{mirror} {_SUITE}-updates", f"{mirror}-security {_SUITE}-security")
    return "".join(f"deb {row} main\n" for row in rows).encode()


@contextmanager
def secret_files(wanted: Network) -> Iterator[dict[str, Path]]:
    """Write the secrets to private files for as long as the block runs; yields their paths by id."""
    with tempfile.TemporaryDirectory(prefix="comfypod-secrets-") as folder:
        found: dict[str, Path] = {}
        for name, data in secrets(wanted).items():
            path = Path(folder, name)
            with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as sink:
                sink.write(data)
            found[name] = path
        yield found

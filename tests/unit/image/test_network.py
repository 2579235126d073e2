from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from comfypod.errors import UsageError
from comfypod.image.network import Network, network, secret_files, secrets

if TYPE_CHECKING:
    from pathlib import Path

PEM = b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"


def sourced(script: bytes, name: str) -> str:
    """Return a variable as bash has it after the secret was read."""
    done = subprocess.run(
        ["bash", "-c", f'source /dev/stdin; printf %s "${name}"'], input=script, capture_output=True, check=True
    )
    return done.stdout.decode()


def test_nothing_wanted_is_no_secret_at_all() -> None:
    assert secrets(network({})) == {}


def test_the_caller_s_index_mirrors_and_proxies_are_handed_on() -> None:
    environ = {
        "UV_DEFAULT_INDEX": "mine=https://user:pa55@index.example/simple", "PIP_INDEX_URL": "https://other.example/",
        "COMFYPOD_GIT_MIRRORS": "https://github.com/=https://git.example/ https://a.example/=https://b.example/",
        "https_proxy": "http://proxy.example:3128",
    }  # fmt: skip
    wanted = network(environ)
    assert not any("pa55" in note for note in wanted.notes)
    assert "index.example" in wanted.notes[0]
    script = secrets(wanted)["build"]
    for name in ("PIP_INDEX_URL", "UV_DEFAULT_INDEX"):
        assert sourced(script, name) == "https://user:pa55@index.example/simple"
    assert sourced(script, "COMFYPOD_GIT_MIRRORS") == environ["COMFYPOD_GIT_MIRRORS"]
    assert sourced(script, "https_proxy") == "http://proxy.example:3128"
    assert set(secrets(wanted)) == {"build"}


def test_g9_tokens_of_models_hosts_are_secrets_of_their_own_and_no_step_else_has_them(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("civi-t0ken\n")
    environ = {
        "HF_TOKEN": "hf-t0ken",
        "CIVITAI_TOKEN_FILE": str(tmp_path / "token"),
        "HF_ENDPOINT": "https://m.example",
    }
    found = secrets(network(environ))
    assert (found["hf_token"], found["civitai_token"]) == (b"hf-t0ken", b"civi-t0ken")
    assert b"t0ken" not in found["build"]
    assert sourced(found["build"], "HF_ENDPOINT") == "https://m.example"
    assert secrets(network({"HF_TOKEN": " "})) == {}


def test_what_the_command_line_says_counts_more(tmp_path: Path) -> None:
    ca, usual = tmp_path / "ca.pem", tmp_path / "usual.pem"
    ca.write_bytes(PEM)
    usual.write_bytes(PEM.replace(b"AAAA", b"BBBB"))
    environ = {
        "PIP_INDEX_URL": "https://a/",
        "COMFYPOD_GIT_MIRRORS": "https://a/=https://b/",
        "SSL_CERT_FILE": str(usual),
    }
    wanted = network(environ, index="https://c/", git_mirrors=["https://d/=https://e/"], ca=ca, mode="host")
    assert (wanted.index, wanted.git_mirrors, wanted.mode, wanted.notes) == (
        "https://c/", ("https://d/=https://e/",), "host", (),
    )  # fmt: skip
    assert wanted.certificates.startswith(PEM)
    assert b"BBBB" not in wanted.certificates


def test_a_certificate_file_of_the_environment_is_used_and_named(tmp_path: Path) -> None:
    usual = tmp_path / "usual.pem"
    usual.write_bytes(PEM)
    wanted = network({"SSL_CERT_FILE": str(usual)})
    assert wanted.certificates == PEM
    assert wanted.notes == (f"certificates come from {usual} (SSL_CERT_FILE)",)
    found = secrets(wanted)
    assert found["ca"] == PEM
    for name in ("PIP_CERT", "SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "GIT_SSL_CAINFO"):
        assert sourced(found["build"], name) == "/run/secrets/ca"
    assert sourced(found["build"], "APT_CONFIG") == "/run/secrets/apt"
    assert 'Acquire::https::CaInfo "/run/secrets/ca";' in found["apt"].decode()
    assert network({"SSL_CERT_FILE": str(tmp_path / "none")}).certificates == b""


def test_an_apt_mirror_replaces_debian_s_three_suites() -> None:
    found = secrets(network({}, apt_mirror="http://mirror.example/debian/"))
    assert found["sources"].decode().splitlines() == [
        "deb http://mirror.example/debian bookworm main",
        "deb http://mirror.example/debian bookworm-updates main",
        "deb http://mirror.example/debian-security bookworm-security main",
    ]
    assert 'Dir::Etc::SourceList "/run/secrets/sources";' in found["apt"].decode()
    assert set(found) == {"build", "apt", "sources"}


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"index": "ftp://a/"}, "--index ftp://a/: an http or https"),
        ({"apt_mirror": "/srv/debian"}, "--apt-mirror /srv/debian"),
        ({"apt_mirror": "http://a/ trusted=yes"}, "--apt-mirror"),
        ({"git_mirrors": ["https://github.com/"]}, "FROM=TO"),
        ({"git_mirrors": ["https://github.com/=/srv/git/"]}, "cannot see folders"),
    ],
)
def test_an_address_that_cannot_be_used_is_refused(given: dict[str, str], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        network({}, **given)  # type: ignore[arg-type]


def test_a_file_that_is_no_certificate_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="No such file"):
        network({}, ca=tmp_path / "none")
    (tmp_path / "key").write_bytes(b"\x30\x82")
    with pytest.raises(UsageError, match="no certificate in PEM"):
        network({}, ca=tmp_path / "key")


@given(st.text(st.characters(blacklist_categories=["Cs", "Cc"]), max_size=40))
def test_no_password_breaks_out_of_the_script(password: str) -> None:
    script = secrets(Network(index=f"https://u:{password}@host/"))["build"]
    assert sourced(script, "PIP_INDEX_URL") == f"https://u:{password}@host/"


def test_secret_files_are_private_and_gone_afterwards() -> None:
    with secret_files(network({}, index="https://c/", apt_mirror="https://d")) as found:
        folder = found["build"].parent
        assert folder.stat().st_mode & 0o777 == 0o700
        assert {path.stat().st_mode & 0o777 for path in found.values()} == {0o600}
        assert set(found) == {"build", "apt", "sources"}
    assert not folder.exists()

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from comfypod.errors import UsageError
from comfypod.settings import resolve, secret_variables
from comfypod.settings_table import TABLE


def test_later_layers_win_and_origins_say_which(tmp_path: Path) -> None:
    (tmp_path / "comfypod.toml").write_text("[settings]\nport = 4\njupyter_port = 4\ncontrol_port = 4\n")
    built = {"workspace": str(tmp_path), "stop_seconds": "3", "port": "3"}
    environ = {"COMFYPOD_JUPYTER_PORT": "5", "COMFYPOD_CONTROL_PORT": "5"}
    settings = resolve(built, environ, {"control_port": "6"})
    assert (settings.stop_seconds, settings.port, settings.jupyter_port, settings.control_port) == (3, 4, 5, 6)
    names = ("listen", "stop_seconds", "port", "jupyter_port", "control_port")
    origins = [settings.origins[name] for name in names]
    assert origins == ["default", "pod.json", "comfypod.toml", "environment", "command line"]


@pytest.mark.parametrize("blank", ["", "  ", "null", "None", "NULL", "undefined"])
def test_g3_a_blank_token_counts_as_not_given(blank: str) -> None:
    settings = resolve({}, {"COMFYPOD_TOKEN": blank, "JUPYTER_TOKEN": blank, "JUPYTER_PASSWORD": blank}, {})
    assert (settings.token, settings.jupyter_password) == ("", "")
    assert settings.origins["token"] == "default"


def test_a_secret_comes_from_a_file_and_is_never_shown(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("s3cret\n")
    settings = resolve({}, {"COMFYPOD_TOKEN_FILE": str(tmp_path / "secret")}, {})
    assert settings.token == "s3cret"
    assert "s3cret" not in str(settings.shown())
    assert settings.shown()["token"] == {"value": "given", "origin": "environment"}


def test_names_that_users_know_keep_working() -> None:
    assert resolve({}, {"JUPYTER_TOKEN": "old"}, {}).token == "old"
    assert resolve({}, {"JUPYTER_TOKEN": "old", "COMFYPOD_TOKEN": "new"}, {}).token == "new"


def test_beyond_loopback_there_is_a_login_unless_none_was_asked_for_and_that_is_loud() -> None:
    closed = resolve({}, {"COMFYPOD_LISTEN": "0.0.0.0"}, {})
    assert (closed.listen, closed.auth, closed.problems) == ("0.0.0.0", "token", ())
    opened = resolve({}, {"COMFYPOD_LISTEN": "0.0.0.0", "COMFYPOD_AUTH": "none"}, {})
    assert [problem.code for problem in opened.problems] == ["no-login"]
    assert "0.0.0.0:8188" in opened.problems[0].message


def test_jupyterlab_answers_where_comfyui_does_unless_told_otherwise() -> None:
    assert resolve({}, {}, {}).jupyter_listen == "127.0.0.1"
    assert resolve({}, {"COMFYPOD_LISTEN": "::1"}, {}).jupyter_listen == "::1"
    assert resolve({}, {"COMFYPOD_JUPYTER_LISTEN": "0.0.0.0"}, {}).jupyter_listen == "0.0.0.0"


def test_proxies_are_trusted_by_address_or_network_and_nothing_else_is_one() -> None:
    given = resolve({}, {"COMFYPOD_TRUSTED_PROXIES": "10.1.2.3, 172.16.0.0/12 fd00::/8"}, {})
    assert given.trusted_proxies == ("10.1.2.3/32", "172.16.0.0/12", "fd00::/8")
    with pytest.raises(UsageError, match="TRUSTED_PROXIES"):
        resolve({}, {"COMFYPOD_TRUSTED_PROXIES": "proxy.example.com"}, {})


@pytest.mark.parametrize(("text", "good"), [
    ("", True), ("0", True), ("1000", True), ("4294967294", True), ("4294967295", False), ("-1", False),
    ("1e3", False), ("root", False), ("\u0661", False), ("1.0", False),
])  # fmt: skip
def test_user_and_group_are_numbers(text: str, good: bool) -> None:
    for name in ("PUID", "PGID"):
        if good:
            assert getattr(resolve({}, {name: text}, {}), name.lower()) == text
        else:
            with pytest.raises(UsageError, match=name):
                resolve({}, {name: text}, {})


@pytest.mark.parametrize("address", ["127.0.0.1", "127.3.2.1", "localhost", "::1"])
def test_loopback_needs_no_login(address: str) -> None:
    assert resolve({}, {"COMFYPOD_LISTEN": address}, {}).problems == ()


@pytest.mark.parametrize("address", ["127.example.com", "::", "10.0.0.1", "127.0.0.1.example.com"])
def test_what_only_looks_like_loopback_counts_as_open(address: str) -> None:
    opened = resolve({}, {"COMFYPOD_LISTEN": address, "COMFYPOD_AUTH": "none"}, {})
    assert [problem.code for problem in opened.problems] == ["no-login"]


def test_no_file_chooses_the_workspace_or_holds_a_secret(tmp_path: Path) -> None:
    for text in ('workspace = "/elsewhere"', 'token = "t"'):
        (tmp_path / "comfypod.toml").write_text(f"[settings]\n{text}\n")
        settings = resolve({"workspace": str(tmp_path)}, {}, {})
        assert (settings.workspace, settings.token) == (tmp_path, "")
        assert len(settings.problems) == 1


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("COMFYPOD_PORT", "80x", "COMFYPOD_PORT (environment) is '80x'"),
        ("COMFYPOD_PORT", "70000", "1 to 65535"),
        ("COMFYPOD_JUPYTER", "maybe", "`on` or `off`"),
        ("COMFYPOD_COMFYUI_ARGS", "--port 9", "use the setting `port`"),
        ("COMFYPOD_COMFYUI_ARGS", "--listen=0.0.0.0", "use the setting `listen`"),
        ("COMFYPOD_COMFYUI_ARGS", "'open", "No closing quotation"),
        ("COMFYPOD_STOP_SECONDS", "-1", "number of seconds"),
        ("COMFYPOD_MODEL_FOLDERS", "models", "a folder from / on"),
        ("COMFYPOD_DOWNLOAD_RATE", "fast", "a whole number"),
        ("HF_ENDPOINT", "mirror.example", "http:// or https://"),
    ],
)
def test_a_bad_value_names_itself_and_its_origin(name: str, value: str, words: str) -> None:
    with pytest.raises(UsageError) as caught:
        resolve({}, {name: value}, {})
    assert words in caught.value.message


@pytest.mark.parametrize("text", ["[settings]\nport = 'x'\n", "[settings", "settings = 3", "[settings]\nprot = 1\n"])
def test_a_broken_workspace_file_is_reported_and_left_out(tmp_path: Path, text: str) -> None:
    (tmp_path / "comfypod.toml").write_text(text)
    settings = resolve({"workspace": str(tmp_path)}, {}, {})
    assert settings.port == 8188
    assert [problem.code for problem in settings.problems] == ["settings"]
    assert str(tmp_path / "comfypod.toml") in settings.problems[0].message


def test_models_and_their_folders_are_words_and_paths() -> None:
    given = {"COMFYPOD_MODELS": "sdxl, template:x  sdxl", "COMFYPOD_MODEL_FOLDERS": "/a,/b '/with space' /a"}
    settings = resolve({}, {**given, "COMFYPOD_DOWNLOAD_RATE": "2M"}, {})
    assert settings.models == ("sdxl", "template:x")
    assert settings.model_folders == (Path("/a"), Path("/b"), Path("/with space"))
    assert (settings.download_rate, settings.hf_endpoint) == (2 << 20, "https://huggingface.co")


def test_g6_a_volume_does_not_say_who_is_given_a_token(tmp_path: Path) -> None:
    (tmp_path / "comfypod.toml").write_text('[settings]\nhf_endpoint = "https://evil.example"\n')
    settings = resolve({"workspace": str(tmp_path)}, {"HF_TOKEN": "canary"}, {})
    assert (settings.hf_endpoint, len(settings.problems)) == ("https://huggingface.co", 1)
    assert settings.shown()["hf_token"]["value"] == "given"


def test_every_secret_is_hidden_with_its_file_form() -> None:
    assert {"HF_TOKEN", "HF_TOKEN_FILE", "CIVITAI_TOKEN", "CIVITAI_TOKEN_FILE"} <= secret_variables()
    assert {"COMFYPOD_TOKEN", "COMFYPOD_TOKEN_FILE", "JUPYTER_TOKEN", "JUPYTER_PASSWORD"} <= secret_variables()


@given(st.dictionaries(st.sampled_from([row.variables[0] for row in TABLE]), st.text(max_size=20)))
def test_any_environment_resolves_or_is_refused_in_words(environ: dict[str, str]) -> None:
    environ.pop("COMFYPOD_WORKSPACE", None)
    try:
        settings = resolve({"workspace": "/nowhere"}, environ, {})
    except UsageError as error:
        refused = all((error.message, error.hint))
    else:
        refused = True
        assert isinstance(settings.workspace, Path)
        assert set(settings.origins) == {row.name for row in TABLE}
    assert refused


@pytest.mark.parametrize("name", ["puid", "pgid", "auth", "listen", "jupyter_listen", "control_listen", "node_policy"])
def test_a_volume_cannot_say_who_the_services_are_or_who_reaches_them(tmp_path: Path, name: str) -> None:
    value = {"auth": '"none"', "puid": "0", "pgid": "0"}.get(name, '"0.0.0.0"')
    (tmp_path / "comfypod.toml").write_text(f"[settings]\n{name} = {value}\n")
    found = resolve({"workspace": str(tmp_path)}, {}, {})
    assert found.origins[name] == "default"
    assert f"a volume may not set {name}" in found.problems[0].message


def test_a_comfypod_toml_that_is_a_pipe_or_huge_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "comfypod.toml"
    os.mkfifo(path)
    assert "not a plain file" in resolve({"workspace": str(tmp_path)}, {}, {}).problems[0].message
    path.unlink()
    path.symlink_to("/dev/zero")
    assert "not a plain file" in resolve({"workspace": str(tmp_path)}, {}, {}).problems[0].message
    path.unlink()
    path.write_bytes(b"#" * (2 << 20))
    assert "larger than 1 MiB" in resolve({"workspace": str(tmp_path)}, {}, {}).problems[0].message


@pytest.mark.parametrize("path", ["/", "/etc", "/usr/share", "/dev/../proc"])
def test_a_folder_of_the_system_is_no_workspace(path: str) -> None:
    with pytest.raises(UsageError, match="not one of the system's"):
        resolve({}, {"COMFYPOD_WORKSPACE": path}, {})


@pytest.mark.parametrize(
    ("text", "count"), [("0", 0), ("1000", 1000), ("1K", 1024), ("64M", 64 << 20), ("2g", 2 << 30), ("64m", 64 << 20)]
)
def test_bytes_are_counted_in_powers_of_1024(text: str, count: int) -> None:
    settings = resolve({}, {"COMFYPOD_DISK_FLOOR": text}, {})
    assert settings.disk_floor == count
    assert resolve({}, {}, {"disk_floor": settings.shown()["disk_floor"]["value"]}).disk_floor == count


@pytest.mark.parametrize("text", ["M", "-1", "1.5G", "1T", "64 M", "K64", "1KM"])
def test_what_is_no_number_of_bytes_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="whole number"):
        resolve({}, {"COMFYPOD_DISK_FLOOR": text}, {})

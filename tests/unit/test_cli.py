from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

import pytest

from comfypod import __version__, arguments, cli
from comfypod.arguments import parser
from comfypod.errors import UsageError, exit_code_table
from comfypod.workspace import run
from comfypod.workspace.layout import Layout
from docs import reference
from tests.kit.pods import comfypod, free_port
from tests.kit.web import Answer, Site, serve

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

VERBS = sorted(reference.verb_names())
KEYS = ["command", "status", "exit_code", "data", "errors"]


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine of its own: home, folder and settings."""
    for name in [name for name in os.environ if name.startswith(("COMFYPOD_", "JUPYTER_"))]:
        monkeypatch.delenv(name)
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("COMFYPOD_DATA", str(home / "data"))
    monkeypatch.chdir(home)
    return home


@pytest.fixture
def pod(tmp_path: Path) -> Iterator[tuple[Layout, Site]]:
    """A workspace whose pod is this process, with a web server for its control plane."""
    layout = Layout(tmp_path / "workspace")
    layout.records.mkdir(parents=True)
    layout.logs.mkdir()
    (layout.logs / "comfyui.log").write_text("one\ntwo\nthree\n")
    with serve() as site:
        site.answers["/readyz"] = site.answers["/livez"] = Answer(b"fine\n")
        boot = run.this_process()
        run.write(layout.run_record, run.RunRecord(boot, site.url))
        yield layout, site


def envelope(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    """Run one command line; check what every envelope promises, and return it."""
    code = cli.run(list(arguments), time.monotonic())
    out = capsys.readouterr().out
    assert out.count("\n") == 1
    assert out.endswith("\n")
    body: dict[str, Any] = json.loads(out)
    assert list(body) == KEYS
    assert body["exit_code"] == code
    assert body["status"] in ("success", "partial", "error")
    assert (body["status"] == "error") is (code != 0) is bool(body["errors"] and code)
    for error in body["errors"]:
        assert list(error) == ["code", "message", "hint"]
        assert error["message"]
    return body


@pytest.mark.parametrize(
    ("arguments", "code", "kind"),
    [
        (("up", "--detach", "--port", "0"), 2, "usage"),
        (("up", "--detach", "--profile", "none"), 2, "usage"),
        (("up", "--detach", "--lock", "none.lock"), 4, "lock"),
        (("up",), 2, "usage"),
        (("up", "--engine", "lxc"), 2, "usage"),
        (("down",), 12, "not-running"),
        (("status",), 12, "not-running"),
        (("status", "--bogus"), 2, "usage"),
        (("status", "--", "--cpu"), 2, "usage"),
        (("logs",), 12, "not-running"),
        (("logs", "nginx"), 2, "usage"),
        (("logs", "-n", "many"), 2, "usage"),
        (("logs", "-f"), 2, "usage"),
        (("health",), 12, "not-running"),
        (("health", "--live", "--ready"), 2, "usage"),
        (("doctor", "--profile", "none"), 2, "usage"),
        (("doctor", "--lock", "none.lock"), 4, "lock"),
        (("lock", "--manifest", "none.toml"), 2, "usage"),
        (("build", "none"), 2, "usage"),
        (("build", "cpu", "--lock", "none.lock"), 4, "lock"),
        (("build", "cpu", "--platform", "linux/s390x"), 2, "usage"),
        (("build", "cpu", "--ca", "none.pem"), 2, "usage"),
        (("build", "cpu", "--", "x"), 2, "usage"),
        (("render",), 2, "usage"),
        (("render", "helm"), 2, "usage"),
        (("render", "dockerfile"), 2, "usage"),
        (("render", "dockerfile", "none"), 2, "usage"),
        (("render", "all", "--lock", "none.lock", "--output", "out"), 4, "lock"),
        (("boot",), 2, "usage"),
        (("boot", "--set", "colour"), 2, "usage"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else str(value),
)
def test_a_failure_is_one_envelope_with_the_code_of_its_family(
    capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], code: int, kind: str
) -> None:
    verb, *rest = arguments
    body = envelope(capsys, verb, "--json", *rest)
    assert (body["command"], body["exit_code"], body["errors"][0]["code"]) == (verb, code, kind)


def test_a_success_is_one_envelope_too(capsys: pytest.CaptureFixture[str], pod: tuple[Layout, Site]) -> None:
    workspace = ("--workspace", str(pod[0].root))
    assert envelope(capsys, "health", "--json", *workspace)["data"] == {"probe": "/readyz", "word": "fine"}
    assert envelope(capsys, "health", "--live", "--json", *workspace)["data"]["probe"] == "/livez"
    assert envelope(capsys, "logs", "--json", "-n", "2", *workspace)["data"]["lines"] == ["two", "three"]


def test_render_prints_the_file_itself(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["render", "dockerfile", "cpu"], time.monotonic()) == 0
    plain = capsys.readouterr().out
    assert plain == envelope(capsys, "render", "--json", "dockerfile", "cpu")["data"]["text"]


def test_the_process_ends_with_the_code_of_the_envelope_and_prints_nothing_else(tmp_path: Path) -> None:
    done = comfypod("status", "--json", "--workspace", str(tmp_path))
    body = json.loads(done.stdout)
    assert done.returncode == body["exit_code"] == 12
    assert done.stdout.count("\n") == 1
    assert done.stderr == ""


@pytest.mark.parametrize("verb", ["down", "status", "logs", "health"])
def test_the_workspace_comes_from_the_flag_then_the_environment_then_home(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, home: Path, verb: str
) -> None:
    def named(*more: str) -> str:
        return str(envelope(capsys, verb, "--json", *more)["errors"][0]["message"])

    assert f"{home}/comfypod" in named()
    monkeypatch.setenv("COMFYPOD_WORKSPACE", "~/other")
    assert f"{home}/other" in named()
    assert f"{home}/third" in named("--workspace", "third")


@pytest.mark.parametrize("verb", ["down", "status", "logs", "health"])
def test_a_home_of_nobody_is_a_usage_error(capsys: pytest.CaptureFixture[str], verb: str) -> None:
    assert envelope(capsys, verb, "--json", "--workspace", "~no-such-user/x")["exit_code"] == 2


@pytest.mark.parametrize("verb", VERBS)
def test_help_of_a_verb_names_all_its_options(capsys: pytest.CaptureFixture[str], verb: str) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.run([verb, "--help"], time.monotonic())
    assert caught.value.code == 0
    said = capsys.readouterr().out
    assert f"usage: comfypod {verb}" in said
    actions = arguments.parser()._subparsers._group_actions[0].choices[verb]._actions  # type: ignore[union-attr, index]
    options = [option for action in actions for option in action.option_strings]
    assert {"--json", "--help"} <= set(options)
    assert [option for option in options if option not in said] == []
    assert all(action.help for action in actions if action.option_strings)


def test_help_lists_every_verb_and_every_exit_code(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.run(["--help"], time.monotonic())
    assert caught.value.code == 0
    said = " ".join(capsys.readouterr().out.split())
    for code, _, meaning in exit_code_table():
        assert f"{code} {meaning}" in said
    assert set(VERBS) == {"up", *cli._VERBS, "boot"}
    assert all(f" {verb} " in said for verb in VERBS)


def test_the_version_is_that_of_the_package(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.run(["--version"], time.monotonic())
    assert (caught.value.code, capsys.readouterr().out) == (0, f"comfypod {__version__}\n")


@pytest.mark.parametrize("arguments", [[], ["fly"], ["--", "status"], ["--bogus"]])
def test_no_verb_or_an_unknown_one_is_a_usage_error(capsys: pytest.CaptureFixture[str], arguments: list[str]) -> None:
    assert cli.run(arguments, time.monotonic()) == 2
    said = capsys.readouterr()
    assert "ERROR" in said.out
    assert "--help" in said.out
    assert "Traceback" not in said.out + said.err


def test_what_follows_two_dashes_belongs_to_comfyui_in_up_and_boot_alone(
    capsys: pytest.CaptureFixture[str],
) -> None:
    for verb in ("up", "boot"):
        body = envelope(capsys, verb, "--json", *(["--detach"] if verb == "up" else []), "--", "--port", "9")
        assert body["exit_code"] == 2
        message = body["errors"][0]["message"]
        assert "--port is set by comfypod" in message or "pod.json" in message
    assert "takes no arguments after --" in envelope(capsys, "down", "--json", "--", "x")["errors"][0]["message"]


def test_json_in_the_foreground_is_refused_with_the_reason(capsys: pytest.CaptureFixture[str]) -> None:
    assert "--detach" in envelope(capsys, "up", "--json")["errors"][0]["message"]


def test_a_reader_that_stops_reading_is_no_crash(pod: tuple[Layout, Site]) -> None:
    for more in ((), ("--json",)):
        reading, writing = os.pipe()
        os.close(reading)
        argv = [sys.executable, "-m", "comfypod", "logs", "--workspace", str(pod[0].root), *more]
        done = subprocess.run(argv, stdout=writing, stderr=subprocess.PIPE, text=True, check=False)
        os.close(writing)
        assert (done.returncode, "Traceback" in done.stderr) == (0, False), more


@pytest.mark.parametrize(
    ("signum", "code", "kind"), [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "terminated")]
)
def test_a_command_that_is_stopped_still_prints_its_envelope(
    tmp_path: Path, signum: signal.Signals, code: int, kind: str
) -> None:
    layout = Layout(tmp_path / "workspace")
    layout.records.mkdir(parents=True)
    marker = tmp_path / "asked"
    port = free_port()
    boot = run.this_process()
    run.write(layout.run_record, run.RunRecord(boot, f"http://127.0.0.1:{port}"))
    code_text = (
        "import pathlib, sys, time; from comfypod import cli, control;"
        "control.ask = lambda *_: (pathlib.Path(sys.argv[1]).touch(), time.sleep(60));"
        "sys.exit(cli.run(['health', '--json', '--workspace', sys.argv[2]], 0.0))"
    )
    argv = [sys.executable, "-c", code_text, str(marker), str(layout.root)]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as process:
        deadline = time.monotonic() + 20
        while not marker.exists() and time.monotonic() < deadline:
            time.sleep(0.02)
        process.send_signal(signum)
        out, _ = process.communicate(timeout=20)
    body = json.loads(out)
    assert process.returncode == body["exit_code"] == code
    assert (body["status"], body["errors"][0]["code"]) == ("error", kind)


@pytest.mark.parametrize("where", [0, 1, 2])
def test_words_may_stand_after_options(where: int) -> None:
    words = ["one", "two"]
    line = ["models", "pull", *words[:where], "--json", *words[where:]]
    assert parser().read(line).wanted == words


def test_an_option_that_is_not_known_is_no_word() -> None:
    with pytest.raises(UsageError, match="--colour"):
        parser().read(["models", "pull", "--colour", "red"])
    with pytest.raises(UsageError, match="red"):
        parser().read(["status", "red"])

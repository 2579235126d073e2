from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from comfypod.errors import LockError
from comfypod.lock import schema
from comfypod.lock.load import default_bytes, read_lock
from comfypod.manifest import values

TEXT = st.text('abcxyz019._-=<> \u00e9"\\', min_size=1, max_size=12)
HEX = st.text("0123456789abcdef", min_size=64, max_size=64)
NAMES = st.text("abc._-", min_size=1, max_size=8).filter(lambda name: name not in (".", ".."))
WHEELS = st.builds(schema.Wheel, NAMES, HEX, st.integers(0, 2**40))
PACKAGES = st.builds(schema.Package, TEXT, TEXT, st.lists(WHEELS, min_size=1, max_size=3).map(tuple))
SOURCES = st.one_of(
    st.builds(values.GitSource, TEXT, TEXT, st.none() | NAMES),
    st.builds(values.ArchiveSource, TEXT, st.none() | HEX),
    st.builds(values.SdistSource, TEXT, TEXT, HEX),
    st.builds(values.PathSource, TEXT),
)
ENVIRONMENTS = st.builds(
    schema.Environment, st.just("e"), st.sampled_from(["comfyui", "jupyter"]), st.sampled_from(["x86_64", "aarch64"]),
    st.sampled_from(["3.11", "3.12"]), st.lists(TEXT, max_size=3).map(tuple), st.lists(PACKAGES, max_size=3).map(tuple),
)  # fmt: skip
LOCKS = st.builds(
    schema.Lock,
    schema=st.just(schema.SCHEMA),
    comfyui=st.builds(
        schema.LockedComfyUI, TEXT, HEX.map("sha256:{}".format), st.integers(0), st.integers(0),
        st.lists(SOURCES, max_size=3).map(tuple),
    ),
    targets=st.just((schema.LockedTarget("cpu", "x86_64", "e", "e"),)),
    environments=st.tuples(ENVIRONMENTS),
    nodes=st.lists(
        st.builds(schema.LockedNode, NAMES, TEXT, TEXT, HEX, HEX.map("sha256:{}".format)), max_size=2
    ).map(tuple),
    models=st.lists(
        st.builds(schema.LockedModel, TEXT, TEXT, NAMES, NAMES, HEX, st.integers(1, 2**50)), max_size=2
    ).map(tuple),
)  # fmt: skip


@given(LOCKS)
def test_a_lock_survives_being_written_and_read(lock: schema.Lock) -> None:
    data = schema.encode(lock)
    assert schema.decode(data, "x") == lock
    assert schema.encode(schema.decode(data, "x")) == data


def test_the_lock_in_the_package_is_stored_as_it_would_be_written() -> None:
    assert schema.encode(read_lock(None)) == default_bytes()


def test_the_lock_in_the_package_holds_no_address_of_a_package_index() -> None:
    assert b"pypi" not in default_bytes()
    assert b"pythonhosted" not in default_bytes()


@pytest.mark.parametrize("name", ["..", "a/b", "/a", "", "a\\b", "a\0b"])
def test_g8_names_in_a_lock_that_could_leave_their_folder_are_refused(name: str) -> None:
    lock = read_lock(None)
    for field in ("nodes", "models"):
        row: schema.LockedNode | schema.LockedModel
        if field == "nodes":
            row = schema.LockedNode(name, "u", "r", "0" * 40, f"sha256:{'0' * 64}")
        else:
            row = schema.LockedModel("m", "u", "loras", name, "0" * 64, 1)
        import msgspec

        data = schema.encode(msgspec.structs.replace(lock, **{field: (row,)}))
        with pytest.raises(LockError, match="matching regex"):
            schema.decode(data, "x")

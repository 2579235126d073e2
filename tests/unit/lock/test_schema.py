from __future__ import annotations

import msgspec
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
ITEMS = st.from_regex(r"[A-Za-z0-9_][A-Za-z0-9_.-]*", fullmatch=True)
VERSIONS = st.from_regex(r"[0-9][0-9A-Za-z.+-]*", fullmatch=True)
WHEELS = st.builds(schema.Wheel, NAMES, HEX, st.integers(0, 2**40))
BUILT = st.builds(schema.Package, TEXT, TEXT, st.lists(WHEELS, min_size=1, max_size=3).map(tuple))
SDISTS = st.builds(schema.SourceFile, NAMES, HEX, st.integers(0, 2**40))
PACKAGES = BUILT | st.builds(schema.Package, TEXT, TEXT, sdist=SDISTS)
SOURCES = st.one_of(
    st.builds(values.GitSource, TEXT, TEXT, st.none() | NAMES),
    st.builds(values.ArchiveSource, TEXT, st.none() | HEX),
    st.builds(values.SdistSource, TEXT, TEXT, HEX),
    st.builds(values.PathSource, NAMES),
)
ENVIRONMENTS = st.builds(
    schema.Environment, st.just("e"), st.sampled_from(["comfyui", "jupyter", "comfypod"]),
    st.sampled_from(["x86_64", "aarch64"]), st.sampled_from(["3.11", "3.12"]),
    st.lists(TEXT, max_size=3).map(tuple), st.lists(PACKAGES, max_size=3).map(tuple),
    st.lists(BUILT, min_size=1, max_size=2).map(tuple),
)  # fmt: skip
LOCKS = st.builds(
    schema.Lock,
    schema=st.just(schema.SCHEMA),
    comfyui=st.builds(
        schema.LockedComfyUI, VERSIONS, HEX.map("sha256:{}".format), st.integers(0), st.integers(0),
        st.lists(SOURCES, max_size=3).map(tuple),
    ),
    targets=st.sampled_from(["", "e"]).map(lambda own: (schema.LockedTarget("cpu", "x86_64", "e", "e", own),)),
    environments=st.tuples(ENVIRONMENTS),
    nodes=st.lists(
        st.builds(schema.LockedNode, ITEMS, TEXT, TEXT, HEX, HEX.map("sha256:{}".format))
        | st.builds(
            schema.LockedNode, ITEMS, st.just(""), st.just(""), st.just(""), HEX.map("sha256:{}".format), path=TEXT
        ),
        max_size=2,
    ).map(tuple),
    models=st.lists(
        st.builds(schema.LockedModel, ITEMS, TEXT, NAMES, NAMES, HEX, st.integers(1, 2**50)),
        max_size=2,
        unique_by=lambda model: model.place,
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
        data = schema.encode(msgspec.structs.replace(lock, **{field: (row,)}))
        with pytest.raises(LockError, match="matching regex"):
            schema.decode(data, "x")


ZEROS = "0" * 64
WHEEL = schema.Package("lib", "1.0", (schema.Wheel("lib.whl", ZEROS, 10), schema.Wheel("lib2.whl", "1" * 64, 30)))
SDIST = schema.Package("pure", "1.0", sdist=schema.SourceFile("pure.tar.gz", "2" * 64, 7))
BUILDER = schema.Package("setuptools", "9.0", (schema.Wheel("s.whl", "3" * 64, 100),))


def environment(*packages: schema.Package, build: tuple[schema.Package, ...] = ()) -> schema.Environment:
    return schema.Environment("e", "comfyui", "x86_64", "3.11", (), packages, build)


def test_the_key_of_an_environment_of_wheels_never_changes() -> None:
    assert environment(WHEEL).key == "3e508d919c53eeebe8acda1247a9f675593bb157b9099524483961f412f6af16"


def test_the_key_covers_source_distributions_and_what_builds_them() -> None:
    other = msgspec.structs.replace(BUILDER, wheels=(schema.Wheel("s.whl", "4" * 64, 100),))
    changed = msgspec.structs.replace(SDIST, sdist=schema.SourceFile("pure.tar.gz", "5" * 64, 7))
    as_wheel = msgspec.structs.replace(SDIST, wheels=(schema.Wheel("pure.whl", "2" * 64, 7),), sdist=None)
    keys = {
        environment(*packages, build=build).key
        for packages, build in (
            ((SDIST,), (BUILDER,)), ((SDIST,), (other,)), ((changed,), (BUILDER,)), ((as_wheel,), (BUILDER,)),
            ((SDIST, BUILDER), ()), ((SDIST,), ()),
        )
    }  # fmt: skip
    assert len(keys) == 6


def test_what_is_downloaded_counts_the_largest_wheel_source_distributions_and_builders() -> None:
    assert environment(WHEEL).download_bytes == 30
    assert environment(WHEEL, SDIST, build=(BUILDER,)).download_bytes == 137


def node(**values: str) -> schema.LockedNode:
    return msgspec.structs.replace(schema.LockedNode("n", "", "", "", f"sha256:{ZEROS}"), **values)


def test_a_node_names_where_its_contents_come_from() -> None:
    pinned = node(url="https://h/n.git", ref="main", commit="0" * 40)
    assert pinned.source == values.GitSource("https://h/n.git", "0" * 40)
    assert node(path="nodes/n").source == values.PathSource("nodes/n")


def _refused(message: str, **changes: object) -> None:
    data = schema.encode(msgspec.structs.replace(read_lock(None), **changes))
    with pytest.raises(LockError, match=message):
        schema.decode(data, "x")


def test_h2_a_node_that_nothing_pins_is_refused() -> None:
    what = "node n has not exactly one of a commit, a folder and an archive"
    _refused(what, nodes=(node(url="https://h/n.git", ref="main"),))
    _refused(what, nodes=(node(commit="0" * 40, path="n"),))
    _refused(what, nodes=(node(commit="0" * 40, archive="0" * 64),))
    _refused("an archive without a digest", nodes=(node(archive="0" * 64, digest=""),))


def test_h2_a_package_without_any_file_is_refused() -> None:
    lock = read_lock(None)
    for changed in (
        msgspec.structs.replace(lock.environments[0], packages=(schema.Package("lib", "1.0"),)),
        msgspec.structs.replace(lock.environments[0], build=(schema.Package("lib", "1.0"),)),
    ):
        _refused("lib in .* has neither a wheel nor a source", environments=(changed, *lock.environments[1:]))


def test_h2_a_source_distribution_with_nothing_to_build_it_is_refused() -> None:
    lock = read_lock(None)
    changed = msgspec.structs.replace(lock.environments[0], packages=(SDIST,))
    _refused("source distributions and nothing that builds them", environments=(changed, *lock.environments[1:]))


def test_a_target_may_have_no_environment_of_comfypod_and_no_unknown_one() -> None:
    lock = read_lock(None)
    older = tuple(msgspec.structs.replace(target, comfypod="") for target in lock.targets)
    again = schema.decode(schema.encode(msgspec.structs.replace(lock, targets=older)), "x")
    assert b'"comfypod":' not in schema.encode(again)
    for field in ("comfyui", "jupyter", "comfypod"):
        _refused("unknown environment 'gone'", targets=(msgspec.structs.replace(lock.targets[0], **{field: "gone"}),))
    _refused("unknown environment ''", targets=(msgspec.structs.replace(lock.targets[0], jupyter=""),))


@pytest.mark.parametrize(
    "hostile", ["x$(touch PWN)", "x;PWN", "SD XL", "a,b", "x\nRUN touch PWN", "../../x", '"', "-v", ""]
)
def test_a_name_that_would_be_more_than_a_name_in_a_dockerfile_is_refused(hostile: str) -> None:
    lock = read_lock(None)
    (node,), environment = lock.nodes, lock.environments[0]
    model = schema.LockedModel(hostile, "https://example.com/m", "vae", "m.bin", "0" * 64, 1)
    for changed in (
        {"nodes": (msgspec.structs.replace(node, name=hostile),)},
        {"models": (model,)},
        {"environments": (msgspec.structs.replace(environment, name=hostile), *lock.environments[1:])},
        {"comfyui": msgspec.structs.replace(lock.comfyui, version=hostile)},
    ):
        data = msgspec.json.encode(msgspec.structs.replace(lock, **changed))
        with pytest.raises(LockError, match="is not a lock"):
            schema.decode(data, "x")

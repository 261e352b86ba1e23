"""The readers of documents, metadata and shards take any bytes; out comes the value, or an error of the store."""

import json
import struct
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numcodecs import Blosc, Zstd
from numcodecs.pcodec import PCodec

from gradsae_fast.errors import GradsaeError, StoreError
from gradsae_fast.store.arrays.metadata import parse_metadata
from gradsae_fast.store.arrays.stored import METADATA, SHARD, StoredArray, encode_array
from gradsae_fast.store.arrays.strings import decode_json, decode_strings
from gradsae_fast.store.format.claims import check_claims
from gradsae_fast.store.format.codecs import add_checksum, chunk_decoder
from gradsae_fast.store.format.layout import GENERATION_FORMAT, TOKENS
from gradsae_fast.store.places.durable import document_bytes, read_document
from gradsae_fast.store.records.commits import read_record
from gradsae_fast.store.records.identity import run_from_document
from gradsae_fast.store.records.revisions import read_revision
from tests.store.crafted import digest, places, put, signed

T = TypeVar("T")

steady = settings(
    derandomize=True, max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
scalars = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=20), st.sampled_from(["..", "/etc", "a/b"])
)
values = st.recursive(
    scalars,
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(st.text(max_size=9), inner)),
    max_leaves=9,
)

DIGEST = "ab" * 32
RECORD: dict[str, Any] = {
    "format_version": 1,
    "segment": 0,
    "counts": {"tokens": 3, "documents": 1, "masked": 0, "nnz": {"a": 4}},
    "sites": [{"name": "a", "num_latents": 16}],
    "objectives": ["m"],
    "values": ["m"],
    "columns": ["party"],
    "objects": [{"key": "tokens/mask/c.0", "length": 3, "crc32c": "0" * 8, "sha256": DIGEST}],
    "writer": {"folder": "segments/000000-ab", "host": "h", "process": 1, "time": "t"},
}
RECORD["digest"] = digest(RECORD)
GENERATION: dict[str, Any] = {
    "format": GENERATION_FORMAT,
    "format_version": 2,
    "generation": 1,
    "first_segment": 2,
    "identity": {"corpus": "x"},
    "settings": {
        "num_segments": 2,
        "precision_bits": 10,
        "profile": "compact",
        "aggregates_include_special": False,
        "closed": True,
    },
    "run": {},
}
REVISION: dict[str, Any] = {
    "format": "gradsae.revision",
    "format_version": 1,
    "revision": 1,
    "replaced": [{"segments": [0, 1], "digests": [DIGEST, DIGEST[::-1]], "segment": RECORD}],
    "dropped": [{"key": "k", "segment": 0}],
    "withdrawn": [{"segment": 0, "digest": DIGEST}],
    "writer": {"host": "h"},
}


def read_or_error(read: Callable[..., T], *arguments: Any) -> T | str:
    """What is read, or what the error of the project says."""
    try:
        return read(*arguments)
    except GradsaeError as error:
        return str(error)


def mutated(document: dict[str, Any]) -> st.SearchStrategy[dict[str, Any]]:
    """The document with one or two values exchanged for others, or gone."""

    @st.composite
    def draw_one(draw: st.DrawFn) -> dict[str, Any]:
        changed = json.loads(json.dumps(document))
        for _ in range(draw(st.integers(1, 2))):
            path = draw(st.sampled_from(list(places(changed))))
            put(changed, path, draw(values))
        if draw(st.booleans()):
            changed.pop(draw(st.sampled_from(sorted(changed))))
        return changed

    return draw_one()


def written(path: Path, data: bytes) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(data)
    return path


def test_the_documents_that_are_mutated_here_are_sound(tmp_path: Path) -> None:
    check_claims(read_record(written(tmp_path / "commits" / "000000.json", signed(RECORD))).facts, 0, "x")
    assert read_revision(written(tmp_path / "revisions" / "000001.json", signed(REVISION))).number == 1
    assert run_from_document(tmp_path, GENERATION, GENERATION_FORMAT).num_segments == 2


@steady
@given(data=st.binary(max_size=200))
def test_any_bytes_are_a_document_or_an_error(tmp_path: Path, data: bytes) -> None:
    path = written(tmp_path / "run.json", data)
    with pytest.raises(StoreError, match=r"run\.json is damaged"):
        read_document(path)


@steady
@given(document=st.dictionaries(st.text(max_size=9), values))
def test_what_is_written_is_read_back_or_was_refused(tmp_path: Path, document: dict[str, Any]) -> None:
    path = tmp_path / "run.json"
    path.write_bytes(document_bytes(document))
    found = read_document(path)
    found.pop("checksum")
    document.pop("checksum", None)
    assert json.dumps(found, sort_keys=True) == json.dumps(document, sort_keys=True)


@steady
@given(document=mutated(RECORD))
def test_a_mutated_commit_record_is_read_or_an_error(tmp_path: Path, document: dict[str, Any]) -> None:
    if isinstance(document.get("objects"), list):
        document["digest"] = digest(document)
    path = written(tmp_path / "commits" / "000000.json", signed(document))
    record = read_or_error(read_record, path)
    claims = record if isinstance(record, str) else read_or_error(check_claims, record.facts, 0, path)
    if isinstance(record, str) or isinstance(claims, str):
        assert "000000.json" in str(claims)
        return
    assert tmp_path in (tmp_path / record.folder).parents
    assert all(isinstance(site["name"], str) for site in record.facts["sites"])


@steady
@given(document=mutated(GENERATION))
def test_a_mutated_generation_or_run_is_read_or_an_error(tmp_path: Path, document: dict[str, Any]) -> None:
    path = written(tmp_path / "generations" / "000001.json", signed(document))
    record = read_or_error(lambda: run_from_document(path, read_document(path), GENERATION_FORMAT))
    if isinstance(record, str):
        assert "000001.json" in record
        return
    assert 0 <= record.num_segments <= 2**31
    assert isinstance(record.identity, dict)


@steady
@given(document=mutated(REVISION))
def test_a_mutated_revision_is_read_or_an_error(tmp_path: Path, document: dict[str, Any]) -> None:
    path = written(tmp_path / "revisions" / "000001.json", signed(document))
    revision = read_or_error(read_revision, path)
    if isinstance(revision, str):
        assert "000001.json" in revision
        return
    assert all(isinstance(number, int) for one in revision.replaced for number in one.segments)


METADATA_OF_AN_ARRAY: dict[str, Any] = json.loads(
    encode_array(np.arange(100, dtype=np.uint32), TOKENS[0], "compact")[METADATA]
)


@steady
@given(metadata=mutated(METADATA_OF_AN_ARRAY))
def test_mutated_metadata_is_read_or_an_error(metadata: dict[str, Any]) -> None:
    try:
        found = parse_metadata(json.dumps(metadata).encode())
    except StoreError:
        return
    assert found.length >= 0
    assert 1 <= found.chunk <= 65_536


@steady
@given(data=st.binary(max_size=60))
def test_any_bytes_are_metadata_or_an_error(data: bytes) -> None:
    with pytest.raises(StoreError):
        parse_metadata(data)


ENCODED = {
    "numcodecs.pcodec": bytes(PCodec().encode(np.arange(100, dtype=np.uint32) % 7)),
    "zstd": bytes(Zstd().encode(np.arange(100, dtype=np.uint32) % 7)),
    "blosc": bytes(Blosc(cname="zstd").encode(np.arange(100, dtype=np.uint32) % 7)),
}


@pytest.mark.parametrize("codec", ENCODED)
@steady
@given(flips=st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), max_size=6), cut=st.integers(0, 400))
def test_a_chunk_of_any_bytes_with_a_sound_checksum_decodes_to_its_length_or_is_an_error(
    codec: str, flips: list[tuple[int, int]], cut: int
) -> None:
    data = bytearray(ENCODED[codec])
    for at, value in flips:
        data[at % len(data)] = value
    names = [codec, "crc32c"] if codec.startswith("numcodecs") else ["bytes", codec, "crc32c"]
    decode = chunk_decoder([{"name": name} for name in names], np.dtype("uint32"), 100)
    try:
        found = decode(add_checksum(bytes(data[: len(data) - cut % 3])))
    except (StoreError, ValueError, RuntimeError):
        return
    assert (len(found), found.dtype) == (100, np.dtype("uint32"))


@steady
@given(
    index=st.lists(
        st.tuples(st.integers(0, 2**64 - 1) | st.integers(0, 500), st.integers(0, 2**64 - 1) | st.integers(0, 500))
    ),
    length=st.integers(0, 2**48),
    chunk=st.integers(1, 65_536),
    start=st.integers(0, 2**48),
)
def test_a_shard_with_any_index_is_read_or_an_error(
    tmp_path: Path, index: list[tuple[int, int]], length: int, chunk: int, start: int
) -> None:
    folder = tmp_path / "x"
    folder.mkdir(exist_ok=True)
    metadata = json.loads(json.dumps(METADATA_OF_AN_ARRAY))
    metadata["shape"], metadata["codecs"][0]["configuration"]["chunk_shape"] = [length], [chunk]
    (folder / METADATA).write_text(json.dumps(metadata), encoding="utf-8")
    entries = b"".join(struct.pack("<QQ", *entry) for entry in index)
    (folder / SHARD).write_bytes(add_checksum(ENCODED["numcodecs.pcodec"]) + add_checksum(entries))
    stored = StoredArray(folder, "x")
    some = partial(stored.read, min(start, length), min(start + 70_000, length))
    for read in (stored.read, stored.damaged_chunks, some):
        found = read_or_error(read)
        assert not isinstance(found, str) or "x: " in found


@steady
@given(data=st.binary(max_size=30), offsets=st.lists(st.integers(-3, 40), max_size=6))
def test_texts_of_any_bytes_and_borders_are_read_or_an_error(data: bytes, offsets: list[int]) -> None:
    for decode in (decode_strings, decode_json):
        found = read_or_error(decode, np.frombuffer(data, np.uint8), np.array(offsets, np.int64), "x")
        assert found.startswith("x: ") if isinstance(found, str) else len(found) == len(offsets) - 1

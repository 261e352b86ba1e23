"""A store that someone made to do harm is an error, quickly: nothing outside it is touched, no memory is exhausted."""

import json
import os
import resource
import shutil
import struct
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numcodecs import Blosc, Zstd
from numcodecs.pcodec import PCodec

from gradsae_fast.errors import GradsaeError, StoreError
from gradsae_fast.ranking.index import build_index
from gradsae_fast.store import ScoreWriter, open_scores, repair, verify
from gradsae_fast.store.arrays.stored import SHARD, StoredArray, encode_array
from gradsae_fast.store.format.codecs import add_checksum
from gradsae_fast.store.format.layout import TOKENS
from gradsae_fast.store.places.durable import read_document
from gradsae_fast.store.segment import StoredSegment
from tests.store.crafted import change_document, change_object, places, put, signed, touching_only
from tests.store.synthetic import IDENTITY, SITE, make_segment
from tests.store.test_hostile_disks import run_child

OpenWriter = Callable[..., ScoreWriter]

FOLDERS = [
    "../../outside",
    "../outside",
    "/etc",
    "segments",
    "segments/..",
    "segments/../../outside",
    "facts/x",
    "segments/a/b",
    "segments//a",
    "segments/a\\..\\b",
    "segments/\x00",
    "",
    None,
    7,
    ["segments", "a"],
]
KEYS = ["../../../outside/secret", "/etc/hostname", "tokens/../../x", "tokens\\x", "a\x00", "", ".", None, 3, "x" * 300]
ODD: list[Any] = [None, True, -1, 1.5, 10**30, float("nan"), "../../x", "x" * 300, [[]], {"a": {}}]


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    """A folder beside the store, with a file that must stay as it is."""
    folder = tmp_path / "outside"
    folder.mkdir()
    (folder / "secret").write_bytes(b"of value\n")
    (folder / ".tmp-note").write_bytes(b"of value too\n")
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def record_of(store: Path, index: int = 0) -> Path:
    return store / "commits" / f"{index:06d}.json"


def read_all(store: Path) -> None:
    """Read everything of a store."""
    opened = open_scores(store)
    opened.check_objects()
    opened.token_strings()
    opened.decoder_norms(SITE)
    opened.facts("gate")
    opened.exact_dense()
    for segment in opened.segments:
        segment.tokens()
        segment.documents()
        site = segment.site(SITE)
        site.by_token()
        site.by_latents(0, site.num_latents)
        site.document_sums()
        site.latent_stats()


def test_nothing_but_the_store_is_touched_by_reading_and_writing_a_sound_one(
    finished: Path, open_writer: OpenWriter
) -> None:
    with touching_only(finished):
        read_all(finished)
        assert verify(finished) == []
        assert repair(finished) == []
        build_index(finished)
        with open_writer() as writer:
            assert writer.committed == {0, 1}


@pytest.mark.parametrize("folder", FOLDERS)
def test_no_folder_that_a_record_names_leads_out_of_the_store(
    finished: Path, outside: Path, open_writer: OpenWriter, folder: object
) -> None:
    before = contents(outside)
    for record in (record_of(finished), finished / "dictionary" / "commit.json"):
        original = record.read_bytes()
        change_document(record, lambda document: document["writer"].update(folder=folder))
        with touching_only(finished):
            with pytest.raises(StoreError, match=rf"{record.name} is damaged or was not written by gradsae-fast"):
                read_all(finished)
            faults = verify(finished)
        assert [fault.object for fault in faults] == [str(record.relative_to(finished))]
        record.write_bytes(original)
    change_document(record_of(finished), lambda document: document["writer"].update(folder=folder))
    with touching_only(finished), pytest.raises(StoreError, match="is damaged or was not written"), open_writer():
        pass
    with touching_only(finished):
        assert repair(finished) == [0]
        with open_writer() as writer:
            writer.write(make_segment(0))
    assert verify(finished) == []
    assert contents(outside) == before


@pytest.mark.parametrize("key", KEYS)
def test_no_key_of_an_object_leads_out_of_its_folder(finished: Path, outside: Path, key: object) -> None:
    before = contents(outside)
    change_document(record_of(finished), lambda document: document["objects"][0].update(key=key))
    with touching_only(finished):
        with pytest.raises(StoreError, match=r"000000\.json is damaged or was not written by gradsae-fast"):
            read_all(finished)
        assert [fault.object for fault in verify(finished)] == ["commits/000000.json"]
        assert repair(finished) == [0]
    assert contents(outside) == before


def test_no_folder_that_an_index_names_leads_out_of_the_store(finished: Path, outside: Path) -> None:
    build_index(finished)
    (record,) = (finished / "index").glob("*.json")
    original = record.read_bytes()
    for folder in (*FOLDERS, "index/x", "dictionary/x"):

        def change(document: dict[str, Any], folder: object = folder) -> None:
            document["segments"][0]["folder"] = folder

        change_document(record, change)
        with touching_only(finished), pytest.raises(StoreError, match="is damaged or was not written by gradsae-fast"):
            open_scores(finished)
        record.write_bytes(original)
    assert contents(outside) == {"secret": b"of value\n", ".tmp-note": b"of value too\n"}


@pytest.mark.parametrize("name", ["../../outside", "/etc/passwd", "..", "a/../../b", "C:\\x", "nul", "\x00", "é" * 200])
def test_names_out_of_a_record_never_become_paths_of_their_own(finished: Path, outside: Path, name: str) -> None:
    def rename(document: dict[str, Any]) -> None:
        document["sites"][0]["name"] = document["objectives"][0] = document["columns"][0] = name
        document["values"] = [name]
        document["counts"]["nnz"] = {name: document["counts"]["nnz"].pop(SITE)}

    change_document(record_of(finished), rename)
    reads: list[Callable[[StoredSegment], object]] = [
        StoredSegment.metadata,
        StoredSegment.objective_values,
        lambda segment: segment.site(name).by_token(),
    ]
    for read in reads:
        with touching_only(finished), pytest.raises(StoreError):
            read(open_scores(finished).segments[0])
    assert contents(outside) == {"secret": b"of value\n", ".tmp-note": b"of value too\n"}


def test_a_store_behind_a_link_is_read_and_written(finished: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(finished)
    (tmp_path / "above").symlink_to(tmp_path)
    for path in (tmp_path / "link", tmp_path / "above" / "scores"):
        read_all(path)
        assert verify(path) == []
        settings: dict[str, Any] = {"run": {}, "identity": IDENTITY, "num_segments": 2}
        with ScoreWriter.create_or_resume(path, **settings) as writer:
            assert writer.committed == {0, 1}
        build_index(path)
        assert open_scores(path).index is not None


LINKED = [
    "run.json",
    "commits",
    "commits/000000.json",
    "segments",
    "segments/*",
    "segments/*/tokens",
    "segments/*/tokens/mask",
    "segments/*/tokens/mask/c.0",
    "segments/*/tokens/mask/zarr.json",
    "segments/*/sites",
    "dictionary",
    "dictionary/commit.json",
    "dictionary/*/tokens/bytes/c.0",
    "facts",
    "facts/gate.json",
]


@pytest.mark.parametrize("where", LINKED)
def test_a_link_below_a_store_is_not_followed_by_a_reader(finished: Path, outside: Path, where: str) -> None:
    path = sorted(path for path in finished.glob(where) if path.name != "commit.json" or where.endswith(".json"))[0]
    path.rename(outside / "moved")
    path.symlink_to(outside / "moved")
    with touching_only(finished):
        with pytest.raises(StoreError, match=r"symbolic link|not a plain file"):
            read_all(finished)
        try:
            faults = [str(fault) for fault in verify(finished)]
        except StoreError as error:
            faults = [str(error)]
    assert any("symbolic link" in fault or "not a plain file" in fault for fault in faults)


@pytest.mark.parametrize(
    "where", ["commits", "segments", "dictionary", "facts", "index", "described", "exact", "dropped"]
)
def test_a_link_below_a_store_is_never_written_or_deleted_through(
    finished: Path, outside: Path, open_writer: OpenWriter, where: str
) -> None:
    before = contents(outside)
    path = finished / where
    if path.exists():
        path.rename(finished.parent / "away")
    path.symlink_to(outside)
    with touching_only(finished):
        for write in (lambda: open_writer().close(), lambda: repair(finished), lambda: build_index(finished)):
            with pytest.raises(StoreError, match=f"{where} is a symbolic link; in a store none is followed"):
                write()
    assert contents(outside) == before


def test_a_link_in_the_place_of_the_lock_does_not_destroy_a_file(
    finished: Path, outside: Path, open_writer: OpenWriter
) -> None:
    (finished / "writer.lock").unlink(missing_ok=True)
    (finished / "writer.lock").symlink_to(outside / "secret")
    with pytest.raises(StoreError, match="symbolic link"):
        open_writer()
    assert (outside / "secret").read_bytes() == b"of value\n"


def test_leftovers_that_are_links_are_deleted_as_links(finished: Path, outside: Path, open_writer: OpenWriter) -> None:
    before = contents(outside)
    (finished / "segments" / "000009-0123").symlink_to(outside)
    (finished / "segments" / "000008-0123").mkdir()
    (finished / "segments" / "000008-0123" / "tokens").symlink_to(outside)
    (finished / "commits" / ".tmp-1").symlink_to(outside / "secret")
    open_writer().close()
    assert not (finished / "segments" / "000008-0123").exists()
    assert not (finished / "commits" / ".tmp-1").is_symlink()
    assert contents(outside) == before


@pytest.mark.parametrize("where", ["run.json", "commits/000000.json", "segments/*/tokens/mask/c.0", "facts/gate.json"])
def test_a_pipe_in_a_store_does_not_make_a_reader_wait(finished: Path, where: str) -> None:
    path = sorted(finished.glob(where))[0]
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(StoreError, match=r"is a folder, pipe or device|not a plain file"):
        read_all(finished)


def documents(store: Path) -> list[Path]:
    return [store / "run.json", record_of(store), store / "dictionary" / "commit.json", store / "facts" / "gate.json"]


@pytest.mark.parametrize("number", range(4))
def test_a_field_of_any_other_type_is_an_error_of_the_store_or_of_no_consequence(finished: Path, number: int) -> None:
    path = documents(finished)[number]
    original = path.read_bytes()
    document = json.loads(original)
    refused = 0
    for place in places(document):
        if place[0] == "objects" and place[1:2] not in ((), (0,)):
            continue
        for value in ODD:
            changed = json.loads(original)
            put(changed, place, value)
            path.write_bytes(signed(changed))
            try:
                read_all(finished)
            except GradsaeError as error:
                refused += isinstance(error, StoreError)
    path.write_bytes(original)
    assert refused > (0 if number == 3 else 40)


@pytest.mark.parametrize(
    ("where", "value", "message"),
    [
        (("settings", "num_segments"), -1, "settings.num_segments is -1; expected a whole number from 0 to"),
        (("settings", "num_segments"), 10**15, "settings.num_segments is 1000000000000000; expected a whole"),
        (("settings", "precision_bits"), "10", "settings.precision_bits is '10'; expected a whole number"),
        (("settings",), [], r"settings is \[\]; expected an object with named fields"),
        (("identity",), None, "identity is None; expected an object with named fields"),
    ],
)
def test_an_odd_field_is_named_with_what_it_is_and_what_was_expected(
    finished: Path, where: tuple[str, ...], value: object, message: str
) -> None:
    change_document(finished / "run.json", lambda document: put(document, where, value))
    with pytest.raises(StoreError, match=rf"run\.json is damaged or was not written by gradsae-fast: {message}"):
        open_scores(finished)


def shard_of(*chunks: bytes, times: int = 1) -> bytes:
    """A shard of these chunks, whose index names them so many times."""
    encoded = [add_checksum(chunk) for chunk in chunks]
    at = np.cumsum([0, *map(len, encoded)]).tolist()
    entries = [struct.pack("<QQ", offset, len(data)) for offset, data in zip(at, encoded, strict=False)]
    return b"".join(encoded) + add_checksum(b"".join(entries) * times)


def metadata_of(folder: Path, **changes: Any) -> bytes:
    metadata = json.loads((folder / "zarr.json").read_bytes())
    if "chunk" in changes:
        metadata["codecs"][0]["configuration"]["chunk_shape"] = [changes["chunk"]]
    if "length" in changes:
        metadata["shape"] = [changes["length"]]
    return json.dumps(metadata).encode()


def craft(store: Path, array: str, objects: dict[str, bytes], counts: dict[str, int] | None = None) -> None:
    """Change objects of an array of segment 0, and what the record counts."""
    for name, data in objects.items():
        change_object(record_of(store), store, f"{array}/{name}", data)
    change_document(record_of(store), lambda document: document["counts"].update(counts or {}))


def test_bombs_are_refused_in_a_gigabyte_of_memory(finished_once: Path, tmp_path: Path) -> None:
    """Each claims to be more than fits, in its own way; none may take the memory or the time that it asks for."""
    stores = tmp_path / "stores"

    def store(name: str) -> Path:
        return Path(shutil.copytree(finished_once, stores / name))

    def folder(path: Path, array: str) -> Path:
        return path / read_document(record_of(path))["writer"]["folder"] / array

    path = store("claims-elements")
    data = metadata_of(folder(path, "tokens/token_id"), length=10**15)
    craft(path, "tokens/token_id", {"zarr.json": data}, {"tokens": 10**15})
    path = store("claims-elements-that-are-counted")
    data = metadata_of(folder(path, "tokens/token_id"), length=2**24)
    craft(path, "tokens/token_id", {"zarr.json": data}, {"tokens": 2**24})
    path = store("claims-bytes")
    data = metadata_of(folder(path, "documents/text/bytes"), length=2**32)
    craft(path, "documents/text/bytes", {"zarr.json": data})
    path = store("claims-chunks")
    data = metadata_of(folder(path, "tokens/token_id"), length=2**24, chunk=1)
    craft(path, "tokens/token_id", {"zarr.json": data}, {"tokens": 2**24})
    path = store("claims-chunk")
    craft(path, "tokens/token_id", {"zarr.json": metadata_of(folder(path, "tokens/token_id"), chunk=2**40)})
    path = store("one-chunk-many-times")
    chunk = bytes(PCodec().encode(np.zeros(65_536, np.uint32)))
    data = metadata_of(folder(path, "tokens/token_id"), length=2**24, chunk=65_536)
    craft(path, "tokens/token_id", {"zarr.json": data, SHARD: shard_of(chunk, times=256)}, {"tokens": 2**24})
    path = store("pcodec-bomb")
    craft(path, "tokens/token_id", {SHARD: shard_of(bytes(PCodec().encode(np.zeros(1 << 24, np.uint32))))})
    path = store("zstd-bomb")
    craft(path, "tokens/mask", {SHARD: shard_of(bytes(Zstd(level=3).encode(np.zeros(1 << 27, np.uint8))))})
    path = store("zstd-that-lies")
    lie = bytearray(bytes(Zstd(level=3).encode(np.zeros(1 << 27, np.uint8))))
    assert lie[4] >> 6 == 2  # a length of four bytes, behind the window's
    lie[6 - (lie[4] >> 5 & 1) : 10 - (lie[4] >> 5 & 1)] = (40).to_bytes(4, "little")
    craft(path, "tokens/mask", {SHARD: shard_of(bytes(lie))})
    path = store("blosc-bomb")
    portable = encode_array(np.zeros(40, np.uint8), TOKENS[-1], "portable")
    bomb = bytes(Blosc(cname="zstd", clevel=5).encode(np.zeros(1 << 24, np.uint8)))
    craft(path, "tokens/mask", {"zarr.json": portable["zarr.json"], SHARD: shard_of(bomb)})
    path = store("a-large-document")
    (path / "run.json").write_bytes(signed({"x": "y" * (70 << 20)}))
    path = store("a-wide-document")
    (path / "run.json").write_bytes(signed({"x": [{}] * (3 << 20)}))
    path = store("a-deep-document")
    (path / "run.json").write_bytes(b'{"x": ' + b"[" * 200_000 + b"]" * 200_000 + b"}\n")
    path = store("deep-metadata")
    craft(path, "tokens/mask", {"zarr.json": b"[" * 60_000})
    path = store("long-metadata")
    craft(path, "tokens/mask", {"zarr.json": b" " * (200 << 20)})
    path = store("endless-file")
    (path / "run.json").unlink()
    (path / "run.json").symlink_to("/dev/zero")

    found = run_child("open_hostile", stores)
    assert found.keys() == {path.name for path in stores.iterdir()}
    for name, errors in found.items():
        assert errors, name
    assert "counts.tokens is 1000000000000000; expected a whole number from 0 to" in str(found["claims-elements"])
    assert "its shard index cannot be read" in str(found["claims-elements-that-are-counted"])
    assert "its shard index cannot be read" in str(found["claims-bytes"])
    assert "its shard index cannot be read" in str(found["claims-chunks"])
    assert "expected 1 to 65536 elements" in str(found["claims-chunk"])
    assert "its shard has chunk 1 at 0" in str(found["one-chunk-many-times"])
    assert "it holds another number of numbers; expected 40" in str(found["pcodec-bomb"])
    assert "it holds 134217728 bytes; expected 40" in str(found["zstd-bomb"])
    assert "chunk 0 is damaged" in str(found["zstd-that-lies"])
    assert "it holds 16777216 bytes; expected 40" in str(found["blosc-bomb"])
    assert "a document of" in str(found["a-large-document"])
    assert "expected at most 2,097,152 values" in str(found["a-wide-document"])
    assert "is damaged: it is not JSON" in str(found["a-deep-document"])
    assert "its metadata cannot be read" in str(found["deep-metadata"])
    assert "symbolic link" in str(found["endless-file"])


def test_a_merge_and_a_drop_take_no_more_memory_than_there_is(finished_once: Path, tmp_path: Path) -> None:
    claims = Path(shutil.copytree(finished_once, tmp_path / "stores" / "claims-segments"))
    change_document(claims / "run.json", lambda document: document["settings"].update(num_segments=2**31))
    sparse = Path(shutil.copytree(finished_once, tmp_path / "stores" / "sparse-object"))

    def stretch(document: dict[str, Any]) -> None:
        (shard,) = [one for one in document["objects"] if one["key"] == "tokens/mask/c.0"]
        shard["length"] = 5 << 28
        os.truncate(sparse / document["writer"]["folder"] / shard["key"], shard["length"])

    change_document(record_of(sparse), stretch)
    found = run_child("merge_hostile", tmp_path / "stores")
    verified, merged, dropped = found["claims-segments"]
    assert verified == "[]"
    assert "num_segments=2, num_skipped=0, num_missing=2147483646" in merged
    assert "num_documents=2" in dropped
    verified, merged, dropped = found["sparse-object"]
    assert "crc32c is" in verified
    assert "has 1,342,177,280 bytes, which is more memory than there is" in merged
    assert "is not what was committed, so segment 0 is not rewritten" in dropped


def test_a_document_deeper_than_any_that_is_written_is_refused(finished: Path) -> None:
    deep: Any = 0
    for _ in range(100):
        deep = [deep]
    change_document(finished / "run.json", lambda document: document["run"].update(x=deep))
    with pytest.raises(StoreError, match="inside each other more than 64 deep"):
        open_scores(finished)


@pytest.mark.parametrize(
    ("array", "change", "message"),
    [
        ("tokens/document", lambda v: v + 1, "speaks of document 4 of 4"),
        ("tokens/position", lambda v: v.astype(np.float32), "it holds numbers of type float32; expected uint32"),
        ("tokens/position", lambda v: v[:-1], "it has 39 elements; expected 40, as its commit record counts"),
        ("documents/key/offsets", lambda v: v[::-1], "its offsets are not borders in its"),
        ("documents/key/bytes", lambda v: v | 0x80, "its bytes are not UTF-8"),
        ("documents/metadata/%50arty/bytes", lambda v: v * 0 + 34, "is not a JSON value|not a JSON value"),
        (f"sites/{SITE}/by_token/indices", lambda v: v + 64, "speaks of latent"),
        (f"sites/{SITE}/by_token/indptr", lambda v: v[::-1], "borders that do not ascend|another array speaks of"),
        (f"sites/{SITE}/by_latent/token_gap", lambda v: v + 1000, "speaks of token"),
        (f"sites/{SITE}/documents/indices", lambda v: v + 64, "speaks of latent"),
    ],
)
def test_numbers_that_contradict_each_other_are_an_error_of_the_store(
    finished: Path, array: str, change: Callable[[Any], Any], message: str
) -> None:
    segment = open_scores(finished).segments[0]
    values = change(StoredArray(segment.folder / array, "x").read())
    objects = encode_array(np.ascontiguousarray(values), TOKENS[0], "compact")
    for name, data in objects.items():
        change_object(record_of(finished), finished, f"{array}/{name}", data)
    assert [fault for fault in verify(finished) if "commits" in fault.object] == []
    with pytest.raises(StoreError, match=message):
        read_all(finished)


def test_the_limit_of_memory_of_these_tests_is_real() -> None:
    done = subprocess.run(
        ["python3", "-c", "import resource; resource.setrlimit(resource.RLIMIT_AS, (1 << 30,) * 2); bytes(2 << 30)"],
        capture_output=True,
        text=True,
    )
    assert "MemoryError" in done.stderr
    assert resource.getrlimit(resource.RLIMIT_AS)[0] != 1 << 30

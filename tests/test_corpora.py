"""What `gradsae info` says of the corpora of a store that was changed."""

from dataclasses import replace
from pathlib import Path

from gradsae_fast.store.changes.compact import compact_segments
from gradsae_fast.store.changes.drop import drop_documents
from tests.store.corpora import NEW, OLD, corpus_segment, open_corpus_writer, write_corpus
from tests.terminal import gradsae


def lines(store: Path, name: str) -> list[str]:
    """The lines of `gradsae info` that begin with a name, without it."""
    found = gradsae("info", store).out.splitlines()
    return [line.removeprefix(name).strip() for line in found if line.startswith(name)]


def test_a_compacted_corpus_is_whole_though_it_has_fewer_segments(tmp_path: Path) -> None:
    store = write_corpus(write_corpus(tmp_path / "store", OLD), NEW, append=True)
    compact_segments(store)
    first, second = lines(store, "generation")
    assert first.startswith("0: 0a1b.jsonl; 4 of 4 segments, in 1 now, 16 documents, ")
    assert second.startswith("1: 2c3d.jsonl; 3 of 3 segments, in 1 now, 12 documents, ")


def test_a_dropped_key_that_was_appended_again_is_not_said_to_be_gone(tmp_path: Path) -> None:
    store = write_corpus(tmp_path / "store", OLD)
    drop_documents(store, ["0a1b-1-2"])
    assert lines(store, "dropped") == ["1 document, for good"]
    with open_corpus_writer(store, NEW, append=True) as writer:
        segment = corpus_segment(NEW, 0)
        writer.write(replace(segment, documents=replace(segment.documents, key=["a", "0a1b-1-2", "c", "d"])))
    assert lines(store, "dropped") == ["1 document, for good; 1 key of theirs in use again, by what was appended since"]

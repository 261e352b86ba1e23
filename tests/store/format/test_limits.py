"""Nothing is written that no reader takes, and nothing longer is believed: both have the same bounds."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gradsae_fast.errors import StoreError
from gradsae_fast.store import ScoreWriter, open_scores
from gradsae_fast.store.arrays import strings
from gradsae_fast.store.format import contracts
from gradsae_fast.store.format.claims import LONGEST_OBJECT, MOST_LATENTS, MOST_NONZEROS, MOST_TOKENS
from gradsae_fast.store.records import objects
from tests.store.crafted import change_document, change_object, put
from tests.store.synthetic import SITE, make_segment

OpenWriter = Callable[..., ScoreWriter]


@pytest.mark.parametrize(
    ("bound", "most", "fits", "message"),
    [
        ("MOST_LATENTS", 64, {"num_latents": 64}, "has 65 latents; expected at most 64"),
        ("MOST_TOKENS", 40, {"num_tokens": 40}, "has 41 tokens; expected at most 40"),
        ("MOST_TOKENS", 4, {"num_tokens": 3, "num_documents": 4}, "has 5 documents; expected at most 4"),
    ],
)
def test_a_segment_at_a_bound_is_written_and_one_above_it_is_not(
    open_writer: OpenWriter, monkeypatch: pytest.MonkeyPatch, bound: str, most: int, fits: dict[str, Any], message: str
) -> None:
    monkeypatch.setattr(contracts, bound, most)
    *_, largest = fits
    with open_writer() as writer:
        with pytest.raises(StoreError, match=message):
            writer.write(make_segment(0, **{**fits, largest: most + 1}))
        writer.write(make_segment(0, **fits))


def test_more_active_latents_than_a_reader_takes_are_not_written(
    open_writer: OpenWriter, monkeypatch: pytest.MonkeyPatch
) -> None:
    segment = make_segment(0)
    num_nonzeros = len(segment.sites[SITE].indices)
    with open_writer() as writer:
        monkeypatch.setattr(contracts, "MOST_NONZEROS", num_nonzeros - 1)
        with pytest.raises(StoreError, match=f"has {num_nonzeros} active latents; expected at most {num_nonzeros - 1}"):
            writer.write(segment)
        monkeypatch.setattr(contracts, "MOST_NONZEROS", num_nonzeros)
        writer.write(segment)


def test_longer_texts_and_objects_than_a_reader_takes_are_not_written(
    open_writer: OpenWriter, monkeypatch: pytest.MonkeyPatch
) -> None:
    with open_writer() as writer:
        with monkeypatch.context() as patch:
            patch.setattr(strings, "LONGEST_STRINGS", 10)
            with pytest.raises(StoreError, match="expected at most 10 in a segment"):
                writer.write(make_segment(0))
        monkeypatch.setattr(objects, "LONGEST_OBJECT", 300)
        with pytest.raises(StoreError, match="expected at most 300, as no reader"):
            writer.write(make_segment(0))
        assert writer.committed == set()
        assert not list((writer.path / "segments").iterdir())


@pytest.mark.parametrize(
    ("path", "most"),
    [
        (("counts", "tokens"), MOST_TOKENS),
        (("counts", "documents"), MOST_TOKENS),
        (("counts", "nnz", SITE), MOST_NONZEROS),
        (("sites", 0, "num_latents"), MOST_LATENTS),
        (("objects", 0, "length"), LONGEST_OBJECT),
    ],
    ids=["tokens", "documents", "active latents", "latents", "bytes"],
)
def test_a_claim_above_a_bound_is_refused_before_memory_is_taken(
    finished: Path, path: tuple[Any, ...], most: int
) -> None:
    change_document(finished / "commits" / "000000.json", lambda document: put(document, path, most + 1))
    with pytest.raises(StoreError, match=rf" is {most + 1}; expected a whole number from 0 to {most}"):
        open_scores(finished).check_objects()


def test_more_pairs_of_a_document_and_a_latent_than_active_latents_are_refused(finished: Path) -> None:
    record, array = finished / "commits" / "000000.json", f"sites/{SITE}/documents/indices"
    stored = finished / json.loads(record.read_bytes())["writer"]["folder"] / array / "zarr.json"
    metadata = json.loads(stored.read_bytes())
    change_object(record, finished, f"{array}/zarr.json", json.dumps({**metadata, "shape": [1 << 20]}).encode())
    with pytest.raises(StoreError, match=r"documents/indices: it has 1048576 elements; expected at most \d+"):
        open_scores(finished).segments[0].site(SITE).document_sums()

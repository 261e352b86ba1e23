"""Batches come in any order; the segment comes out in corpus order, with one row per scored token."""

import itertools
from collections.abc import Callable, Sequence

import numpy as np
import pytest

from gradsae_fast import open_scores
from gradsae_fast.assemble import SegmentBuilder
from gradsae_fast.config import ExtractConfig, ScoreConfig
from gradsae_fast.extract import extract
from gradsae_fast.method import resolve_method
from gradsae_fast.records import (
    Batch,
    Document,
    DocumentStatus,
    SegmentScores,
    SparseScores,
    TokenDocument,
    TokenMask,
    Window,
)
from gradsae_fast.score import BatchScores

Configure = Callable[..., ExtractConfig]
SITE, OTHER = "model.layers.1", "model.layers.2"
LENGTHS = (3, 0, 2, 4)


def make_document(index: int, length: int) -> TokenDocument:
    return TokenDocument(
        document=Document(
            key=f"doc-{index}", text="x" * length, source="rows", row=index, metadata={"n": index} if index else {}
        ),
        index=index,
        token_ids=np.arange(length, dtype=np.int32) + 10 * index,
        char_start=np.arange(length, dtype=np.int32),
        char_end=np.arange(length, dtype=np.int32) + 1,
        special=np.zeros(length, bool),
        num_bos=0,
    )


DOCUMENTS = [make_document(index, length) for index, length in enumerate(LENGTHS)]


def make_window(slot: int, first: int, stop: int, num_context: int = 0) -> Window:
    return Window(
        document=DOCUMENTS[slot],
        slot=slot,
        token_ids=DOCUMENTS[slot].token_ids[first - num_context : stop],
        num_context=num_context,
        first_position=first,
    )


WINDOWS = [make_window(0, 0, 3), make_window(2, 0, 2), make_window(3, 0, 2), make_window(3, 2, 4, num_context=1)]


def make_batch(*windows: Window) -> Batch:
    return Batch(windows=windows, token_ids_BT=np.zeros((len(windows), 3), np.int64))


def score(batch: Batch, bad: Sequence[int] = (), sites: Sequence[str] = (SITE,)) -> BatchScores:
    """Token p of document d has p latents, with activation 100 d + 10 p + latent; `bad` are slots with a NaN."""
    tokens = [
        (window.slot, window.first_position + offset) for window in batch.windows for offset in range(window.num_scored)
    ]
    indices = np.array([latent for _, position in tokens for latent in range(position)], np.int32)
    activation = [100 * slot + 10 * position + latent for slot, position in tokens for latent in range(position)]
    scores = SparseScores(
        indptr=np.concatenate([[0], np.cumsum([position for _, position in tokens])]).astype(np.int64),
        indices=indices,
        activation=np.array(activation, np.float32),
        projections={"next-token": -np.array(activation, np.float32)},
        num_latents=8,
    )
    mask = [TokenMask.NONFINITE if slot in bad and position == 1 else 0 for slot, position in tokens]
    value_B = np.array([1.0 + window.first_position for window in batch.windows])
    return BatchScores(
        sites=dict.fromkeys(sites, scores),
        mask_N=np.array(mask, np.uint8),
        values={site: {"next-token": value_B * 10**order} for order, site in enumerate(sites)},
    )


def build(
    *batches: Batch,
    documents: Sequence[TokenDocument] = DOCUMENTS,
    bad: Sequence[int] = (),
    quarantine: bool = True,
    sites: Sequence[str] = (SITE,),
    config: ScoreConfig | None = None,
) -> SegmentScores:
    builder = SegmentBuilder(
        5,
        documents,
        num_latents=dict.fromkeys(sites, 8),
        method=resolve_method(config or ScoreConfig()),
        quarantine=quarantine,
    )
    for batch in batches:
        builder.add(batch, score(batch, bad, sites))
    return builder.finish()


@pytest.mark.parametrize("order", list(itertools.permutations(range(4)))[::5], ids=str)
def test_batches_in_any_order_come_back_in_corpus_order(order: tuple[int, ...]) -> None:
    first, *others = (WINDOWS[index] for index in order)
    segment = build(make_batch(first), make_batch(*others))
    tokens, scores = segment.tokens, segment.sites[SITE]
    places = [(slot, position) for slot, length in enumerate(LENGTHS) for position in range(length)]
    assert segment.index == 5
    assert list(zip(tokens.document.tolist(), tokens.position.tolist(), strict=True)) == places
    assert tokens.token_id.tolist() == [10 * slot + position for slot, position in places]
    assert tokens.context.tolist() == [0, 1, 2, 0, 1, 0, 1, 1, 2]
    assert np.diff(scores.indptr).tolist() == [position for _, position in places]
    expected = [100 * slot + 10 * position + latent for slot, position in places for latent in range(position)]
    assert scores.activation.tolist() == expected
    assert scores.projections["next-token"].tolist() == [-value for value in expected]
    assert segment.documents.objectives["next-token"].tolist() == [1.0, 0.0, 1.0, 1.0 + 3.0]


def test_an_empty_document_is_marked_and_missing_metadata_is_none() -> None:
    documents = build(make_batch(*WINDOWS)).documents
    assert documents.status.tolist() == [0, DocumentStatus.EMPTY, 0, 0]
    assert documents.num_tokens.tolist() == list(LENGTHS)
    assert documents.metadata == {"n": [None, 1, 2, 3]}


def test_a_quarantined_document_has_no_rows_no_value_and_is_marked() -> None:
    segment = build(make_batch(*WINDOWS), bad=[2])
    assert segment.documents.status.tolist() == [0, DocumentStatus.EMPTY, DocumentStatus.QUARANTINED, 0]
    assert segment.documents.num_tokens.tolist() == [3, 0, 0, 4]
    assert segment.tokens.document.tolist() == [0, 0, 0, 3, 3, 3, 3]
    assert np.isnan(segment.documents.objectives["next-token"]).tolist() == [False, False, True, False]
    assert len(segment.sites[SITE].indptr) == 8
    assert not np.isin([210], segment.sites[SITE].activation).any()


def test_without_quarantine_the_bad_token_is_masked_and_stays() -> None:
    segment = build(make_batch(*WINDOWS), bad=[2], quarantine=False)
    assert segment.documents.status.tolist() == [0, DocumentStatus.EMPTY, 0, 0]
    assert segment.tokens.mask.tolist() == [0, 0, 0, 0, TokenMask.NONFINITE, 0, 0, 0, 0]


@pytest.mark.parametrize("bad", [[], [0]])
def test_a_segment_without_a_scored_token_is_a_segment(bad: list[int]) -> None:
    batches = [make_batch(WINDOWS[0])] if bad else []
    segment = build(*batches, documents=[DOCUMENTS[0] if bad else make_document(0, 0)], bad=bad)
    assert len(segment.tokens.token_id) == 0
    assert segment.sites[SITE].indptr.tolist() == [0]
    assert list(segment.sites[SITE].projections) == ["next-token"]
    assert len(segment.documents.key) == 1


def test_several_spliced_sites_have_a_value_each_and_one_plain_run_has_one() -> None:
    spliced = build(make_batch(*WINDOWS), sites=(SITE, OTHER)).documents.objectives
    assert {name: values[0] for name, values in spliced.items()} == {
        f"next-token@{SITE}": 1.0,
        f"next-token@{OTHER}": 10.0,
    }
    plain = build(
        make_batch(*WINDOWS), sites=(SITE, OTHER), config=ScoreConfig(preset="attribution-patching")
    ).documents.objectives
    assert list(plain) == ["next-token"]


@pytest.mark.parametrize(
    ("preset", "columns"),
    [
        ("gradsae", [f"{name}@{site}" for site in (SITE, OTHER) for name in ("next-token", "top-token:logit")]),
        ("attribution-patching", ["next-token", "top-token:logit"]),
    ],
)
def test_a_store_of_two_sites_keeps_and_reads_the_values_of_its_preset(
    preset: str, columns: list[str], configure: Configure, write_sae: Callable[..., object]
) -> None:
    config = configure(
        sae=[{"path": str(write_sae())}, {"path": str(write_sae(name="second", layer=2, seed=1))}],
        score={"preset": preset, "objectives": ["next-token", "top-token:logit"]},
        corpus={"max_documents": 4, "context_length": 256},
    )
    extract(config)
    store = open_scores(config.store.path)
    assert store.sites == [SITE, OTHER]
    assert store.objectives == ["next-token", "top-token:logit"]
    for segment in store.segments:
        values = segment.documents().objectives
        assert list(values) == segment.commit["values"] == columns
        scored = segment.documents().num_tokens > 1
        assert all(np.all(values[name][scored] != 0) for name in columns)
        if preset == "gradsae":
            assert np.all(values[f"next-token@{SITE}"][scored] != values[f"next-token@{OTHER}"][scored])

"""Sums of pairs: their order, that some documents' are those of all, and the factor of `continuation-prob`."""

from dataclasses import replace

import numpy as np
import pytest

from gradsae_fast.ranking import rank_latents
from gradsae_fast.ranking.question import resolve
from gradsae_fast.ranking.tally import tally
from gradsae_fast.store import ScoreStore
from tests.ranking.conftest import SITES, MakeStore, make_world

LOG_P = {SITES[0]: -0.5, SITES[1]: -2.0}
AMOUNTS = ("frequency", "influence", "positive", "absolute", "activation", "max_influence", "max_activation")


def test_sites_that_were_spliced_one_by_one_are_scaled_by_their_own_probability(make_store: MakeStore) -> None:
    world = make_world(objectives=("continuation-prob",), columns=())
    segments = [
        replace(
            segment,
            documents=replace(
                segment.documents,
                objectives={
                    f"continuation-prob@{site}": np.full(len(segment.documents.key), log_p)
                    for site, log_p in LOG_P.items()
                },
            ),
        )
        for segment in make_store.segments(world)
    ]
    store = make_store.from_segments(segments)
    for site, log_p in LOG_P.items():
        table = rank_latents(store, site=site, k=None)
        influence_NC = world.activation[site] * world.projection[site, "continuation-prob"]
        expected_C = influence_NC[world.counted()].sum(0) * np.exp(log_p)
        found = dict(zip(table["latent"].to_pylist(), table["score"].to_pylist(), strict=True))
        assert len(found) > 1
        for latent, score in found.items():
            np.testing.assert_allclose(score, expected_C[latent], rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("few", [0.0, 2.0])  # share of tokens below which these are summed: never, always
@pytest.mark.parametrize("polarity", [None, "positive", "negative"])
def test_pairs_come_by_document_then_latent_and_some_documents_are_those_of_all(
    store: ScoreStore, monkeypatch: pytest.MonkeyPatch, polarity: str | None, few: float
) -> None:
    monkeypatch.setattr("gradsae_fast.ranking.tally.FEW_TOKENS", few)
    question = resolve(
        store, by="influence", k=None, site=SITES[1], objective="entropy", include_special=None, polarity=polarity
    )
    for segment in store.segments:
        every = np.arange(segment.num_documents)
        whole = tally(store, segment, every, question)
        for slots in filter(len, (every, every[::2], every[-1:], every[1:3])):
            part = tally(store, segment, slots, question)
            pairs = list(zip(part.row_P.tolist(), part.latent_P.tolist(), strict=True))
            assert pairs == sorted(set(pairs))
            of_all = np.isin(whole.row_P, slots)
            assert [(int(slots[row]), latent) for row, latent in pairs] == (
                list(zip(whole.row_P[of_all].tolist(), whole.latent_P[of_all].tolist(), strict=True))
            )
            for amount in AMOUNTS:
                np.testing.assert_array_equal(part.amount_P(amount), whole.amount_P(amount)[of_all])


@pytest.mark.parametrize("amount", AMOUNTS)
@pytest.mark.parametrize("few", [0.0, 2.0])
def test_a_tally_by_one_amount_reads_that_one_alone(
    store: ScoreStore, monkeypatch: pytest.MonkeyPatch, amount: str, few: float
) -> None:
    monkeypatch.setattr("gradsae_fast.ranking.tally.FEW_TOKENS", few)
    question = resolve(store, by="influence", k=None, site=SITES[1], objective="entropy", include_special=None)
    segment = store.segments[0]
    every = np.arange(segment.num_documents)
    part, whole = tally(store, segment, every, question, by=amount), tally(store, segment, every, question)
    np.testing.assert_array_equal(part.amount_P(amount), whole.amount_P(amount))
    for other in set(AMOUNTS) - {amount}:
        with pytest.raises(ValueError, match="this tally is by another amount"):
            part.amount_P(other)

"""The two sides of a signed SAE's latents are told apart, as if the other side had never been active."""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from gradsae_fast import open_scores, rank_documents, rank_latents, rank_tokens
from gradsae_fast.cli_rank import rank
from gradsae_fast.config import ExtractConfig
from gradsae_fast.errors import QueryError
from gradsae_fast.extract import extract
from gradsae_fast.ranking import query_of
from gradsae_fast.store import ScoreStore
from tests.ranking.conftest import World

UNSIGNED, SIGNED = "model.layers.3", "model.layers.5"
OBJECTIVE = "entropy"
QUESTION: dict[str, Any] = {"site": SIGNED, "objective": OBJECTIVE, "k": None}


def side_of(world: World, polarity: str) -> World:
    """The corpus with only one side of the signed site's latents."""
    activation_NC = world.activation[SIGNED]
    kept_NC = activation_NC > 0 if polarity == "positive" else activation_NC < 0
    return dataclasses.replace(
        world,
        activation=world.activation | {SIGNED: activation_NC * kept_NC},
        projection=world.projection | {(SIGNED, OBJECTIVE): world.projection[SIGNED, OBJECTIVE] * kept_NC},
    )


@pytest.mark.parametrize("include_special", [False, True])
@pytest.mark.parametrize("polarity", ["positive", "negative"])
def test_latents_are_ranked_by_one_side_alone(
    world: World, store: ScoreStore, polarity: str, include_special: bool
) -> None:
    everything = range(len(world.keys))
    expected = side_of(world, polarity).sums(everything, SIGNED, OBJECTIVE, include_special=include_special)
    table = rank_latents(store, polarity=polarity, include_special=include_special, **QUESTION)
    assert query_of(table)["polarity"] == polarity
    rows = table.to_pylist()
    assert {row["latent"] for row in rows} == set(np.flatnonzero(expected["num_active"]).tolist())
    for row in rows:
        for name, value_C in expected.items():
            assert row[name] == value_C[row["latent"]], name
        assert (row["activation"] > 0) == (polarity == "positive")


def test_the_two_sides_of_a_latent_add_up_to_the_whole_in_every_document(store: ScoreStore) -> None:
    for latent in (0, 3, 8):
        whole, above, below = (
            {row["key"]: row for row in rank_documents(store, latent=latent, polarity=side, **QUESTION).to_pylist()}
            for side in (None, "positive", "negative")
        )
        assert whole.keys() == above.keys() | below.keys()
        assert latent == 8 or (above and below)
        for key, row in whole.items():
            for name in ("influence", "absolute", "activation", "num_active"):
                parts = [side[key][name] for side in (above, below) if key in side]
                assert row[name] == sum(parts), name


def test_tokens_of_one_side_come_in_the_order_of_all_tokens(store: ScoreStore) -> None:
    question = QUESTION | {"latent": 3}
    for by in ("influence", "activation"):
        for smallest in (False, True):
            every = rank_tokens(store, by=by, smallest=smallest, **question).drop_columns("rank").to_pylist()
            wanted = [row for row in every if row["activation"] < 0]
            options = question | {"k": 4, "by": by, "smallest": smallest}
            assert rank_tokens(store, polarity="negative", **options).drop_columns("rank").to_pylist() == wanted[:4]
            assert 4 <= len(wanted) < len(every)


def test_a_polarity_without_effect_or_meaning_is_refused(store: ScoreStore) -> None:
    with pytest.raises(QueryError, match=r"no activation at 'model\.layers\.3' is negative"):
        rank_latents(store, site=UNSIGNED, objective=OBJECTIVE, polarity="positive")
    with pytest.raises(QueryError, match="did you mean 'negative'"):
        rank_latents(store, polarity="negativ", **QUESTION)
    with pytest.raises(QueryError, match="exact or polarity"):
        rank_latents(store, polarity="negative", exact_dense=True, **QUESTION)


def test_a_signed_sae_is_scored_and_asked_for_its_negative_side(
    configure: Callable[..., ExtractConfig], write_sae: Any
) -> None:
    config = configure(sae={"path": str(write_sae("abstopk", name="signed"))})
    extract(config)
    store = open_scores(config.store.path)
    expected: dict[int, float] = {}
    for segment in store.segments:
        scores = segment.site(store.sites[0]).by_token()
        counted_Z = np.repeat(segment.token_column("mask") == 0, np.diff(scores.indptr))
        kept_Z = counted_Z & (scores.activation < 0)
        influence_Z = scores.activation * scores.projections["next-token"]
        for latent, influence in zip(scores.indices[kept_Z].tolist(), influence_Z[kept_Z].tolist(), strict=True):
            expected[latent] = expected.get(latent, 0.0) + influence
    found = {row["latent"]: row["score"] for row in rank_latents(store, k=None, polarity="negative").to_pylist()}
    assert found == pytest.approx(expected)
    assert len(found) > 5
    words = ["latents", str(config.store.path), "--polarity", "negative", "--format", "csv", "-k", "1"]
    first = CliRunner().invoke(rank, words).stdout.splitlines()[1]
    assert int(first.split(",")[1]) == max(found, key=lambda latent: found[latent])

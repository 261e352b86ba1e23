"""The factor between stored and true influences of `continuation-prob`."""

from dataclasses import replace

import numpy as np

from gradsae_fast.ranking import rank_latents
from tests.ranking.conftest import SITES, MakeStore, make_world

LOG_P = {SITES[0]: -0.5, SITES[1]: -2.0}


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

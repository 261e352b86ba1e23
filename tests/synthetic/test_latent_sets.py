"""Stored sets, and sets drawn from their statistics."""

from pathlib import Path

import numpy as np
import pytest

from gradsae_fast import open_scores
from gradsae_fast.records import Array
from gradsae_fast.synthetic.latent_sets import (
    Directions,
    LatentSet,
    LatentSets,
    directions,
    draw_bag,
    draw_structured,
    pair_cosines,
    read_latent_sets,
)

SITE = "model.layers.1"
C, D, N = 300, 16, 40


@pytest.fixture(scope="module")
def rows() -> Directions:
    """Rows of different lengths, one of zeros, that come in clusters: cosines are far from chance."""
    random = np.random.default_rng(0)
    centre_CD = random.standard_normal((10, D))[np.arange(C) % 10]
    w_dec_CD = (centre_CD + 0.6 * random.standard_normal((C, D))) * random.uniform(0.2, 3, (C, 1))
    w_dec_CD[7] = 0
    return directions(w_dec_CD.astype(np.float32))


@pytest.fixture(scope="module")
def sets() -> LatentSets:
    """Each token's latents come from two of the ten clusters; latents from 250 on never fire."""
    random = np.random.default_rng(1)
    parts = []
    for _ in range(N):
        clusters = random.choice(10, 2, replace=False)
        pool = [c for c in range(250) if c % 10 in clusters and c != 7]
        parts.append(np.sort(random.choice(pool, random.integers(4, 9), replace=False)))
    latent_Z = np.concatenate(parts)
    return LatentSets(
        indptr=np.cumsum([0, *map(len, parts)]),
        latent_Z=latent_Z,
        value_Z=random.uniform(0.5, 9, len(latent_Z)).astype(np.float32),
        count_C=np.bincount(latent_Z, minlength=C),
    )


def contributions(one: LatentSet, rows: Directions) -> Array:
    return np.sort(np.abs(one.value_L * rows.norm_C[one.latent_L]))


def test_stored_sets_are_those_of_the_tokens_that_count(store_path: Path) -> None:
    store = open_scores(store_path)
    sets = read_latent_sets(store, SITE)
    expected = []
    for segment in store.segments:
        scores, mask = segment.site(SITE).by_token(), segment.token_column("mask")
        for n in range(segment.num_tokens):
            first, last = scores.indptr[n], scores.indptr[n + 1]
            if mask[n] == 0 and last > first:
                expected.append((scores.indices[first:last].tolist(), scores.activation[first:last].tolist()))
    found = [(sets[n].latent_L.tolist(), sets[n].value_L.tolist()) for n in range(len(sets))]
    assert found == expected
    assert len(found) > 100
    assert sets.count_C[expected[0][0][0]] == sum(expected[0][0][0] in latents for latents, _ in expected)


@pytest.mark.parametrize("draw", [draw_bag, draw_structured])
def test_a_drawn_set_has_the_contributions_of_a_real_token_on_distinct_latents_that_fire(
    sets: LatentSets,
    rows: Directions,
    draw: type[draw_bag],  # type: ignore[valid-type]
) -> None:
    profiles = [contributions(sets[n], rows) for n in range(N)]
    random = np.random.default_rng(2)
    for _ in range(50):
        one = draw(sets, rows, random)  # type: ignore[misc]
        assert len(set(one.latent_L.tolist())) == len(one.latent_L)
        assert (sets.count_C[one.latent_L] > 0).all()
        drawn = contributions(one, rows)
        assert any(len(drawn) == len(p) and np.allclose(drawn, p, rtol=1e-5) for p in profiles)


def test_structured_sets_have_the_cosines_of_real_ones_and_bags_have_not(sets: LatentSets, rows: Directions) -> None:
    random = np.random.default_rng(3)
    real = np.concatenate([pair_cosines(sets[n], rows) for n in range(N)])
    drawn = {
        draw: np.concatenate([pair_cosines(draw(sets, rows, random), rows) for _ in range(100)])
        for draw in (draw_bag, draw_structured)
    }
    assert abs(drawn[draw_structured].mean() - real.mean()) < 0.1 < 0.2 < abs(drawn[draw_bag].mean() - real.mean())
    assert abs(drawn[draw_structured].std() - real.std()) < 0.1


def test_latents_that_fire_often_are_drawn_often(sets: LatentSets, rows: Directions) -> None:
    often = LatentSets(
        indptr=sets.indptr,
        latent_Z=sets.latent_Z,
        value_Z=sets.value_Z,
        count_C=np.where(np.arange(C) == 33, 10 * sets.count_C.sum(), sets.count_C),
    )
    random = np.random.default_rng(4)
    assert sum(33 in draw_bag(often, rows, random).latent_L for _ in range(40)) >= 38


def test_equal_seeds_draw_equal_sets(sets: LatentSets, rows: Directions) -> None:
    first, second, other = (draw_structured(sets, rows, np.random.default_rng(seed)) for seed in (5, 5, 6))
    assert first.latent_L.tolist() == second.latent_L.tolist() != other.latent_L.tolist()


def test_a_profile_larger_than_the_latents_that_fire_is_cut(rows: Directions) -> None:
    few = LatentSets(
        indptr=np.array([0, 3, 6]),
        latent_Z=np.array([1, 2, 7, 1, 2, 7]),  # latent 7 has a row of zeros
        value_Z=np.ones(6, np.float32),
        count_C=np.bincount([1, 2, 7, 1, 2, 7], minlength=C),
    )
    for draw in (draw_bag, draw_structured):
        assert sorted(draw(few, rows, np.random.default_rng(0)).latent_L.tolist()) == [1, 2]

"""Activations that are made."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from gradsae_fast.errors import StoreError
from gradsae_fast.sae.canonical import normalise_input
from gradsae_fast.sae.load import load_sae
from gradsae_fast.sae.reference import decode_dense, encode_dense
from gradsae_fast.synthetic.latent_sets import LatentSet, LatentSets, directions
from gradsae_fast.synthetic.targets import Kind, Source, compose, draw, draw_apart

WriteSae = Callable[..., Path]


@pytest.mark.parametrize("norm", ["none", "layer_norm", "constant_norm_rescale"])
def test_a_composed_activation_is_what_the_sae_decodes(write_sae: WriteSae, norm: str) -> None:
    sae = load_sae(write_sae(normalize_activations=norm))
    like_D = 3 * torch.randn(24, generator=torch.Generator().manual_seed(0))
    sets = [
        LatentSet(latent_L=np.array([9, 2, 40]), value_L=np.array([1.5, -2.0, 0.25], np.float32)),
        LatentSet(latent_L=np.array([5]), value_L=np.array([4.0], np.float32)),
    ]
    dense_KC = torch.zeros(2, sae.num_latents)
    for row, one in enumerate(sets):
        dense_KC[row, torch.from_numpy(one.latent_L)] = torch.from_numpy(one.value_L)
    _, stats = normalise_input(sae, like_D[None])
    torch.testing.assert_close(compose(sae, sets, like_D), decode_dense(sae, dense_KC, stats), rtol=1e-5, atol=1e-5)


def test_gaussian_draws_have_the_pools_mean_and_covariance(write_sae: WriteSae) -> None:
    generator = torch.Generator().manual_seed(1)
    mix_DD = torch.randn(24, 24, generator=generator)
    pool_ND = torch.randn(60, 24, generator=generator) @ mix_DD + 5
    source = a_source(write_sae, pool_ND)
    random = np.random.default_rng(0)
    drawn_KD = torch.stack([draw(source, Kind.GAUSSIAN, pool_ND[0], random) for _ in range(6000)])
    scale = pool_ND.std()
    assert (drawn_KD.mean(0) - pool_ND.mean(0)).abs().max() < 0.1 * scale
    assert (drawn_KD.T.cov() - pool_ND.T.cov()).abs().max() < 0.1 * pool_ND.T.cov().abs().max()


def test_real_targets_are_of_the_pool_and_reconstructions_their_decoding(write_sae: WriteSae) -> None:
    pool_ND = torch.randn(5, 24, generator=torch.Generator().manual_seed(2))
    source = a_source(write_sae, pool_ND)
    _, stats = normalise_input(source.sae, pool_ND)
    decoded_ND = decode_dense(source.sae, encode_dense(source.sae, pool_ND), stats)
    for seed in range(4):
        real_D = draw(source, Kind.REAL, pool_ND[0], np.random.default_rng(seed))
        number = int((pool_ND == real_D).all(1).nonzero()[0])
        again_D = draw(source, Kind.RECONSTRUCTION, pool_ND[0], np.random.default_rng(seed))
        torch.testing.assert_close(again_D, decoded_ND[number])


def test_a_state_that_is_drawn_for_a_path_is_not_where_the_path_begins(write_sae: WriteSae) -> None:
    """One state of ten is another one; the others differ by what rounding does."""
    here_D = 1 + torch.rand(24, generator=torch.Generator().manual_seed(3))
    pool_ND = here_D * (1 + 0.01 * torch.randn(10, 24, generator=torch.Generator().manual_seed(4)))
    with pytest.raises(StoreError, match="20 draws of kind real all gave"):
        draw_apart(a_source(write_sae, pool_ND), Kind.REAL, here_D, here_D, np.random.default_rng(0))
    pool_ND[7] = -here_D
    found = draw_apart(a_source(write_sae, pool_ND), Kind.REAL, here_D, here_D, np.random.default_rng(0))
    assert (found == -here_D).all()


def a_source(write_sae: WriteSae, pool_ND: torch.Tensor) -> Source:
    sae = load_sae(write_sae())
    sets = LatentSets(
        indptr=np.array([0, 1, 2]),
        latent_Z=np.array([1, 2]),
        value_Z=np.ones(2, np.float32),
        count_C=np.bincount([1, 2], minlength=sae.num_latents),
    )
    return Source(sae=sae, sets=sets, rows=directions(sae.w_dec_CD.numpy()), pool_ND=pool_ND)

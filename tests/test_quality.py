"""L0 and FVU of a site."""

import numpy as np
import pytest
import torch

from gradsae_fast.quality import SAMPLE_TOKENS, Tally, even_sample


def test_fvu_is_the_share_of_the_variance_that_is_left() -> None:
    written_SD, noise_SD = torch.randn(500, 8) + 3, 0.1 * torch.randn(500, 8)
    tally = Tally()
    for part in range(5):
        rows = slice(100 * part, 100 * part + 100)
        tally.compare(written_SD[rows], (written_SD + noise_SD)[rows])
    expected = noise_SD.square().sum() / (written_SD - written_SD.mean(0)).square().sum()
    assert tally.fvu == pytest.approx(float(expected), rel=1e-5)


def test_l0_is_a_mean_over_tokens_and_nothing_is_not_a_number() -> None:
    tally = Tally()
    assert np.isnan(tally.l0)
    assert np.isnan(tally.fvu)
    tally.count(3, 10)
    tally.count(1, 2)
    assert tally.l0 == 3


@pytest.mark.parametrize("num_tokens", [0, 5, SAMPLE_TOKENS, 2 * SAMPLE_TOKENS - 1, 2 * SAMPLE_TOKENS, 16_384])
def test_a_sample_is_even_and_large_enough(num_tokens: int) -> None:
    sample_S = even_sample(np.arange(num_tokens))
    assert min(num_tokens, SAMPLE_TOKENS) <= len(sample_S) < 2 * SAMPLE_TOKENS
    assert len(np.unique(np.diff(sample_S))) <= 1

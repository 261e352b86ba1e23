"""Encode and project alone, for wider and wider SAEs at a fixed number of active latents.

Letters: N tokens, D model width, C latents.
"""

import torch

from benchmarks.growth.cost import Found, measure, measure_short
from gradsae_kernels import SparseRows, encode_threshold, project

TOKENS, WIDTH, ACTIVE = 128, 576, 64
PRODUCT = "bare product x @ w.T"
_ROWS_AT_A_TIME = 1 << 16


def of_width(threads: int, num_latents: int) -> Found:
    """Random tokens of one length and decoder rows of length one, thresholds where `ACTIVE` latents fire."""
    torch.set_num_threads(threads)
    found: Found = {}
    generator = torch.Generator().manual_seed(0)
    x_ND, grad_ND = (_unit_rows(TOKENS, generator) * WIDTH**0.5 for _ in range(2))
    w_CD = torch.empty(num_latents, WIDTH)
    for rows_CD in w_CD.split(_ROWS_AT_A_TIME):
        rows_CD.copy_(_unit_rows(len(rows_CD), generator))
    level = torch.distributions.Normal(0.0, 1.0).icdf(torch.tensor(1 - ACTIVE / num_latents, dtype=torch.float64))
    bias_C, threshold_C = torch.zeros(num_latents), torch.full((num_latents,), float(level))

    def encode() -> SparseRows:
        return encode_threshold(x_ND, w_CD, bias_C, threshold_C)

    encode_threshold(x_ND, w_CD[:1], bias_C[:1], threshold_C[:1])  # loads compiled kernels: no memory of the call
    rows = measure("encode", encode, found)
    l0 = len(rows.indices) / TOKENS
    if not 0.7 * ACTIVE < l0 < 1.3 * ACTIVE:
        raise AssertionError(f"L0 is {l0:.1f} for {num_latents} latents, expected about {ACTIVE}")
    measure_short("encode", encode, found)
    measure_short("project", lambda: project(rows, grad_ND, w_CD), found)
    measure_short(PRODUCT, lambda: x_ND @ w_CD.T, found)
    return found


def _unit_rows(count: int, generator: torch.Generator) -> torch.Tensor:
    return torch.nn.functional.normalize(torch.randn(count, WIDTH, generator=generator), dim=1)

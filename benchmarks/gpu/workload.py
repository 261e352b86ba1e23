"""Random operands of one shape, and the truth on a few of their tokens.

Real dictionaries have common and rare latents, so the wanted firing rates are log-normal (0.8 decades, as in published
SAEs); one shift of all thresholds is then fitted on a sample of tokens until a token has as many active latents as
wanted. The truth is in fp64, of the operands as they are (already rounded to bf16 where that is their dtype).

Letters: N tokens, D model width, C latents, S sampled tokens, T latents of a tile.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks.gpu.shape import Shape
from gradsae_kernels import SparseRows
from gradsae_kernels.sparse_rows import concatenate

DECADES = 0.8  # spread of the firing rates
HIGHEST_RATE = 0.5  # no latent is wanted on more tokens than this
TRUTH_ROWS = 16
TILE_ELEMENTS = 2**28  # of an fp64 copy of some weights: 2 GB
CHUNK_ELEMENTS = 2**27  # of a dense piece of the plain encoder: 0.5 GB of fp32
CALIBRATION_ELEMENTS = 2**26


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Workload:
    """Operands, the active latents that `project` and `decode` work on, and the true pre-activations of S tokens."""

    shape: Shape
    x_ND: Tensor
    grad_ND: Tensor
    w_enc_CD: Tensor
    w_dec_CD: Tensor
    bias_C: Tensor
    threshold_C: Tensor
    rows: SparseRows
    document_ptr: Tensor  # int64, from 0 to N
    sample_S: Tensor  # int64, the tokens whose truth is known
    truth_SC: Tensor  # float64, x @ w_enc.T + bias

    @classmethod
    def random(cls, shape: Shape, device: torch.device) -> "Workload":
        """The same numbers for the same shape and device."""
        generator = torch.Generator(device).manual_seed(0)

        def normal(*size: int, dtype: torch.dtype = shape.dtype) -> Tensor:
            return torch.randn(*size, generator=generator, device=device, dtype=dtype)

        x_ND, grad_ND = normal(shape.tokens, shape.width), normal(shape.tokens, shape.width)
        w_enc_CD = normal(shape.latents, shape.width).mul_(shape.width**-0.5)
        w_dec_CD = normal(shape.latents, shape.width).mul_(shape.width**-0.5)
        bias_C = 0.1 * normal(shape.latents, dtype=torch.float32)
        spread_C = normal(shape.latents, dtype=torch.float32)
        threshold_C = _thresholds(shape, x_ND, w_enc_CD, bias_C, spread_C)
        sample_S = torch.linspace(0, shape.tokens - 1, TRUTH_ROWS, device=device).long()
        steps = torch.arange(0, shape.tokens, shape.document_tokens, device=device)
        return cls(
            shape=shape,
            x_ND=x_ND,
            grad_ND=grad_ND,
            w_enc_CD=w_enc_CD,
            w_dec_CD=w_dec_CD,
            bias_C=bias_C,
            threshold_C=threshold_C,
            rows=encode_in_chunks(x_ND, w_enc_CD, bias_C, threshold_C),
            document_ptr=torch.cat([steps, steps.new_tensor([shape.tokens])]),
            sample_S=sample_S,
            truth_SC=exact_products(x_ND[sample_S], w_enc_CD).add_(bias_C),
        )


def exact_products(x_SD: Tensor, w_CD: Tensor) -> Tensor:
    """float64 [S, C]; the weights are widened a tile at a time."""
    x_SD = x_SD.double()
    return torch.cat([x_SD @ w_TD.double().T for w_TD in w_CD.split(max(1, TILE_ELEMENTS // w_CD.shape[1]))], dim=1)


def product(x_ND: Tensor, w_CD: Tensor) -> Tensor:
    """x @ w.T with an fp32 result: of bf16 operands by the library where it can, else widened."""
    if x_ND.dtype == torch.float32:
        return x_ND @ w_CD.T
    if x_ND.is_cuda:
        return torch.mm(x_ND, w_CD.T, out_dtype=torch.float32)
    return x_ND.float() @ w_CD.float().T


def encode_in_chunks(x_ND: Tensor, w_CD: Tensor, bias_C: Tensor, threshold_C: Tensor) -> SparseRows:
    """What a user writes in plain torch to save memory: dense pieces of tokens, each compacted by `nonzero`."""
    return concatenate(list(_chunks(x_ND, w_CD, bias_C, threshold_C)))


def _chunks(x_ND: Tensor, w_CD: Tensor, bias_C: Tensor, threshold_C: Tensor) -> Iterator[SparseRows]:
    for x_SD in x_ND.split(max(1, CHUNK_ELEMENTS // len(w_CD))):
        u_SC = product(x_SD, w_CD).add_(bias_C)
        yield pairs(u_SC, u_SC > threshold_C)


def pairs(value_NC: Tensor, active_NC: Tensor) -> SparseRows:
    """The active entries of a dense matrix."""
    row, latent = active_NC.nonzero(as_tuple=True)
    indptr = torch.zeros(len(value_NC) + 1, dtype=torch.int64, device=value_NC.device)
    torch.cumsum(torch.bincount(row, minlength=len(value_NC)), dim=0, out=indptr[1:])
    return SparseRows(indptr, latent.to(torch.int32), value_NC[row, latent].float())


def _thresholds(shape: Shape, x_ND: Tensor, w_CD: Tensor, bias_C: Tensor, spread_C: Tensor) -> Tensor:
    """Log-normal rates as levels of a normal distribution, and one shift that gives the wanted number in all."""
    level_C = firing_levels(spread_C, shape.active)
    tokens = max(8, min(256, CALIBRATION_ELEMENTS // shape.latents, shape.tokens))
    stride = max(1, shape.tokens // tokens)
    excess_SC = product(x_ND[::stride][:tokens], w_CD).add_(bias_C).sub_(level_C)
    return (level_C + fitted_shift(excess_SC, shape.active)).clamp(min=1e-3)


def firing_levels(spread_C: Tensor, active: float) -> Tensor:
    """Above which levels standard normal numbers lie as often as latents should fire, given a normal draw for each."""
    rate_C = 10 ** (DECADES * spread_C)
    rate_C = (rate_C * active / rate_C.sum()).clamp(1e-9, HIGHEST_RATE)
    return torch.special.ndtri(1 - rate_C.double()).float()


def fitted_shift(excess_SC: Tensor, active: float) -> float:
    """What all levels must rise so that `active` latents of a token pass, given by how much each passes its own."""
    low, high = -10.0, 10.0
    for _ in range(30):
        middle = (low + high) / 2
        too_many = int((excess_SC > middle).sum()) > active * len(excess_SC)
        low, high = (middle, high) if too_many else (low, middle)
    return high

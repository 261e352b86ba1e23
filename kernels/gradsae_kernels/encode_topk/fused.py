"""`encode_topk` on a GPU: a bar from a sample of latents, everything above it, and the k largest of that.

The bar of a token is a high rank among a fixed random sample of latents, so that a few times k latents pass it. The
answer does not rest on the estimate: a row is certified where at least k of its exact pre-activations lie above the bar
(or the bar is zero) and none was dropped for want of room. Any other row is computed by the tiled backend.

Letters: N tokens, C latents, D width, T latents of the sample.
"""

from dataclasses import dataclass
from functools import lru_cache
from math import ceil, sqrt

import torch
from torch import Tensor

from gradsae_kernels.contracts import NonfiniteRow, nonfinite_row
from gradsae_kernels.emit.bins import Bins, rows_of_bins
from gradsae_kernels.emit.fill import fill_bins, product, tokens_at_once
from gradsae_kernels.emit.firing import Firing, Rule
from gradsae_kernels.emit.plan import EmitPlan, plan_of_call
from gradsae_kernels.emit.screen import lowered
from gradsae_kernels.encode_topk.tiled import encode_topk_tiled
from gradsae_kernels.launches import LAUNCHES
from gradsae_kernels.sparse_rows import SparseRows, concatenate, replace_rows, row_of_entry
from gradsae_kernels.tiles import token_chunks

SHARE = 16  # one latent of so many is in the sample
LARGEST_SAMPLE = 8192
MOST_CANDIDATES = 8192
SAMPLE_ELEMENTS = 2**23  # 32 MB of fp32: of the sample's weights, and of its pre-activations at a time


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How many latents are sampled, which rank among them is the bar, and room for what passes it."""

    size: int
    rank: int
    capacity: int


def sampling_for(k: int, num_latents: int, width: int) -> Sampling | None:
    """A sample that fewer than one row in a hundred thousand fails, or None where k is too large for one.

    Of the k largest about mu = k * size / C are in the sample; a row fails where at least `rank` of them are.
    """
    size = min(num_latents // SHARE, LARGEST_SAMPLE, SAMPLE_ELEMENTS // width)
    expected = k * size / num_latents
    rank = ceil(expected + 6 * sqrt(expected) + 2)
    if rank >= size:
        return None
    capacity = 1 << (2 * rank * num_latents // size - 1).bit_length()
    if capacity > min(num_latents // 2, MOST_CANDIDATES):
        return None
    return Sampling(size=size, rank=rank, capacity=capacity)


def encode_topk_fused(
    x_ND: Tensor, w_enc_CD: Tensor, bias_C: Tensor, k: int, *, signed: bool, plan: EmitPlan | None
) -> SparseRows:
    """The contract of `encode_topk`."""
    plan = plan_of_call(x_ND, w_enc_CD, plan, by_rank=True)
    sampling = sampling_for(k, *w_enc_CD.shape)
    if sampling is None or len(x_ND) == 0:
        LAUNCHES["topk without a sample"] += 1
        return encode_topk_tiled(x_ND, w_enc_CD, bias_C, k, signed=signed)
    chunks = token_chunks(len(x_ND), tokens_at_once(plan, sampling.capacity, x_ND.shape[1]))
    with torch.cuda.device_of(x_ND):
        sample = _sample(w_enc_CD, bias_C, plan, sampling)
        return concatenate(
            [_encode(x_ND[a:b].contiguous(), w_enc_CD, bias_C, k, signed, plan, sample, a) for a, b in chunks]
        )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Sample:
    """The sampled latents: weights in the dtype that they are multiplied in, and the bias."""

    sampling: Sampling
    w_TD: Tensor
    start_T: Tensor


def _sample(w_enc_CD: Tensor, bias_C: Tensor, plan: EmitPlan, sampling: Sampling) -> Sample:
    latents = sampled_latents(len(w_enc_CD), sampling.size).to(w_enc_CD.device)
    parts = [w_enc_CD[part] for part in latents.split(1024)]
    if plan.screen:
        parts = [lowered(part).low_RD for part in parts]
    return Sample(sampling=sampling, w_TD=torch.cat(parts), start_T=bias_C[latents])


def _encode(
    x_ND: Tensor,
    w_enc_CD: Tensor,
    bias_C: Tensor,
    k: int,
    signed: bool,
    plan: EmitPlan,
    sample: Sample,
    first_row: int,
) -> SparseRows:
    """Rows of a chunk, those without a certificate from the tiled backend."""
    bar_N = _bar(x_ND, sample, signed, plan)
    firing = Firing(rule=Rule.MAGNITUDE if signed else Rule.BAR, start_C=bias_C, bar_N=bar_N)
    bins = fill_bins(x_ND, w_enc_CD, firing, plan, sample.sampling.capacity)
    if plan.screen:
        bins = _exact(bins, x_ND, w_enc_CD, bias_C)
    certified_N = select(bins, bar_N, k, signed)
    rows = rows_of_bins(bins, _never_again)
    finite = torch.isfinite(rows.values)
    if not finite.all():
        raise nonfinite_row(first_row + int(row_of_entry(rows)[~finite][0]))
    missing = (~certified_N).nonzero().flatten()
    if len(missing) == 0:
        return rows
    LAUNCHES["topk fallback"] += 1
    try:
        return replace_rows(rows, missing, encode_topk_tiled(x_ND[missing], w_enc_CD, bias_C, k, signed=signed))
    except NonfiniteRow as error:
        raise nonfinite_row(first_row + int(missing[error.row])) from None


def _never_again(rows: Tensor, capacity: int) -> Bins:
    raise RuntimeError(f"{len(rows)} selected rows hold more than they may ({capacity}); expected at most k")


def _bar(x_ND: Tensor, sample: Sample, signed: bool, plan: EmitPlan) -> Tensor:
    """float32 [N], never negative."""
    from gradsae_kernels.encode_topk.triton_kernel import bar_kernel

    size = sample.sampling.size
    bar_N = torch.empty(len(x_ND), device=x_ND.device)
    for a, b in token_chunks(len(x_ND), max(1, SAMPLE_ELEMENTS // size)):
        u_NT = product(lowered(x_ND[a:b]).low_RD if plan.screen else x_ND[a:b], sample.w_TD)
        LAUNCHES["bar"] += 1
        bar_kernel[(b - a,)](
            u_NT,
            sample.start_T,
            bar_N[a:b],
            size,
            sample.sampling.rank,
            SIGNED=signed,
            ROOM=1 << (size - 1).bit_length(),
            num_warps=4,
        )
    return bar_N


@lru_cache(maxsize=64)
def sampled_latents(num_latents: int, size: int) -> Tensor:
    """int64 [T] on the CPU: always the same random latents: dictionaries may be ordered by how often they fire."""
    return torch.randperm(num_latents, generator=torch.Generator().manual_seed(0))[:size]


def _exact(bins: Bins, x_ND: Tensor, w_enc_CD: Tensor, bias_C: Tensor) -> Bins:
    """The same latents with fp32 pre-activations; a bin that overflowed says so by its count and holds nothing."""
    from gradsae_kernels.project.triton_kernel import project_triton

    counts_N = bins.counts_NB[:, 0].clone()
    bins.counts_NB[counts_N > bins.capacity] = 0
    rows = rows_of_bins(bins, _never_again)
    u = project_triton(rows, x_ND, w_enc_CD) + bias_C[rows.indices]
    row = row_of_entry(rows)
    at = row * bins.capacity + torch.arange(len(row), device=row.device) - rows.indptr[row]
    records = (rows.indices.to(torch.int64) << 32) | (u.view(torch.int32).to(torch.int64) & 0xFFFFFFFF)
    bins.records.view(-1)[at] = records
    bins.counts_NB[:, 0] = counts_N
    return bins


def select(bins: Bins, bar_N: Tensor, k: int, signed: bool) -> Tensor:
    """Cut every bin to its k largest where that is certain, and empty it elsewhere; bool [N], whether it is."""
    from gradsae_kernels.encode_topk.triton_kernel import select_kernel

    above_N = torch.empty(len(bar_N), dtype=torch.int32, device=bar_N.device)
    LAUNCHES["select"] += 1
    select_kernel[(len(bar_N),)](
        bins.records,
        bins.counts_NB,
        bar_N,
        above_N,
        bins.capacity,
        k,
        SIGNED=signed,
        ROOM=bins.capacity,
        num_warps=max(1, min(16, bins.capacity // 512)),
    )
    certified_N = (above_N >= k) | ((above_N >= 0) & (bar_N == 0))
    bins.counts_NB[~certified_N] = 0
    return certified_N

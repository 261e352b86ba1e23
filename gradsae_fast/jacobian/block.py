"""The Jacobian block of every token: d(active latent above) / d(active latent below), never dense over dictionaries.

For a token, f the network between the sites, x where it is taken:

    J[c2, c1] = slope[c2] · ⟨W_enc2[c2], f'(x) · E1[c1]⟩

E1 is the effective decoder row of the lower dictionary; W_enc2 is divided by what the upper dictionary divides its
input by. The statistics of both input normalisations are held constant, as everywhere in this project, and so are the
active sets: the slope of a rule is its scale (1 where it has none). Only active latents meet: f' is applied to the
decoder rows of one side (forward) or, transposed, to the encoder rows of the other (reverse), whichever are fewer.

`Point.RECONSTRUCTION`, as in the source: x is what the lower dictionary decodes, and the upper latents are those of
f(x). `Point.HIDDEN`: x is the hidden state itself, the error of the lower dictionary kept.

Letters: N tokens, n tokens of a pass, D width below, E width above, C latents, K the most active latents of one token,
Z non-zeros, P pairs: for each token its k2 x k1 block, row by row.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum

import torch
from torch import Tensor
from torch.func import vmap

from gradsae_fast.errors import SaeError, ScoreError
from gradsae_fast.jacobian.path import TokenPath
from gradsae_fast.sae.canonical import (
    LAYER_NORM_EPS,
    InputNorm,
    InputStats,
    MatchingPursuit,
    Sae,
    Threshold,
    scale_gradient,
)
from gradsae_fast.sparse_code import Code, encode, reconstruct

Rows = tuple[Tensor, Tensor]  # vectors [K, n, width] of each token's active latents, zeros behind its last; counts [n]


class Point(StrEnum):
    """Where the derivative is taken."""

    RECONSTRUCTION = "reconstruction"
    HIDDEN = "hidden"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class DictionaryPair:
    """Two dictionaries and the network between them."""

    lower: Sae
    upper: Sae
    path: TokenPath
    point: Point

    def __post_init__(self) -> None:
        for sae in (self.lower, self.upper):
            if sae.facts.reads is not None or sae.d_in != sae.d_out:
                raise SaeError(
                    f"{sae.facts.source!r} is a transcoder: it does not decode into the site that it reads. Expected "
                    "two SAEs, one at each site."
                )
            if sae.prediction is not None:
                raise SaeError(
                    f"{sae.facts.source!r} is a temporal SAE: what it encodes of a token depends on the tokens before, "
                    "so that no token has a block of its own. Expected SAEs that encode each token by itself."
                )
        if isinstance(self.upper.rule, MatchingPursuit):
            raise SaeError(
                f"{self.upper.facts.source!r} chooses its latents one after the other, so none of them has a "
                "derivative of its own; expected another architecture at the upper site."
            )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Blocks:
    """The codes of N tokens in both dictionaries, and their blocks one after the other."""

    lower: Code
    upper: Code
    value_P: Tensor  # float32


def token_blocks(pair: DictionaryPair, lower_ND: Tensor, upper_NE: Tensor, *, pairs_per_pass: int = 8192) -> Blocks:
    """Blocks of tokens whose hidden states at the two sites are given; a pass takes so many tokens x latents at once.

    Raises ScoreError where NaN or Inf comes in or out.
    """
    _check_finite(lower_ND, f"the hidden states at {pair.path.reads.path}")
    _check_finite(upper_NE, f"the hidden states at {pair.path.writes.path}")
    with torch.no_grad():
        lower = encode(pair.lower, lower_ND)
        x_ND = lower_ND
        if pair.point is Point.RECONSTRUCTION:
            x_ND = reconstruct(pair.lower, lower)
            upper_NE = pair.path(x_ND)
        upper = encode(pair.upper, upper_NE)
        value_P = _blocks(pair, lower, upper, x_ND.float(), pairs_per_pass)
    _check_finite(value_P, "the Jacobian")
    return Blocks(lower=lower, upper=upper, value_P=value_P)


def _blocks(pair: DictionaryPair, lower: Code, upper: Code, x_ND: Tensor, pairs_per_pass: int) -> Tensor:
    counts_lower_N, counts_upper_N = lower.rows.indptr.diff(), upper.rows.indptr.diff()
    sizes_N = counts_lower_N * counts_upper_N
    ends_N = sizes_N.cumsum(0)
    value_P = x_ND.new_empty(int(sizes_N.sum()))
    forward = bool(counts_lower_N.sum() <= counts_upper_N.sum())
    widest_N = torch.maximum(counts_lower_N, counts_upper_N).where(sizes_N > 0, 0)
    for rows_n in _passes(widest_N, pairs_per_pass):
        decoder = _decoder_rows(pair.lower, lower, rows_n)
        encoder = _encoder_rows(pair.upper, upper, rows_n)
        transport = _forward if forward else _reverse
        block_nkk = transport(pair.path, x_ND[rows_n], decoder[0], encoder[0], pairs_per_pass)
        kept_nkk = _valid(encoder)[:, :, None] & _valid(decoder)[:, None, :]
        value_P[_ranges((ends_N - sizes_N)[rows_n], sizes_N[rows_n])] = block_nkk[kept_nkk]
    return value_P


def _passes(widest_N: Tensor, pairs_per_pass: int) -> Iterator[Tensor]:
    """Tokens with similar numbers of latents together, the widest first; tokens without a block are left out."""
    order_N = widest_N.argsort(descending=True, stable=True)
    widths = widest_N[order_N].tolist()
    first = 0
    while first < len(widths) and widths[first] > 0:
        last = first + max(1, pairs_per_pass // widths[first])
        rows_n = order_N[first:last]
        yield rows_n[widest_N[rows_n] > 0]
        first = last


def _forward(path: TokenPath, x_nD: Tensor, decoder_KnD: Tensor, encoder_KnE: Tensor, pairs_per_pass: int) -> Tensor:
    moved_KnE = vmap(path.push(x_nD), chunk_size=max(1, pairs_per_pass // len(x_nD)))(decoder_KnD)
    return torch.einsum("ine,jne->nij", encoder_KnE, moved_KnE)


def _reverse(path: TokenPath, x_nD: Tensor, decoder_KnD: Tensor, encoder_KnE: Tensor, pairs_per_pass: int) -> Tensor:
    felt_KnD = vmap(path.pull(x_nD), chunk_size=max(1, pairs_per_pass // len(x_nD)))(encoder_KnE)
    return torch.einsum("ind,jnd->nij", felt_KnD, decoder_KnD)


def _decoder_rows(sae: Sae, code: Code, rows_n: Tensor) -> Rows:
    index_Kn, counts_n = _entries(code, rows_n)
    vector_KnD = _vectors(sae.w_dec_CD, code, index_Kn, counts_n)
    return scale_gradient(sae, vector_KnD, _stats_of(code.stats, rows_n)), counts_n


def _encoder_rows(sae: Sae, code: Code, rows_n: Tensor) -> Rows:
    index_Kn, counts_n = _entries(code, rows_n)
    vector_KnE = _vectors(sae.w_enc_CD, code, index_Kn, counts_n)
    if isinstance(sae.rule, Threshold) and sae.rule.scale_C is not None:
        vector_KnE = vector_KnE * sae.rule.scale_C[code.rows.indices[index_Kn].long()][:, :, None]
    divisor = _divisor(sae, _stats_of(code.stats, rows_n))
    return (vector_KnE if divisor is None else vector_KnE / divisor[:, None]), counts_n


def _divisor(sae: Sae, stats: InputStats) -> Tensor | None:
    """What `normalise_input` divided each token by [n]; None where it did not."""
    if sae.input_norm is InputNorm.NONE:
        return None
    assert stats.scale_N is not None
    if sae.input_norm is InputNorm.LAYER_NORM:
        return stats.scale_N + LAYER_NORM_EPS
    return stats.scale_N.clamp_min(torch.finfo(torch.float32).tiny)


def _entries(code: Code, rows_n: Tensor) -> tuple[Tensor, Tensor]:
    """Entries of each token's active latents, and how many are its own; behind them stands any entry [K, n], [n]."""
    starts_n = code.rows.indptr[rows_n]
    counts_n = code.rows.indptr[rows_n + 1] - starts_n
    steps_K1 = torch.arange(int(counts_n.max()), device=starts_n.device)[:, None]
    return starts_n + torch.minimum(steps_K1, counts_n - 1), counts_n


def _vectors(weights_CD: Tensor, code: Code, index_Kn: Tensor, counts_n: Tensor) -> Tensor:
    valid_Kn = torch.arange(len(index_Kn), device=counts_n.device)[:, None] < counts_n
    return weights_CD[code.rows.indices[index_Kn].long()].float() * valid_Kn[:, :, None]


def _valid(rows: Rows) -> Tensor:
    """Which of the K places of a token are its latents, bool [n, K]."""
    vectors, counts_n = rows
    return torch.arange(len(vectors), device=counts_n.device) < counts_n[:, None]


def _ranges(starts_n: Tensor, sizes_n: Tensor) -> Tensor:
    """start, start + 1, … of every token, one after the other."""
    ends_n = sizes_n.cumsum(0)
    return torch.arange(int(sizes_n.sum()), device=starts_n.device) + (starts_n - ends_n + sizes_n).repeat_interleave(
        sizes_n
    )


def _stats_of(stats: InputStats, rows_n: Tensor) -> InputStats:
    return InputStats(scale_N=None if stats.scale_N is None else stats.scale_N[rows_n])


def _check_finite(values: Tensor, what: str) -> None:
    if not torch.isfinite(values).all():
        raise ScoreError(f"NaN or Inf in {what}; expected finite numbers. Run in float32 (--dtype float32).")

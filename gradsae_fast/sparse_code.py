"""The sparse code of hidden states: the only bridge between SAE and kernels.

Letters: N tokens, D width, C latents, Z non-zeros.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from gradsae_fast.errors import SaeError, ScoreError
from gradsae_fast.records import Array
from gradsae_fast.sae.canonical import (
    GroupMax,
    InputNorm,
    InputStats,
    MatchingPursuit,
    Sae,
    Threshold,
    TopK,
    normalise_input,
    scale_gradient,
    undo_norm,
)
from gradsae_fast.sae.temporal import predict
from gradsae_fast.stages import span
from gradsae_fast.transfer import to_device
from gradsae_kernels import (
    BackendUnavailable,
    ContractError,
    SparseRows,
    decode,
    encode_groupmax,
    encode_matching_pursuit,
    encode_threshold,
    encode_topk,
    kernel_configuration,
    project,
)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Code:
    """Sparse latents of some tokens, and what the decoder needs beside them: nothing where it is a `difference`."""

    rows: SparseRows
    stats: InputStats
    beside_ND: Tensor | None = None  # what the decoder adds beside its latents, float32, before the norm is undone


def kernels_for(sae: Sae, device: torch.device, hidden_dtype: torch.dtype) -> str:
    """What the operators run for this SAE on a device; it decides over last bits. ScoreError where they cannot run."""
    as_it_is = sae.input_norm is InputNorm.NONE and sae.prediction is None
    x_dtype = hidden_dtype if as_it_is else torch.float32
    k = sae.rule.k if isinstance(sae.rule, TopK) else None
    tiled = {GroupMax: "groupmax tiled torch; ", MatchingPursuit: "matching pursuit tiled torch; "}
    prefix = tiled.get(type(sae.rule), "") + ("temporal torch; " if sae.prediction is not None else "")
    try:
        return prefix + kernel_configuration(device, x_dtype, sae.w_enc_CD.dtype, sae.d_in, sae.num_latents, k=k)
    except BackendUnavailable as error:
        raise ScoreError(f"the sparse operators do not run on device {device}: {error}. Use --device cpu.") from error


@span("encode")
def encode(sae: Sae, hidden_ND: Tensor, lengths: Sequence[int] | None = None) -> Code:
    """Active latents of hidden states, which must be finite. ScoreError where the SAE's product overflows.

    `lengths` are the tokens of each window, where the N tokens are whole windows, one after the other. Only a temporal
    SAE looks at them, and cannot do without: SaeError where they are missing or do not add up to N.
    """
    x_ND, stats = normalise_input(sae, hidden_ND)
    beside_ND, x_ND = _set_aside(sae, x_ND, lengths)
    with _refusals(sae, "encode these hidden states"):
        match sae.rule:
            case Threshold() as rule:
                rows = encode_threshold(
                    x_ND,
                    sae.w_enc_CD,
                    sae.bias_C,
                    rule.threshold_C,
                    negative_threshold_C=rule.negative_threshold_C,
                    scale_C=rule.scale_C,
                    offset_C=rule.offset_C,
                )
            case TopK() as rule:
                rows = encode_topk(x_ND, sae.w_enc_CD, sae.bias_C, rule.k, signed=rule.signed)
            case GroupMax() as rule:
                rows = encode_groupmax(x_ND, sae.w_enc_CD, sae.bias_C, rule.groups)
            case MatchingPursuit() as rule:
                rows = encode_matching_pursuit(
                    x_ND.float() - sae.b_dec_D,
                    sae.w_dec_CD,
                    rule.max_iterations,
                    residual_threshold=rule.residual_threshold,
                    stop_on_repeat=rule.stop_on_repeat,
                )
    return Code(rows=rows, stats=stats, beside_ND=beside_ND)


def _set_aside(sae: Sae, x_ND: Tensor, lengths: Sequence[int] | None) -> tuple[Tensor | None, Tensor]:
    """What the decoder adds beside the latents, and what the encoder is to read."""
    if sae.w_skip_DD is not None:
        return x_ND.float() @ sae.w_skip_DD, x_ND
    if sae.prediction is None:
        return None, x_ND
    if lengths is None:
        raise SaeError(
            f"the SAE {sae.facts.source!r} is temporal: what it encodes of a token depends on the earlier tokens of "
            "its window, and these hidden states come without their windows. Expected whole windows and their "
            "lengths, or an SAE that encodes each token by itself."
        )
    with span("predict"):
        return predict(sae.prediction, sae.w_enc_CD, sae.w_dec_CD, x_ND, lengths)


@span("decode")
def reconstruct(sae: Sae, code: Code) -> Tensor:
    """What the SAE puts in place of the written site, given the code of what it read, float32 [N, D]."""
    with _refusals(sae, "decode its latents"):
        decoded_ND = decode(code.rows, sae.w_dec_CD, sae.b_dec_D)
    return undo_norm(sae, decoded_ND if code.beside_ND is None else decoded_ND + code.beside_ND, code.stats)


@span("decode")
def of_latents(sae: Sae, code: Code) -> Tensor:
    """The part of the reconstruction that its active latents make, without bias and what is beside, float32 [N, D]."""
    with _refusals(sae, "decode its latents"):
        return scale_gradient(sae, decode(code.rows, sae.w_dec_CD, torch.zeros_like(sae.b_dec_D)), code.stats)


@span("project")
def project_gradient(sae: Sae, code: Code, grad_ND: Tensor) -> Tensor:
    """⟨G, effective decoder row⟩ of every active latent, float32, in the order of the code's values."""
    with _refusals(sae, "meet the gradient"):
        return project(code.rows, scale_gradient(sae, grad_ND, code.stats), sae.w_dec_CD)


def difference(sae: Sae, code: Code, other: Code) -> Code:
    """How much more active each latent is than in `other`, another code of as many tokens; exact zeros are left out."""
    num_tokens = len(code.rows.indptr) - 1
    keys, values = (torch.cat(parts) for parts in zip(_entries(sae, code), _entries(sae, other), strict=True))
    values[len(code.rows.values) :] *= -1
    union_U, group_Z = torch.unique(keys, return_inverse=True)
    change_U = torch.zeros(len(union_U), device=values.device).index_add_(0, group_Z, values)
    union_U, change_U = union_U[change_U != 0], change_U[change_U != 0]
    indptr = torch.zeros_like(code.rows.indptr)
    indptr[1:] = torch.bincount(union_U // sae.num_latents, minlength=num_tokens).cumsum(0)
    indices = (union_U % sae.num_latents).to(code.rows.indices.dtype)
    return Code(rows=SparseRows(indptr=indptr, indices=indices, values=change_U), stats=code.stats)


def _entries(sae: Sae, code: Code) -> tuple[Tensor, Tensor]:
    """(token * C + latent, value) of every non-zero, int64 and float32 [Z]."""
    rows = code.rows
    token_Z = torch.arange(len(rows.indptr) - 1, device=rows.indptr.device).repeat_interleave(rows.indptr.diff())
    return token_Z * sae.num_latents + rows.indices, rows.values.float()


def chosen_rows(code: Code, rows_S: Tensor) -> Code:
    """The code of some rows alone, int64 [S], in the order given."""
    counts_S = code.rows.indptr.diff()[rows_S]
    indptr = torch.cat([counts_S.new_zeros(1), counts_S.cumsum(0)])
    shift_Z = (code.rows.indptr[rows_S] - indptr[:-1]).repeat_interleave(counts_S)
    source_Z = shift_Z + torch.arange(len(shift_Z), device=shift_Z.device)
    rows = SparseRows(indptr=indptr, indices=code.rows.indices[source_Z], values=code.rows.values[source_Z])
    scale_N, shift_N, beside_ND = code.stats.scale_N, code.stats.shift_N, code.beside_ND
    stats = InputStats(
        scale_N=None if scale_N is None else scale_N[rows_S], shift_N=None if shift_N is None else shift_N[rows_S]
    )
    return Code(rows=rows, stats=stats, beside_ND=None if beside_ND is None else beside_ND[rows_S])


def drop_rows(code: Code, kept_R: Array) -> Code:
    """Empty the rows that are not kept; the number of rows stays, so that gradients still line up."""
    if kept_R.all():
        return code
    counts_R = code.rows.indptr.diff()
    keep_R = to_device(kept_R, counts_R.device)
    kept_Z = keep_R.repeat_interleave(counts_R)
    indptr = torch.zeros_like(code.rows.indptr)
    indptr[1:] = torch.where(keep_R, counts_R, 0).cumsum(0)
    rows = SparseRows(indptr=indptr, indices=code.rows.indices[kept_Z], values=code.rows.values[kept_Z])
    return replace(code, rows=rows)


def kept_row_pointers(indptr: Array, scored_R: Array) -> Array:
    """Row pointers of the scored rows, given that all other rows are empty."""
    return np.concatenate([np.zeros(1, indptr.dtype), np.cumsum(np.diff(indptr)[scored_R])])


@contextmanager
def _refusals(sae: Sae, what: str) -> Iterator[None]:
    """Turn an operator's refusal into a ScoreError that names the SAE."""
    try:
        yield
    except ContractError as error:
        raise ScoreError(
            f"the SAE {sae.facts.source!r} cannot {what}: {error}. Expected an SAE that was trained on this model and "
            "site: check --model, --sae and --site."
        ) from error

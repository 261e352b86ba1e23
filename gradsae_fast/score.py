"""Sparse scores of a batch: the only bridge between language model, SAE and kernels.

A captured hidden state is encoded once; the same sparse code is decoded (for the splice and for FVU) and its active
decoder rows meet the gradient. influence = activation * projection, projection = ⟨G, effective decoder row⟩.

Letters: R real positions of a batch, N of them scored, D width, B windows.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gradsae_fast.errors import SaeError, ScoreError
from gradsae_fast.method import Method
from gradsae_fast.model.capture import Capture, capture
from gradsae_fast.model.load import LanguageModel
from gradsae_fast.model.objectives import Objective
from gradsae_fast.model.sites import Site
from gradsae_fast.records import Array, Batch, SparseScores, TokenMask, Window
from gradsae_fast.sae.canonical import InputNorm, InputStats, Sae, Threshold, normalise_input, scale_gradient, undo_norm
from gradsae_kernels import (
    BackendUnavailable,
    ContractError,
    SparseRows,
    decode,
    encode_threshold,
    encode_topk,
    kernel_configuration,
    project,
)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SitedSae:
    """An SAE at its site; tokens whose norm exceeds `sink_norm` there are attention sinks."""

    site: Site
    sae: Sae
    sink_norm: float = float("inf")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Code:
    """Sparse latents of some tokens, and the input statistics that the decoder undoes."""

    rows: SparseRows
    stats: InputStats


@dataclass(slots=True, kw_only=True)
class Tally:
    """Running sums over unmasked tokens, from which L0 and FVU follow."""

    num_tokens: int = 0
    num_active: int = 0
    squared_error: float = 0.0
    squared_norm: float = 0.0
    sum_D: Array | None = None

    def add(self, hidden_ND: Tensor, reconstruction_ND: Tensor, num_active: int) -> None:
        hidden_ND = hidden_ND.double()
        self.num_tokens += len(hidden_ND)
        self.num_active += num_active
        self.squared_error += (hidden_ND - reconstruction_ND).square().sum().item()
        self.squared_norm += hidden_ND.square().sum().item()
        sum_D = hidden_ND.sum(0).cpu().numpy()
        self.sum_D = sum_D if self.sum_D is None else self.sum_D + sum_D

    @property
    def l0(self) -> float:
        """Mean number of active latents of a token."""
        return self.num_active / self.num_tokens if self.num_tokens else float("nan")

    @property
    def fvu(self) -> float:
        """Fraction of variance unexplained by the reconstruction."""
        if self.sum_D is None or self.num_tokens < 2:
            return float("nan")
        variance = self.squared_norm - float(np.square(self.sum_D).sum()) / self.num_tokens
        return self.squared_error / variance if variance > 0 else float("nan")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class BatchScores:
    """What one batch adds: N scored tokens, window after window."""

    sites: Mapping[str, SparseScores]
    mask_N: Array  # uint8, TokenMask bits
    values: Mapping[str, Mapping[str, Array]]  # site -> objective -> float64 [B]


def kernels_for(sae: Sae, device: torch.device, hidden_dtype: torch.dtype) -> str:
    """What the operators run for this SAE on a device; it decides over last bits. ScoreError where they cannot run."""
    x_dtype = hidden_dtype if sae.input_norm is InputNorm.NONE else torch.float32
    k = None if isinstance(sae.rule, Threshold) else sae.rule.k
    try:
        return kernel_configuration(device, x_dtype, sae.w_enc_CD.dtype, sae.d_in, sae.num_latents, k=k)
    except BackendUnavailable as error:
        raise ScoreError(f"the sparse operators do not run on device {device}: {error}. Use --device cpu.") from error


def encode(sae: Sae, hidden_ND: Tensor) -> Code:
    """Active latents of hidden states, which must be finite. ScoreError where the SAE's product overflows."""
    x_ND, stats = normalise_input(sae, hidden_ND)
    with _refusals(sae, "encode these hidden states"):
        if isinstance(sae.rule, Threshold):
            rows = encode_threshold(
                x_ND,
                sae.w_enc_CD,
                sae.bias_C,
                sae.rule.threshold_C,
                negative_threshold_C=sae.rule.negative_threshold_C,
                scale_C=sae.rule.scale_C,
                offset_C=sae.rule.offset_C,
            )
        else:
            rows = encode_topk(x_ND, sae.w_enc_CD, sae.bias_C, sae.rule.k, signed=sae.rule.signed)
    return Code(rows=rows, stats=stats)


def reconstruct(sae: Sae, code: Code) -> Tensor:
    """The SAE's reconstruction [N, D] of the hidden states that the code was made from, float32."""
    with _refusals(sae, "decode its latents"):
        return undo_norm(sae, decode(code.rows, sae.w_dec_CD, sae.b_dec_D), code.stats)


def project_gradient(sae: Sae, code: Code, grad_ND: Tensor) -> Tensor:
    """⟨G, effective decoder row⟩ of every active latent, float32, in the order of the code's values."""
    with _refusals(sae, "meet the gradient"):
        return project(code.rows, scale_gradient(sae, grad_ND, code.stats), sae.w_dec_CD)


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


def score_batch(
    lm: LanguageModel,
    sited: Sequence[SitedSae],
    method: Method,
    objectives: Sequence[Objective],
    batch: Batch,
    *,
    tallies: Mapping[str, Tally] | None = None,
    nonfinite: str = "raise",
    chunk: int = 512,
) -> BatchScores:
    """Score one batch at all sites. ScoreError where NaN or Inf is met and the policy is to raise."""
    scorers = {one.site.path: _SiteScorer(one, method, batch, nonfinite) for one in sited}

    def splice(path: str, hidden_RD: Tensor) -> Tensor:
        return scorers[path].splice(hidden_RD)

    captures = capture(
        lm,
        batch,
        [one.site for one in sited],
        objectives,
        splice=None if method.use_error_term else splice,
        chunk=chunk,
    )
    sites = {path: scorers[path].finish(found, (tallies or {}).get(path)) for path, found in captures.items()}
    mask_R = np.bitwise_or.reduce([scorer.mask_R for scorer in scorers.values()])
    return BatchScores(
        sites=sites,
        mask_N=mask_R[scored_positions(batch)],
        values={path: found.values for path, found in captures.items()},
    )


class _SiteScorer:
    """Encode at the moment of the splice (or after the run, without one), project when the gradient is there."""

    def __init__(self, sited: SitedSae, method: Method, batch: Batch, nonfinite: str) -> None:
        self.site, self.sae, self.sink_norm = sited.site, sited.sae, sited.sink_norm
        self.splice_all = method.splice == "all"
        self.batch = batch
        self.nonfinite = nonfinite
        self.mask_R = position_masks(batch)
        self.code: Code | None = None
        self.reconstruction_RD: Tensor | None = None

    def splice(self, hidden_RD: Tensor) -> Tensor:
        """The reconstruction where a position is spliced, the hidden state itself elsewhere."""
        reconstruction_RD = self._encode(hidden_RD)
        spliced_R = (self.mask_R & TokenMask.NONFINITE) == 0 if self.splice_all else self.mask_R == 0
        keep_R = torch.from_numpy(spliced_R).to(hidden_RD.device)
        return torch.where(keep_R[:, None], reconstruction_RD, hidden_RD.float())

    def finish(self, found: Capture, tally: Tally | None) -> SparseScores:
        """The scores of the scored positions; adds to the tally."""
        reconstruction_RD = self._encode(found.hidden_RD) if self.reconstruction_RD is None else self.reconstruction_RD
        grads = {name: self._finite(grad_RD, f"the gradient of {name}") for name, grad_RD in found.grads.items()}
        assert self.code is not None
        counted_R = torch.from_numpy((self.mask_R == 0) & scored_positions(self.batch))
        if tally is not None:
            num_active = int(self.code.rows.indptr.diff().cpu()[counted_R].sum())
            kept_R = counted_R.to(found.hidden_RD.device)
            tally.add(found.hidden_RD[kept_R], reconstruction_RD[kept_R], num_active)
        clean_R = (self.mask_R & TokenMask.NONFINITE) == 0
        scored_R = torch.from_numpy(scored_positions(self.batch))
        code = _drop_rows(self.code, torch.from_numpy(clean_R) & scored_R)
        projections = {name: project_gradient(self.sae, code, grad_RD) for name, grad_RD in grads.items()}
        return SparseScores(
            indptr=_keep_row_pointers(code.rows.indptr.cpu(), scored_R).numpy(),
            indices=code.rows.indices.cpu().numpy(),
            activation=code.rows.values.cpu().numpy(),
            projections={name: projection.cpu().numpy() for name, projection in projections.items()},
            num_latents=self.sae.num_latents,
        )

    def _encode(self, hidden_RD: Tensor) -> Tensor:
        """Encode and decode once; marks sinks and positions that are not finite."""
        if hidden_RD.shape[1] != self.sae.d_in:
            raise SaeError(
                f"the SAE {self.sae.facts.source!r} reads width {self.sae.d_in}, but {self.site.path} puts out width "
                f"{hidden_RD.shape[1]}: it was trained on another model or site. Check --model and --site."
            )
        hidden_RD = self._finite(hidden_RD, "the hidden state")
        sink_R = hidden_RD.float().norm(dim=1) > self.sink_norm
        self.mask_R |= np.where(sink_R.cpu().numpy(), np.uint8(TokenMask.NORM), np.uint8(0))
        self.code = encode(self.sae, hidden_RD)
        self.reconstruction_RD = reconstruct(self.sae, self.code)
        return self.reconstruction_RD

    def _finite(self, rows_RD: Tensor, what: str) -> Tensor:
        """`rows_RD` with rows that are not finite set to zero and marked; raises where the policy says so."""
        bad_R = ~torch.isfinite(rows_RD).all(1)
        if not bad_R.any():
            return rows_RD
        if self.nonfinite == "raise":
            raise ScoreError(self._describe(int(bad_R.nonzero()[0]), what))
        self.mask_R |= np.where(bad_R.cpu().numpy(), np.uint8(TokenMask.NONFINITE), np.uint8(0))
        return torch.where(bad_R[:, None], torch.zeros_like(rows_RD), rows_RD)

    def _describe(self, row: int, what: str) -> str:
        for window in self.batch.windows:
            if row < len(window.token_ids):
                position = row - window.num_context + window.first_position
                return (
                    f"NaN or Inf in {what} at {self.site.path}: document {window.document.document.key!r}, "
                    f"token {position} (id {window.token_ids[row]}). Expected finite numbers. Run in float32 "
                    "(--dtype float32), leave the document out (--nonfinite quarantine), or mask the tokens "
                    "(--nonfinite keep)."
                )
            row -= len(window.token_ids)
        raise AssertionError("row beyond the batch")


def position_masks(batch: Batch) -> Array:
    """TokenMask bits of every real position that follow from the tokens alone, uint8 [R]."""
    return np.concatenate([_window_mask(window) for window in batch.windows])


def scored_positions(batch: Batch) -> Array:
    """Which real positions are scored in this batch (the others are context), bool [R]."""
    return np.concatenate([np.arange(len(window.token_ids)) >= window.num_context for window in batch.windows])


def _window_mask(window: Window) -> Array:
    document = window.document
    repeated_bos = document.num_bos if window.num_context else 0
    in_document = np.arange(repeated_bos, len(window.token_ids)) - window.num_context + window.first_position
    special = np.concatenate([np.ones(repeated_bos, bool), document.special[in_document]])
    mask = np.where(special, np.uint8(TokenMask.SPECIAL), np.uint8(0))
    if document.num_bos == 0:
        mask[0] |= TokenMask.FIRST
    return mask


def _drop_rows(code: Code, keep_R: Tensor) -> Code:
    """Empty the rows that are not kept; the number of rows stays, so that gradients still line up."""
    counts_R = code.rows.indptr.diff()
    keep_R = keep_R.to(counts_R.device)
    kept_Z = keep_R.repeat_interleave(counts_R)
    indptr = torch.zeros_like(code.rows.indptr)
    indptr[1:] = torch.where(keep_R, counts_R, 0).cumsum(0)
    rows = SparseRows(indptr=indptr, indices=code.rows.indices[kept_Z], values=code.rows.values[kept_Z])
    return Code(rows=rows, stats=code.stats)


def _keep_row_pointers(indptr: Tensor, scored_R: Tensor) -> Any:
    """Row pointers of the scored rows, given that all other rows are empty."""
    counts_N = indptr.diff()[scored_R]
    return torch.cat([counts_N.new_zeros(1), counts_N.cumsum(0)])

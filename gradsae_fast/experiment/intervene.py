"""What an intervention does to a hidden state: latents taken out, and, for steering, other latents put in.

Where the method splices, the network sees the reconstruction without the dropped latents, plus the injected ones; where
it keeps the error term, the hidden state changes by the same difference, so the error stays. In the prompt and in what
is generated, the positions that the method splices are edited; with the error term kept, those that its aggregates
count. Other positions are left as they are.

An injected latent has one value at all positions. Its row of the decoder takes the token's own factor, as an encoded
latent's would (effective decoder row).

Letters: B examples of a batch, R tokens, D width, C latents, K latents of one edit.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from gradsae_fast.method import Method
from gradsae_fast.records import Array, TokenMask
from gradsae_fast.sae.canonical import Sae, scale_gradient
from gradsae_fast.score import SitedSae
from gradsae_fast.sparse_code import Code, encode, reconstruct


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Edit:
    """What happens to one example: `drop_K` are set to zero, then `inject_K` hold `value_K` at every token."""

    drop_K: Array = field(default_factory=lambda: np.zeros(0, np.int64))
    inject_K: Array = field(default_factory=lambda: np.zeros(0, np.int64))
    value_K: Array = field(default_factory=lambda: np.zeros(0, np.float32))

    def key(self) -> tuple[bytes, bytes, bytes]:
        """Equal for edits that do the same."""
        order = np.argsort(self.inject_K)
        return np.sort(self.drop_K).tobytes(), self.inject_K[order].tobytes(), self.value_K[order].tobytes()


class Intervention:
    """The edits of a batch of examples at one site, as a map of hidden states."""

    def __init__(self, sited: SitedSae, method: Method, edits: Sequence[Edit]) -> None:
        self.sited, self.method, self.edits = sited, method, tuple(edits)

    @cached_property
    def drop_BC(self) -> Tensor:
        """Which encoded latents each example loses, bool; an injected latent loses its own value."""
        drop_BC = np.zeros((len(self.edits), self.sited.sae.num_latents), bool)
        for row, edit in enumerate(self.edits):
            drop_BC[row, edit.drop_K] = drop_BC[row, edit.inject_K] = True
        return torch.from_numpy(drop_BC).to(self.sited.sae.w_dec_CD.device)

    @cached_property
    def inject_BD(self) -> Tensor:
        """What each example gains, before the token's own factor, float32."""
        return torch.stack([_injected(self.sited.sae, edit) for edit in self.edits])

    def of(self, rows: Sequence[int]) -> "Intervention":
        """The same for some of the examples."""
        return Intervention(self.sited, self.method, [self.edits[row] for row in rows])

    def change(self, hidden_RD: Tensor, example_R: Tensor, mask_R: Tensor) -> Tensor:
        """Hidden states [R, D] as the network above is to see them.

        example_R: the example of each token (int64); mask_R: TokenMask bits that follow from the tokens alone (uint8).
        ScoreError where the SAE cannot encode them, such as for NaN.
        """
        sae = self.sited.sae
        code = encode(sae, hidden_RD)
        edited_RD = reconstruct(sae, _without(code, self.drop_BC, example_R))
        edited_RD = edited_RD + scale_gradient(sae, self.inject_BD[example_R], code.stats)
        if self.method.use_error_term:
            edited_RD = hidden_RD.float() + (edited_RD - reconstruct(sae, code))
        edited_R = self._edited(hidden_RD, mask_R)
        return torch.where(edited_R[:, None], edited_RD, hidden_RD.float()).to(hidden_RD.dtype)

    def _edited(self, hidden_RD: Tensor, mask_R: Tensor) -> Tensor:
        """Which tokens are edited, bool [R]."""
        if self.method.splice == "all" or (self.method.use_error_term and self.method.include_special):
            return torch.ones_like(mask_R, dtype=torch.bool)
        return (mask_R == 0) & (hidden_RD.float().norm(dim=1) <= self.sited.sink_norm)


def token_masks(token_ids_T: Array, masked_ids: Array) -> Array:
    """TokenMask bits of generated tokens: special and masked ids, uint8 [T]."""
    return np.where(np.isin(token_ids_T, masked_ids), np.uint8(TokenMask.SPECIAL), np.uint8(0))


def _injected(sae: Sae, edit: Edit) -> Tensor:
    """Σ_k value[k] · W_dec[k], float32 [D]."""
    rows_KD = sae.w_dec_CD[torch.from_numpy(edit.inject_K).to(sae.w_dec_CD.device)].float()
    return torch.from_numpy(edit.value_K.astype(np.float32)).to(rows_KD.device) @ rows_KD


def _without(code: Code, drop_BC: Tensor, example_R: Tensor) -> Code:
    """The code without the dropped latents of each token's example."""
    counts_R = code.rows.indptr.diff()
    token_Z = torch.arange(len(counts_R), device=counts_R.device).repeat_interleave(counts_R)
    keep_Z = ~drop_BC[example_R[token_Z], code.rows.indices.long()]
    indptr = torch.zeros_like(code.rows.indptr)
    indptr[1:] = torch.bincount(token_Z[keep_Z], minlength=len(counts_R)).cumsum(0)
    rows = code.rows._replace(indptr=indptr, indices=code.rows.indices[keep_Z], values=code.rows.values[keep_Z])
    return Code(rows=rows, stats=code.stats)

"""Sparse scores of a batch: where language model and SAE meet.

A captured hidden state is encoded once; the same sparse code is decoded (for the splice and for FVU) and its active
decoder rows meet the gradient. influence = activation * projection, projection = ⟨G, effective decoder row⟩. Against a
patch text, `activation` is how much more active the latent is in the text than in the patch (attribution patching).

Letters: R real positions of a batch, N of them scored, D width, B windows.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from gradsae_fast.errors import ConfigError, SaeError, ScoreError
from gradsae_fast.method import Method
from gradsae_fast.model.capture import Capture, capture
from gradsae_fast.model.load import LanguageModel
from gradsae_fast.model.objectives import Objective
from gradsae_fast.model.sites import Site, Wiring
from gradsae_fast.model.states import hidden_states
from gradsae_fast.positions import position_masks, scored_positions
from gradsae_fast.quality import Tally, even_sample
from gradsae_fast.records import Array, Batch, SparseScores, TokenMask, counted_tokens
from gradsae_fast.sae.canonical import Sae
from gradsae_fast.sparse_code import (
    Code,
    chosen_rows,
    difference,
    drop_rows,
    encode,
    kept_row_pointers,
    of_latents,
    project_gradient,
    reconstruct,
)
from gradsae_fast.stages import span
from gradsae_fast.transfer import download, to_device


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SitedSae:
    """An SAE at its site; tokens whose norm exceeds `sink_norm` there are attention sinks.

    So are those whose norm exceeds `read_sink_norm` where a transcoder reads: what it writes may be small at a sink.
    """

    wiring: Wiring
    sae: Sae
    sink_norm: float = float("inf")
    read_sink_norm: float = float("inf")

    @property
    def site(self) -> Site:
        """Where the decoder writes and the gradient is taken; of a cross-layer transcoder the first such site."""
        return self.wiring.writes[0]

    def with_sinks(self, ratio: float, medians: Mapping[str, float]) -> "SitedSae":
        """The same with sinks above so many median norms of each site, given by path; a ratio of 0 knows none."""
        if ratio == 0:
            return self
        written, read = medians[self.site.path], medians.get(self.wiring.reads.path, float("inf"))
        return replace(self, sink_norm=ratio * written, read_sink_norm=ratio * read)

    def sinks(self, read_RD: Tensor, written_RD: Tensor) -> Tensor:
        """Which tokens are attention sinks, bool [R]."""
        sink_R = written_RD.float().norm(dim=1) > self.sink_norm
        if self.wiring.is_transcoder:
            sink_R |= self.read_sinks(read_RD)
        return sink_R

    def read_sinks(self, read_RD: Tensor) -> Tensor:
        """Which tokens are sinks by what is read alone, bool [R]: all that is known of a patch text."""
        limit = self.read_sink_norm if self.wiring.is_transcoder else self.sink_norm
        return read_RD.float().norm(dim=1) > limit


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class BatchScores:
    """What one batch adds: N scored tokens, window after window."""

    sites: Mapping[str, SparseScores]
    mask_N: Array  # uint8, TokenMask bits
    values: Mapping[str, Mapping[str, Array]]  # site -> objective -> float64 [B]
    base_values: Mapping[str, Mapping[str, Array]] = field(default_factory=dict)  # the same where a path begins


def check_widths(sited: SitedSae, read_RD: Tensor, written_RD: Tensor) -> None:
    """SaeError where the SAE reads or writes another width than its sites have."""
    sae, wiring = sited.sae, sited.wiring
    for verb, width, sites, found in (
        ("reads", sae.d_in, (wiring.reads,), read_RD.shape[1]),
        ("writes", sae.d_out, wiring.writes, written_RD.shape[1]),
    ):
        if width != found:
            where = ", ".join(site.path for site in sites)
            raise SaeError(
                f"the SAE {sae.facts.source!r} {verb} width {width}, but {where} has width {found}: it was trained on "
                "another model or site. Check --model and --site."
            )


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
    return begin_batch(lm, sited, method, objectives, batch, tallies=tallies, nonfinite=nonfinite, chunk=chunk)()


def begin_batch(
    lm: LanguageModel,
    sited: Sequence[SitedSae],
    method: Method,
    objectives: Sequence[Objective],
    batch: Batch,
    *,
    tallies: Mapping[str, Tally] | None = None,
    nonfinite: str = "raise",
    chunk: int = 512,
) -> Callable[[], BatchScores]:
    """`score_batch`, but for waiting until a GPU has sent the scores; calling the result does that."""
    patch = _patch_states(lm, sited, batch) if method.patch else {}
    scorers = {
        one.site.path: _SiteScorer(one, method, batch, nonfinite, patch.get(one.wiring.reads.path)) for one in sited
    }

    def splice(path: str, read_RD: Tensor, written_RD: Tensor, share: float) -> Tensor:
        return scorers[path].splice(read_RD, written_RD, share)

    captures = capture(
        lm,
        batch,
        [one.wiring for one in sited],
        objectives,
        splice=None if method.use_error_term and not method.path_steps else splice,
        path_steps=method.path_steps,
        chunk=chunk,
    )
    values = {path: found.values for path, found in captures.items()}
    base_values = {path: found.base_values for path, found in captures.items() if found.base_values is not None}
    # What a site holds of the device is let go before the next one is worked on.
    arriving = {path: scorers[path].finish(captures.pop(path), (tallies or {}).get(path)) for path in scorers}
    mask_R = np.bitwise_or.reduce([scorer.mask_R for scorer in scorers.values()])
    return lambda: BatchScores(
        sites={path: arrive() for path, arrive in arriving.items()},
        mask_N=mask_R[scored_positions(batch)],
        values=values,
        base_values=base_values,
    )


def _patch_states(lm: LanguageModel, sited: Sequence[SitedSae], batch: Batch) -> dict[str, Tensor]:
    """What the encoders read where every window holds its patch text; keys are paths of the sites."""
    token_ids_BT = batch.token_ids_BT.copy()
    for row, window in enumerate(batch.windows):
        if window.patch_ids is None:
            key = window.document.document.key
            raise ConfigError(f"document {key!r} has no patch text to compare with. Set patch_column.")
        token_ids_BT[row, : len(window.patch_ids)] = window.patch_ids
    sites = list(dict.fromkeys(one.wiring.reads for one in sited))
    return hidden_states(lm, Batch(windows=batch.windows, token_ids_BT=token_ids_BT), sites)


class _SiteScorer:
    """Encode at the moment of the splice (or after the run, without one), project when the gradient is there."""

    def __init__(
        self, sited: SitedSae, method: Method, batch: Batch, nonfinite: str, patch_RD: Tensor | None = None
    ) -> None:
        self.sited, self.sae, self.method = sited, sited.sae, method
        self.batch = batch
        self.nonfinite = nonfinite
        self.mask_R = position_masks(batch)
        self.scored_R = scored_positions(batch)
        self.patch_RD = patch_RD
        self.code: Code | None = None  # of what is read
        self.scored: Code | None = None  # what is scored: the code, or its difference from a patch's
        self.reconstruction_RD: Tensor | None = None
        self.moving_RD: Tensor | None = None

    def splice(self, read_RD: Tensor, written_RD: Tensor, share: float) -> Tensor:
        """What the network sees: the reconstruction where a position is spliced, what was there elsewhere.

        A `share` below 1 takes the rest of what is scored out of every token that the aggregates count.
        """
        if self.code is None:
            self._encode(read_RD, written_RD)
        if self.reconstruction_RD is None:
            assert self.code is not None
            self.reconstruction_RD = reconstruct(self.sae, self.code)
        seen_RD = torch.where(self._rows(self._spliced_R()), self.reconstruction_RD, written_RD.float())
        if share == 1.0:
            return seen_RD
        return seen_RD - (1.0 - share) * self._moving()

    def finish(self, found: Capture, tally: Tally | None) -> Callable[[], SparseScores]:
        """The scores of the scored positions, on their way to the host; adds to the tally."""
        if self.code is None:
            self._encode(found.read_RD, found.written_RD)
        grads = {name: self._finite(grad_RD, f"the gradient of {name}") for name, grad_RD in found.grads.items()}
        assert self.code is not None
        assert self.scored is not None
        if tally is not None:
            self._measure(self.code, found.written_RD, tally)
        clean_R = (self.mask_R & TokenMask.NONFINITE) == 0
        code = drop_rows(self.scored, clean_R & self.scored_R)
        projections = {name: project_gradient(self.sae, code, grad_RD) for name, grad_RD in grads.items()}
        rows, scored_R, num_latents = code.rows, self.scored_R, self.sae.num_latents
        arrive = download({"indptr": rows.indptr, "indices": rows.indices, "activation": rows.values})
        arrive_projections = download(projections)

        def scores() -> SparseScores:
            arrays = arrive()
            return SparseScores(
                indptr=kept_row_pointers(arrays["indptr"], scored_R),
                indices=arrays["indices"],
                activation=arrays["activation"],
                projections=arrive_projections(),
                num_latents=num_latents,
            )

        return scores

    @span("measure")
    def _measure(self, code: Code, written_RD: Tensor, tally: Tally) -> None:
        """Add the tokens that count to the tally."""
        counted = np.flatnonzero((self.mask_R == 0) & self.scored_R)
        active_R = np.diff(code.rows.indptr.cpu().numpy())
        tally.count(len(counted), int(active_R[counted].sum()))
        # One layer of a cross-layer transcoder reconstructs nothing by itself: it has no FVU.
        if not self.sited.wiring.is_cross_layer:
            sample_S = to_device(even_sample(counted), written_RD.device)
            tally.compare(written_RD[sample_S], reconstruct(self.sae, chosen_rows(code, sample_S)))

    def _encode(self, read_RD: Tensor, written_RD: Tensor) -> None:
        """Encode once; marks sinks and positions that are not finite."""
        check_widths(self.sited, read_RD, written_RD)
        read_RD = self._finite(read_RD, "the hidden state")
        if self.sited.wiring.is_transcoder:
            written_RD = self._finite(written_RD, "the hidden state")
        sink_R = self.sited.sinks(read_RD, written_RD)
        if self.patch_RD is not None:
            self.patch_RD = self._finite(self.patch_RD, "the hidden state of the patch text")
            sink_R |= self.sited.read_sinks(self.patch_RD)
        self.mask_R |= np.where(sink_R.cpu().numpy(), np.uint8(TokenMask.NORM), np.uint8(0))
        self.code = encode(self.sae, read_RD, self.batch.lengths)
        self.scored = self.code
        if self.patch_RD is not None:
            self.scored = difference(self.sae, self.code, encode(self.sae, self.patch_RD, self.batch.lengths))

    def _spliced_R(self) -> Array:
        """Positions at which the reconstruction replaces the hidden state."""
        match self.method.splice:
            case "none":
                return np.zeros(len(self.mask_R), bool)
            case "all":
                return (self.mask_R & TokenMask.NONFINITE) == 0
            case "unmasked":
                return self.mask_R == 0

    def _moving(self) -> Tensor:
        """What a path adds from its beginning to its end, at the scored positions that count [R, D]."""
        if self.moving_RD is None:
            assert self.scored is not None
            moved_R = counted_tokens(self.mask_R, self.method.include_special) & self.scored_R
            self.moving_RD = torch.where(self._rows(moved_R), of_latents(self.sae, self.scored), 0.0)
        return self.moving_RD

    def _rows(self, chosen_R: Array) -> Tensor:
        """A choice of positions, as a column beside the hidden states [R, 1]."""
        return torch.from_numpy(chosen_R).to(self.sae.w_dec_CD.device)[:, None]

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
                    f"NaN or Inf in {what} at {self.sited.site.path}: document {window.document.document.key!r}, "
                    f"token {position} (id {window.token_ids[row]}). Expected finite numbers. Run in float32 "
                    "(--dtype float32), leave the document out (--nonfinite quarantine), or mask the tokens "
                    "(--nonfinite keep)."
                )
            row -= len(window.token_ids)
        raise AssertionError("row beyond the batch")

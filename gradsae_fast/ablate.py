"""Exact ablation: what an influence estimates to first order, by running the network again without the latent.

A window is encoded as it was scored. A *removal* takes one latent out of what the network sees at the site, at some
positions of the window: the reconstruction without that latent where the position is spliced, what was there less
activation times effective decoder row where it is not. That is one formula, because the decoder is affine. Whatever
the SAE, it changes those positions alone: what a temporal SAE predicts is made of hidden states, and stays. Many
removals of one window share a forward pass that starts at the site; the layers below it do not run again.

The first row of every pass is the window with nothing removed. It is what the others are compared with, so that what
rounding does to a batch of this shape cancels, and it tells whether the run is the one that was scored.

Letters: R real positions of a batch, T positions of a window, K rows of a pass, D width.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gradsae_fast.errors import ConfigError, ScoreError
from gradsae_fast.method import Method
from gradsae_fast.model.load import LanguageModel
from gradsae_fast.model.objectives import Objective, objective_values, predicted_tokens
from gradsae_fast.model.patching import forward_replaced
from gradsae_fast.model.sites import Site
from gradsae_fast.model.states import hidden_states
from gradsae_fast.positions import position_masks
from gradsae_fast.records import Array, Batch, TokenMask, Window
from gradsae_fast.sae.canonical import scale_gradient
from gradsae_fast.score import SitedSae
from gradsae_fast.sparse_code import Code, chosen_rows, encode, reconstruct


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Removal:
    """One latent, and the positions of a window (not of its document) at which its activation is set to 0."""

    latent: int
    position_P: Array  # int64, ascending


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ScoredWindow:
    """A window at one site as it was scored: its sparse code, and where the network runs on from."""

    window: Window
    sited: SitedSae
    code: Code  # of the T positions
    seen_TD: Tensor  # what the network sees at the site with nothing removed
    start_TD: Tensor | None  # output of the layer below the site's; None where the site is a layer, or in layer 0


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Effects:
    """An objective's value with nothing removed, and value - value(without), one per removal, float64."""

    value: float
    drop_K: Array


def scored_windows(
    lm: LanguageModel, sited: Sequence[SitedSae], method: Method, batch: Batch
) -> Iterator[list[ScoredWindow]]:
    """Every window of a batch, encoded as `score_batch` encodes it: a list per site, in the order of `sited`.

    One plain forward pass serves all sites. The batch must be the one that was scored for the same bits to come out.
    """
    check_ablatable(sited, method)
    below = {one.site.path: _layer_below(lm, one.site) for one in sited}
    touched = [site for one in sited for site in one.wiring.sites]
    watched = dict.fromkeys(touched + [site for site in below.values() if site is not None])
    hidden = hidden_states(lm, batch, list(watched))
    edges = np.cumsum([0, *batch.lengths])
    for one in sited:
        code, seen_RD = _seen(one, method, batch, hidden[one.wiring.reads.path], hidden[one.site.path])
        start = below[one.site.path]
        yield [
            ScoredWindow(
                window=window,
                sited=one,
                code=chosen_rows(code, torch.arange(first, last, device=code.rows.indptr.device)),
                seen_TD=seen_RD[first:last],
                start_TD=None if start is None else hidden[start.path][first:last],
            )
            for window, first, last in zip(batch.windows, edges[:-1].tolist(), edges[1:].tolist(), strict=True)
        ]


def ablate(
    lm: LanguageModel,
    scored: ScoredWindow,
    removals: Sequence[Removal],
    objectives: Sequence[Objective],
    *,
    tokens_per_pass: int = 8192,
    chunk: int = 512,
) -> dict[str, Effects]:
    """The exact effect of every removal on the value of each objective in this window, by the objective's name.

    Objectives are read off the same passes. A pass holds at most `tokens_per_pass` tokens, and at least one removal
    beside the untouched row. A `top-token` objective is about the token that the untouched row predicts, in every row:
    the one whose gradient is the score. ScoreError where a removal names a latent that is not active at a position.
    """
    size = max(1, tokens_per_pass // len(scored.window.token_ids) - 1)
    parts = [removals[first : first + size] for first in range(0, len(removals), size)] or [()]
    values = [_values(lm, scored, part, objectives, chunk) for part in parts]
    return {
        objective.name: Effects(
            value=float(values[0][objective.name][0]),
            drop_K=np.concatenate([of[objective.name][0] - of[objective.name][1:] for of in values]),
        )
        for objective in objectives
    }


def check_ablatable(sited: Sequence[SitedSae], method: Method) -> None:
    """ConfigError where what is scored is nothing that exact ablation takes out."""
    if method.patch:
        raise ConfigError(
            "influences against a patch text are not removals, so exact ablation has nothing to compare them with. "
            "Expected scores without patch_column."
        )
    for one in sited:
        if one.wiring.is_cross_layer:
            raise ConfigError(
                f"the cross-layer transcoder of {one.site.path} writes {len(one.wiring.writes)} sites; exact ablation "
                "takes latents out of one. Expected an SAE, or a transcoder that writes one site."
            )


def _seen(sited: SitedSae, method: Method, batch: Batch, read_RD: Tensor, written_RD: Tensor) -> tuple[Code, Tensor]:
    """The code of all positions, and what the network sees: the reconstruction where it is spliced."""
    finite_R = torch.isfinite(read_RD).all(1) & torch.isfinite(written_RD).all(1)
    code = encode(sited.sae, torch.where(finite_R[:, None], read_RD, torch.zeros_like(read_RD)), batch.lengths)
    if method.splice == "none":
        return code, written_RD
    spliced_R = finite_R
    if method.splice == "unmasked":
        sink_R = sited.sinks(read_RD, written_RD)
        token_R = torch.from_numpy(position_masks(batch) == TokenMask(0)).to(written_RD.device)
        spliced_R = finite_R & token_R & ~sink_R
    return code, torch.where(spliced_R[:, None], reconstruct(sited.sae, code), written_RD.float())


def _values(
    lm: LanguageModel, scored: ScoredWindow, removals: Sequence[Removal], objectives: Sequence[Objective], chunk: int
) -> dict[str, Array]:
    """Each objective's value of the untouched window and of each removal, float64 [1 + removals]."""
    rows_KTD = scored.seen_TD.repeat(1 + len(removals), 1, 1).float()
    for index, removal in enumerate(removals, start=1):
        positions = torch.from_numpy(removal.position_P).to(rows_KTD.device)
        rows_KTD[index, positions] -= _contribution(scored, removal, positions)
    window = scored.window
    ids_KT = np.repeat(window.token_ids[None].astype(np.int64), len(rows_KTD), axis=0)
    batch = Batch(windows=(window,) * len(rows_KTD), token_ids_BT=ids_KT)
    with torch.no_grad(), starting_at(lm, scored, rows_KTD.to(lm.dtype)):
        output = lm.body(input_ids=torch.from_numpy(ids_KT).to(lm.device), use_cache=False)
    values = {}
    for objective in objectives:
        predicted_K = predicted_tokens(lm, objective, batch, output, chunk=chunk)
        held_K = None if predicted_K is None else np.full_like(predicted_K, predicted_K[0])
        values[objective.name] = objective_values(lm, objective, batch, output, chunk=chunk, top_tokens=held_K)
    return values


def _contribution(scored: ScoredWindow, removal: Removal, positions: Tensor) -> Tensor:
    """What a latent adds to the reconstruction at each position, activation times effective decoder row [P, D]."""
    sae, code = scored.sited.sae, chosen_rows(scored.code, positions)
    rows = code.rows
    place_Z = torch.arange(len(positions), device=positions.device).repeat_interleave(rows.indptr.diff())
    of_latent = rows.indices == removal.latent
    activation_P = rows.values.new_zeros(len(positions))
    activation_P[place_Z[of_latent]] = rows.values[of_latent]
    if not (activation_P != 0).all():
        position = int(positions[activation_P == 0][0])
        raise ScoreError(
            f"latent {removal.latent} at {scored.sited.site.path} is not active at position {position} of a window of "
            f"document {scored.window.document.document.key!r}; expected the active latents that were scored. Run on "
            "the device and in the precision of the scores."
        )
    # The factor that moves onto a gradient is the one that a decoder row has at these positions.
    row_PD = sae.w_dec_CD[removal.latent].float().expand(len(positions), -1)
    return activation_P[:, None] * scale_gradient(sae, row_PD, code.stats)


@contextmanager
def starting_at(lm: LanguageModel, scored: ScoredWindow, rows_KTD: Tensor) -> Iterator[None]:
    """Let the network see `rows_KTD`, copies of the window, at the site, and skip the layers below."""
    site = scored.sited.site

    def put_out(hidden_KTD: Tensor | None, *_args: Any, **_kwargs: Any) -> Any:
        return (hidden_KTD,) if lm.layers_give_tuples else hidden_KTD

    with ExitStack() as stack:
        if site.is_layer:
            skipped, start_KTD = site.layer + 1, rows_KTD
        else:
            skipped, start_KTD = site.layer, rows_KTD
            if scored.start_TD is not None:
                start_KTD = scored.start_TD.repeat(len(rows_KTD), 1, 1)
            stack.enter_context(site.hook(lm.model, lambda hidden_KTD: rows_KTD.to(hidden_KTD.device)))
        for layer in lm.layers[:skipped]:
            stack.enter_context(forward_replaced(layer, partial(put_out, start_KTD)))
        yield


def _layer_below(lm: LanguageModel, site: Site) -> Site | None:
    """The layer whose output a site inside a layer starts from; None where there is nothing to save."""
    if site.is_layer or site.layer == 0:
        return None
    return Site(path=f"{lm.layers_path}.{site.layer - 1}", layer=site.layer - 1, is_layer=True)

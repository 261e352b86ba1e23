"""Direct logit effects: what a latent says to the output with no layer in between (the logit lens of its decoder row).

The effect of a latent on a token is the token's logit when the residual stream after the last layer is the latent's
decoder row and nothing else, less its logit when that is zero, less the mean of this over the vocabulary. So for a site
with no layer above, it is what the model's own forward gives for the row, without what the biases of norm and head say
of every latent alike, and up to a shift that no softmax sees. Layers above the site are passed over: what they would
make of the row is not in it.

The final norm takes the row alone, so the row's length has no meaning. It is given the length √D, which the norms leave
as it is and beside which their epsilon is nothing; the per-token factors of effective decoder rows are lengths too.
Everything is the model's own code (`model.unembed`), so Gemma 2's soft-cap of the logits is in: effects are in the
logits that the model puts out. It is monotone, so it shrinks large effects and never changes the order of tokens.

Source: the logit lens of Arad, Mueller and Belinkov, arXiv 2505.20063.

Letters: K latents, D width, V vocabulary, M listed tokens.
"""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from gradsae_fast.errors import ModelError
from gradsae_fast.model.load import LanguageModel
from gradsae_fast.model.sites import Site
from gradsae_fast.model.unembed import unembed
from gradsae_fast.records import Array
from gradsae_fast.score import SitedSae

LOGITS_PER_TILE = 1 << 24  # of a tile of latents [K, V]: 64 MiB in float32


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class DirectEffects:
    """The M most promoted and the M most suppressed tokens of each of K latents, strongest first."""

    promoted_KM: Array  # int64 token ids
    promoted_effect_KM: Array  # float32, logits above the vocabulary's mean
    suppressed_KM: Array
    suppressed_effect_KM: Array


def direct_effects(lm: LanguageModel, row_KD: Tensor, num_tokens: int) -> DirectEffects:
    """The `num_tokens` most promoted and suppressed tokens of decoder rows; logits exist for a tile of them at a time.

    Ids that the tokenizer does not have (rows that pad the vocabulary) are never listed.
    """
    size = tile_size(lm)
    count = min(num_tokens, len(lm.tokenizer))
    parts: list[tuple[Array, ...]] = []
    for tile_KD in row_KD.split(size):
        effect_KV = logit_effects(lm, tile_KD)[:, : len(lm.tokenizer)]
        top, bottom = effect_KV.topk(count), effect_KV.topk(count, largest=False)
        parts.append(tuple(found.cpu().numpy() for found in (top.indices, top.values, bottom.indices, bottom.values)))
    promoted, promoted_effect, suppressed, suppressed_effect = map(np.concatenate, zip(*parts, strict=True))
    return DirectEffects(
        promoted_KM=promoted,
        promoted_effect_KM=promoted_effect,
        suppressed_KM=suppressed,
        suppressed_effect_KM=suppressed_effect,
    )


def logit_effects(lm: LanguageModel, row_KD: Tensor) -> Tensor:
    """The effect of each decoder row on every logit, float32 [K, V]; a row of zeros has none."""
    row_KD = row_KD.float()
    length_K1 = row_KD.norm(dim=1, keepdim=True).clamp_min(torch.finfo(torch.float32).tiny)
    empty_1D = torch.zeros_like(row_KD[:1])
    logits_KV = unembed(lm, torch.cat([empty_1D, row_KD / length_K1 * row_KD.shape[1] ** 0.5]))
    effect_KV = logits_KV[1:] - logits_KV[:1]
    return effect_KV - effect_KV.mean(1, keepdim=True)


def residual_rows(lm: LanguageModel, sited: SitedSae, latents: Sequence[int]) -> Tensor:
    """What latents write into the residual stream, up to a length, float32 [K, D]: of several written sites, the sum.

    Raises:
        ModelError: a site that does not write there.
    """
    for site in sited.wiring.writes:
        require_residual(lm, site)
    row_KD = sited.sae.w_dec_CD[torch.as_tensor(latents, device=sited.sae.w_dec_CD.device)].float()
    return row_KD.unflatten(1, (len(sited.wiring.writes), -1)).sum(1)


def tile_size(lm: LanguageModel) -> int:
    """How many latents have logits at one time."""
    return max(1, LOGITS_PER_TILE // lm.model.get_input_embeddings().weight.shape[0])


def require_residual(lm: LanguageModel, site: Site) -> None:
    """Refuse a site whose output does not go into the residual stream as it is. ModelError names those that do."""
    written = {f"{lm.layers_path}.{site.layer}"}
    for hook in ("hook_attn_out", "hook_mlp_out"):
        with suppress(ModelError):  # a block without that branch, or with one of another name
            written.add(lm.site(f"blocks.{site.layer}.{hook}").path)
    if site.path not in written:
        raise ModelError(
            f"{site.path} does not add to the residual stream as it is, so a latent there has no direct effect on the "
            f"logits; expected one of {', '.join(sorted(written))}."
        )


def token_text(lm: LanguageModel, token_id: int) -> str:
    """A token as it reads in text; its name in the vocabulary where it is no whole character by itself."""
    name = lm.tokenizer.convert_ids_to_tokens(token_id)
    text = lm.tokenizer.decode([token_id])
    if not text or "\N{REPLACEMENT CHARACTER}" in text:
        return str(name)
    # SentencePiece drops the space in front of what it takes for a beginning.
    return f" {text}" if str(name).startswith("▁") and not text.startswith(" ") else text

"""SAEs of random weights at a model's sites, with thresholds that let as many latents fire as in published ones.

Decoder rows are random directions of unit norm, the encoder is the decoder's transpose (how SAEs are initialised), in
memory of its own. The decoder's bias is the mean hidden state of the site, and is taken off before encoding, as usual.
Firing rates are log-normal, as in the table of the kernels.

Letters: S sampled tokens, R real positions of a batch, C latents, D width, T latents of a tile.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from benchmarks.gpu.workload import firing_levels, fitted_shift, product
from gradsae_fast.model.load import LanguageModel
from gradsae_fast.model.sites import Site, Wiring
from gradsae_fast.model.states import hidden_states
from gradsae_fast.records import Batch
from gradsae_fast.sae.canonical import InputNorm, Sae, SaeFacts, Threshold
from gradsae_fast.score import SitedSae

SAMPLE_TOKENS = 1024
TILE_LATENTS = 8192  # of weights that are widened at a time
LEAST_LEVEL = 1e-3  # of a threshold, in standard deviations


@torch.no_grad()
def random_saes(
    lm: LanguageModel,
    sites: Sequence[Site],
    batches: Sequence[Batch],
    *,
    num_latents: int,
    active: int,
    dtype: torch.dtype,
    shared: bool,
) -> tuple[SitedSae, ...]:
    """One at each site, fitted to the model's own hidden states on tokens of all batches.

    About `active` of its `num_latents` latents fire on a token. `shared`: all sites have the same encoder and decoder.
    """
    generator = torch.Generator(lm.device).manual_seed(1)
    sample = _sample(lm, sites, batches)
    weights = _weights(num_latents, lm.width, dtype, generator, shared=shared)
    return tuple(
        SitedSae(wiring=Wiring.at(site), sae=_fitted(sample[site.path], *pair, active, generator))
        for site, pair in zip(sites, weights, strict=False)
    )


def _sample(lm: LanguageModel, sites: Sequence[Site], batches: Sequence[Batch]) -> dict[str, Tensor]:
    """Hidden states [S, D] at each site, of tokens from all documents, as every one has a mean of its own."""
    stride = max(1, sum(batch.num_scored for batch in batches) // SAMPLE_TOKENS)
    parts = [
        {path: hidden_RD[::stride].clone() for path, hidden_RD in hidden_states(lm, batch, sites).items()}
        for batch in batches
    ]
    return {site.path: torch.cat([part[site.path] for part in parts]) for site in sites}


def _weights(
    num_latents: int, width: int, dtype: torch.dtype, generator: torch.Generator, *, shared: bool
) -> Iterator[tuple[Tensor, Tensor]]:
    """An encoder and a decoder for site after site, without end."""

    def pair() -> tuple[Tensor, Tensor]:
        w_dec_CD = torch.randn(num_latents, width, generator=generator, device=generator.device, dtype=dtype)
        w_dec_CD.div_(torch.linalg.vector_norm(w_dec_CD, dim=1, keepdim=True, dtype=torch.float32))
        return w_dec_CD.clone(), w_dec_CD

    first = pair()
    while True:
        yield first
        first = first if shared else pair()


def _fitted(sample_SD: Tensor, w_enc_CD: Tensor, w_dec_CD: Tensor, active: int, generator: torch.Generator) -> Sae:
    """A JumpReLU SAE with about `active` latents for a token."""
    mean_D = sample_SD.mean(dim=0, dtype=torch.float32)
    bias_C = torch.cat([-(w_TD.float() @ mean_D) for w_TD in w_enc_CD.split(TILE_LATENTS)])
    u_SC = product(sample_SD.to(w_enc_CD.dtype), w_enc_CD).add_(bias_C)
    spread_C = torch.randn(len(w_enc_CD), generator=generator, device=u_SC.device)
    level_C, scale_C = firing_levels(spread_C, active), u_SC.std(dim=0)
    shift = fitted_shift(u_SC.div_(scale_C).sub_(level_C), active)
    threshold_C = (level_C + shift).clamp(min=LEAST_LEVEL) * scale_C
    return Sae(
        w_enc_CD=w_enc_CD,
        w_dec_CD=w_dec_CD,
        bias_C=bias_C,
        b_dec_D=mean_D,
        rule=Threshold(threshold_C=threshold_C),
        input_norm=InputNorm.NONE,
        facts=SaeFacts(
            source="random weights",
            format="random",
            architecture="jumprelu",
            digest="random",
            num_latents=len(w_enc_CD),
            d_in=w_enc_CD.shape[1],
            dtype=str(w_enc_CD.dtype).removeprefix("torch."),
        ),
    )

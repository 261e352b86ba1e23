"""The output score: whether a latent speaks of what the model says next.

After a neutral prompt, the network sees the latent raised by s · a_max at the last token, a_max being the largest
activation of any latent there. ℓ are the 20 tokens that the latent promotes most (its direct logit effects), and of a
next-token distribution p

    P = (1 − rank / V) · p(best),   best = the member of ℓ that ranks first in p, whose rank is counted from 0

The score is P(steered) − P(plain): near 1 where steering makes the model say what the latent promotes, near 0 where it
does not. What else the network sees is as the method has it, in both runs: with the error term dropped the
reconstruction at the positions that it splices, which is the paper's variant (this project's default), with the error
term kept the hidden state, which is that of the paper's code. The code leaves P(plain) out; here it is subtracted.

Source: Arad, Mueller and Belinkov, arXiv 2505.20063.

Letters: K latents, T tokens of the prompt, D width, V vocabulary, M promoted tokens.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from gradsae_fast.ablate import ScoredWindow, scored_windows, starting_at
from gradsae_fast.corpus.tokens import tokenize
from gradsae_fast.corpus.windows import batch_windows, cut_windows
from gradsae_fast.describe.logits import tile_size
from gradsae_fast.describe.origin import Origin
from gradsae_fast.errors import CorpusError, ScoreError
from gradsae_fast.model.head import head_logits
from gradsae_fast.model.load import LanguageModel
from gradsae_fast.records import Array, Batch, Document
from gradsae_fast.sae.canonical import InputStats, scale_gradient

PROMPT = "In my experience,"
STRENGTH = 10.0  # s
TOKENS_PER_PASS = 8192


def output_scores(
    origin: Origin, latents: Sequence[int], promoted_KM: Array, *, prompt: str = PROMPT, strength: float = STRENGTH
) -> Array:
    """The output score of each latent, float64 [K], given the tokens that it promotes.

    Raises:
        CorpusError: the prompt has no token, or more than the model was built for.
        ScoreError: no latent is active at the prompt's last token, so that nothing says how far to steer.
    """
    batch = _batch(origin, prompt)
    ((scored,),) = scored_windows(origin.lm, [origin.sited], origin.method, batch)
    amount = strength * _largest_activation(scored, prompt)
    size = max(1, min(TOKENS_PER_PASS // len(scored.window.token_ids), tile_size(origin.lm)) - 1)
    parts = []
    for first in range(0, len(latents), size):
        tile = slice(first, first + size)
        parts.append(_tile_scores(origin.lm, scored, latents[tile], promoted_KM[tile], amount))
    return np.concatenate(parts)


def _batch(origin: Origin, prompt: str) -> Batch:
    """The prompt as the corpus would be tokenised."""
    documents = [Document(key="prompt", text=prompt, source="", row=0, metadata={})]
    (document,) = tokenize(documents, origin.lm.tokenizer, origin.rules)
    limit = origin.lm.max_context or document.num_tokens
    if not document.num_bos < document.num_tokens <= limit:
        raise CorpusError(
            f"the prompt {prompt!r} has {document.num_tokens - document.num_bos} tokens; expected 1 to {limit}. Give "
            "another one."
        )
    windows = cut_windows(document, 0, context_length=document.num_tokens + 1, overlap=0)
    return batch_windows(windows, tokens_per_batch=document.num_tokens)[0]


def _largest_activation(scored: ScoredWindow, prompt: str) -> float:
    """Of all latents at the last token."""
    rows = scored.code.rows
    last_L = rows.values[int(rows.indptr[-2]) :]
    largest = float(last_L.max()) if len(last_L) else 0.0
    if largest <= 0:
        raise ScoreError(
            f"no latent of {scored.sited.sae.facts.source!r} is active at the last token of the prompt {prompt!r}; "
            "expected one, because its activation says how far to steer. Give another prompt."
        )
    return largest


def _tile_scores(
    lm: LanguageModel, scored: ScoredWindow, latents: Sequence[int], promoted_KM: Array, amount: float
) -> Array:
    """Scores of the latents of one pass, whose first row is the plain run: rounding of a batch's shape cancels."""
    log_prob_V, *steered = _next_token(lm, scored, _steering(scored, latents, amount)).unbind(0)
    token_KM = torch.from_numpy(promoted_KM).to(log_prob_V.device)
    pairs = [
        (_promotion(steered_V, token_M), _promotion(log_prob_V, token_M))
        for steered_V, token_M in zip(steered, token_KM, strict=True)
    ]
    return np.array([after - before for after, before in pairs])


def _steering(scored: ScoredWindow, latents: Sequence[int], amount: float) -> Tensor:
    """What is added at the last token, effective decoder rows, float32 [K, D]."""
    sae, scale_T = scored.sited.sae, scored.code.stats.scale_N
    row_KD = sae.w_dec_CD[torch.as_tensor(latents, device=sae.w_dec_CD.device)].float()
    # The factor that moves onto a gradient is the one that a decoder row has at this token.
    return amount * scale_gradient(sae, row_KD, InputStats(scale_N=None if scale_T is None else scale_T[-1:]))


def _next_token(lm: LanguageModel, scored: ScoredWindow, added_KD: Tensor) -> Tensor:
    """Next-token probabilities of the plain prompt, then with each row added at its last token, float32 [1 + K, V]."""
    rows_KTD = scored.seen_TD.repeat(1 + len(added_KD), 1, 1).float()
    rows_KTD[1:, -1] += added_KD
    ids_T = torch.from_numpy(scored.window.token_ids.astype(np.int64)).to(lm.device)
    with torch.no_grad(), starting_at(lm, scored, rows_KTD.to(lm.dtype)):
        output = lm.body(input_ids=ids_T.repeat(len(rows_KTD), 1), use_cache=False)
        return head_logits(lm.model, lm.body_path, output, output[0][:, -1]).float().softmax(-1)


def _promotion(prob_V: Tensor, token_M: Tensor) -> float:
    """P of a distribution: the best member's probability, less the share of the vocabulary that ranks before it."""
    best = prob_V[token_M].max()
    return float((1 - (prob_V > best).sum() / len(prob_V)) * best)

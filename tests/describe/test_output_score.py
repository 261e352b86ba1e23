"""Output scores are what a plain hook and a sorted distribution give."""

import dataclasses
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
import torch

from gradsae_fast import open_scores
from gradsae_fast.config import ExtractConfig
from gradsae_fast.describe import output_score
from gradsae_fast.describe.origin import Origin, load_origin
from gradsae_fast.describe.output_score import output_scores
from gradsae_fast.errors import CorpusError, ScoreError
from gradsae_fast.extract import extract
from gradsae_fast.model.patching import output_hook
from gradsae_fast.sae.canonical import Threshold, normalise_input
from gradsae_fast.sae.reference import decode_dense, encode_dense

PROMPT = "The union, "
LATENTS = [0, 5, 11, 40]
PROMOTED_KM = np.array([[1, 30, 200], [60, 61, 62], [300, 5, 7], [100, 90, 80]])


def slow_probabilities(origin: Origin, path: str, latent: int | None) -> torch.Tensor:
    """Next-token probabilities after the prompt, with the latent's activation raised in the dense SAE."""
    lm, sae = origin.lm, origin.sited.sae
    ids = lm.tokenizer(PROMPT, add_special_tokens=False)["input_ids"]
    ids = [lm.tokenizer.bos_token_id, *ids] if origin.rules.prepend_bos else ids

    read: list[torch.Tensor] = []

    def change(hidden_1TD: torch.Tensor) -> torch.Tensor:
        read_TD = read[0] if read else hidden_1TD[0]
        _, stats = normalise_input(sae, read_TD)
        latents_TC = encode_dense(sae, read_TD)
        error_TD = hidden_1TD[0] - decode_dense(sae, latents_TC, stats)
        kept_T1 = torch.zeros(len(ids), 1)
        if origin.method.splice == "none":
            kept_T1[:] = 1.0
        elif origin.method.splice == "unmasked":
            kept_T1[0] = 1.0  # the BOS
        if latent is not None:
            latents_TC[-1, latent] += 10.0 * latents_TC[-1].max()
        return (decode_dense(sae, latents_TC, stats) + kept_T1 * error_TD)[None]

    with ExitStack() as stack, torch.no_grad():
        if origin.sited.wiring.is_transcoder:
            mlp = lm.model.get_submodule(path)
            handle = mlp.register_forward_pre_hook(lambda _module, args: read.append(args[0][0]))
            stack.callback(handle.remove)
        stack.enter_context(output_hook(lm.model.get_submodule(path), change))
        return lm.model(input_ids=torch.tensor([ids])).logits[0, -1].softmax(-1)


def slow_promotion(prob_V: torch.Tensor, tokens: list[int]) -> float:
    order = prob_V.argsort(descending=True).tolist()
    rank = min(order.index(token) for token in tokens)
    return (1 - rank / len(order)) * max(float(prob_V[token]) for token in tokens)


def origin_of(store: Path, site: str, *, error_term: bool | None = None) -> Origin:
    """Without sinks by norm, which the slow check does not know."""
    origin = load_origin(open_scores(store), site, error_term=error_term)
    return dataclasses.replace(origin, sited=dataclasses.replace(origin.sited, sink_norm=float("inf")))


def require_slow_scores(origin: Origin, path: str) -> None:
    plain_V = slow_probabilities(origin, path, None)
    expected = [
        slow_promotion(slow_probabilities(origin, path, latent), tokens) - slow_promotion(plain_V, tokens)
        for latent, tokens in zip(LATENTS, PROMOTED_KM.tolist(), strict=True)
    ]
    found_K = output_scores(origin, LATENTS, PROMOTED_KM, prompt=PROMPT)
    np.testing.assert_allclose(found_K, expected, rtol=2e-4, atol=1e-7)
    assert np.abs(found_K).max() > 1e-4


@pytest.mark.parametrize("preset", ["gradsae", "paper", "attribution-patching"])
def test_scores_are_those_of_a_plain_hook_in_every_mode(preset: str, configure: Callable[..., ExtractConfig]) -> None:
    answers = {"corpus": {"prompt_column": "text", "answer_column": "party"}} if preset == "paper" else {}
    config = configure(score={"preset": preset}, **answers)
    extract(config)
    require_slow_scores(origin_of(Path(config.store.path), "model.layers.1"), "model.layers.1")


@pytest.mark.parametrize("path", ["model.layers.2.mlp", "model.layers.0.self_attn"])
def test_a_site_inside_a_layer_is_steered_there(
    path: str, configure: Callable[..., ExtractConfig], write_sae: Callable[..., Path]
) -> None:
    sae = write_sae(name="inside")
    config = configure(sae={"path": str(sae), "site": path})
    extract(config)
    require_slow_scores(origin_of(Path(config.store.path), path), path)


def test_a_transcoder_is_steered_where_it_writes(
    configure: Callable[..., ExtractConfig], write_sae: Callable[..., Path]
) -> None:
    path = "model.layers.2.mlp"
    config = configure(sae={"path": str(write_sae(name="over")), "site": path, "reads": f"{path}.input"})
    extract(config)
    require_slow_scores(origin_of(Path(config.store.path), path), path)


def test_a_decoder_row_has_the_tokens_own_factor(
    configure: Callable[..., ExtractConfig], write_sae: Callable[..., Path]
) -> None:
    sae = write_sae(name="normed", normalize_activations="layer_norm")
    config = configure(sae={"path": str(sae)})
    extract(config)
    require_slow_scores(origin_of(Path(config.store.path), "model.layers.1"), "model.layers.1")


def test_the_error_term_is_a_choice(scored: Path) -> None:
    dropped, kept = (origin_of(scored, "model.layers.1", error_term=choice) for choice in (None, True))
    assert (dropped.method.splice, kept.method.splice) == ("unmasked", "none")
    require_slow_scores(kept, "model.layers.1")
    dropped_K, kept_K = (output_scores(one, LATENTS, PROMOTED_KM, prompt=PROMPT) for one in (dropped, kept))
    assert not np.allclose(dropped_K, kept_K)


def test_passes_of_any_size_give_the_same_scores(scored: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    origin = origin_of(scored, "model.layers.1")
    whole_K = output_scores(origin, LATENTS, PROMOTED_KM, prompt=PROMPT)
    monkeypatch.setattr(output_score, "TOKENS_PER_PASS", 1)
    np.testing.assert_allclose(output_scores(origin, LATENTS, PROMOTED_KM, prompt=PROMPT), whole_K, rtol=1e-4)


def test_a_prompt_that_cannot_be_steered_is_refused(scored: Path) -> None:
    origin = origin_of(scored, "model.layers.1")
    with pytest.raises(CorpusError, match="has 0 tokens"):
        output_scores(origin, LATENTS, PROMOTED_KM, prompt="")
    high = Threshold(threshold_C=torch.full((origin.sited.sae.num_latents,), 1e9))
    silent = dataclasses.replace(origin.sited, sae=dataclasses.replace(origin.sited.sae, rule=high))
    with pytest.raises(ScoreError, match=r"no latent .* is active at the last token"):
        output_scores(dataclasses.replace(origin, sited=silent), LATENTS, PROMOTED_KM, prompt=PROMPT)

"""Exact ablation equals a slow re-derivation by a plain hook, and the influence where everything above is linear."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import PreTrainedTokenizerFast

from gradsae_fast.ablate import Removal, ScoredWindow, ablate, scored_windows
from gradsae_fast.config import SaeConfig, ScoreConfig
from gradsae_fast.corpus.bos import TokenRules
from gradsae_fast.corpus.read import open_corpus
from gradsae_fast.corpus.tokens import tokenize
from gradsae_fast.corpus.windows import batch_windows, cut_windows
from gradsae_fast.errors import ScoreError
from gradsae_fast.method import Method, resolve_method
from gradsae_fast.model.load import LanguageModel
from gradsae_fast.model.objectives import Objective
from gradsae_fast.model.patching import output_hook, submodule_replaced
from gradsae_fast.positions import position_masks
from gradsae_fast.prepare import load_sited_saes
from gradsae_fast.records import Batch
from gradsae_fast.reference import objective_value
from gradsae_fast.sae.canonical import normalise_input
from gradsae_fast.sae.reference import decode_dense, encode_dense
from gradsae_fast.score import SitedSae, score_batch

NEXT_TOKEN = Objective(name="next-token")
TEXTS = [
    "The state of the union is strong, and peace abroad is our duty.",
    "naïve hopes become laws",
    "We must build roads and schools, for the children of this land. Taxes fall, farms grow.",
]
FAMILIES = [
    ("jumprelu", {}),
    ("standard", {"normalize_activations": "layer_norm"}),
    ("jumprelu", {"normalize_activations": "constant_norm_rescale"}),
    ("topk", {"rescale_acts_by_decoder_norm": True}),
    ("abstopk", {}),
]


@pytest.fixture
def batch(tiny_tokenizer: PreTrainedTokenizerFast) -> Batch:
    """Windows of several lengths, second ones with context among them."""
    documents = tokenize(open_corpus(TEXTS), tiny_tokenizer, TokenRules(prepend_bos=True, bos_id=0))
    windows = [
        window
        for slot, document in enumerate(documents)
        for window in cut_windows(document, slot, context_length=40, overlap=8)
    ]
    return batch_windows(windows, tokens_per_batch=100_000)[0]


def sited(lm: LanguageModel, folder: Path, **options: Any) -> SitedSae:
    return replace(load_sited_saes(lm, [SaeConfig(path=str(folder))])[0], **options)


def removals_of(scored: ScoredWindow, count: int) -> list[Removal]:
    """Single pairs all over the window, and the busiest latent at all its positions."""
    rows = scored.code.rows
    token_Z = np.repeat(np.arange(len(rows.indptr) - 1), rows.indptr.diff().numpy())
    latent_Z = rows.indices.numpy()
    step = max(1, len(token_Z) // count)
    pairs = [Removal(latent=int(latent_Z[z]), position_P=token_Z[z : z + 1]) for z in range(0, len(token_Z), step)]
    busiest = int(np.bincount(latent_Z).argmax())
    return [*pairs, Removal(latent=busiest, position_P=token_Z[latent_Z == busiest])]


def whole_removals(scored: ScoredWindow) -> list[Removal]:
    """Every latent of the last position, at all its positions."""
    rows = scored.code.rows
    token_Z = np.repeat(np.arange(len(rows.indptr) - 1), rows.indptr.diff().numpy())
    latent_Z = rows.indices.numpy()
    last = latent_Z[token_Z == token_Z.max()].tolist()
    return [Removal(latent=latent, position_P=token_Z[latent_Z == latent]) for latent in last]


def dense_value(
    lm: LanguageModel, one: SitedSae, method: Method, objective: Objective, scored: ScoredWindow, removal: Removal
) -> float:
    """m of the whole model, unbatched, with a dense latent tensor in which the removed entries are 0."""
    return objective_value(objective, dense_logits(lm, one, method, scored, removal), scored.window).item()


def dense_logits(
    lm: LanguageModel, one: SitedSae, method: Method, scored: ScoredWindow, removal: Removal
) -> torch.Tensor:
    """Of all positions of the window."""
    window = scored.window
    alone = Batch(windows=(window,), token_ids_BT=window.token_ids[None].astype(np.int64))

    def change(hidden_1TD: torch.Tensor) -> torch.Tensor:
        hidden_TD = hidden_1TD[0]
        latents_TC = encode_dense(one.sae, hidden_TD)
        _, stats = normalise_input(one.sae, hidden_TD)
        full_TD = decode_dense(one.sae, latents_TC, stats)
        kept_TC = latents_TC.clone()
        kept_TC[removal.position_P, removal.latent] = 0.0
        without_TD = decode_dense(one.sae, kept_TC, stats)
        sink_T = (hidden_TD.norm(dim=1) > one.sink_norm).numpy()
        spliced = {"all": np.ones(len(sink_T), bool), "none": np.zeros(len(sink_T), bool)}.get(
            method.splice, (position_masks(alone) == 0) & ~sink_T
        )
        with_error_TD = hidden_TD - full_TD + without_TD
        return torch.where(torch.from_numpy(spliced)[:, None], without_TD, with_error_TD)[None]

    with torch.no_grad(), output_hook(lm.model.get_submodule(one.site.path), change):
        logits_TV: torch.Tensor = lm.model(input_ids=torch.from_numpy(alone.token_ids_BT), use_cache=False).logits[0]
    return logits_TV


NOTHING = Removal(latent=0, position_P=np.zeros(0, np.int64))


@pytest.mark.parametrize("preset", ["gradsae", "attribution-patching", "paper"])
@pytest.mark.parametrize(("architecture", "options"), FAMILIES, ids=lambda value: str(value))
def test_exact_ablation_equals_a_plain_hook_with_a_dense_latent_tensor(
    architecture: str, options: dict[str, Any], preset: str, tiny_lm: LanguageModel, write_sae: Any, batch: Batch
) -> None:
    one = sited(tiny_lm, write_sae(architecture, **options), sink_norm=26.0)
    method = resolve_method(ScoreConfig(preset=preset, objectives=("next-token",)))  # type: ignore[arg-type]
    (windows,) = scored_windows(tiny_lm, [one], method, batch)
    scores = score_batch(tiny_lm, [one], method, [NEXT_TOKEN], batch)
    for index, scored in enumerate(windows):
        removals = removals_of(scored, 5)
        effects = ablate(tiny_lm, scored, removals, [NEXT_TOKEN], tokens_per_pass=3 * len(scored.window.token_ids))[
            "next-token"
        ]
        whole = dense_value(tiny_lm, one, method, NEXT_TOKEN, scored, NOTHING)
        assert effects.value == pytest.approx(whole, rel=1e-5)
        assert effects.value == pytest.approx(scores.values[one.site.path]["next-token"][index], rel=1e-5)
        expected = [whole - dense_value(tiny_lm, one, method, NEXT_TOKEN, scored, removal) for removal in removals]
        assert np.abs(expected).max() > 1e-2
        np.testing.assert_allclose(effects.drop_K, expected, rtol=2e-3, atol=1e-4)


@pytest.mark.parametrize(
    "hook", ["blocks.0.hook_resid_post", "blocks.3.hook_resid_post", "blocks.0.hook_mlp_out", "blocks.2.hook_mlp_out"]
)
def test_the_network_runs_on_from_any_site(hook: str, tiny_lm: LanguageModel, write_sae: Any, batch: Batch) -> None:
    one = sited(tiny_lm, write_sae(metadata={"hook_name": hook}))
    method = resolve_method(ScoreConfig(splice="all"))
    (windows,) = scored_windows(tiny_lm, [one], method, batch)
    removals = removals_of(windows[0], 4)
    effects = ablate(tiny_lm, windows[0], removals, [NEXT_TOKEN])["next-token"]
    whole = dense_value(tiny_lm, one, method, NEXT_TOKEN, windows[0], NOTHING)
    expected = [whole - dense_value(tiny_lm, one, method, NEXT_TOKEN, windows[0], removal) for removal in removals]
    np.testing.assert_allclose(effects.drop_K, expected, rtol=2e-3, atol=1e-4)


@contextmanager
def linear_above(lm: LanguageModel) -> Iterator[None]:
    """No final norm: above the last layer there is only the head."""
    with ExitStack() as stack:
        stack.enter_context(submodule_replaced(lm.model, f"{lm.body_path}.norm", torch.nn.Identity()))
        yield


def linear_sum(logits_BTV: torch.Tensor, _ids_BT: torch.Tensor, mask_BT: torch.Tensor) -> torch.Tensor:
    """Some logits of every scored position."""
    return logits_BTV[mask_BT][:, 5:9].sum()


@pytest.mark.parametrize("preset", ["gradsae", "attribution-patching"])
@pytest.mark.parametrize(("architecture", "options"), FAMILIES, ids=lambda value: str(value))
def test_influence_is_exact_where_everything_above_the_site_is_linear(
    architecture: str, options: dict[str, Any], preset: str, tiny_lm: LanguageModel, write_sae: Any, batch: Batch
) -> None:
    one = sited(tiny_lm, write_sae(architecture, layer=3, **options))
    objective = Objective(name="linear", function=linear_sum)
    method = resolve_method(ScoreConfig(preset=preset, objectives=("linear",)), ("linear",))  # type: ignore[arg-type]
    with linear_above(tiny_lm):
        (windows,) = scored_windows(tiny_lm, [one], method, batch)
        scores = score_batch(tiny_lm, [one], method, [objective], batch).sites[one.site.path]
        influence_Z = scores.activation * scores.projections["linear"]
        first_row = np.cumsum([0, *(window.num_scored for window in batch.windows)])
        checked = 0
        for first, scored in zip(first_row, windows, strict=False):
            removals, predicted = [], []
            for row in range(0, scored.window.num_scored, 5):
                for z in range(*scores.indptr[first + row : first + row + 2]):
                    position_P = np.array([row + scored.window.num_context])
                    removals.append(Removal(latent=int(scores.indices[z]), position_P=position_P))
                    predicted.append(influence_Z[z])
            found = ablate(tiny_lm, scored, removals, [objective])["linear"]
            np.testing.assert_allclose(found.drop_K, predicted, rtol=1e-4, atol=2e-4)
            checked += len(removals)
    assert checked > 50


def test_effects_do_not_depend_on_how_removals_share_passes(
    tiny_lm: LanguageModel, write_sae: Any, batch: Batch
) -> None:
    one = sited(tiny_lm, write_sae())
    (windows,) = scored_windows(tiny_lm, [one], resolve_method(ScoreConfig()), batch)
    removals = removals_of(windows[0], 9)
    found = [
        ablate(tiny_lm, windows[0], removals, [NEXT_TOKEN], tokens_per_pass=budget)["next-token"].drop_K
        for budget in (1, 10_000)
    ]
    np.testing.assert_allclose(found[0], found[1], rtol=1e-3, atol=2e-5)
    assert len(ablate(tiny_lm, windows[0], [], [NEXT_TOKEN])["next-token"].drop_K) == 0


@pytest.mark.parametrize("kind", ["logit", "logprob", "prob"])
def test_without_a_latent_the_same_top_token_is_asked_about(
    kind: str, tiny_lm: LanguageModel, write_sae: Any, batch: Batch
) -> None:
    """Also where the network would predict another token without it."""
    one = sited(tiny_lm, write_sae())
    method = resolve_method(ScoreConfig(splice="all"))
    objective = Objective(name=f"top-token:{kind}")
    read = {
        "logit": lambda logits_V: logits_V,
        "logprob": lambda logits_V: logits_V.log_softmax(-1),
        "prob": lambda logits_V: logits_V.softmax(-1),
    }[kind]
    (windows,) = scored_windows(tiny_lm, [one], method, batch)
    flips = 0
    for scored in [each for each in windows if len(each.window.token_ids) == each.window.document.num_tokens]:
        removals = whole_removals(scored)
        logits_KV = [dense_logits(tiny_lm, one, method, scored, removal)[-1] for removal in (NOTHING, *removals)]
        token = int(logits_KV[0].argmax())
        value_K = [read(logits_V)[token].item() for logits_V in logits_KV]
        effects = ablate(tiny_lm, scored, removals, [objective], tokens_per_pass=4 * len(scored.window.token_ids))[
            objective.name
        ]
        assert effects.value == pytest.approx(value_K[0], rel=1e-4)
        np.testing.assert_allclose(effects.drop_K, value_K[0] - np.array(value_K[1:]), rtol=2e-3, atol=1e-4)
        flips += sum(int(logits_V.argmax()) != token for logits_V in logits_KV)
    assert flips > 0


def test_several_objectives_are_read_off_the_same_passes(tiny_lm: LanguageModel, write_sae: Any, batch: Batch) -> None:
    one = sited(tiny_lm, write_sae())
    (windows,) = scored_windows(tiny_lm, [one], resolve_method(ScoreConfig()), batch)
    scored = next(each for each in windows if len(each.window.token_ids) == each.window.document.num_tokens)
    removals = removals_of(scored, 6)
    objectives = [Objective(name=name) for name in ("next-token", "entropy", "top-token:prob")]
    alone = [ablate(tiny_lm, scored, removals, [objective])[objective.name] for objective in objectives]
    passes: list[object] = []
    handle = tiny_lm.body.register_forward_pre_hook(lambda *_: passes.append(None))
    together = ablate(tiny_lm, scored, removals, objectives)
    handle.remove()
    assert len(passes) == 1
    for objective, expected in zip(objectives, alone, strict=True):
        assert together[objective.name].value == expected.value
        np.testing.assert_array_equal(together[objective.name].drop_K, expected.drop_K)


def test_a_latent_that_is_not_active_cannot_be_removed(tiny_lm: LanguageModel, write_sae: Any, batch: Batch) -> None:
    one = sited(tiny_lm, write_sae())
    (windows,) = scored_windows(tiny_lm, [one], resolve_method(ScoreConfig()), batch)
    rows = windows[0].code.rows
    active = set(rows.indices[rows.indptr[4] : rows.indptr[5]].tolist())
    inactive = next(latent for latent in range(one.sae.num_latents) if latent not in active)
    removal = Removal(latent=inactive, position_P=np.array([4]))
    with pytest.raises(ScoreError, match=f"latent {inactive} .* not active at position 4"):
        ablate(tiny_lm, windows[0], [removal], [NEXT_TOKEN])

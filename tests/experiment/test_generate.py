"""Batches with a cache say what one prompt at a time without a cache says, with and without interventions."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from gradsae_fast.config import ScoreConfig
from gradsae_fast.errors import ModelError
from gradsae_fast.experiment.generate import Decoding, Prompt, generate
from gradsae_fast.experiment.intervene import Edit, Intervention
from gradsae_fast.experiment.questions import Question
from gradsae_fast.experiment.subject import Subject, with_sink_limit
from gradsae_fast.method import Method, resolve_method
from gradsae_fast.model.load import LanguageModel, prepare_model
from gradsae_fast.model.patching import output_hook
from gradsae_fast.model.sites import Wiring
from gradsae_fast.sae.canonical import Sae, normalise_input
from gradsae_fast.sae.load import load_sae
from gradsae_fast.sae.reference import decode_dense, encode_dense
from gradsae_fast.score import SitedSae
from tests.experiment.conftest import PROMPTS, MakeSubject

PRESETS = ("paper", "gradsae", "attribution-patching")


def make_prompts(subject: Subject) -> tuple[Subject, list[Prompt]]:
    documents = subject.tokenise([Question(key=text, prompt=text, answers=("x",)) for text in PROMPTS])
    ready = with_sink_limit(subject, documents)
    return ready, [ready.prompt(document) for document in documents]


def make_edits(sae: Sae) -> list[Edit]:
    """Different for every prompt; some inject, one does nothing."""
    rng = np.random.default_rng(0)
    edits = [Edit()]
    for index in range(1, len(PROMPTS)):
        drop_K, inject_K = rng.permutation(sae.num_latents)[:12], rng.permutation(sae.num_latents)[:3]
        values_K = rng.uniform(0.5, 2, 3).astype(np.float32)
        edits.append(Edit(drop_K=drop_K, inject_K=inject_K, value_K=values_K) if index % 2 else Edit(drop_K=drop_K))
    return edits


def dense_change(sae: Sae, method: Method, edit: Edit, hidden_TD: Tensor, kept_T: Tensor) -> Tensor:
    """What the network above sees, written with the dense oracle; `kept_T` are the positions left as they are."""
    a_TC = encode_dense(sae, hidden_TD)
    _, stats = normalise_input(sae, hidden_TD)
    edited_TC = a_TC.clone()
    edited_TC[:, edit.drop_K] = 0
    edited_TC[:, edit.inject_K] = torch.from_numpy(edit.value_K)
    changed_TD = decode_dense(sae, edited_TC, stats)
    if method.use_error_term:
        changed_TD = changed_TD + hidden_TD - decode_dense(sae, a_TC, stats)
    return torch.where(kept_T[:, None], hidden_TD, changed_TD)


def generate_alone(subject: Subject, prompt: Prompt, edit: Edit) -> list[int]:
    """One prompt, the whole sequence again at every step, no cache, no padding."""
    lm, sae = subject.lm, subject.sited.sae
    ids, mask = prompt.token_ids.tolist(), [bool(bits) for bits in prompt.mask]

    def change(hidden_1TD: Tensor) -> Tensor:
        norms_T = hidden_1TD[0].norm(dim=1)
        kept_T = torch.tensor(mask) | (norms_T > subject.sited.sink_norm)
        if subject.method.splice == "all":
            kept_T[:] = False
        return dense_change(sae, subject.method, edit, hidden_1TD[0], kept_T)[None]

    answer: list[int] = []
    with torch.no_grad(), output_hook(lm.model.get_submodule(subject.sited.site.path), change):
        for _ in range(subject.decoding.max_new_tokens):
            token = int(lm.model(input_ids=torch.tensor([ids])).logits[0, -1].argmax())
            if token in subject.decoding.stop_ids:
                break
            answer, ids, mask = [*answer, token], [*ids, token], [*mask, token in subject.decoding.masked_ids]
    return answer


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize(
    "sae", [{}, {"architecture": "topk", "normalize_activations": "layer_norm"}], ids=["jump", "norm"]
)
def test_batches_with_a_cache_say_what_each_prompt_says_alone(
    make_subject: MakeSubject, preset: str, sae: dict[str, str]
) -> None:
    subject, prompts = make_prompts(make_subject(preset, "continuation-prob", sae=sae, max_new_tokens=8))
    edits = make_edits(subject.sited.sae)
    alone = [generate_alone(subject, prompt, edit) for prompt, edit in zip(prompts, edits, strict=True)]
    assert len({tuple(answer) for answer in alone}) >= 4
    intervention = Intervention(subject.sited, subject.method, edits)
    for use_cache, prompts_per_batch in ((True, 1), (True, 4), (False, 4), (True, 16)):
        decoding = dataclasses.replace(subject.decoding, use_cache=use_cache, prompts_per_batch=prompts_per_batch)
        answers = generate(subject.lm, prompts, decoding, intervention)
        assert [answer.tolist() for answer in answers] == alone


def test_padding_takes_no_position_in_a_model_that_learned_its_positions(
    tiny_tokenizer: PreTrainedTokenizerFast,
) -> None:
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=len(tiny_tokenizer), n_embd=24, n_layer=2, n_head=2, n_positions=64, initializer_range=0.5
    )
    lm = prepare_model(GPT2LMHeadModel(config), tiny_tokenizer, source="tiny", digest="none")
    rng = np.random.default_rng(0)
    prompts = [
        Prompt(token_ids=rng.integers(3, 300, length), mask=np.zeros(length, np.uint8)) for length in (3, 20, 9, 31)
    ]
    decoding = Decoding(stop_ids=frozenset({1}), max_new_tokens=10)
    alone = [generate(lm, [prompt], dataclasses.replace(decoding, use_cache=False))[0].tolist() for prompt in prompts]
    assert [answer.tolist() for answer in generate(lm, prompts, decoding)] == alone
    assert len(set(map(tuple, alone))) == len(prompts)


def test_the_edits_matter(make_subject: MakeSubject) -> None:
    subject, prompts = make_prompts(make_subject("paper", max_new_tokens=8))
    edits = make_edits(subject.sited.sae)
    edited = generate(subject.lm, prompts, subject.decoding, Intervention(subject.sited, subject.method, edits))
    nothing = [Edit()] * len(prompts)
    spliced = generate(subject.lm, prompts, subject.decoding, Intervention(subject.sited, subject.method, nothing))
    assert np.array_equal(edited[0], spliced[0])
    assert sum(not np.array_equal(a, b) for a, b in zip(edited[1:], spliced[1:], strict=True)) >= 3


def test_keeping_the_error_term_and_changing_nothing_changes_nothing(make_subject: MakeSubject) -> None:
    subject, prompts = make_prompts(make_subject("attribution-patching", max_new_tokens=8))
    nothing = Intervention(subject.sited, subject.method, [Edit()] * len(prompts))
    plain = generate(subject.lm, prompts, subject.decoding)
    for answer, same in zip(plain, generate(subject.lm, prompts, subject.decoding, nothing), strict=True):
        assert np.array_equal(answer, same)


def test_without_an_intervention_the_answers_are_those_of_transformers(
    make_subject: MakeSubject, tiny_lm: LanguageModel
) -> None:
    subject, prompts = make_prompts(make_subject("paper", stop=(), max_new_tokens=10))
    for prompt, answer in zip(prompts, generate(subject.lm, prompts, subject.decoding), strict=True):
        ids_1T = torch.from_numpy(prompt.token_ids)[None]
        output = tiny_lm.model.generate(
            ids_1T, attention_mask=torch.ones_like(ids_1T), max_new_tokens=10, do_sample=False, pad_token_id=1
        )
        wanted = output[0, ids_1T.shape[1] :].tolist()
        assert answer.tolist() == (wanted[: wanted.index(1)] if 1 in wanted else wanted)


@pytest.mark.parametrize("preset", [*PRESETS, "authors-code", "paper, error term kept"])
@pytest.mark.parametrize(
    "sae",
    [
        {},
        {"architecture": "gated"},
        {"architecture": "topk", "normalize_activations": "layer_norm"},
        {"architecture": "standard", "normalize_activations": "constant_norm_rescale"},
    ],
    ids=["jumprelu", "gated", "layer_norm", "constant_norm"],
)
def test_a_changed_hidden_state_is_the_dense_one(
    tiny_lm: LanguageModel, write_sae: Callable[..., Path], preset: str, sae: dict[str, str]
) -> None:
    name, _, kept = preset.partition(", ")
    method = resolve_method(ScoreConfig(preset=name, use_error_term=bool(kept) or None))  # type: ignore[arg-type]
    loaded = load_sae(str(write_sae(**sae)), device="cpu")
    sited = SitedSae(wiring=Wiring.at(tiny_lm.site("model.layers.1")), sae=loaded, sink_norm=6.0)
    hidden_RD = torch.randn(30, loaded.d_in, generator=torch.Generator().manual_seed(1)) * 1.2
    example_R = torch.arange(30) % len(PROMPTS)
    mask_R = (torch.arange(30) % 7 == 0).to(torch.uint8)
    edits = make_edits(loaded)
    changed_RD = Intervention(sited, method, edits).change(hidden_RD, example_R, mask_R)
    kept_R = (mask_R != 0) | (hidden_RD.norm(dim=1) > 6.0)
    assert 5 < int(kept_R.sum()) < 25
    for row, edit in enumerate(edits):
        own = example_R == row
        kept = kept_R[own] & (not method.include_special)
        wanted_TD = dense_change(loaded, method, edit, hidden_RD[own], kept)
        torch.testing.assert_close(changed_RD[own], wanted_TD, rtol=1e-4, atol=1e-5)


def test_a_part_of_an_intervention_keeps_each_example_its_own_edit(make_subject: MakeSubject) -> None:
    subject, prompts = make_prompts(make_subject("paper", max_new_tokens=8))
    intervention = Intervention(subject.sited, subject.method, make_edits(subject.sited.sae))
    whole = generate(subject.lm, prompts, subject.decoding, intervention)
    part = generate(subject.lm, [prompts[4], prompts[1]], subject.decoding, intervention.of([4, 1]))
    assert np.array_equal(part[0], whole[4])
    assert np.array_equal(part[1], whole[1])


def test_edits_that_do_the_same_have_one_key() -> None:
    def edit(drop: list[int], inject: list[int], values: list[float]) -> Edit:
        return Edit(drop_K=np.array(drop), inject_K=np.array(inject), value_K=np.array(values, np.float32))

    assert edit([2, 1], [5, 4], [0.5, 1]).key() == edit([1, 2], [4, 5], [1, 0.5]).key()
    assert edit([1], [4, 5], [1, 0.5]).key() != edit([1], [4, 5], [0.5, 1]).key()
    assert edit([1], [], []).key() != edit([], [1], [0.0]).key()


def test_a_prompt_that_leaves_no_room_for_an_answer_is_refused(make_subject: MakeSubject) -> None:
    subject = make_subject("paper")
    long = Prompt(token_ids=np.zeros(253, np.int64), mask=np.zeros(253, np.uint8))
    with pytest.raises(ModelError, match="253 tokens and its answer up to 6"):
        generate(subject.lm, [long], subject.decoding)


def test_nothing_to_generate_gives_nothing(tiny_lm: LanguageModel) -> None:
    assert generate(tiny_lm, [], Decoding(stop_ids=frozenset({1}))) == []

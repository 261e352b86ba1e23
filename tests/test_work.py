"""How much work a run does, in counts that no machine changes: products, operations, memory, syncs, bytes."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from gradsae_fast import open_scores
from gradsae_fast.config import ExtractConfig, SaeConfig, ScoreConfig
from gradsae_fast.corpus import tokens
from gradsae_fast.extract import extract
from gradsae_fast.method import resolve_method
from gradsae_fast.model.load import LanguageModel
from gradsae_fast.model.objectives import Objective
from gradsae_fast.model.states import hidden_states
from gradsae_fast.prepare import load_sited_saes
from gradsae_fast.records import Batch
from gradsae_fast.sae.formats import saelens
from gradsae_fast.score import SitedSae, score_batch
from tests.influences import MakeBatch

WIDTH, INTERMEDIATE, LAYERS = 24, 48, 4  # of the tiny model
LAYER_PARAMETERS = 4 * WIDTH * WIDTH + 3 * WIDTH * INTERMEDIATE  # in matrices
K = 8


class Operations(TorchDispatchMode):
    """Counts operations, and the elements of the largest tensor that one of them makes."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0
        self.largest = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        self.calls += 1
        self.largest = max([self.largest, *(leaf.numel() for leaf in tree_leaves(output) if isinstance(leaf, Tensor))])
        return output


WideSaes = Callable[..., list[SitedSae]]


@pytest.fixture
def wide_saes(tmp_path: Path, tiny_lm: LanguageModel) -> WideSaes:
    """One SAE of many latents, K of them active, at each of some layers."""

    def make(num_latents: int, *layers: int) -> list[SitedSae]:
        rows_CD = torch.nn.functional.normalize(torch.randn(num_latents, WIDTH))
        weights = {
            "W_enc": rows_CD.T.contiguous(),
            "W_dec": rows_CD,
            "b_enc": torch.zeros(num_latents),
            "b_dec": torch.zeros(WIDTH),
        }
        folder = tmp_path / str(num_latents)
        saelens.save(folder, architecture="topk", weights=weights, config={"k": K, "metadata": {}})
        saes = [SaeConfig(path=str(folder), site=f"model.layers.{layer}") for layer in layers]
        return list(load_sited_saes(tiny_lm, saes))

    return make


def score(lm: LanguageModel, sited: list[SitedSae], batch: Batch, preset: str = "attribution-patching") -> None:
    method = resolve_method(ScoreConfig(preset=preset, objectives=("next-token",)))  # type: ignore[arg-type]
    score_batch(lm, sited, method, [Objective(name="next-token")], batch)


def operations(lm: LanguageModel, sited: list[SitedSae], batch: Batch, preset: str = "gradsae") -> Operations:
    score(lm, sited, batch, preset)  # what is done once only is done here
    with Operations() as counted:
        score(lm, sited, batch, preset)
    return counted


def test_the_backward_pass_costs_one_forward_pass_of_the_layers_above_the_site(
    tiny_lm: LanguageModel, wide_saes: WideSaes, make_batch: MakeBatch
) -> None:
    batch = make_batch()
    num_rows = batch.token_ids_BT.size
    documents = {window.slot: window.document for window in batch.windows}.values()
    num_targets = sum(int((~document.special[1:]).sum()) for document in documents)
    for layer in range(LAYERS):
        with FlopCounterMode(display=False) as counted:
            score(tiny_lm, wide_saes(512, layer), batch)
        products = counted.get_flop_counts()["Global"]
        found = sum(products.get(op, 0) for op in (torch.ops.aten.mm, torch.ops.aten.addmm))
        forward = 2 * num_rows * LAYER_PARAMETERS * LAYERS
        backward = 2 * num_rows * LAYER_PARAMETERS * (LAYERS - 1 - layer)
        head = 2 * 2 * num_targets * WIDTH * len(tiny_lm.tokenizer)
        encode = 2 * sum(batch.lengths) * WIDTH * 512
        assert found == forward + backward + head + encode


@pytest.mark.parametrize("preset", ["gradsae", "attribution-patching", "paper"])
def test_nothing_of_tokens_times_latents_is_ever_made(
    preset: str, tiny_lm: LanguageModel, wide_saes: WideSaes, make_batch: MakeBatch
) -> None:
    num_latents = 65_536
    batch = make_batch()
    (one,) = wide_saes(num_latents, 1)
    objective = "continuation-prob" if preset == "paper" else "next-token"
    batch = make_batch([{"q": "The union is", "a": " strong."}] * 40, prompt_column="q", answer_column="a")
    method = resolve_method(ScoreConfig(preset=preset, objectives=(objective,)))  # type: ignore[arg-type]
    with Operations() as counted:
        score_batch(tiny_lm, [one], method, [Objective(name=objective)], batch)
    dense = sum(batch.lengths) * num_latents
    assert sum(batch.lengths) > 300
    assert counted.largest <= dense / 4


def test_the_number_of_operations_does_not_depend_on_windows_or_latents(
    tiny_lm: LanguageModel, wide_saes: WideSaes, make_batch: MakeBatch
) -> None:
    few, many = make_batch(["We must build roads."]), make_batch(["We must build roads."] * 40)
    narrow, wide = wide_saes(256, 1), wide_saes(4096, 1)
    counts = [operations(tiny_lm, sited, batch).calls for sited in (narrow, wide) for batch in (few, many)]
    assert max(counts) - min(counts) <= 12, "a larger batch launches larger operations, and a few more tiles of latents"


def test_a_site_more_costs_few_operations_and_no_forward_pass(
    tiny_lm: LanguageModel, wide_saes: WideSaes, make_batch: MakeBatch
) -> None:
    batch = make_batch()
    counts = [
        operations(tiny_lm, wide_saes(256, *range(first, LAYERS - 1)), batch, "attribution-patching").calls
        for first in (2, 1)
    ]
    with torch.enable_grad(), Operations() as layer:
        hidden_BTD = torch.randn(1, 8, WIDTH, requires_grad=True)
        positions = tiny_lm.body.get_submodule("rotary_emb")(hidden_BTD, torch.arange(8)[None])
        tiny_lm.layers[0](hidden_BTD, position_embeddings=positions).sum().backward()
    assert counts[1] - counts[0] <= 60 + layer.calls, (
        "the site's own operations, and one layer more of the backward pass"
    )


def test_hidden_states_alone_end_the_forward_pass_at_the_highest_site(
    tiny_lm: LanguageModel, make_batch: MakeBatch
) -> None:
    batch = make_batch()
    with FlopCounterMode(display=False) as counted:
        hidden_states(tiny_lm, batch, [tiny_lm.site("model.layers.0"), tiny_lm.site("model.layers.1")])
    assert counted.get_total_flops() == pytest.approx(2 * batch.token_ids_BT.size * LAYER_PARAMETERS * 2, rel=0.2)


def test_a_corpus_is_tokenised_once_to_plan_and_once_to_score(
    configure: Callable[..., ExtractConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []
    encode = tokens._encode

    def counted(tokenizer: Any, texts: list[str]) -> Any:
        read.extend(text for text in texts if text)
        return encode(tokenizer, texts)

    monkeypatch.setattr(tokens, "_encode", counted)
    config = configure()
    extract(config)
    store = open_scores(config.store.path)
    num_texts = sum(int((segment.documents().num_tokens > 0).sum()) for segment in store.segments)
    probed = 3 * num_texts  # the sinks' medians and the gate look at the first documents
    assert 2 * num_texts <= len(read) <= 2 * num_texts + probed
    commit = sorted((Path(config.store.path) / "commits").glob("*.json"))[-1]
    commit.unlink()
    read.clear()
    extract(config)
    last = open_scores(config.store.path).segments[-1]
    assert len(read) == int((last.documents().num_tokens > 0).sum()), "a resumed run tokenises what is left"


def test_a_segment_is_a_bounded_number_of_files_and_syncs(
    configure: Callable[..., ExtractConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    syncs: list[int] = []
    sync = os.fsync

    def counted(handle: int) -> None:
        syncs.append(handle)
        sync(handle)

    monkeypatch.setattr(os, "fsync", counted)
    config = configure()
    extract(config)
    num_segments = len(open_scores(config.store.path).segments)
    num_files = sum(path.is_file() for path in (Path(config.store.path) / "segments").rglob("*"))
    assert num_files <= 120 * num_segments
    assert len(syncs) <= 200 * num_segments + 200  # the dictionary, the index and sidecars, once a run

"""Signed latents end to end: extracted, stored, ranked by polarity, ablated and certified as the dense oracle says.

Letters: T positions of a window, N scored tokens of a document, C latents.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from gradsae_fast import open_scores, rank_documents, rank_latents, rank_tokens
from gradsae_fast.certify import Sampling, certify
from gradsae_fast.certify.reopen import reopen
from gradsae_fast.cli import app
from gradsae_fast.config import ExtractConfig
from gradsae_fast.corpus.segments import read_segments
from gradsae_fast.extract import extract
from gradsae_fast.model.patching import output_hook
from gradsae_fast.positions import position_masks
from gradsae_fast.prepare import Prepared
from gradsae_fast.records import Array, Batch, Window
from gradsae_fast.reference import dense_influence, objective_value
from gradsae_fast.sae.canonical import Sae, Threshold, normalise_input
from gradsae_fast.sae.load import load_sae
from gradsae_fast.sae.reference import decode_dense, encode_dense
from gradsae_fast.store import ScoreStore

Configure = Callable[..., ExtractConfig]
SIDES = ("positive", "negative")


def two_sided(sae: Sae) -> Sae:
    """A Bi-JumpReLU SAE with the weights of a JumpReLU one; a latent's two thresholds differ."""
    assert isinstance(sae.rule, Threshold)
    below_C = 0.6 + sae.rule.threshold_C.flip(0)
    return replace(sae, rule=Threshold(threshold_C=sae.rule.threshold_C + 0.4, negative_threshold_C=below_C))


@pytest.fixture(params=["bi-jumprelu", "abstopk"])
def signed_config(
    request: pytest.FixtureRequest, configure: Configure, write_sae: Any, monkeypatch: pytest.MonkeyPatch
) -> ExtractConfig:
    """A run with a signed SAE over part of the tiny corpus; no published format holds a Bi-JumpReLU one."""
    if request.param == "bi-jumprelu":
        monkeypatch.setattr(
            "gradsae_fast.prepare.load_sae", lambda *args, **options: two_sided(load_sae(*args, **options))
        )
    architecture = "jumprelu" if request.param == "bi-jumprelu" else "abstopk"
    return configure(
        sae={"path": str(write_sae(architecture, name=request.param))},
        corpus={"max_documents": 8},
        store={"precision_bits": 23},
    )


@pytest.fixture
def scored(signed_config: ExtractConfig) -> ScoreStore:
    extract(signed_config)
    return open_scores(signed_config.store.path)


def windows_of(prepared: Prepared) -> dict[str, list[Window]]:
    runs = read_segments(prepared.corpus, prepared.plan, prepared.lm.tokenizer, prepared.rules)
    return {document.document.key: prepared.cut(document, 0) for _, run in runs for document in run}


def alone(window: Window) -> Batch:
    return Batch(windows=(window,), token_ids_BT=window.token_ids[None].astype(np.int64))


def dense_scores(prepared: Prepared, store: ScoreStore) -> dict[str, tuple[Array, Array]]:
    """Activations and influences [N, C] of each document's tokens that count, by dense autograd, window by window."""
    (one,), (objective,) = prepared.sited, prepared.objectives
    masks = {
        key: segment.token_column("mask")[segment.token_column("document") == slot]
        for segment in store.segments
        for slot, key in enumerate(segment.document_keys())
    }
    found = {}
    for key, windows in windows_of(prepared).items():
        parts = [
            [
                values_TC[window.num_context :].numpy()
                for values_TC in dense_influence(prepared.lm, one, prepared.method, objective, window)
            ]
            for window in windows
        ]
        if parts:
            activation_NC, influence_NC = (np.concatenate(part) for part in zip(*parts, strict=True))
            counted_N = masks[key] == 0
            found[key] = activation_NC[counted_N].astype(np.float64), influence_NC[counted_N].astype(np.float64)
    return found


def one_side(activation_NC: Array, influence_NC: Array, side: str) -> dict[str, Array]:
    """Columns of a ranking by their definitions, each [C], from the tokens of one side."""
    active_NC = activation_NC > 0 if side == "positive" else activation_NC < 0
    strongest_C = abs(activation_NC * active_NC).max(0, initial=0)
    return {
        "num_active": active_NC.sum(0),
        "activation": (activation_NC * active_NC).sum(0),
        "max_activation": strongest_C if side == "positive" else -strongest_C,
        "influence": (influence_NC * active_NC).sum(0),
        "positive": (influence_NC.clip(min=0) * active_NC).sum(0),
        "absolute": (abs(influence_NC) * active_NC).sum(0),
        "max_influence": np.where(active_NC, influence_NC, -np.inf).max(0, initial=-np.inf),
    }


def assert_columns(rows: Sequence[dict[str, Any]], expected: Sequence[dict[str, Any]]) -> None:
    for row, columns in zip(rows, expected, strict=True):
        for name, value in columns.items():
            assert row[name] == pytest.approx(value, rel=5e-3, abs=1e-4), (name, row)


@pytest.mark.parametrize("side", SIDES)
def test_each_side_is_ranked_as_dense_scores_of_that_side_alone(scored: ScoreStore, side: str) -> None:
    assert all(segment.site(scored.sites[0]).has_sums(side) for segment in scored.segments)
    by_document = dense_scores(reopen(scored)[0], scored)
    assert len(by_document) > 5
    activation_NC, influence_NC = (np.concatenate(part) for part in zip(*by_document.values(), strict=True))
    expected = one_side(activation_NC, influence_NC, side)

    ranked = rank_latents(scored, polarity=side, k=None).to_pylist()
    assert {row["latent"] for row in ranked} == set(np.flatnonzero(expected["num_active"]).tolist())
    assert_columns(ranked, [{name: values[row["latent"]] for name, values in expected.items()} for row in ranked])
    other = one_side(activation_NC, influence_NC, SIDES[side == "positive"])
    latent = int(np.minimum(expected["num_active"], other["num_active"]).argmax())
    assert min(expected["num_active"][latent], other["num_active"][latent]) >= 3, "a latent with two busy sides"

    of_documents = {key: one_side(*scores, side) for key, scores in by_document.items()}
    documents = rank_documents(scored, latent=latent, polarity=side, k=None).to_pylist()
    assert {row["key"] for row in documents} == {
        key for key, sums in of_documents.items() if sums["num_active"][latent]
    }
    expected_rows = [{name: sums[latent] for name, sums in of_documents[row["key"]].items()} for row in documents]
    assert_columns(documents, expected_rows)

    on_side_N = activation_NC[:, latent] * (1 if side == "positive" else -1) > 0
    tokens = rank_tokens(scored, latent=latent, polarity=side, k=3)
    strongest = np.sort(influence_NC[on_side_N, latent])[::-1][:3]
    np.testing.assert_allclose(tokens["influence"].to_numpy(), strongest, rtol=5e-3, atol=1e-4)


def value_without(prepared: Prepared, windows: Sequence[Window], latent: int, positions: Sequence[int]) -> float:
    """m of a document by a plain hook with a dense code; the latent is 0 at these positions where a window scores them.

    Positions count, so they are spliced.
    """
    (one,), (objective,), total = prepared.sited, prepared.objectives, 0.0
    for window in windows:
        removed = np.array(positions, np.int64) - window.first_position
        rows = removed[(removed >= 0) & (removed < window.num_scored)] + window.num_context
        masked = torch.from_numpy(position_masks(alone(window)) != 0)

        def change(hidden_1TD: torch.Tensor, rows: Array = rows, masked: torch.Tensor = masked) -> torch.Tensor:
            hidden_TD = hidden_1TD[0]
            latents_TC = encode_dense(one.sae, hidden_TD)
            _, stats = normalise_input(one.sae, hidden_TD)
            latents_TC[rows, latent] = 0.0
            passed_T = masked | (hidden_TD.norm(dim=1) > one.sink_norm)
            return torch.where(passed_T[:, None], hidden_TD, decode_dense(one.sae, latents_TC, stats))[None]

        with torch.no_grad(), output_hook(prepared.lm.model.get_submodule(one.site.path), change):
            ids_BT = torch.from_numpy(alone(window).token_ids_BT)
            logits_TV = prepared.lm.model(input_ids=ids_BT, use_cache=False).logits[0]
        total += objective_value(objective, logits_TV, window).item()
    return total


def active_positions(store: ScoreStore, key: str, latent: int) -> Iterator[tuple[int, float]]:
    """Positions of a document that count and on which a latent is active, with its activation."""
    for row in rank_tokens(store, latent=latent, document=key, k=None).to_pylist():
        yield row["position"], row["activation"]


def test_removing_a_negative_latent_is_certified_as_a_plain_hook_says(scored: ScoreStore) -> None:
    certificate = certify(scored.path, sampling=Sampling(pairs=10, documents=2, latents_per_document=3))
    assert certificate.value_deviation < 1e-5
    prepared = reopen(scored)[0]
    windows = windows_of(prepared)
    columns = certificate.samples
    largest: dict[tuple[str, bool], float] = {}
    for row in zip(*columns.values(), strict=True):
        sample = dict(zip(columns, row, strict=True))
        key, latent = str(sample["document"]), int(sample["latent"])
        active = dict(active_positions(scored, key, latent))
        positions = sorted(active) if sample["scores"] == "documents" else [int(sample["position"])]
        whole, without = (value_without(prepared, windows[key], latent, removed) for removed in ([], positions))
        assert sample["exact"] == pytest.approx(whole - without, rel=5e-3, abs=5e-4)
        for negative in {active[position] < 0 for position in positions}:
            kind = (str(sample["scores"]), bool(negative))
            largest[kind] = max(largest.get(kind, 0.0), abs(whole - without))
    assert largest.keys() == {(scores, negative) for scores in ("pairs", "documents") for negative in (False, True)}
    assert min(largest.values()) > 1e-2, "effects are far above the tolerance"


def test_info_says_which_sites_are_signed(scored: ScoreStore) -> None:
    said = CliRunner().invoke(app, ["info", str(scored.path)]).stdout
    assert "activations of both signs: rank --polarity" in said


def test_info_of_an_unsigned_site_says_nothing_of_signs(configure: Configure) -> None:
    config = configure(corpus={"max_documents": 3})
    extract(config)
    assert "both signs" not in CliRunner().invoke(app, ["info", config.store.path]).stdout

"""The benchmark against other packages, with stand-ins for them: a wrong peer is not timed, and the page says all."""

import json
from types import SimpleNamespace

import pytest
import torch

from benchmarks.bench_peers import (
    ACTIVE,
    FLOOR,
    Sae,
    measure,
    ours,
    pairs_of_dense,
    pairs_of_topk,
    peak_bytes,
    table,
    take_turns,
    verify,
)


@pytest.fixture(scope="module")
def sae() -> Sae:
    return Sae.random(tokens=37, width=24, latents=301)


def dense_answers(sae: Sae) -> dict[str, torch.Tensor]:
    """What the peers' formulas give, in the order of `ours`."""
    u_NC = (sae.x_ND - sae.b_dec_D) @ sae.w_enc_CD.T
    jumprelu_NC = u_NC + sae.bias_C
    top = jumprelu_NC.topk(ACTIVE, dim=1)
    return {
        "jumprelu": jumprelu_NC * (jumprelu_NC > sae.threshold_C),
        "relu": (u_NC + sae.relu_bias_C).relu(),
        "topk": torch.zeros_like(u_NC).scatter(1, top.indices, top.values.relu()),
    }


def test_ours_agree_with_the_formulas_of_the_peers(sae: Sae) -> None:
    for mine, dense_NC in zip(ours(sae).values(), dense_answers(sae).values(), strict=True):
        verify(mine(), dense_NC)


def test_a_wrong_answer_is_not_timed(sae: Sae) -> None:
    dense_NC = dense_answers(sae)["jumprelu"]
    rows = pairs_of_dense(dense_NC)
    verify(rows, dense_NC)
    for wrong in (rows._replace(values=rows.values + 1e-2), pairs_of_dense(dense_NC.roll(1, dims=1))):
        with pytest.raises(ValueError, match="not timed"):
            verify(wrong, dense_NC)


def test_top_pairs_come_into_the_order_of_rows(sae: Sae) -> None:
    dense_NC = dense_answers(sae)["topk"]
    top = dense_NC.topk(ACTIVE, dim=1)
    rows = pairs_of_topk(SimpleNamespace(top_acts=top.values, top_indices=top.indices))
    verify(rows, dense_NC)
    assert (rows.indices.view(-1, ACTIVE).diff(dim=1) > 0).all()


def test_turns_alternate_their_order() -> None:
    called: list[str] = []
    take_turns({"a": lambda: called.append("a"), "b": lambda: called.append("b")}, 3)
    assert "".join(called) == "abbaab"


def test_the_peak_counts_what_a_call_takes_and_gives_back() -> None:
    peak = peak_bytes(lambda: torch.ones(2**24).sum())
    if peak is None:
        pytest.skip("this system does not tell")
    assert 60e6 < peak < 120e6


def test_the_table_has_a_line_for_each_variant_with_its_spread(sae: Sae) -> None:
    candidates = {FLOOR: lambda: sae.x_ND @ sae.w_enc_CD.T, **ours(sae)}
    rows = measure(sae, candidates, turns=3)
    assert [row.variant for row in rows] == list(candidates)
    assert rows[0].ratios == [1.0, 1.0, 1.0]
    text = table(rows)
    assert text.count("\n") == 1 + len(candidates)
    assert text.count("**ours") == 3
    assert json.dumps(rows[0].seconds)

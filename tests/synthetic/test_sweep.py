"""Curves against whole forward passes, one step at a time, without a cache."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from gradsae_fast.ablate import ScoredWindow, scored_windows
from gradsae_fast.config import ScoreConfig
from gradsae_fast.errors import ScoreError
from gradsae_fast.method import resolve_method
from gradsae_fast.model.load import LanguageModel
from gradsae_fast.model.sites import Wiring
from gradsae_fast.records import Batch, Window
from gradsae_fast.sae.load import load_sae
from gradsae_fast.score import SitedSae
from gradsae_fast.synthetic.sweep import Path as StraightPath
from gradsae_fast.synthetic.sweep import sweep

IDS = np.array([0, 17, 44, 90, 23, 61, 8], np.int32)


def scored_at(lm: LanguageModel, spelling: str, sae: Path) -> ScoredWindow:
    document: Any = None
    window = Window(document=document, slot=0, token_ids=IDS, num_context=0, first_position=0)
    batch = Batch(windows=(window,), token_ids_BT=IDS[None].astype(np.int64))
    sited = SitedSae(wiring=Wiring.at(lm.site(spelling)), sae=load_sae(sae))
    method = resolve_method(ScoreConfig(preset="attribution-patching"))
    ((scored,),) = scored_windows(lm, [sited], method, batch)
    return scored


def paths_from(scored: ScoredWindow) -> list[StraightPath]:
    generator = torch.Generator().manual_seed(3)
    start_D = scored.seen_TD[-1].float()
    target_KD = torch.randn(3, len(start_D), generator=generator)
    return [
        StraightPath(start_D=start_D, target_D=target_KD[0]),
        StraightPath(start_D=target_KD[1], target_D=target_KD[2]),
    ]


def whole_pass(lm: LanguageModel, spelling: str, point_D: Tensor) -> tuple[Tensor, Tensor]:
    """Last layer's output and log-probabilities at the last token, the site's last position exchanged."""
    found: list[Tensor] = []

    def change(hidden_1TD: Tensor) -> Tensor:
        changed_1TD = hidden_1TD.clone()
        changed_1TD[0, -1] = point_D
        return changed_1TD

    with torch.no_grad(), lm.site(spelling).hook(lm.model, change):
        handle = lm.layers[-1].register_forward_hook(lambda _m, _a, output: found.append(output))
        logits_1TV = lm.model(input_ids=torch.from_numpy(IDS.astype(np.int64))[None], use_cache=False).logits
        handle.remove()
    return found[0][0, -1], logits_1TV[0, -1].log_softmax(-1)


@pytest.mark.parametrize("spelling", ["model.layers.1", "model.layers.2.mlp", "model.layers.0.mlp", "model.layers.3"])
def test_curves_are_those_of_whole_forward_passes(tiny_lm: LanguageModel, tiny_sae_folder: Path, spelling: str) -> None:
    scored = scored_at(tiny_lm, spelling, tiny_sae_folder)
    paths = paths_from(scored)
    curves = sweep(tiny_lm, scored, paths, step=0.7, num_steps=6)
    for p, path in enumerate(paths):
        direction_D = (path.target_D - path.start_D) / (path.target_D - path.start_D).norm()
        runs = [whole_pass(tiny_lm, spelling, path.start_D + 0.7 * n * direction_D) for n in range(7)]
        for n, (hidden_D, log_prob_V) in enumerate(runs):
            distance = (hidden_D - runs[0][0]).norm().item()
            divergence = torch.nn.functional.kl_div(log_prob_V, runs[0][1], log_target=True, reduction="sum").item()
            assert curves.distance_PS[p, n] == pytest.approx(distance, rel=1e-3, abs=1e-4)
            assert curves.divergence_PS[p, n] == pytest.approx(divergence, rel=1e-2, abs=1e-5)
    assert curves.distance_PS[:, 0].tolist() == [0, 0]
    assert (curves.distance_PS[:, -1] > 0.1).all()


def test_a_curve_depends_neither_on_the_size_of_a_pass_nor_on_other_paths(
    tiny_lm: LanguageModel, tiny_sae_folder: Path
) -> None:
    scored = scored_at(tiny_lm, "model.layers.1", tiny_sae_folder)
    paths = paths_from(scored)
    together = sweep(tiny_lm, scored, paths, step=0.5, num_steps=9)
    for steps_per_pass in (1, 7):
        apart = sweep(tiny_lm, scored, paths[1:], step=0.5, num_steps=9, steps_per_pass=steps_per_pass)
        np.testing.assert_allclose(apart.distance_PS[0], together.distance_PS[1], rtol=1e-4, atol=1e-5)


def test_the_model_is_left_as_it_was(tiny_lm: LanguageModel, tiny_sae_folder: Path) -> None:
    scored = scored_at(tiny_lm, "model.layers.2.mlp", tiny_sae_folder)
    point_D = scored.seen_TD[-1].float()
    before = whole_pass(tiny_lm, "model.layers.2.mlp", point_D)[1]
    sweep(tiny_lm, scored, paths_from(scored), step=0.5, num_steps=2)
    torch.testing.assert_close(whole_pass(tiny_lm, "model.layers.2.mlp", point_D)[1], before, rtol=0, atol=0)


def test_a_path_to_where_it_starts_is_refused() -> None:
    start_D = torch.ones(4)
    for target_D in (start_D, torch.full((4,), float("nan"))):
        with pytest.raises(ScoreError, match="expected two different finite states"):
            StraightPath(start_D=start_D, target_D=target_D).points(0.5, 3)

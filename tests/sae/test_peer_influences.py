"""Influences through SAEs of other libraries, against autograd through those libraries' own objects.

GRADSAE_PEERS names a folder that the scripts of tests/peers filled; `.ci/peers` makes one and runs this.
"""

import os
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file

from gradsae_fast.config import ModelConfig, ScoreConfig
from gradsae_fast.method import resolve_method
from gradsae_fast.model.load import LanguageModel, load_model
from gradsae_fast.model.objectives import Objective
from gradsae_fast.model.sites import Wiring
from gradsae_fast.records import Array, Batch, Document, TokenDocument, Window
from gradsae_fast.sae.load import load_sae
from gradsae_fast.score import BatchScores, SitedSae, score_batch

PEERS = os.environ.get("GRADSAE_PEERS")
MADE = sorted(path.parent for path in Path(PEERS).rglob("influences.safetensors")) if PEERS else []
# Of the largest influence: float32 through two layers, forward and backward, in another order of summation.
TOLERANCE = 1e-5
METHODS = {"spliced": ScoreConfig(splice="all"), "kept": ScoreConfig(use_error_term=True)}


@pytest.fixture(scope="module")
def peer_lm() -> LanguageModel:
    assert PEERS is not None
    return load_model(ModelConfig(path=str(Path(PEERS) / "model"), device="cpu"))


def batch_of(token_ids_N: Array, lengths_B: Array) -> Batch:
    """The texts as one padded batch."""
    windows = []
    for slot, ids_T in enumerate(np.split(token_ids_N.astype(np.int32), np.cumsum(lengths_B)[:-1])):
        zeros_T = np.zeros(len(ids_T), np.int32)
        document = TokenDocument(
            document=Document(key=str(slot), text="", source="", row=slot, metadata={}),
            index=slot,
            token_ids=ids_T,
            char_start=zeros_T,
            char_end=zeros_T,
            special=zeros_T.astype(bool),
            num_bos=0,
        )
        windows.append(Window(document=document, slot=slot, token_ids=ids_T, num_context=0, first_position=0))
    padded_BT = np.zeros((len(windows), lengths_B.max()), np.int64)
    for row, window in enumerate(windows):
        padded_BT[row, : len(window.token_ids)] = window.token_ids
    return Batch(windows=tuple(windows), token_ids_BT=padded_BT)


def scores_of(lm: LanguageModel, folder: Path, variant: str, batch: Batch) -> BatchScores:
    sae = load_sae(folder, device="cpu")
    mlp = lm.site("model.layers.1.mlp")
    wiring = Wiring.at(lm.site("model.layers.1"))
    if sae.facts.reads is not None:
        wiring = Wiring(reads=lm.site("model.layers.1.mlp.input"), writes=(mlp,))
    return score_batch(
        lm,
        [SitedSae(wiring=wiring, sae=sae)],
        resolve_method(METHODS[variant]),
        [Objective(name="next-token")],
        batch,
    )


@pytest.mark.slow
@pytest.mark.skipif(not MADE, reason="GRADSAE_PEERS names no folder with influences; `.ci/peers` makes one")
@pytest.mark.parametrize("variant", METHODS)
@pytest.mark.parametrize("folder", MADE, ids=lambda path: str(path.relative_to(PEERS)))
def test_influences_are_those_of_autograd_through_the_library_that_wrote_the_sae(
    folder: Path, variant: str, peer_lm: LanguageModel
) -> None:
    made = {name: tensor.numpy() for name, tensor in load_file(folder / "influences.safetensors").items()}
    found = scores_of(peer_lm, folder, variant, batch_of(made["token_ids"], made["lengths"]))
    ((path, scores),) = found.sites.items()
    rows_Z = np.repeat(np.arange(len(made["token_ids"])), np.diff(scores.indptr))
    assert np.array_equal(np.stack([rows_Z, scores.indices]), np.stack(made["activations"].nonzero()))
    expected_Z = made["activations"][rows_Z, scores.indices]
    assert distance(scores.activation, expected_Z) < TOLERANCE
    influence_Z = scores.activation * scores.projections["next-token"]
    assert distance(influence_Z, made[f"influence_{variant}"][rows_Z, scores.indices]) < TOLERANCE
    assert distance(found.values[path]["next-token"], made[f"value_{variant}"]) < TOLERANCE


def distance(found: Array, expected: Array) -> float:
    """Largest difference, as a share of the largest expected value."""
    return float(np.abs(found - expected).max() / np.abs(expected).max())

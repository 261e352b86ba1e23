"""SAEs that other libraries wrote, against what those libraries compute with them.

GRADSAE_PEERS names a folder that the scripts of tests/peers filled, each run by an interpreter that has its library:

    python tests/peers/make_saelens.py FOLDER              with sae-lens
    python tests/peers/make_sparsify.py FOLDER             with eai-sparsify
    python tests/peers/make_dictionary_learning.py FOLDER  with dictionary-learning
    GRADSAE_PEERS=FOLDER pytest -m slow tests/sae/test_peers.py
"""

import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from gradsae_fast.errors import SaeError
from gradsae_fast.sae.canonical import normalise_input
from gradsae_fast.sae.load import load_sae
from gradsae_fast.sae.reference import decode_dense, encode_dense
from gradsae_fast.score import encode, reconstruct

PEERS = os.environ.get("GRADSAE_PEERS")
REASON = "GRADSAE_PEERS names no folder with SAEs of other libraries; tests/peers says how they are made"
# Of the largest value: a few roundings of float32 over a sum of 128 terms.
TOLERANCE = 2e-6


def folders(pattern: str) -> list[Path]:
    return sorted(path.parent for path in Path(PEERS).rglob(pattern)) if PEERS else []


MADE = [path for path in folders("reference.safetensors") if "saelens-refused" not in path.parts]
REFUSED = [path for path in folders("cfg.json") if "saelens-refused" in path.parts]


@pytest.mark.slow
@pytest.mark.skipif(not MADE, reason=REASON)
@pytest.mark.parametrize("folder", MADE, ids=lambda path: str(path.relative_to(PEERS)))
def test_an_sae_computes_what_the_library_that_wrote_it_computes(folder: Path) -> None:
    reference = load_file(folder / "reference.safetensors")
    expected_NC, expected_ND = reference["activations"], reference["reconstruction"]
    sae = load_sae(folder)
    a_NC, code = encode_dense(sae, reference["x"]), encode(sae, reference["x"])
    _, stats = normalise_input(sae, reference["x"])
    assert torch.equal(a_NC != 0, expected_NC != 0)
    assert torch.equal(code.rows.indices.long(), expected_NC.nonzero()[:, 1])
    assert distance(a_NC, expected_NC) < TOLERANCE
    assert distance(code.rows.values, expected_NC[expected_NC != 0]) < TOLERANCE
    assert distance(decode_dense(sae, expected_NC, stats), expected_ND) < TOLERANCE
    assert distance(reconstruct(sae, code), expected_ND) < TOLERANCE


@pytest.mark.slow
@pytest.mark.skipif(not REFUSED, reason=REASON)
@pytest.mark.parametrize("folder", REFUSED, ids=lambda path: path.name)
def test_what_cannot_be_scored_at_one_site_is_refused_by_name(folder: Path) -> None:
    with pytest.raises(SaeError, match=r"supported: standard, .*because "):
        load_sae(folder)


def distance(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Largest difference, as a share of the largest expected value."""
    return float((found - expected).abs().max() / expected.abs().max())

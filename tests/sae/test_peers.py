"""SAEs that other libraries wrote, against what those libraries compute with them.

GRADSAE_PEERS names a folder that the scripts of tests/peers filled. `.ci/peers` makes one, with an environment that has
those libraries, and runs this.
"""

import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from gradsae_fast.errors import SaeError
from gradsae_fast.sae.canonical import Sae, normalise_input
from gradsae_fast.sae.load import load_sae
from gradsae_fast.sae.reference import decode_dense, encode_dense
from gradsae_fast.sparse_code import encode, reconstruct

PEERS = os.environ.get("GRADSAE_PEERS")
REASON = "GRADSAE_PEERS names no folder with SAEs of other libraries; `.ci/peers` makes one"
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
    sae, reference = load_sae(folder), load_file(folder / "reference.safetensors")
    steady_N = steady_rows(sae, reference["x"])
    assert steady_N.float().mean() > 0.95
    hidden_ND, expected_NC, expected_ND = (reference[name][steady_N] for name in ("x", "activations", "reconstruction"))
    a_NC, code = encode_dense(sae, hidden_ND), encode(sae, hidden_ND)
    x_ND, stats = normalise_input(sae, hidden_ND)
    assert torch.equal(a_NC != 0, expected_NC != 0)
    assert torch.equal(code.rows.indices.long(), expected_NC.nonzero()[:, 1])
    assert distance(a_NC, expected_NC) < TOLERANCE
    assert distance(code.rows.values, expected_NC[expected_NC != 0]) < TOLERANCE
    assert distance(decode_dense(sae, expected_NC, stats, x_ND), expected_ND) < TOLERANCE
    assert distance(reconstruct(sae, code), expected_ND) < TOLERANCE


@pytest.mark.slow
@pytest.mark.skipif(not REFUSED, reason=REASON)
@pytest.mark.parametrize("folder", REFUSED, ids=lambda path: path.name)
def test_what_cannot_be_scored_is_refused_by_name(folder: Path) -> None:
    with pytest.raises(SaeError, match=r"supported: standard, .*because "):
        load_sae(folder)


def steady_rows(sae: Sae, hidden_ND: torch.Tensor) -> torch.Tensor:
    """Which tokens keep their active latents when every component changes by about 1e-5, bool [N].

    For the others the order of a summation decides, as it does between two libraries.
    """
    generator = torch.Generator().manual_seed(0)
    active_NC = encode_dense(sae, hidden_ND) != 0
    steady_N = torch.ones(len(hidden_ND), dtype=torch.bool)
    for _ in range(4):
        nudged_ND = hidden_ND * (1 + 1e-5 * torch.randn(hidden_ND.shape, generator=generator))
        steady_N &= ((encode_dense(sae, nudged_ND) != 0) == active_NC).all(1)
    return steady_N


def distance(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Largest difference, as a share of the largest expected value."""
    return float((found - expected).abs().max() / expected.abs().max())

"""SAEs that other libraries wrote, against what those libraries compute with them.

GRADSAE_PEERS names a folder that the scripts of tests/peers filled. `.ci/peers` makes one, with an environment that has
those libraries, and runs this.
"""

import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from gradsae_fast.sae.canonical import Sae, normalise_input
from gradsae_fast.sae.load import load_sae
from gradsae_fast.sae.reference import decode_dense, encode_dense
from gradsae_fast.sparse_code import drop_rows, encode, reconstruct

PEERS = os.environ.get("GRADSAE_PEERS")
REASON = "GRADSAE_PEERS names no folder with SAEs of other libraries; `.ci/peers` makes one"
NAMES = ("x", "activations")
# Of the largest value: a few roundings of float32 over a sum of 128 terms.
TOLERANCE = 2e-6


def folders(pattern: str) -> list[Path]:
    return sorted(path.parent for path in Path(PEERS).rglob(pattern)) if PEERS else []


MADE = folders("reference.safetensors")


@pytest.mark.slow
@pytest.mark.skipif(not MADE, reason=REASON)
@pytest.mark.parametrize("folder", MADE, ids=lambda path: str(path.relative_to(PEERS)))
def test_an_sae_computes_what_the_library_that_wrote_it_computes(folder: Path) -> None:
    sae, reference = load_sae(folder), load_file(folder / "reference.safetensors")
    hidden_ND = reference["x"]
    lengths = reference["lengths"].tolist() if "lengths" in reference else [len(hidden_ND)]
    steady_N = steady_rows(sae, hidden_ND, lengths)
    assert steady_N.float().mean() > 0.95
    expected_NC, expected_ND = reference["activations"][steady_N], reference["reconstruction"][steady_N]
    a_NC, code = encode_windows(sae, hidden_ND, lengths)[steady_N], encode(sae, hidden_ND, lengths)
    assert torch.equal(a_NC != 0, expected_NC != 0)
    assert distance(a_NC, expected_NC) < TOLERANCE
    kept = drop_rows(code, steady_N.numpy()).rows
    assert torch.equal(kept.indptr.diff()[steady_N], (expected_NC != 0).sum(1))
    assert torch.equal(kept.indices.long(), expected_NC.nonzero()[:, 1])
    assert distance(kept.values, expected_NC[expected_NC != 0]) < TOLERANCE
    decoded = [
        decode_window(sae, *each) for each in zip(*(reference[name].split(lengths) for name in NAMES), strict=True)
    ]
    assert distance(torch.cat(decoded)[steady_N], expected_ND) < TOLERANCE
    assert distance(reconstruct(sae, code)[steady_N], expected_ND) < TOLERANCE


def encode_windows(sae: Sae, hidden_ND: torch.Tensor, lengths: list[int]) -> torch.Tensor:
    """The oracle's activations of windows that follow each other [N, C]."""
    return torch.cat([encode_dense(sae, window_TD) for window_TD in hidden_ND.split(lengths)])


def decode_window(sae: Sae, hidden_TD: torch.Tensor, a_TC: torch.Tensor) -> torch.Tensor:
    """The oracle's reconstruction of one window [T, D]."""
    x_TD, stats = normalise_input(sae, hidden_TD)
    return decode_dense(sae, a_TC, stats, x_TD)


def steady_rows(sae: Sae, hidden_ND: torch.Tensor, lengths: list[int]) -> torch.Tensor:
    """Which tokens keep their active latents when every component changes by about 1e-5, bool [N].

    For the others the order of a summation decides, as it does between two libraries.
    """
    generator = torch.Generator().manual_seed(0)
    active_NC = encode_windows(sae, hidden_ND, lengths) != 0
    steady_N = torch.ones(len(hidden_ND), dtype=torch.bool)
    for _ in range(4):
        nudged_ND = hidden_ND * (1 + 1e-5 * torch.randn(hidden_ND.shape, generator=generator))
        steady_N &= ((encode_windows(sae, nudged_ND, lengths) != 0) == active_NC).all(1)
    return steady_N


def distance(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Largest difference, as a share of the largest expected value."""
    return float((found - expected).abs().max() / expected.abs().max())

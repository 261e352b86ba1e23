"""Gemma Scope archives: the published formula, the facts in the path, and damaged files."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from gradsae_fast.errors import SaeError
from gradsae_fast.sae.load import load_sae
from gradsae_fast.sae.reference import encode_dense

FOLDER = Path("models--google--gemma-scope-9b-it-res/snapshots/abc/layer_20/width_16k/average_l0_71")


def arrays(seed: int = 0) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    shapes = {"W_enc": (12, 40), "W_dec": (40, 12), "b_enc": (40,), "b_dec": (12,), "threshold": (40,)}
    drawn = {key: rng.standard_normal(shape).astype(np.float32) for key, shape in shapes.items()}
    return drawn | {"threshold": np.abs(drawn["threshold"])}


def write(folder: Path, **changes: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    np.savez(folder / "params.npz", **{key: each for key, each in (arrays() | changes).items() if each is not None})
    return folder


@pytest.mark.parametrize("lower_case", [True, False])
def test_an_archive_computes_the_published_formula(lower_case: bool, tmp_path: Path, hidden_ND: Tensor) -> None:
    w = arrays()
    renamed = {"w_enc": w["W_enc"], "w_dec": w["W_dec"], "W_enc": None, "W_dec": None} if lower_case else {}
    folder = write(tmp_path / FOLDER, **renamed)
    h_NC = hidden_ND.double().numpy() @ w["W_enc"].astype(np.float64) + w["b_enc"]
    expected = torch.from_numpy(np.where(h_NC > w["threshold"], np.maximum(h_NC, 0), 0)).float()
    for path in (folder, folder / "params.npz"):
        sae = load_sae(path)
        torch.testing.assert_close(encode_dense(sae, hidden_ND), expected, rtol=1e-4, atol=1e-4)
        assert torch.equal(sae.bias_C, torch.from_numpy(w["b_enc"]))


def test_facts_are_read_from_the_path(tmp_path: Path) -> None:
    facts = load_sae(write(tmp_path / FOLDER)).facts
    assert (facts.format, facts.architecture, facts.model_name) == ("gemma_scope", "jumprelu", "google/gemma-2-9b-it")
    assert (facts.hook_name, facts.site, facts.published_l0) == ("blocks.20.hook_resid_post", None, 71.0)
    assert (facts.prepend_bos, facts.d_in, facts.num_latents) == (True, 12, 40)


@pytest.mark.parametrize(
    ("folder", "hook_name", "l0"),
    [
        ("layer_5/width_16k/average_l0_12", "blocks.5.hook_resid_post", 12.0),
        ("gemma-scope-2b-pt-mlp/layer_0/width_65k/average_l0_9", "blocks.0.hook_mlp_out", 9.0),
        ("gemma-scope-9b-pt-att/layer_3/width_16k/average_l0_25", "blocks.3.attn.hook_z", 25.0),
        ("somewhere", None, None),
    ],
)
def test_the_path_gives_site_and_l0_as_far_as_it_goes(
    folder: str, hook_name: str | None, l0: float | None, tmp_path: Path
) -> None:
    facts = load_sae(write(tmp_path / folder)).facts
    assert (facts.hook_name, facts.published_l0, facts.reads) == (hook_name, l0, None)


@pytest.mark.parametrize(
    ("folder", "message"),
    [
        ("gemma-scope-2b-pt-res/embedding/width_4k/average_l0_6", "SAE of the embedding, which is not supported"),
        (
            "gemma-scope-2b-pt-transcoders/somewhere/average_l0_6",
            "a transcoder, whose layer is known from its folder",
        ),
    ],
)
def test_what_is_not_an_sae_of_one_site_is_refused(folder: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(SaeError, match=message):
        load_sae(write(tmp_path / folder))


def test_a_transcoder_reads_the_norm_before_its_gain_and_writes_what_the_mlp_adds(tmp_path: Path) -> None:
    sae = load_sae(write(tmp_path / "gemma-scope-2b-pt-transcoders/layer_1/width_16k/average_l0_6"))
    assert sae.facts.reads == "blocks.1.ln2.hook_normalized"
    assert sae.facts.hook_name == "blocks.1.hook_mlp_out"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"threshold": None}, "lacks threshold"),
        ({"scale": np.ones(40, np.float32)}, "has the unknown scale"),
        ({"W_enc": np.ones((40, 12), np.float32)}, r"W_dec in .* expected \(12, 40\)"),
        ({"W_enc": np.ones(40, np.float32)}, "expected two dimensions"),
        ({"b_dec": np.ones(12, np.int64)}, "expected floating point"),
        ({"b_enc": np.full(40, np.nan, np.float32)}, "b_enc in .* holds 40 NaN or Inf"),
        ({"threshold": np.full(40, -0.5, np.float32)}, "negative for 40 of 40"),
        ({"b_dec": np.array([object()] * 12)}, "not a whole npz archive"),
    ],
)
def test_a_wrong_archive_is_refused(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(SaeError, match=message):
        load_sae(write(tmp_path / FOLDER, **changes))


def test_a_truncated_archive_is_refused(tmp_path: Path) -> None:
    file = write(tmp_path / FOLDER) / "params.npz"
    whole = file.read_bytes()
    for content in (b"", b"PK", whole[:300], whole[:-10], b"not an archive at all"):
        file.write_bytes(content)
        with pytest.raises(SaeError, match="not a whole npz archive"):
            load_sae(file)
    damaged = bytearray(whole)
    damaged[400] ^= 0xFF
    file.write_bytes(damaged)
    with pytest.raises(SaeError, match="not a whole npz archive"):
        load_sae(file)


def test_an_input_factor_without_effect_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SaeError, match="no effect"):
        load_sae(write(tmp_path / FOLDER), norm_factor=2.0)

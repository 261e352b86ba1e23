"""Cross-layer transcoders of both layouts: a layer's share of every reconstruction, the sites, and what is refused.

Shapes: N tokens, D width of a site, C latents of a layer, L layers.
"""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from gradsae_fast.errors import SaeError
from gradsae_fast.sae.canonical import normalise_input
from gradsae_fast.sae.load import load_sae
from gradsae_fast.sae.reference import decode_dense, encode_dense

L, D, C = 4, 12, 40
CONFIG = """
model_kind: cross_layer_transcoder
model_name: google/gemma-2-2b
feature_input_hook: hook_resid_mid
feature_output_hook: hook_mlp_out
"""


def write_traced(folder: Path, numbers: Any, *, threshold: bool = True, **changes: Any) -> list[dict[str, Tensor]]:
    """All layers in circuit-tracer's layout; returns each layer's tensors without the number in their names."""
    layers = []
    for i in range(L):
        w = {"W_enc": numbers(C, D), "b_enc": numbers(C), "b_dec": numbers(D), "W_dec": numbers(C, L - i, D)}
        w |= {"threshold": numbers(C).abs()} if threshold else {}
        layers.append(w | changes)
        stored = {f"{key}_{i}": each for key, each in layers[-1].items() if each is not None}
        decoder = {key: stored.pop(key) for key in list(stored) if key.startswith("W_dec")}
        save_file(stored, folder / f"W_enc_{i}.safetensors")
        save_file(decoder, folder / f"W_dec_{i}.safetensors")
    (folder / "config.yaml").write_text(CONFIG)
    return layers


@pytest.mark.parametrize("threshold", [True, False])
def test_the_layers_together_give_the_published_reconstruction(threshold: bool, tmp_path: Path, numbers: Any) -> None:
    layers = write_traced(tmp_path, numbers, threshold=threshold)
    tokens_LND = numbers(L, 9, D)
    # The definition: a feature of layer i has a row for every layer from i on, and a layer's bias is added once.
    expected_LND = torch.stack([w["b_dec"].expand(9, D) for w in layers])
    found_LND = expected_LND.clone()
    for i, w in enumerate(layers):
        h_NC = tokens_LND[i] @ w["W_enc"].T + w["b_enc"]
        code_NC = h_NC * (h_NC > w["threshold"]) if threshold else torch.relu(h_NC)
        for target in range(i, L):
            expected_LND[target] += code_NC @ w["W_dec"][:, target - i]
        sae = load_sae(tmp_path / f"W_enc_{i}.safetensors")
        a_NC = encode_dense(sae, tokens_LND[i])
        assert torch.equal(a_NC, code_NC)
        share_ND = decode_dense(sae, a_NC, normalise_input(sae, tokens_LND[i])[1])
        for target, part_ND in enumerate(share_ND.split(D, dim=1), start=i):
            found_LND[target] += part_ND
    torch.testing.assert_close(found_LND, expected_LND, rtol=1e-5, atol=1e-4)


def test_a_layer_names_every_site_that_it_writes(tmp_path: Path, numbers: Any) -> None:
    write_traced(tmp_path, numbers)
    sae = load_sae(tmp_path / "W_enc_1.safetensors")
    assert sae.facts.reads == "blocks.1.hook_resid_mid"
    assert sae.facts.writes == ("blocks.1.hook_mlp_out", "blocks.2.hook_mlp_out", "blocks.3.hook_mlp_out")
    assert (sae.facts.hook_name, sae.facts.model_name) == ("blocks.1.hook_mlp_out", "google/gemma-2-2b")
    assert (sae.d_in, sae.d_out, sae.facts.architecture) == (D, 3 * D, "jumprelu_cross_layer_transcoder")
    assert not sae.b_dec_D.any()


def test_the_digest_is_of_one_layer(tmp_path: Path, numbers: Any) -> None:
    write_traced(tmp_path, numbers)
    digests = [load_sae(tmp_path / f"W_enc_{i}.safetensors").facts.digest for i in (0, 1)]
    (tmp_path / "W_enc_2.safetensors").unlink()
    assert len(set(digests)) == 2
    assert load_sae(tmp_path / "W_enc_1.safetensors").facts.digest == digests[1]


def test_a_folder_of_layers_asks_for_one(tmp_path: Path, numbers: Any) -> None:
    write_traced(tmp_path, numbers)
    with pytest.raises(SaeError, match=r"an SAE lies in W_enc_0\.safetensors, .*: give that file"):
        load_sae(tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"b_enc": None}, "expected the vectors b_enc_1 and b_dec_1"),
        ({"W_enc": torch.zeros(D, C)}, "It looks transposed"),
        ({"W_dec": torch.zeros(C, D)}, r"W_dec_1 .*expected \(40, layers from 1 on, 12\)"),
        ({"W_dec": torch.zeros(C, 3, D + 1)}, r"expected \(40, 3, 12\)"),
        ({"scale": torch.zeros(C)}, "has the unknown scale_1"),
    ],
)
def test_wrong_layers_are_refused(changes: dict[str, Any], message: str, tmp_path: Path, numbers: Any) -> None:
    write_traced(tmp_path, numbers, **changes)
    with pytest.raises(SaeError, match=message):
        load_sae(tmp_path / "W_enc_1.safetensors")


def test_a_layer_without_its_decoder_is_refused(tmp_path: Path, numbers: Any) -> None:
    write_traced(tmp_path, numbers)
    (tmp_path / "W_dec_1.safetensors").unlink()
    with pytest.raises(SaeError, match=r"W_dec_1\.safetensors"):
        load_sae(tmp_path / "W_enc_1.safetensors")


def write_scope(folder: Path, numbers: Any, *, layer: int = 1, **changes: Any) -> tuple[Path, dict[str, Any]]:
    """One layer of a Gemma Scope 2 cross-layer transcoder."""
    folder = folder / "gemma-scope-2-270m-pt/clt/width_262k_l0_medium_affine"
    folder.mkdir(parents=True)
    w = {
        "w_enc": numbers(D, C),
        "w_dec": numbers(C, L, D),
        "b_enc": numbers(C),
        "b_dec": numbers(D),
        "threshold": numbers(C).abs(),
        "affine_skip_connection": numbers(D, D),
    } | changes
    file = folder / f"params_layer_{layer}.safetensors"
    save_file({key: each for key, each in w.items() if each is not None}, file)
    return file, w


@pytest.mark.parametrize("affine", [True, False])
def test_a_layer_of_gemma_scope_writes_itself_and_those_above(affine: bool, tmp_path: Path, numbers: Any) -> None:
    file, w = write_scope(tmp_path, numbers, affine_skip_connection=numbers(D, D) if affine else None)
    tokens_ND = numbers(9, D)
    h_NC = tokens_ND @ w["w_enc"] + w["b_enc"]
    code_NC = h_NC * (h_NC > w["threshold"])
    sae = load_sae(file)
    a_NC = encode_dense(sae, tokens_ND)
    assert torch.equal(a_NC, code_NC)
    found_ND = decode_dense(sae, a_NC, normalise_input(sae, tokens_ND)[1])
    expected_ND = torch.cat([code_NC @ w["w_dec"][:, target] for target in range(1, L)], dim=1)
    torch.testing.assert_close(found_ND, expected_ND, rtol=1e-5, atol=1e-4)
    assert sae.facts.writes == tuple(f"blocks.{each}.hook_mlp_out" for each in range(1, L))
    assert (sae.facts.reads, sae.facts.model_name) == ("layers.1.pre_feedforward_layernorm", "google/gemma-3-270m")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"threshold": None}, "lacks threshold"),
        ({"w_dec": torch.zeros(C, D)}, r"expected \(40, all layers of the model, 12\)"),
        ({"w_dec": torch.zeros(C, 1, D)}, "all layers of the model"),
        ({"w_enc": torch.zeros(C, D)}, "It looks transposed"),
        ({"threshold": torch.full((C,), -1.0)}, "negative for 40 of 40"),
    ],
)
def test_a_wrong_layer_of_gemma_scope_is_refused(
    changes: dict[str, Any], message: str, tmp_path: Path, numbers: Any
) -> None:
    file, _ = write_scope(tmp_path, numbers, **changes)
    with pytest.raises(SaeError, match=message):
        load_sae(file)

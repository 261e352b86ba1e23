"""Finding an SAE: local, on the hub, or nowhere; and the real ones that the project develops with."""

from pathlib import Path
from typing import Any

import pytest
import torch

from gradsae_fast.errors import SaeError
from gradsae_fast.sae import hub
from gradsae_fast.sae.canonical import Threshold, normalise_input
from gradsae_fast.sae.load import load_sae
from gradsae_fast.sae.reference import decode_dense, encode_dense


def test_the_files_of_a_folder_find_it_too(write_saelens: Any) -> None:
    folder = write_saelens("standard").folder
    digests = {
        load_sae(path).facts.digest for path in (folder, folder / "cfg.json", folder / "sae_weights.safetensors")
    }
    assert len(digests) == 1


def test_an_unknown_folder_is_described(tmp_path: Path, write_saelens: Any) -> None:
    write_saelens("standard")
    (tmp_path / "ae.pt").write_bytes(b"")
    with pytest.raises(SaeError, match=r"found ae\.pt, sae/ \(an SAE lies in sae: give that folder\)") as caught:
        load_sae(tmp_path)
    assert "SAELens folder: cfg.json + sae_weights.safetensors; Gemma Scope: params.npz" in str(caught.value)
    with pytest.raises(SaeError, match=r"the file ae\.pt"):
        load_sae(tmp_path / "ae.pt")
    (tmp_path / "empty").mkdir()
    with pytest.raises(SaeError, match="an empty folder"):
        load_sae(tmp_path / "empty")


@pytest.mark.parametrize("text", ["nowhere", "./no/such", "/no/such/folder", "a/../b", "org/"])
def test_what_is_neither_a_path_nor_a_hub_id_is_refused(
    text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SaeError, match="it is no hub id"):
        load_sae(text)


def test_a_revision_of_a_local_folder_is_refused(write_saelens: Any) -> None:
    with pytest.raises(SaeError, match="no effect"):
        load_sae(write_saelens("standard").folder, revision="main")


def test_a_hub_id_loads_the_named_folder(write_saelens: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_saelens("standard").folder
    asked: dict[str, Any] = {}

    def snapshot(repo: str, **options: Any) -> str:
        asked.update(options, repo=repo)
        return str(folder.parent)

    monkeypatch.setattr(hub, "snapshot_download", snapshot)
    sae = load_sae("org/repo/sae", revision="v1")
    assert (asked["repo"], asked["revision"], sae.facts.source) == ("org/repo", "v1", "org/repo/sae")
    assert "sae/cfg.json" in asked["allow_patterns"]
    assert not any("*" in pattern for pattern in asked["allow_patterns"])


@pytest.mark.parametrize(
    ("name", "asked"),
    [
        ("layer_3.safetensors", ["layer_3.safetensors", "config.yaml"]),
        ("W_enc_3.safetensors", ["W_enc_3.safetensors", "W_dec_3.safetensors", "config.yaml"]),
        ("params_layer_3.safetensors", ["params_layer_3.safetensors"]),
    ],
)
def test_a_file_that_is_named_after_a_layer_is_fetched_with_what_belongs_to_it(
    name: str, asked: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found: list[str] = []

    def snapshot(_repo: str, *, allow_patterns: list[str], **_options: Any) -> str:
        found.extend(allow_patterns)
        (tmp_path / "clt").mkdir()
        (tmp_path / "clt" / asked[-1]).write_text("feature_input_hook: hook_resid_mid")
        return str(tmp_path)

    monkeypatch.setattr(hub, "snapshot_download", snapshot)
    message = "not a whole safetensors file" if len(asked) == 1 else f"no file 'org/repo/clt/{name}'"
    with pytest.raises(SaeError, match=message):
        load_sae(f"org/repo/clt/{name}")
    assert found == [f"clt/{file}" for file in asked]


@pytest.mark.parametrize(("layer", "l0"), [(18, 32.0), (9, 32.0)])
def test_the_shared_saes_state_their_facts(layer: int, l0: float, shared_data: Path) -> None:
    sae = load_sae(shared_data / f"sae-smollm2-l{layer}-4k")
    facts = sae.facts
    assert (facts.architecture, facts.site, facts.prepend_bos) == ("jumprelu", f"model.layers.{layer}", False)
    assert facts.hook_name == f"blocks.{layer}.hook_resid_post"
    assert facts.published_l0 == pytest.approx(l0)
    assert (sae.num_latents, sae.d_in, facts.context_size) == (4096, 576, 128)
    assert facts.model_name == "HuggingFaceTB/SmolLM2-135M-Instruct"
    assert isinstance(sae.rule, Threshold)
    assert sae.rule.threshold_C.unique().numel() == 1
    # A hidden state at b_dec has nothing to explain: no encoder bias lifts a latent over the trained threshold.
    _, stats = normalise_input(sae, sae.b_dec_D[None])
    a_NC = encode_dense(sae, sae.b_dec_D[None])
    assert int((a_NC != 0).sum()) < 40
    assert torch.isfinite(decode_dense(sae, a_NC, stats)).all()

"""Loading a model: what is missing, truncated, incomplete or not finite is named."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer

from gradsae_fast.config import ModelConfig
from gradsae_fast.errors import ModelError
from gradsae_fast.model.load import load_model


@pytest.fixture
def folder(tmp_path: Path, tiny_model_folder: Path) -> Path:
    return Path(shutil.copytree(tiny_model_folder, tmp_path / "model"))


def rewrite(folder: Path, change: str, value: torch.Tensor | None) -> None:
    weights = load_file(folder / "model.safetensors")
    weights.pop(change)
    if value is not None:
        weights[change] = value
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def test_a_loaded_model_is_frozen_and_knows_its_parts(folder: Path) -> None:
    lm = load_model(ModelConfig(path=str(folder)))
    assert not any(parameter.requires_grad for parameter in lm.model.parameters())
    assert (lm.body_path, lm.layers_path, lm.width, lm.dtype) == ("model", "model.layers", 24, torch.float32)
    assert lm.max_context == 256


def test_the_digest_follows_the_weights(folder: Path) -> None:
    before = load_model(ModelConfig(path=str(folder))).digest
    assert load_model(ModelConfig(path=str(folder))).digest == before
    rewrite(folder, "model.norm.weight", torch.full((24,), 2.0))
    assert load_model(ModelConfig(path=str(folder))).digest != before


@pytest.mark.parametrize(
    "source", ["./nowhere", "nowhere/", "/models/nowhere", "models/of/nowhere", "../nowhere", "~/x"]
)
def test_a_path_where_nothing_is_is_said_to_be_one_and_no_hub_is_asked(
    source: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gradsae_fast.model.load.AutoTokenizer", None)
    with pytest.raises(
        ModelError, match=f"there is no local path '{source}', and it is no hub id .'org/model'.; expected"
    ):
        load_model(ModelConfig(path=source))


@pytest.mark.parametrize("source", ["MODEL", "org/model"])
def test_a_hub_id_that_cannot_be_had_is_said_to_be_no_local_path(source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_args: object, **_options: object) -> None:
        raise OSError("the hub cannot be reached")

    monkeypatch.setattr(AutoTokenizer, "from_pretrained", refuse)
    with pytest.raises(
        ModelError, match=f"'{source}', which is no local path, so that the hub was asked: the hub cannot"
    ):
        load_model(ModelConfig(path=source))


def test_a_truncated_weight_file_is_refused(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ModelError, match="cannot load"):
        load_model(ModelConfig(path=str(folder)))


def test_a_missing_weight_is_refused_and_never_made_up(folder: Path) -> None:
    rewrite(folder, "model.layers.1.mlp.up_proj.weight", None)
    with pytest.raises(ModelError, match=r"lacks 1 weights \(model\.layers\.1\.mlp\.up_proj\.weight"):
        load_model(ModelConfig(path=str(folder)))


def test_nan_in_a_weight_is_named(folder: Path) -> None:
    rewrite(folder, "model.norm.weight", torch.full((24,), float("nan")))
    with pytest.raises(ModelError, match=r"weight model\.norm\.weight contains NaN or Inf"):
        load_model(ModelConfig(path=str(folder)))


def test_an_architecture_that_is_no_causal_lm_is_refused(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "no_such_model"}))
    with pytest.raises(ModelError, match="cannot load"):
        load_model(ModelConfig(path=str(folder)))


@pytest.mark.parametrize("content", ["[]", "{", '{"model_type": "llama", "hidden_size": 25, "num_attention_heads": 3}'])
def test_a_configuration_that_makes_no_sense_is_refused(folder: Path, content: str) -> None:
    (folder / "config.json").write_text(content)
    with pytest.raises(ModelError, match="cannot load"):
        load_model(ModelConfig(path=str(folder)))


@pytest.mark.parametrize("device", ["gpu", "cuda:77", "meta"])
def test_a_device_that_is_not_there_is_refused(folder: Path, device: str) -> None:
    with pytest.raises(ModelError, match=f"device '{device}' cannot be used"):
        load_model(ModelConfig(path=str(folder), device=device))


def test_a_revision_of_a_folder_has_no_effect_and_is_refused(folder: Path) -> None:
    with pytest.raises(ModelError, match="revision 'main' has no effect"):
        load_model(ModelConfig(path=str(folder), revision="main"))


def test_attention_is_computed_as_it_is_asked_for(folder: Path) -> None:
    found = {
        name: load_model(ModelConfig(path=str(folder), attention=name)).model.config._attn_implementation
        for name in ("auto", "eager", "sdpa")
    }
    assert found == {"auto": "sdpa", "eager": "eager", "sdpa": "sdpa"}


def test_attention_that_is_not_installed_is_refused_by_name(folder: Path) -> None:
    with pytest.raises(ModelError, match="with attention 'flash_attention_2'"):
        load_model(ModelConfig(path=str(folder), attention="flash_attention_2"))

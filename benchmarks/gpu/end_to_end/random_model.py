"""Models of given sizes with random weights, made on the device: nothing is downloaded."""

import gc
from typing import Any

import torch
from transformers import AutoModelForCausalLM, Gemma2Config, LlamaConfig, PretrainedConfig

from benchmarks.gpu.end_to_end.lm_shape import LmShape
from gradsae_fast.model.load import LanguageModel, prepare_model

LLAMA_3_ROTATION = {
    "rope_type": "llama3",
    "rope_theta": 500_000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


def config_of(shape: LmShape) -> PretrainedConfig:
    """As transformers wants it: the published model's, but for the sizes."""
    match shape.family:
        case "Gemma 2":
            return _gemma_2(shape)
        case "Llama 3.1":
            return _llama_3_1(shape)


def _sizes(shape: LmShape) -> dict[str, Any]:
    return {
        "vocab_size": shape.vocabulary,
        "hidden_size": shape.width,
        "intermediate_size": shape.mlp_width,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "head_dim": shape.head_width,
        "pad_token_id": 0,
        "eos_token_id": 1,
        "bos_token_id": 2,
    }


def _gemma_2(shape: LmShape) -> PretrainedConfig:
    return Gemma2Config(
        **_sizes(shape),
        query_pre_attn_scalar=shape.head_width,
        sliding_window=4096,
        attn_logit_softcapping=50.0,
        final_logit_softcapping=30.0,
        max_position_embeddings=8192,
        rms_norm_eps=1e-6,
        tie_word_embeddings=True,
    )


def _llama_3_1(shape: LmShape) -> PretrainedConfig:
    return LlamaConfig(
        **_sizes(shape),
        max_position_embeddings=131_072,
        rms_norm_eps=1e-5,
        rope_parameters=dict(LLAMA_3_ROTATION),
        tie_word_embeddings=False,
    )


def random_model(shape: LmShape, device: torch.device, dtype: torch.dtype, attention: str | None = None) -> Any:
    """A model of transformers, made on the device; `attention` None: what transformers takes for this model."""
    torch.manual_seed(0)
    chosen = {} if attention is None else {"attn_implementation": attention}
    with torch.device(device):
        return AutoModelForCausalLM.from_config(config_of(shape), dtype=dtype, **chosen)


def random_lm(shape: LmShape, device: torch.device, dtype: torch.dtype, attention: str | None = None) -> LanguageModel:
    """The same, frozen and checked as every model that the engine loads. It has no tokenizer."""
    model = random_model(shape, device, dtype, attention)
    return prepare_model(model, None, source=f"random weights, {shape.name}", digest="random")


class LastModel:
    """The model that was asked for last; there is room for one. Call it with a shape."""

    def __init__(self, device: torch.device, attention: str | None) -> None:
        self.attention: dict[str, str] = {}  # model -> what it runs, of all models so far
        self._device, self._asked_for = device, attention
        self._shape: LmShape | None = None
        self._lm: LanguageModel | None = None

    def __call__(self, shape: LmShape) -> LanguageModel:
        """Made in bf16 unless it is there already."""
        if self._lm is None or self._shape != shape:
            self._lm = None
            gc.collect()
            self._lm, self._shape = random_lm(shape, self._device, torch.bfloat16, self._asked_for), shape
            self.attention[shape.name] = self._lm.model.config._attn_implementation
        return self._lm

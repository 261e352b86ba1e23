"""A tiny random language model with its tokenizer, SAEs for it and a corpus: the whole job in a second, offline."""

import json
import multiprocessing
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

if not torch.cuda.is_available():  # before anything imports triton: its kernels then run on CPU tensors
    os.environ.setdefault("TRITON_INTERPRET", "1")

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from gradsae_fast import config_from_tables
from gradsae_fast.config import ExtractConfig
from gradsae_fast.corpus.bos import TokenRules
from gradsae_fast.corpus.read import open_corpus
from gradsae_fast.corpus.tokens import tokenize
from gradsae_fast.corpus.windows import batch_windows, cut_windows
from gradsae_fast.model.load import LanguageModel, prepare_model
from gradsae_fast.records import Batch
from gradsae_fast.sae.formats import saelens
from gradsae_fast.sae.formats.saelens_config import KEYS
from tests.influences import TEXTS, MakeBatch

WIDTH, LAYERS, LATENTS = 24, 4, 48

SENTENCES = [
    "The state of the union is strong, and the people of the states are free.",
    "We must build roads and schools, for the children of this land.",
    "Peace abroad and work at home: that is our duty to the world.",
    "Année après année, the union grows; naïve hopes become laws.",
    "Taxes fall, farms grow, and the treasury keeps its promise to the people.",
]


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """Tiny matrices gain nothing from threads, and on a busy machine every barrier waits for a time slice."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def forkserver() -> Any:
    """Starts processes that have torch imported but have computed nothing: a run in a child costs about a second."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["gradsae_fast.extract", "transformers.models.llama.modeling_llama"])
    return context


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real text and real SAEs, where this machine has them."""
    folder = Path(os.environ.get("GRADSAE_SHARED_DATA", Path(__file__).parents[2] / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip("no shared data: set GRADSAE_SHARED_DATA")
    return folder


@pytest.fixture(scope="session")
def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE with a BOS of id 0."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=["<bos>", "<eos>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(SENTENCES, trainer)
    tokenizer.add_special_tokens([AddedToken("<user>", special=True)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<bos>", eos_token="<eos>")


@pytest.fixture(scope="session")
def tiny_model(tiny_tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tiny_tokenizer),
        hidden_size=WIDTH,
        intermediate_size=48,
        num_hidden_layers=LAYERS,
        num_attention_heads=3,
        num_key_value_heads=3,
        max_position_embeddings=256,
        initializer_range=0.3,
        bos_token_id=0,
        eos_token_id=1,
    )
    return LlamaForCausalLM(config)


@pytest.fixture(scope="session")
def tiny_lm(tiny_model: LlamaForCausalLM, tiny_tokenizer: PreTrainedTokenizerFast) -> LanguageModel:
    return prepare_model(tiny_model, tiny_tokenizer, source="tiny", digest="none")


@pytest.fixture(scope="session")
def tiny_model_folder(
    tmp_path_factory: pytest.TempPathFactory, tiny_model: LlamaForCausalLM, tiny_tokenizer: PreTrainedTokenizerFast
) -> Path:
    folder = tmp_path_factory.mktemp("model")
    tiny_model.save_pretrained(folder)
    tiny_tokenizer.save_pretrained(folder)
    return folder


WriteSae = Callable[..., Path]


@pytest.fixture
def write_sae(tmp_path: Path) -> WriteSae:
    """Write an SAE for the tiny model: its decoder is a noisy inverse of its encoder, so it reconstructs a little."""

    return partial(_write_sae, tmp_path)


@pytest.fixture(scope="session")
def tiny_sae_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The SAE that `write_sae()` writes, for stores that several tests read."""
    return _write_sae(tmp_path_factory.mktemp("sae"))


def _write_sae(
    folder: Path,
    architecture: str = "jumprelu",
    *,
    name: str = "sae",
    layer: int = 1,
    seed: int = 0,
    width: int = WIDTH,
    **config: Any,
) -> Path:
    generator = torch.Generator().manual_seed(seed)
    directions_CD = torch.randn(LATENTS, width, generator=generator)
    directions_CD /= directions_CD.norm(dim=1, keepdim=True)
    noise_CD = 0.1 * torch.randn(LATENTS, width, generator=generator)
    weights = {
        "W_enc": directions_CD.T.contiguous(),
        "W_dec": (directions_CD + noise_CD) * torch.linspace(0.3, 0.9, LATENTS)[:, None],
        "b_dec": 0.1 * torch.randn(width, generator=generator),
    }
    for key in KEYS[architecture]:
        weights.setdefault(key, 0.2 * torch.randn(LATENTS, generator=generator))
    if "threshold" in weights:
        weights["threshold"] = weights["threshold"].abs()
    metadata = {"hf_hook_name": f"model.layers.{layer}", "prepend_bos": True}
    options = {"k": 6} if "topk" in architecture else {}
    return saelens.save(
        folder / name,
        architecture=architecture,
        weights={key: tensor for key, tensor in weights.items() if key in KEYS[architecture]},
        config={**options, "metadata": metadata, **config},
    )


@pytest.fixture
def make_batch(tiny_tokenizer: PreTrainedTokenizerFast) -> MakeBatch:
    def make(
        texts: list[Any] = TEXTS, *, bos: bool = True, context_length: int = 40, overlap: int = 8, **columns: Any
    ) -> Batch:
        rules = TokenRules(prepend_bos=bos, bos_id=0)
        documents = tokenize(open_corpus(texts, **columns), tiny_tokenizer, rules)
        windows = [
            window
            for slot, document in enumerate(documents)
            for window in cut_windows(document, slot, context_length=context_length, overlap=overlap)
        ]
        return batch_windows(windows, tokens_per_batch=100_000)[0]

    return make


@pytest.fixture(scope="session")
def tiny_corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve documents of two parties and very different lengths, one of them empty."""
    rows = [
        {
            "id": f"doc-{index}",
            "text": " ".join(SENTENCES * (index % 4))[: 40 * index * index],
            "party": "RD"[index % 2],
        }
        for index in range(12)
    ]
    path = tmp_path_factory.mktemp("corpus") / "speeches.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


Configure = Callable[..., ExtractConfig]


@pytest.fixture
def configure(tmp_path: Path, tiny_model_folder: Path, tiny_corpus: Path, write_sae: Any) -> Configure:
    """A run over the tiny corpus; keyword arguments are tables that are merged into it."""

    def build(name: str = "scores", **tables: dict[str, Any]) -> ExtractConfig:
        base: dict[str, Any] = {
            "model": {"path": str(tiny_model_folder)},
            "sae": {"path": str(write_sae())},
            "corpus": {"path": str(tiny_corpus), "context_length": 64, "overlap": 16},
            "store": {"path": str(tmp_path / name)},
            "run": {"tokens_per_batch": 256, "threads": 1, "force": True},
        }
        for table, values in tables.items():
            base[table] = {**base.get(table, {}), **values} if isinstance(values, dict) else values
        return config_from_tables(base)

    return build

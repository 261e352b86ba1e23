"""A tiny byte-level tokenizer whose BOS has the id 0, built in memory."""

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

SPECIALS = ["<bos>", "<eos>"]


def build_tokenizer(*, bos: bool = True, adds_bos: bool = False) -> PreTrainedTokenizerFast:
    """All 256 bytes plus a few merges; with `adds_bos` it puts the BOS in front by itself, as Llama's does."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, trim_offsets=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=SPECIALS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(
        ["the union of the states and the people of the union, année après année"] * 4, trainer
    )
    tokenizer.add_special_tokens([AddedToken("<user>", special=True)])
    if adds_bos:
        tokenizer.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 0)])
    names = {"bos_token": "<bos>"} if bos else {}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>", model_max_length=16, **names)


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    return build_tokenizer()


@pytest.fixture(scope="session")
def tokenizer_adding_bos() -> PreTrainedTokenizerFast:
    return build_tokenizer(adds_bos=True)


@pytest.fixture(scope="session")
def tokenizer_without_bos() -> PreTrainedTokenizerFast:
    return build_tokenizer(bos=False)

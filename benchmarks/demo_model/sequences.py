"""Documents as token sequences: what both training scripts and the measurement read.

A sequence is BOS followed by `context - 1` consecutive tokens of one document; a document ends with EOS. Training
cuts a document at a fresh random offset each pass; measurement cuts it at fixed places, so that every token of a
document is predicted exactly once (the last sequence of a document may be shorter).
"""

from __future__ import annotations

import random
from collections.abc import Iterator

import torch
from tokenizers import Tokenizer

from benchmarks.demo_model.split import Address

BOS_ID = 0
EOS_ID = 1
MODERN_SINCE = 1930


def tokenise(tokenizer: Tokenizer, addresses: list[Address]) -> list[list[int]]:
    """Token ids of each address with EOS at the end, without BOS."""
    encodings = tokenizer.encode_batch([address.text for address in addresses], add_special_tokens=False)
    return [[*encoding.ids, EOS_ID] for encoding in encodings]


def repeats(addresses: list[Address], modern: int) -> list[int]:
    """How often each address is read in one pass: `modern` times since 1930, once before."""
    return [modern if address.year >= MODERN_SINCE else 1 for address in addresses]


def one_pass(documents: list[list[int]], times: list[int], context: int, rng: random.Random) -> list[list[int]]:
    """Full-length sequences of one pass over the documents, cut at random offsets, shuffled."""
    body = context - 1
    sequences = []
    for document, count in zip(documents, times, strict=True):
        for _ in range(count):
            first = rng.randrange(body)
            starts = [*range(first, len(document) - body, body), len(document) - body]
            sequences += [[BOS_ID, *document[start : start + body]] for start in starts if start >= 0]
    rng.shuffle(sequences)
    return sequences


def training_batches(
    documents: list[list[int]], times: list[int], *, context: int, batch: int, seed: int
) -> Iterator[torch.Tensor]:
    """Endless `[batch, context]` token batches, pass after pass."""
    rng = random.Random(seed)
    while True:
        sequences = one_pass(documents, times, context, rng)
        for start in range(0, len(sequences) - batch + 1, batch):
            yield torch.tensor(sequences[start : start + batch])


def windows(document: list[int], context: int) -> list[list[int]]:
    """The document cut once, in order: each window is BOS plus up to `context - 1` tokens."""
    body = context - 1
    return [[BOS_ID, *document[start : start + body]] for start in range(0, len(document), body)]


def equal_length_batches(sequences: list[list[int]], batch: int) -> Iterator[torch.Tensor]:
    """`[<= batch, T]` tensors without padding: sequences of one length share a batch, order kept inside a length."""
    by_length: dict[int, list[list[int]]] = {}
    for sequence in sequences:
        by_length.setdefault(len(sequence), []).append(sequence)
    for group in by_length.values():
        for start in range(0, len(group), batch):
            yield torch.tensor(group[start : start + batch])

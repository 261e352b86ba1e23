"""Documents of random tokens, nearly as long as a window, and the batches that the engine makes of them."""

from dataclasses import dataclass

import numpy as np

from gradsae_fast.corpus.windows import batch_windows, cut_windows
from gradsae_fast.records import Batch, Document, TokenDocument

SHORTEST = 0.96  # of a document, as a share of the longest
FIRST_ID = 3  # ids below mean padding, beginning and end


@dataclass(frozen=True, slots=True, kw_only=True)
class Corpus:
    """How many documents, of how many tokens at most, and how many tokens a batch may have."""

    documents: int
    document_tokens: int
    tokens_per_batch: int


FULL = Corpus(documents=8, document_tokens=2048, tokens_per_batch=16_384)
SMALL = Corpus(documents=8, document_tokens=32, tokens_per_batch=128)


def random_document(index: int, num_tokens: int, vocabulary: int) -> TokenDocument:
    """One that is the same for the same arguments; no BOS, no special token."""
    ids_T = np.random.default_rng(index).integers(FIRST_ID, vocabulary, num_tokens).astype(np.int32)
    nowhere_T = np.zeros(num_tokens, np.int32)
    return TokenDocument(
        document=Document(key=f"random {index}", text="", source="random", row=index, metadata={}),
        index=index,
        token_ids=ids_T,
        char_start=nowhere_T,
        char_end=nowhere_T,
        special=np.zeros(num_tokens, bool),
        num_bos=0,
    )


def random_batches(corpus: Corpus, vocabulary: int, tokens_per_batch: int) -> list[Batch]:
    """The whole corpus; the documents do not depend on the batches."""
    shortest = int(SHORTEST * corpus.document_tokens)
    lengths = np.linspace(corpus.document_tokens, shortest, corpus.documents).astype(int).tolist()
    windows = [
        window
        for index, length in enumerate(lengths)
        for window in cut_windows(
            random_document(index, length, vocabulary), index, context_length=corpus.document_tokens, overlap=0
        )
    ]
    return batch_windows(windows, tokens_per_batch=tokens_per_batch)
